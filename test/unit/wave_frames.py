"""Image files, as given or of smooth waves."""

import numpy as np
from PIL import Image


def save_image(path, pixels):
    """An image file, and the folders that it is to lie in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_waves(folder, count, shape=(128, 160), slower=0):
    """``0.png``, ``1.png``, ...: 8 bit, each of other waves."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    for i in range(count):
        waves = 127 + 120 * np.sin(x / (3 + i + slower)) * np.cos(y / (5 - i + slower))
        save_image(folder / f"{i}.png", waves.astype(np.uint8))
