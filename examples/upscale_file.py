"""Read an image file, super-resolve it, write it: the Python of ``difiisr upscale``.

python examples/upscale_file.py in.tiff out.tiff
"""

from dataclasses import replace
from pathlib import Path

import cyclopts
from cyclopts.types import ExistingPath

from difiisr_models import Stream, load_upscaler
from difiisr_ros import picture_files


def main(source: ExistingPath, target: Path, /) -> None:
    """Super-resolve each image of a file; those of a stack or a video are one stream."""
    up, stream = load_upscaler("difiisr-rt-x4"), Stream()
    images = picture_files.read(source).images  # uint8, uint16 or float32, (H, W) or (H, W, C)
    results = (replace(one, pixels=up(one.pixels, stream, one.stamp_ns)) for one in images)
    count = picture_files.write(target, results)
    assert stream.seen is not None, "a file has an image"
    print(f"{target}: {count} images; noise of the last one: {stream.seen.noise:.4g} counts")


if __name__ == "__main__":
    cyclopts.run(main)
