"""What a training run leaves in its folder, and the weights that come of it.

A run folder holds one checkpoint, replaced as a whole, and journals of JSON lines; both are gone on
with when the run is continued.
"""

from __future__ import annotations

import json
import signal
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.files import replaced
from difiisr_models.model_loading import load_parts, save_compact, save_published_unet
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig

CHECKPOINT_NAME = "checkpoint.pt"
STATISTICS_NAME = "statistics.jsonl"
VALIDATION_NAME = "validation.jsonl"


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file as a whole: a crash, or an OSError, leaves the old one.

    ``content``: state dicts and plain data, see ``train.TrainState``.
    """
    with replaced(path) as beside:
        try:
            torch.save(content, beside)
        except RuntimeError as error:  # what torch makes of an OSError
            reason = str(error).partition("\n")[0]
            raise OSError(f"{path} cannot be written (is the disk full?): {reason}") from error


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


def load_average(path: Path) -> tuple[dict[str, Any], nn.Module, int]:
    """Settings, moving average and iteration of a run's checkpoint, read as ``read_checkpoint``."""
    saved = read_checkpoint(path)
    settings = saved["config"]
    if settings.get("published"):
        network: nn.Module = SwinUNet(SwinUNetConfig(**settings["published"]))
    else:
        network = CompactNetwork(CompactConfig(**settings["network"]))
    network.load_state_dict(saved["ema"])
    return settings, network.requires_grad_(False), saved["iteration"]


def starting_weights(folder: Path) -> Any:
    """Network of a run folder (its moving average) or of a weights folder of the same schedule."""
    if (folder / CHECKPOINT_NAME).is_file():
        return load_average(folder / CHECKPOINT_NAME)[1]
    parts, own = load_parts(str(folder)), exponential_schedule()
    if not np.array_equal(parts.schedule.eta, own.eta):
        raise ValueError(
            f"{folder} was trained with {parts.schedule.steps} other noise levels than the "
            f"{own.steps} of a run here: its steps mean something else"
        )
    return parts.network


def export_run(
    run: Path,
    folder: Path,
    published: Path | None = None,
    refine: Callable[[Any], object] = lambda network: None,
    sibling: CompactNetwork | None = None,
) -> None:
    """Write the moving average of a run's checkpoint as a weights folder.

    Args:
        run: the run's folder.
        folder: what is written.
        published: where a published network's autoencoder comes from.
        refine: is called on the network before.
        sibling: makes the first frames of a recurrent network, if it has the same sizes.
    """
    settings, network, iteration = load_average(run / CHECKPOINT_NAME)
    refine(network)
    name, *_ = (settings.pop(key, None) for key in ("name", "network", "published"))
    card = {"name": name, "training": settings | {"iterations": iteration}}
    if isinstance(network, CompactNetwork):
        if sibling and replace(network.config, recurrent=False) != sibling.config:
            sibling = None
        save_compact(network, folder, card, sibling)
    else:
        assert isinstance(network, SwinUNet), type(network)
        assert published is not None, "its autoencoder is not trained"
        save_published_unet(network, published, folder, card)
