"""The numbers of README and docs are those of the JSON files that a comment beside them names.

``number <!-- benchmarks/FILE.json#/a/b -->`` is the value at a JSON pointer. In a table after
``<!-- benchmarks/FILE.json#/a/ROW/COLUMN -->`` each cell holds the values where ROW and COLUMN are
the comments (else the texts) of its row's first cell and of its column's head. A part of a pointer
may be several keys, ``psnr,ssim``; an entry of a list is found by its index, its ``name``, or by
``key=value;key=value``. ``* 1000`` or ``* 1e-9`` after a pointer gives the unit; ``/`` in a key
is ``~1``.
"""

import json
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import time_table
from difiisr_models import load_upscaler
from difiisr_models.compact import PAST_PLANES, parameter_count
from difiisr_models.files import json_text
from difiisr_models.model_loading import load_parts
from difiisr_training.data.images import read_counts

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for pattern in (
    "README.md", "docs/*.md", "config/models/*/README.md"
) for page in ROOT.glob(pattern))  # fmt: skip
COMMENT = re.compile(r"<!-- (benchmarks/\S+\.json)#/(.*?)(?: \* ([\de-]+))? -->")
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?:^|(?<=\s))-(?=\s|$)")
HIDDEN = re.compile(r"<!-- ?(.*?) -->")
BARE = re.compile(r"\d\s(?:dB|ms)\b")
NOT_MEASURED = (
    "The aim, 0.3 dB above both",
    "where bicubic is above 36 dB",
    "node without network at most 10 ms",
    "20 log10(255/219) = 1.32 dB",
)
ANOTHER_DRAW = 0.0005
"""Of docs/algorithm.md: mean change of a result of one step by the drawn noise, on [-1, 1]."""


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
    return [value if value is None else value * float(factor or 1) for value in flat]


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


@pytest.mark.parametrize("page", PAGES)
def test_decibels_and_milliseconds_name_their_file(page):
    text = (ROOT / page).read_text()
    for aim_or_definition in NOT_MEASURED:
        text = text.replace(aim_or_definition, "")
    assert not (found := [text[: m.end()][-60:] for m in BARE.finditer(text)]), found


def test_a_wrong_number_is_found():
    where = "benchmarks/reference_cost.json#/models/difiisr-rt-x4"
    assert not faults(f"479,136 <!-- {where}/parameters --> weights")
    assert len(faults(f"479,137 <!-- {where}/parameters --> weights")) == 1
    table = f"<!-- {where}/ROW/COLUMN -->\n\n| | total |\n|---|---|\n| gflop | %s |\n"
    assert not faults(table % "3.5")
    assert len(faults(table % "3.6")) == len(faults(table % "-")) == 1


@pytest.mark.parametrize("column", [1, 2, 3])
def test_cards_and_the_page_of_models_say_what_a_network_costs(column):
    page = (ROOT / "docs" / "models.md").read_text().splitlines()
    rows = {cells[0]: cells[column] for cells in map(cells_of, page) if len(cells) == 4}
    name = rows[""].strip("`")
    network, x = load_parts(name).network, torch.zeros(1, 16, 64, 64)
    past = [torch.zeros(1, PAST_PLANES, 64, 64)] if network.config.recurrent else []
    with FlopCounterMode(display=False) as counter:
        network(x, x, x[:, :1], torch.zeros(1).long(), torch.ones(1), *past)
    parameters = f"{parameter_count(network):,}"
    gflop = f"{counter.get_total_flops() / 1e9:.2g}"
    assert (rows["Parameters"], rows["GFLOP, 64x64 -> 256x256"]) == (parameters, gflop)
    card = (ROOT / "config" / "models" / name / "README.md").read_text()
    assert f"{parameters} parameters, {gflop} GFLOP for 64x64 -> 256x256" in " ".join(card.split())


def test_what_time_gains_is_that_of_the_films():
    for model, kind in time_table.MODELS.items():
        found = time_table.summary(model, kind)
        assert json.loads(json_text(found)) == content("benchmarks/time.json")[model]


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
    for page in ("README.md", "docs/benchmarks.md"):
        blocks = (ROOT / page).read_text().split("\n\n")
        unnamed = [
            block for before, block in pairwise(blocks)
            if block.startswith("|") and len(re.findall(r"\d\.\d", block)) > 6
            and not COMMENT.search(before + block)
        ]  # fmt: skip
        assert not unnamed, "\n\n".join(unnamed)
