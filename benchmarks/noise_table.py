"""What sensor noise does to bicubic and to each strength of consistency: ``benchmarks/noise.json``.

``python -m benchmarks.noise_table FOLDER...`` in the checkout: middle crops of the images in each
folder, 14-bit counts, LR = D(HR) + noise. PSNR over the span, in dB; noise in percent of the span.
"""

import json
from pathlib import Path

import cyclopts
import numpy as np
from PIL import Image
from tqdm import tqdm

from difiisr_models import load_upscaler

ROWS = {"clean": (0, 0), "0.5 %": (0.5, 0), "1 %": (1, 0), "2 %": (2, 0), "3 %": (3, 0),
        "2 % + pattern": (2, 1), "3 % + pattern": (3, 1)}  # fmt: skip
HEIGHT, WIDTH = 288, 384


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic to ``size (width, height)``."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.BICUBIC))


def measure(folders: list[Path], /, *, each: int = 5, out: Path | None = None) -> None:
    """Measure on ``each`` images a folder, evenly spread; print, and write ``out``."""
    paths = []
    for folder in folders:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".bmp"))
        paths += found[:: max(1, len(found) // each)][:each]
    models = {str(c): load_upscaler("difiisr-rt-x4", backend="torch", consistency=c)
              for c in ("auto", 1.0, 0.5, 0.0)}  # fmt: skip
    table = {}
    for row, (sigma, pattern) in ROWS.items():
        found = {name: [] for name in ("bicubic", *models, "gain")}
        for seed, path in enumerate(tqdm(paths, desc=row, disable=None)):
            image = np.asarray(Image.open(path).convert("L"), np.float32) * 64
            top, left = (image.shape[0] - HEIGHT) // 2, (image.shape[1] - WIDTH) // 2
            hr = image[top : top + HEIGHT, left : left + WIDTH]
            lr = resize(hr, (WIDTH // 4, HEIGHT // 4))
            span, rng = np.ptp(np.quantile(hr, (0.002, 0.998))), np.random.default_rng(seed)
            noise = rng.normal(0, 1, lr.shape)
            noise += pattern * (rng.normal(0, 0.5, lr.shape[1]) + rng.normal(0, 0.3, (len(lr), 1)))
            noise *= sigma / 100 * span
            counts = np.rint(lr + noise).clip(0, 65535).astype(np.uint16)
            results = {"bicubic": resize(counts, (WIDTH, HEIGHT))}
            for name, up in models.items():
                up.reset()
                results[name] = up(counts).astype(float)
            for name, result in results.items():
                error = np.sqrt(((result - hr) ** 2).mean())
                found[name].append(20 * np.log10(span / error))
            models["auto"].reset()
            clean = models["auto"](np.rint(lr).clip(0, 65535).astype(np.uint16))
            found["gain"].append((results["auto"] - clean).std() / noise.std() if sigma else 0.0)
        table[row] = {name: round(float(np.mean(values)), 3) for name, values in found.items()}
        print(row, table[row])
    if out is not None:
        content = {"images": [f"{p.parent.name}/{p.name}" for p in paths], "psnr": table}
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    cyclopts.run(measure)
