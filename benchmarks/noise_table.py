"""What sensor noise does to bicubic and to each strength of consistency: ``benchmarks/noise.json``.

``python -m benchmarks.noise_table FOLDER...`` in the checkout: middle crops of the images in each
folder, 14-bit counts, LR = D(HR) + noise, D by Pillow. PSNR over the span, in dB; noise in percent
of the span.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cyclopts
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from difiisr_models import Stream, load_upscaler


class Degradation(NamedTuple):
    """What happens to a frame; ``noise`` and ``pattern`` in percent of the span and times it.

    ``blur``: standard deviation of the lens, HR pixels. ``jpeg``: 8 bit, this quality; 0 without.
    """

    noise: float = 0
    pattern: float = 0
    blur: float = 0
    jpeg: int = 0


ROWS = {
    "clean": Degradation(),
    "0.5 %": Degradation(0.5),
    "1 %": Degradation(1),
    "2 %": Degradation(2),
    "3 %": Degradation(3),
    "2 % + pattern": Degradation(2, 1),
    "3 % + pattern": Degradation(3, 1),
    "blur + 1 % + pattern": Degradation(1, 1, blur=2),
    "8-bit JPEG 50": Degradation(jpeg=50),
}
HEIGHT, WIDTH = 288, 384
COUNTS = 64  # of a grey level


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic to ``size (width, height)``."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.BICUBIC))


def degraded(hr: np.ndarray, how: Degradation, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Counts of an image ``(HEIGHT, WIDTH)``, the same without noise, and the noise, counts."""
    lr = resize(gaussian_filter(hr, how.blur), (WIDTH // 4, HEIGHT // 4))
    if how.jpeg:
        file = BytesIO()
        eight_bit = np.rint(lr / COUNTS).clip(0, 255).astype(np.uint8)
        Image.fromarray(eight_bit).save(file, "JPEG", quality=how.jpeg)
        return np.asarray(Image.open(file)), eight_bit, 0.0
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, lr.shape)
    lines = rng.normal(0, 0.5, lr.shape[1]) + rng.normal(0, 0.3, (len(lr), 1))
    noise = (noise + how.pattern * lines) * how.noise / 100 * span_of(hr)
    counts = [np.rint(frame).clip(0, 65535).astype(np.uint16) for frame in (lr + noise, lr)]
    return *counts, float(noise.std())


def span_of(image: np.ndarray) -> float:
    """From its 0.2 % to its 99.8 % quantile."""
    return float(np.ptp(np.quantile(image, (0.002, 0.998))))


def measure(folders: list[Path], /, *, each: int = 5, out: Path | None = None) -> None:
    """Measure on ``each`` images a folder, evenly spread; print, and write ``out``."""
    paths = []
    for folder in folders:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".bmp"))
        paths += found[:: max(1, len(found) // each)][:each]
    models = {str(c): load_upscaler("difiisr-rt-x4", backend="torch", consistency=c)
              for c in ("auto", 1.0, 0.5, 0.0)}  # fmt: skip
    table = {}
    for row, how in ROWS.items():
        found = {name: [] for name in ("bicubic", *models, "gain")}
        for seed, path in enumerate(tqdm(paths, desc=row, disable=None)):
            image = np.asarray(Image.open(path).convert("L"), np.float32) * COUNTS
            top, left = (image.shape[0] - HEIGHT) // 2, (image.shape[1] - WIDTH) // 2
            hr = image[top : top + HEIGHT, left : left + WIDTH]
            counts, clean, noise = degraded(hr, how, seed)
            unit = COUNTS if how.jpeg else 1
            results = {"bicubic": resize(counts, (WIDTH, HEIGHT))}
            for name, up in models.items():
                results[name] = up(counts, Stream()).astype(float)
            for name, result in results.items():
                error = np.sqrt(((unit * result - hr) ** 2).mean())
                found[name].append(20 * np.log10(span_of(hr) / error))
            if noise:
                difference = results["auto"] - models["auto"](clean, Stream())
                found["gain"].append(difference.std() / noise)
        table[row] = {name: round(float(np.mean(v)), 3) for name, v in found.items() if v}
        print(row, table[row])
    if out is not None:
        content = {"images": [f"{p.parent.name}/{p.name}" for p in paths], "psnr": table}
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    cyclopts.run(measure)
