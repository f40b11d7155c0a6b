"""Frames of smooth waves in image files, for tests of training."""

import numpy as np
from PIL import Image


def write_waves(folder, count, shape=(128, 160), slower=0):
    """``0.png``, ``1.png``, ...: 8 bit, each of other waves."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for i in range(count):
        waves = 127 + 120 * np.sin(x / (3 + i + slower)) * np.cos(y / (5 - i + slower))
        Image.fromarray(waves.astype(np.uint8)).save(folder / f"{i}.png")
