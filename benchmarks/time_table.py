"""What the frames before add, summed up from the films: ``benchmarks/time.json``.

``python -m benchmarks.time_table`` in the checkout reads the ``video_*.json`` of both recurrent
models. Gains are means over films, frames 4 to the last, dB over the better of the model without
its past and ``difiisr-rt-x4``; ``least`` is that of one film.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from difiisr_models.files import read_text, write_json

ROOT = Path(__file__).parent
MODELS = {"difiisr-rtv-x4": "", "difiisr-rtv-s-x4": "_small"}
SINGLE, PEERS = "difiisr-rt-x4", ("safmn", "rlfn")
MOVING = "drone_ir"  # in the names of recordings whose camera moves; it stands in the others
FIRST, PARTS = 3, ((3, 20), (20, 35), (35, 50))  # frames, counted from 0

Films = dict[str, dict[str, dict[str, Any]]]
"""Film -> model -> what was measured, at one noise."""


def films_of(name: str) -> dict[str, Films]:
    """Noise, as "1" -> the films of ``video_NAME.json``."""
    found: dict[str, Films] = {}
    for one in json_of(ROOT / f"video_{name}.json")["films"]:
        by_film = found.setdefault(f"{one['noise']:g}", {})
        by_film.setdefault(one["film"], {})[one["model"]] = one
    return found


def json_of(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(read_text(path))


def gains(
    films: Films, model: str, over: tuple[str, ...], part: tuple[int, int | None]
) -> np.ndarray:
    """``(films,)`` dB of the model's mean over the best of the others', in a part of the frames."""

    def mean(by: dict[str, Any], name: str) -> float:
        return float(np.mean(by[name]["psnr"][slice(*part)]))

    every = films.values()
    return np.array([mean(by, model) - max(mean(by, name) for name in over) for by in every])


def summary(model: str, kind: str) -> dict[str, Any]:
    """Of one model, by noise."""
    known = (f"{model}, alone", SINGLE)
    found: dict[str, Any] = {}
    for name in ("pans", "recordings"):
        for noise, films in films_of(name + kind).items():
            part, row = (FIRST, None), found.setdefault(noise, {})
            over = gains(films, model, known, part)
            row[name] = {"gain": over.mean(), "least": over.min()}
            row[name]["first"] = gains(films, model, (SINGLE,), (0, 1)).mean()
            if name == "recordings":
                row[name]["moving"] = over[[MOVING in film for film in films]].mean()
            if all(peer in by for peer in PEERS for by in films.values()):
                peers = gains(films, model, PEERS, part)
                row[name] |= {"over_peers": peers.mean(), "least_over_peers": peers.min()}
                if name == "recordings":
                    moving = peers[[MOVING in film for film in films]]
                    row[name]["moving_over_peers"] = moving.mean()
            name_of_int8 = f"{model}@precision=int8"
            if all(name_of_int8 in by for by in films.values()):
                coarse = gains(films, name_of_int8, (model,), part)
                row[name]["int8"] = {"loss": -coarse.mean(), "most": -coarse.min()}
    for noise, films in films_of("hot_object" + kind).items():
        wakes = [np.mean([by[name]["wake"] for by in films.values()]) for name in (model, known[0])]
        found[noise]["wake"] = {"with": wakes[0], "without": wakes[1]}
    if not kind:
        for noise, films in films_of("pans_long").items():
            parts = [gains(films, model, known, part).mean() for part in PARTS]
            found[noise]["long"] = parts
    return found


if __name__ == "__main__":
    write_json(ROOT / "time.json", {name: summary(name, kind) for name, kind in MODELS.items()})
