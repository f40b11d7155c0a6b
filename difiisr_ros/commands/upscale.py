"""``difiisr upscale``: images, stacks of images and videos in files, super-resolved."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from difiisr_models import Camera, FrameSettings, Runtime, Stream, Upscaler, load_upscaler
from difiisr_ros import picture_files
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.commands.arguments import (
    CameraOptions,
    FrameOptions,
    RuntimeOptions,
    as_asked,
)
from difiisr_ros.comparison import draw_panel
from difiisr_ros.picture_files import JPEG, VIDEO, FileImage, FileImages


@answers
def upscale(
    in_path: Path,
    out_path: Path,
    /,
    *,
    model: str = "difiisr-rt-x4",
    one_camera: bool = False,
    palette: str | None = None,
    compare: bool = False,
    force: bool = False,
    runtime: RuntimeOptions = Runtime(),
    settings: FrameOptions = FrameSettings(),
    camera: CameraOptions = Camera(),
) -> Answer:
    """Super-resolve images, stacks of images and videos.

    Reads PNG, JPEG, WebP, BMP, the pages of TIFF, .npy, and avi, mkv, mp4, mov. Bit depth, EXIF,
    profiles, tags and places on the ground are kept. The frames of a video are one stream. Video is
    lossless in .avi and .mkv, and has no sound. A radiometric JPEG of FLIR's or DJI's becomes a
    TIFF of kelvin where flyr or dji-thermal-cli is installed.

    Args:
        in_path: a file, or a folder, with all that is below it.
        out_path: a file of the kind that its name says, or a folder.
        model: name, or path of weights.
        one_camera: all images of a file or folder, in the order of their names, are one stream; by
            default each stands for itself.
        palette: write 8-bit pictures in these colours, of matplotlib, as inferno.
        compare: also write NAME_compare.png: input, bicubic and result, whole and zoomed, of the
            image in the middle of each file.
        force: replace files that exist.
    """
    if camera.roi or settings.output_scale != 4:
        raise ValueError("--roi and --output-scale are for streams; of files, --crop cuts")
    if in_path.is_dir() and out_path.resolve().is_relative_to(in_path.resolve()):
        raise ValueError(f"{out_path} is in {in_path}: choose a folder elsewhere")
    files, others = picture_files.list_files(in_path) if in_path.is_dir() else ([in_path], 0)
    if not files:
        raise FileNotFoundError(f"{in_path} holds none of {', '.join(picture_files.SUFFIXES)}")
    if palette is not None:
        coloured(np.zeros((1, 1)), 0, 1, palette)
    upscaler = load_upscaler(model, runtime=as_asked(runtime), settings=settings)
    shared = Stream() if one_camera else None
    made: dict[str, str] = {}
    failed: dict[str, str] = {}
    drawn: set[Path | None] = set()
    images = 0
    for path in tqdm(files, unit="file", disable=len(files) == 1 or None):  # None: no terminal
        try:
            pictures = picture_files.read(path, camera.window(0, 0))
            target = _target(path, in_path, out_path, pictures.unit, palette)
            if str(target) in made.values() or (target.exists() and not force):
                raise FileExistsError(f"{target} exists; --force replaces it")
            compared = target.with_name(f"{target.stem}_compare.png") if compare else None
            if compared and compared in drawn:  # of a file that differs in its suffix alone
                compared = target.with_name(f"{target.stem}_{target.suffix[1:]}_compare.png")
            drawn.add(compared)
            results = _results(
                pictures, upscaler, shared, camera.no_data_values, palette, target, compared
            )
            images += picture_files.write(target, results)
            made[str(path)] = str(target)
        except Exception as error:  # damaged files raise whatever their decoder raises
            if len(files) == 1:
                raise
            failed[str(path)] = str(error) or type(error).__name__
            tqdm.write(f"skipped {path}: {failed[str(path)]}", file=sys.stderr)
    summary = {"images": images, "made": made, "failed": failed, "other_files": others}
    beside = f", {others} files of other kinds left out" if others else ""
    text = f"{out_path}: {images} images in {len(made)} files, {len(failed)} skipped{beside}"
    return Answer(summary, text, 0 if not failed else 2 if made else 1)


def _target(path: Path, in_path: Path, out_path: Path, unit: str, palette: str | None) -> Path:
    """Where the result of ``path`` goes."""
    if path == in_path and out_path.suffix.lower() in picture_files.SUFFIXES:
        target = out_path
    else:
        target = out_path / (path.name if path == in_path else path.relative_to(in_path))
        if palette and target.suffix.lower() not in (*JPEG, *VIDEO):
            target = target.with_suffix(".png")
        elif unit == "K" and not palette:
            target = target.with_suffix(".tiff")
    if target.resolve() == path.resolve():
        raise ValueError(f"{target} is the input")
    return target


def _results(
    pictures: FileImages,
    upscaler: Upscaler,
    shared: Stream | None,
    no_data: Sequence[float],
    palette: str | None,
    target: Path,
    compared: Path | None,
) -> Iterator[FileImage]:
    """Super-resolve the images of a file, and draw that in its middle to ``compared``."""
    of_file = Stream()
    hidden = pictures.total == 1 or None
    shown = tqdm(pictures.images, total=pictures.total, leave=False, disable=hidden)
    for number, picture in enumerate(shown):
        frame, added = picture_files.as_frame(picture.pixels)
        stream = shared or (Stream() if picture.stamp_ns is None else of_file)
        stream.no_data = tuple(value + added for value in (*no_data, *picture.no_data))
        result = upscaler(frame, stream, picture.stamp_ns)
        if compared and number == pictures.total // 2:
            _compare(compared, frame, result, upscaler.name, picture.orientation, pictures.unit)
        if palette:
            assert stream.seen is not None, "by the result"
            found = stream.seen.range
            colours = coloured(_grey(result), found.lo, found.hi, palette)
            colours = colours[..., ::-1] if target.suffix.lower() in VIDEO else colours  # BGR
            keep = {key: picture.keep[key] for key in {"exif", "rate"} & picture.keep.keys()}
            yield FileImage(np.ascontiguousarray(colours), keep)
        else:
            stored = picture_files.as_stored(result, added, picture.pixels.dtype)
            yield replace(picture, pixels=stored)


def _compare(
    path: Path, frame: NDArray, result: NDArray, name: str, orientation: int, unit: str
) -> None:
    plain = load_upscaler("bicubic", device="cpu")(frame)
    images = [
        (title, picture_files.upright(_grey(pixels), orientation))
        for title, pixels in (("input", frame), ("bicubic", plain), (name, result))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_panel(path, images, unit)


def _grey(pixels: NDArray) -> NDArray:
    """``(H, W)`` of colours: the mean of up to three channels."""
    return pixels if pixels.ndim == 2 else pixels[..., :3].mean(axis=-1)


def coloured(values: NDArray, lo: float, hi: float, palette: str) -> NDArray[np.uint8]:
    """``(H, W)`` values from ``lo`` to ``hi`` as ``(H, W, 3)`` RGB in a colour map of matplotlib's.

    Raises:
        ValueError: there is no such colour map.
    """
    from matplotlib import colormaps

    if palette not in colormaps:
        raise ValueError(f"no palette {palette!r}; some are inferno, magma, turbo, gray, gray_r")
    shares = (values.astype(np.float32) - lo) / max(hi - lo, 1e-6)
    return colormaps[palette](shares.clip(0, 1), bytes=True)[..., :3]
