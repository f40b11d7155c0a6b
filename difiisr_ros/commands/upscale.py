"""``difiisr upscale``: images, stacks of images and videos in files, super-resolved."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from tqdm import tqdm

from difiisr_models import Camera, FrameSettings, Runtime, Stream, Upscaler, load_upscaler
from difiisr_ros import picture_files
from difiisr_ros.commands import arguments
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.picture_files import JPEG, VIDEO, FileImage, FileImages

ZOOM = 4  # the window is so many times smaller than the frame, in each direction
_INCHES, _TITLE, _BAR = 4.6, 0.34, 0.9  # of a tile's width, a title's height, the colours' bar
_DARK, _LIGHT = "#15171a", "#e8e8e8"


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
    runtime: arguments.RuntimeOptions = Runtime(),
    settings: arguments.FrameOptions = FrameSettings(),
    camera: arguments.CameraOptions = Camera(),
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
    names_file = out_path.suffix.lower() in picture_files.SUFFIXES and not out_path.is_dir()
    if in_path.is_dir() and names_file:
        raise ValueError(f"{in_path} is a folder, so {out_path} must not be named as a file")
    if in_path.is_file() and out_path.suffix and not (names_file or out_path.is_dir()):
        kinds = ", ".join(picture_files.SUFFIXES)
        raise ValueError(f"{out_path} is no folder, and no kind of file that is written: {kinds}")
    files, others = picture_files.list_files(in_path) if in_path.is_dir() else ([in_path], 0)
    if not files:
        raise FileNotFoundError(f"{in_path} holds none of {', '.join(picture_files.SUFFIXES)}")
    if palette is not None:
        coloured(np.zeros((1, 1)), 0, 1, palette)
    upscaler = load_upscaler(model, runtime=arguments.as_asked(runtime), settings=settings)
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


def window_to_show(
    one: NDArray[np.floating], other: NDArray[np.floating]
) -> tuple[float, float, float, float]:
    """Where two ``(H, W)`` results differ most: left, top, width, height as parts of the frame."""
    sides = [max(side // ZOOM, 1) for side in one.shape]
    difference = np.nan_to_num(np.abs(one.astype(np.float64) - other))
    means = uniform_filter(difference, sides, mode="constant")
    # Borders may be dark rims: an eighth of the window is left out around them.
    margins = [side // 2 + side // 8 for side in sides]
    ends = zip(margins, one.shape, strict=True)
    inner = means[tuple(slice(margin, side - margin) for margin, side in ends)]
    place = np.unravel_index(inner.argmax(), inner.shape)
    top, left = (int(at) + side // 8 for at, side in zip(place, sides, strict=True))
    height, width = one.shape
    return left / width, top / height, sides[1] / width, sides[0] / height


def draw_panel(
    path: Path,
    images: Sequence[tuple[str, NDArray[np.floating]]],
    unit: str,
    palette: str = "inferno",
) -> None:
    """Save a PNG with the images, (title, (H, W) values), side by side, whole and zoomed.

    The first is the input, whose 0.2 and 99.8 percentiles are the ends of the colours in every
    image; the zoom is where the second and the third differ most.

    Args:
        path: of the PNG.
        images: input, interpolation, result, and what else there is.
        unit: of the values, above the bar of colours.
        palette: a colour map of matplotlib's.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    frame = images[0][1]
    low, high = np.nanpercentile(frame, (0.2, 99.8))
    style = {"cmap": palette, "vmin": low, "vmax": max(high, low + 1e-6), "aspect": "auto"}
    tile = _INCHES * frame.shape[0] / frame.shape[1]
    wide, tall = _INCHES * len(images) + _BAR, 2 * tile + _TITLE
    figure = Figure(figsize=(wide, tall), facecolor=_DARK)
    left, top, width, height = window_to_show(images[1][1], images[2][1])
    for column, (title, pixels) in enumerate(images):
        rows, columns = pixels.shape
        y, x = round(top * rows), round(left * columns)
        h, w = round(height * rows), round(width * columns)
        for row, shown in enumerate((pixels[y : y + h, x : x + w], pixels)):
            place = (_INCHES * column / wide, tile * row / tall, _INCHES / wide, tile / tall)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            drawn = axes.imshow(shown, interpolation="nearest", **style)
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, color="cyan", lw=1.5))
        axes.set_title(title, fontsize=12, color=_LIGHT, pad=5)
    bar = figure.add_axes((1 - 0.75 * _BAR / wide, 0.05, 0.18 * _BAR / wide, 0.82))
    figure.colorbar(drawn, cax=bar)
    bar.set_title(unit, fontsize=10, color=_LIGHT)
    bar.tick_params(colors=_LIGHT)
    figure.savefig(path, dpi=100, facecolor=_DARK, format="png")
