"""The numbers of README and docs are those of the JSON files that a comment beside them names.

``number <!-- benchmarks/FILE.json#/a/b -->`` is the value at a JSON pointer. In a table after
``<!-- benchmarks/FILE.json#/a/ROW/COLUMN -->`` each cell holds the values where ROW and COLUMN are
the comments (else the texts) of its row's first cell and of its column's head. A part of a pointer
may be several keys, ``psnr,ssim``; an entry of a list is found by its index, its ``name``, or by
``key=value;key=value``. ``* 1000`` after a pointer gives the unit, ``/`` in a key is ``~1``.
"""

import json
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from difiisr_models import load_upscaler
from difiisr_training.data.images import read_counts

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/benchmarks.md", "docs/algorithm.md", "docs/training.md"]
COMMENT = re.compile(r"<!-- (benchmarks/\S+\.json)#/(.*?)(?: \* (\d+))? -->")
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?:^|(?<=\s))-(?=\s|$)")
HIDDEN = re.compile(r"<!-- ?(.*?) -->")
ANOTHER_DRAW = 0.0005
"""Of docs/algorithm.md: mean change of a result of one step by the drawn noise, on [-1, 1]."""
TABLES_WITHOUT_NUMBERS_OF_JSON = 1
"""Of docs/benchmarks.md: the targets, most of them ratios of what other tables have."""


@lru_cache
def content(file):
    return json.loads((ROOT / file).read_text())


def entry(value, key):
    """One step of a pointer."""
    key = key.replace("~1", "/")
    if isinstance(value, dict):
        return value[key]
    if key.isdigit():
        return value[int(key)]
    wanted = [part.split("=") for part in (key if "=" in key else f"name={key}").split(";")]
    (found,) = [one for one in value if all(str(one[k]) == v for k, v in wanted)]
    return found


def values_at(file, pointer, factor):
    found = [content(file)]
    for part in pointer.split("/"):
        found = [entry(value, key) for value in found for key in part.split(",")]
    flat = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return [value if value is None else value * int(factor or 1) for value in flat]


def agrees(shown, value):
    if shown == "-" or value is None:
        return shown == "-" and value is None
    rounding = 0.5 * 10.0 ** -len(shown.partition(".")[2])
    return abs(float(shown.replace(",", "")) - value) <= rounding * (1 + 1e-9)


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def key_of(cell):
    hidden = HIDDEN.search(cell)
    return hidden[1] if hidden else cell


def claims(text):
    """``(line number, shown numbers, file, pointer, factor)`` of all that names a file."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        for found in COMMENT.finditer(line):
            file, pointer, factor = found.groups()
            if "ROW" not in pointer:
                shown = NUMBER.findall(HIDDEN.sub("", line[: found.start()]))[-1:]
                yield place + 1, shown, file, pointer, factor
                continue
            first = next(i for i in range(place + 1, len(lines)) if lines[i].startswith("|"))
            _, *head = map(key_of, cells_of(lines[first]))
            for row in range(first + 2, len(lines)):
                if not lines[row].startswith("|"):
                    break
                name, *cells = cells_of(lines[row])
                for column, cell in zip(head, cells, strict=True):
                    if not cell:
                        continue
                    path = pointer.replace("ROW", key_of(name)).replace("COLUMN", column)
                    shown = NUMBER.findall(HIDDEN.sub("", cell))
                    yield row + 1, shown, file, path, factor


def faults(text):
    found = []
    for line, shown, file, pointer, factor in claims(text):
        values = values_at(file, pointer, factor)
        if len(shown) != len(values) or not all(map(agrees, shown, values)):
            found.append(f"line {line}: {shown} is said, {values} in {file}#/{pointer}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_numbers_are_those_of_the_benchmarks(page):
    assert not (found := faults((ROOT / page).read_text())), "\n".join(found)


def test_a_wrong_number_is_found():
    where = "benchmarks/reference_cost.json#/models/difiisr-rt-x4"
    assert not faults(f"479,136 <!-- {where}/parameters --> weights")
    assert len(faults(f"479,137 <!-- {where}/parameters --> weights")) == 1
    table = f"<!-- {where}/ROW/COLUMN -->\n\n| | total |\n|---|---|\n| gflop | %s |\n"
    assert not faults(table % "3.5")
    assert len(faults(table % "3.6")) == len(faults(table % "-")) == 1


def test_another_draw_changes_next_to_nothing():
    frame = read_counts(ROOT / "docs" / "before_after.png")[:64, :64].astype(np.float32) / 127.5 - 1
    for fidelity in (1.0, 0.0):
        first, second = (
            load_upscaler("difiisr-rt-x4", backend="torch", fidelity=fidelity, seed=seed)(frame)
            for seed in (0, 1)
        )
        assert 0 < np.abs(first - second).mean() < ANOTHER_DRAW


def test_more_steps_of_a_compact_model_warn(caplog):
    up = load_upscaler("difiisr-rt-x4", backend="torch")
    assert not caplog.records
    up.change(steps=2)
    assert "a compact model is a regression at one step" in caplog.text


def test_tables_of_measured_numbers_name_their_file():
    for page, free in (("README.md", 0), ("docs/benchmarks.md", TABLES_WITHOUT_NUMBERS_OF_JSON)):
        blocks = (ROOT / page).read_text().split("\n\n")
        unnamed = [
            block for before, block in pairwise(blocks)
            if block.startswith("|") and len(re.findall(r"\d\.\d", block)) > 6
            and not COMMENT.search(before + block)
        ]  # fmt: skip
        assert len(unnamed) == free, "\n\n".join(unnamed)
