"""Draws docs/before_after.png: a real infrared frame, a quarter of it, bicubic, and ours, zoomed.

``python -m benchmarks.readme_picture IMAGE --window ROW COLUMN SIDE`` in the checkout.
"""

from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from difiisr_models import load_upscaler

MODEL = "difiisr-rt-x4"


def draw(
    image: Path,
    *,
    window: tuple[int, int, int],
    out: Path = Path("docs/before_after.png"),
    source: Annotated[str, cyclopts.Parameter(help="whose picture it is")] = "HIT-UAV, CC BY 4.0",
) -> None:
    """Draw the strip; ``window``: row, column and side in high-resolution pixels."""
    hr = np.asarray(Image.open(image).convert("L"))
    hr = hr[: len(hr) // 4 * 4, : hr.shape[1] // 4 * 4]
    height, width = hr.shape
    lr = np.asarray(Image.fromarray(hr).resize((width // 4, height // 4), Image.Resampling.BICUBIC))
    row, column, side = window
    place = (slice(row, row + side), slice(column, column + side))
    shown = {
        f"camera, {width // 4}x{height // 4}": np.kron(lr, np.ones((4, 4), np.uint8))[place],
        "bicubic x4": load_upscaler("bicubic")(lr)[place],
        f"{MODEL} x4": load_upscaler(MODEL, backend="torch")(lr)[place],
        "what was there": hr[place],
    }
    figure = Figure(figsize=(15, 3.3), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[width / height, 1, 1, 1, 1])
    axes[0].imshow(hr, cmap="gray")
    axes[0].add_patch(Rectangle((column, row), side, side, fill=False, color="tab:orange"))
    axes[0].set_title(source, fontsize=9)
    for axis, (title, picture) in zip(axes[1:], shown.items(), strict=True):
        axis.imshow(picture, cmap="gray", vmin=hr[place].min(), vmax=hr[place].max())
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    cyclopts.run(draw)
