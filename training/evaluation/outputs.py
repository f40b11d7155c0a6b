"""Results of a method that does not run here: a folder of its output images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from difiisr_models.resample import SCALE
from difiisr_training.data.images import list_images, read_counts
from difiisr_training.evaluation.inputs import name_images
from difiisr_training.evaluation.results import slug

_SHOWN = 5


@dataclass(frozen=True)
class OutputFolder:
    """Output images of one method: ``--outputs NAME=DIR``.

    Attributes:
        name: in tables.
        folder: holds an image per frame, named as the frame is (as the files of
            ``OUT/frames/SET/lr``); those of a set may lie in a folder of its name.
    """

    name: str
    folder: Path

    @classmethod
    def parse(cls, text: str) -> OutputFolder:
        """Read ``"CoRPLE=results/corple"``.

        Raises:
            ValueError: no name or no folder in it.
        """
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"{text!r}: write --outputs NAME=DIR")
        return cls(name, Path(folder).expanduser())

    def images(
        self, set_name: str, frames: Sequence[str], sizes: Sequence[tuple[int, int]]
    ) -> dict[str, Path]:
        """The image of each frame.

        Args:
            set_name: the set.
            frames: names of its frames.
            sizes: of its low-resolution frames, ``(h, w)``.

        Raises:
            FileNotFoundError: no such folder, or frames without an image.
            ValueError: images that are not four times as large as their frame.
        """
        own = self.folder / slug(set_name)
        folder = own if own.is_dir() else self.folder
        paths = list_images(folder)
        found = dict(zip(name_images(paths, folder), paths, strict=True))
        if missing := [name for name in frames if name not in found]:
            raise FileNotFoundError(
                f"{self.name}: {folder} has no image for {len(missing)} of {len(frames)} frames of "
                f"{set_name}: {_listed(missing)}; it has {_listed(sorted(found))}"
            )
        wrong = []
        for name, (height, width) in zip(frames, sizes, strict=True):
            with Image.open(found[name]) as image:
                if image.size != (width * SCALE, height * SCALE):
                    wrong.append(
                        f"{found[name].name} is {image.width}x{image.height}, wanted "
                        f"{width * SCALE}x{height * SCALE}"
                    )
        if wrong:
            raise ValueError(f"{self.name}: {len(wrong)} images of a wrong size: {_listed(wrong)}")
        return {name: found[name] for name in frames}


def read_output(path: Path, dtype: np.dtype) -> np.ndarray:
    """Read an output image in the counts of its frame.

    Raises:
        ValueError: the image has another depth than the frame: its counts mean something else.
    """
    counts = read_counts(path)
    if counts.dtype != dtype:
        raise ValueError(
            f"{path} holds {counts.dtype.name}, its frame {np.dtype(dtype).name}; write the "
            "outputs in the counts of the input"
        )
    return counts


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over the bytes of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
