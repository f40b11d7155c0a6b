"""What any training loop here needs around its steps: checkpoint, journal, moving average, Ctrl-C.

A run folder holds one checkpoint, replaced as a whole, and journals of JSON lines; both are gone on
with when the run is continued.
"""

from __future__ import annotations

import json
import math
import signal
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difiisr_models.files import replaced

CHECKPOINT_NAME = "checkpoint.pt"
STATISTICS_NAME = "statistics.jsonl"
VALIDATION_NAME = "validation.jsonl"


def save_checkpoint(
    path: Path, settings: Mapping[str, Any], parts: Mapping[str, Any], **values: Any
) -> None:
    """Replace the file as a whole: a crash, or an OSError, leaves the old one.

    Args:
        path: file to write.
        settings: of the run, plain data; under ``"config"`` in the file.
        parts: networks, optimisers and the like; each one's ``state_dict()`` is under its name.
        values: numbers, tensors or plain data, e.g. ``iteration``.
    """
    states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
    with replaced(path) as beside:
        try:
            torch.save({"config": dict(settings), **states, **values}, beside)
        except RuntimeError as error:  # what torch makes of an OSError
            reason = str(error).partition("\n")[0]
            raise OSError(f"{path} cannot be written (is the disk full?): {reason}") from error


def load_checkpoint(
    path: Path,
    settings: Mapping[str, Any],
    parts: Mapping[str, Any],
    completed: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> dict[str, Any]:
    """Restore ``parts`` in place from what :func:`save_checkpoint` wrote; returns the whole file.

    ``completed`` gives the settings of an older file those that are new since. ValueError: the file
    is damaged, or was written with other settings, which the text names.
    """
    saved = read_checkpoint(path)
    theirs = completed(saved["config"])
    if differing := sorted(key for key in settings if theirs.get(key) != settings[key]):
        raise ValueError(
            f"{path} was trained with other settings for {', '.join(differing)}; "
            "use another run folder, or --init to start from its weights"
        )
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(saved[name])
    return saved


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, on the CPU; no code in the file is run. ValueError: damaged."""
    try:
        refuse_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what a crafted file makes torch raise is not specified
        reason = str(error).partition("\n")[0]  # further lines are advice to programmers
        raise ValueError(f"{path} is damaged: {reason}") from error


def refuse_bomb(path: Path) -> None:
    """Raise ValueError for a compressed archive: ``torch.save`` writes none; it may be a bomb."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never writes it")


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, decay: float, iteration: float) -> None:
    """ema <- decay ema + (1 - decay) network; buffers of integers are copied.

    The memory is shorter in the first iterations: ``iteration`` counts from 0, infinity for the
    full memory from the start.
    """
    if not math.isinf(iteration):
        decay = min(decay, (1 + iteration) / (10 + iteration))
    values = network.state_dict()
    for name, average in ema.state_dict().items():
        if average.is_floating_point():
            average.lerp_(values[name], 1 - decay)
        else:
            average.copy_(values[name])


class StopOnSignal:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into ``requested``; a second one acts as usual.

    Attributes:
        requested: number of the signal, 0 before any.
    """

    requested = 0

    def __enter__(self) -> StopOnSignal:
        signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
            signals.pop()
        self._previous = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        self.requested = number
        self.__exit__()


def write_journal(run: Path, name: str, iteration: int, values: Mapping[str, Any]) -> None:
    """Append a JSON line to the file ``name`` of a run, e.g. :data:`STATISTICS_NAME`."""
    path = run / name
    # What a power failure cut short must not swallow this line too.
    cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps({"iteration": iteration, **values}) + "\n")


def read_journal(run: Path, name: str) -> list[dict[str, float]]:
    """Lines of one file of a run, one per iteration; those that a resumed run repeats, once.

    A line cut short, as a power failure leaves it, is left out; no file is an empty list.
    """
    path, lines = run / name, {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            lines[line["iteration"]] = line
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
    return list(lines.values())
