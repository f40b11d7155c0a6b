"""The numbers of a run: JSON lines beside the checkpoint and, if asked for, TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

STATISTICS_NAME = "statistics.jsonl"
VALIDATION_NAME = "validation.jsonl"


class Journal:
    """Appends to the files of a run folder; a continued run goes on in them."""

    def __init__(self, run: Path, tensorboard: bool = False) -> None:
        """``tensorboard``: also write event files to ``run/tensorboard``.

        Raises:
            ModuleNotFoundError: TensorBoard is asked for and not installed.
        """
        self._run, self._events = run, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ModuleNotFoundError(
                    "TensorBoard is not installed: pip install tensorboard, or leave --tensorboard"
                ) from error
            self._events = SummaryWriter(str(run / "tensorboard"))

    def write(self, name: str, iteration: int, values: dict[str, float]) -> None:
        """Append one line to the file ``name``, e.g. :data:`STATISTICS_NAME`."""
        path = self._run / name
        # What a power failure cut short must not swallow this line too.
        cut = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut + json.dumps({"iteration": iteration, **values}) + "\n")
        if self._events is not None:
            for key, value in values.items():
                self._events.add_scalar(f"{Path(name).stem}/{key}", value, iteration)
            self._events.flush()


def read_journal(run: Path, name: str) -> list[dict[str, float]]:
    """Lines of one file of a run, one per iteration; those that a resumed run repeats, once.

    A line cut short, as a power failure leaves it, is left out.

    Returns:
        An empty list where there is no such file.
    """
    path = run / name
    if not path.is_file():
        return []
    lines = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            lines[line["iteration"]] = line
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
    return list(lines.values())
