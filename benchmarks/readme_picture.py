"""Draws the pictures of the README, in the checkout.

``python -m benchmarks.readme_picture strip IMAGE --window ROW COLUMN SIDE --detector FILE.onnx``:
docs/before_after.png, a real infrared frame, a quarter of it, bicubic, and ours, zoomed, and what a
detector of ``difiisr train-detector`` finds in each of them. Shown is test/0_80_40_0_06933.jpg of
HIT-UAV at 215 150 240; the detector was trained for 700 iterations on its training frames.
``python -m benchmarks.readme_picture stream``: docs/stream.gif, the demo's pan through its camera.
"""

from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from difiisr_models import Stream, load_upscaler
from difiisr_ros.scene import FRAME_RATE, Scene
from difiisr_training.data.images import crop_to_multiple
from difiisr_training.degradations import pillow_resize
from difiisr_training.evaluation.readers import OnnxDetector

MODEL, OVER_TIME = "difiisr-rt-x4", "difiisr-rtv-x4"
SURE = 0.3  # of an object that is drawn
COLOURS = "cyan", "orange", "lime", "magenta"  # person, car, bicycle, other vehicle
app = cyclopts.App()


@app.command
def stream(*, frames: int = 24, out: Path = Path("docs/stream.gif")) -> None:
    """Draw the pan: camera, bicubic, a model that knows one frame, and one that knows the past."""
    scene, film = Scene(), []
    lo, hi = np.quantile(scene.frame(0), (0.002, 0.998))
    models = {
        "bicubic": load_upscaler("bicubic"),
        "one frame": load_upscaler(MODEL, backend="torch"),
        "all frames so far": load_upscaler(OVER_TIME, backend="torch"),
    }
    streams = {name: Stream() for name in models}
    for number in range(frames):
        counts = scene.frame(number)
        shown = {"camera, 128x96": np.kron(counts, np.ones((4, 4), np.uint16))}
        shown |= {name: up(counts, streams[name]) for name, up in models.items()}
        grey = np.hstack([image[96:288, 128:384] for image in shown.values()])
        grey = ((grey.astype(np.float64) - lo) / (hi - lo) * 255).clip(0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
        for place, title in enumerate(shown):
            ImageDraw.Draw(picture).text(
                (256 * place + 6, 4), title, fill=255, stroke_width=2, stroke_fill=0
            )
        film.append(picture.quantize(32))
    duration = round(1000 / FRAME_RATE)
    film[0].save(out, save_all=True, append_images=film[1:], duration=duration, loop=0)


@app.command(name="strip")
def draw(
    image: Path,
    *,
    window: tuple[int, int, int],
    out: Path = Path("docs/before_after.png"),
    source: Annotated[str, cyclopts.Parameter(help="whose picture it is")] = "HIT-UAV, CC BY 4.0",
    detector: Path | None = None,
) -> None:
    """Draw the strip; ``window``: row, column and side in high-resolution pixels."""
    hr = crop_to_multiple(np.asarray(Image.open(image).convert("L")), 4)
    height, width = hr.shape
    lr = pillow_resize(hr, height // 4, width // 4)
    row, column, side = window
    shown = {
        f"camera, {width // 4}x{height // 4}": np.kron(lr, np.ones((4, 4), np.uint8)),
        "bicubic x4": load_upscaler("bicubic")(lr),
        f"{MODEL} x4": load_upscaler(MODEL, backend="torch")(lr),
        "what was there": hr,
    }
    find = OnnxDetector(detector) if detector else None
    figure = Figure(figsize=(15, 3.3), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[width / height, 1, 1, 1, 1])
    axes[0].imshow(hr, cmap="gray")
    axes[0].add_patch(Rectangle((column, row), side, side, fill=False, color="tab:orange"))
    axes[0].set_title(source, fontsize=9)
    seen = hr[row : row + side, column : column + side]
    for axis, (title, picture) in zip(axes[1:], shown.items(), strict=True):
        axis.imshow(picture, cmap="gray", vmin=seen.min(), vmax=seen.max())
        axis.set(xlim=(column - 0.5, column + side - 0.5), ylim=(row + side - 0.5, row - 0.5))
        axis.set_title(title, fontsize=9)
        if find is None:
            continue
        found = find(picture)
        sure = found.scores > SURE
        for (left, top, *size), kind in zip(found.xywh[sure], found.classes[sure], strict=True):
            colour = COLOURS[kind % len(COLOURS)]
            axis.add_patch(Rectangle((left, top), *size, fill=False, color=colour, clip_on=True))
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    app()
