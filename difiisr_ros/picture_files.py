"""Images, stacks of images and videos in files: pixels as they are stored, and what is beside them.

TIFF goes through tifffile, video through OpenCV, all other images through Pillow.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from difiisr_models.files import files_below, replaced
from difiisr_models.resample import SCALE
from difiisr_models.settings import Crop

log = logging.getLogger(__name__)

TIFF = (".tif", ".tiff")
JPEG = (".jpg", ".jpeg")
LOSSLESS_VIDEO, LOSSY_VIDEO = (".avi", ".mkv"), (".mp4", ".mov", ".m4v")
VIDEO = LOSSLESS_VIDEO + LOSSY_VIDEO
SUFFIXES = (".png", ".bmp", ".webp", ".npy", *JPEG, *TIFF, *VIDEO)

_FLIR = re.compile(rb"\xff\xe1..FLIR\0", re.DOTALL)
_DJI = re.compile(rb"\xff\xe4..\xff[\xd1\xd2]{2}\xff", re.DOTALL)
_ORIENTATION, _EXIF, _EXIF_WIDTH, _EXIF_HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
_GDAL_NODATA, _PIXEL_SCALE, _TIEPOINTS, _TRANSFORM = 42113, 33550, 33922, 34264
# Tags that tifffile writes itself: the layout of the pixels, and what it has arguments for.
_TIFF_OWN = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 277, 278, 279, 282, 283, 284, 296),
    *(305, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530),
}
_TIFF_FOLDERS = {330: "SubIFDs", 34665: "EXIF", 34853: "GPS"}
_FOREWORD = 2**26  # bytes of a JPEG that hold its segments before the picture, at most
_LEAST_BOMB, _MOST_PACKED = 2**28, 100  # bytes of a TIFF's page, times the file's own
_GREY16 = int.from_bytes(b"Y1\0\x10", "little")  # OpenCV's name of FFmpeg's gray16le


@dataclass(frozen=True)
class FileImage:
    """One image of a file.

    Attributes:
        pixels: ``(H, W)`` or ``(H, W, C)`` as stored, not turned by an EXIF orientation.
        keep: arguments that a writer of the same kind of file takes: EXIF, profiles, tags.
        orientation: of EXIF, 1 to 8.
        no_data: values that mark pixels without a measurement, where the file names them.
        stamp_ns: when it was taken, of a video; None where nobody says.
    """

    pixels: NDArray
    keep: dict[str, Any] = field(default_factory=dict)
    orientation: int = 1
    no_data: tuple[float, ...] = ()
    stamp_ns: int | None = None


class FileImages(NamedTuple):
    """What a file holds: how many images (of a video: about), the images, once, and their unit."""

    total: int
    images: Iterator[FileImage]
    unit: str = "counts"


def list_files(folder: Path) -> tuple[list[Path], int]:
    """Files that :func:`read` reads, in a folder and below, also behind links; and how many others.

    Hidden files and folders are left out. The files are sorted by path.
    """
    files = sorted(files_below(folder))
    found = [path for path in files if path.suffix.lower() in SUFFIXES]
    return found, len(files) - len(found)


def read(path: Path, window: Crop = Crop()) -> FileImages:
    """Open an image, a stack (TIFF, ``.npy``) or a video; ``window`` is cut out of each image.

    A radiometric JPEG of FLIR or DJI gives kelvin, float32, where flyr or dji-thermal-cli is
    installed, else its picture, with a warning.

    Raises:
        OSError: the file is missing or damaged; decoders raise others for some kinds of damage.
        ValueError: it holds what cannot be super-resolved without harm.
        ModuleNotFoundError: the library that reads it is not installed.
    """
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")
    if suffix in TIFF:
        return _read_tiff(path, window)
    if suffix in VIDEO or suffix == ".npy":
        count, images, _ = (_read_array if suffix == ".npy" else _read_video)(path)
        return FileImages(count, (replace(one, pixels=window.cut(one.pixels)) for one in images))
    library = _radiometric_library(path)
    return FileImages(1, iter([_read_image(path, window, library)]), "K" if library else "counts")


def write(target: Path, pictures: Iterable[FileImage], force: bool = True) -> int:
    """Write images to a file of the kind that its suffix names; returns how many.

    The file appears whole or not at all.

    Raises:
        OSError: it cannot be written, or has come into being meanwhile and ``force`` is not set.
        ValueError: the kind of file cannot hold the images without loss.
    """
    suffix = target.suffix.lower()
    with replaced(target, force) as beside:
        if suffix in VIDEO:
            return _write_video(beside, suffix, pictures)
        if suffix in TIFF:
            return _write_tiff(beside, pictures)
        images = list(pictures)
        if suffix == ".npy":
            with beside.open("wb") as file:
                pixels = [image.pixels for image in images]
                np.save(file, pixels[0] if len(pixels) == 1 else np.stack(pixels))
        elif len(images) != 1:
            raise ValueError(f"{suffix} holds one image, not {len(images)}: name a .tiff")
        else:
            _write_image(beside, suffix, images[0])
        return len(images)


def as_frame(pixels: NDArray) -> tuple[NDArray, int]:
    """Pixels of any numeric type as a frame of uint8, uint16 or float32, and what was added.

    Raises:
        ValueError: integers that 16 bit do not hold, or no numbers.
    """
    kind, dtype = pixels.dtype.kind, pixels.dtype.newbyteorder("=")
    if dtype in (np.uint8, np.uint16):
        return pixels.astype(dtype, copy=False), 0
    if kind == "f":
        return pixels.astype(np.float32, copy=False), 0
    if kind not in "iu":
        raise ValueError(f"pixels of type {pixels.dtype} are no numbers")
    added = 32768 if pixels.min() < 0 else 0
    least, most = int(pixels.min()) + added, int(pixels.max()) + added
    if least < 0 or most > 65535:
        raise ValueError(f"values {pixels.min()} to {pixels.max()} do not fit in 16 bit")
    return (pixels.astype(np.int64) + added).astype(np.uint16), added


def as_stored(frame: NDArray, added: int, dtype: np.dtype) -> NDArray:
    """The way back from :func:`as_frame`: the frame in the type of the file."""
    if frame.dtype == dtype:
        return frame
    if np.dtype(dtype).kind == "f":
        return frame.astype(dtype)
    limits = np.iinfo(dtype)
    return (frame.astype(np.int64) - added).clip(limits.min, limits.max).astype(dtype)


def upright(pixels: NDArray, orientation: int) -> NDArray:
    """``(H, W)`` pixels as a viewer shows them that knows EXIF orientations."""
    image = Image.fromarray(pixels.astype(np.float32))
    image.getexif()[_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


# Images


def _read_image(path: Path, window: Crop, library: Callable[[Path], NDArray] | None) -> FileImage:
    """The picture of a file, or the kelvin that ``library`` reads of it."""
    with Image.open(path) as image:
        frames, raw_modes = getattr(image, "n_frames", 1), str([tile[3] for tile in image.tile])
        if frames > 1:
            log.warning("%s: the first of %d images is taken", path, frames)
        if ";16" in raw_modes and image.mode in ("RGB", "RGBA", "LA"):
            raise ValueError("colour of 16 bit a channel: write it as TIFF")
        image.load()
        keep, orientation = _kept(image, window), image.getexif().get(_ORIENTATION, 1)
        if library is not None:
            exif = {name: value for name, value in keep.items() if name == "exif"}
            return FileImage(window.cut(np.asarray(library(path), np.float32)), exif)
        shown: Image.Image = image
        if image.mode in ("P", "PA"):
            shown = image.convert("RGBA" if image.has_transparency_data else "RGB")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "F", "I") and image.mode[:4] != "I;16":
            raise ValueError(f"a picture of mode {image.mode}: write it as grey values or colours")
        return FileImage(window.cut(np.asarray(shown)), keep, orientation)


def _kept(image: Image.Image, window: Crop) -> dict[str, Any]:
    """What Pillow's writers take of what is beside the pixels; sizes are those of the result."""
    names = ("icc_profile", "dpi", "gamma", "comment", "xmp")
    keep = {name: image.info[name] for name in names if image.info.get(name)}
    if "dpi" in keep:
        keep["dpi"] = tuple(float(SCALE * value) for value in keep["dpi"])
    exif = image.getexif()
    if exif:
        inner, (height, width) = exif.get_ifd(_EXIF), window.cut(np.asarray(image)).shape[:2]
        size = {_EXIF_WIDTH: SCALE * width, _EXIF_HEIGHT: SCALE * height}
        inner.update({tag: size[tag] for tag in size.keys() & inner.keys()})
        keep["exif"] = exif.tobytes()
    if isinstance(image, PngImagePlugin.PngImageFile) and image.text:
        keep["pnginfo"] = PngImagePlugin.PngInfo()
        for name, text in image.text.items():
            keep["pnginfo"].add_text(name, text)
    return keep


def _radiometric_library(path: Path) -> Callable[[Path], NDArray] | None:
    """What reads the temperatures of a JPEG of FLIR's or DJI's; a warning where it is missing."""
    data = b""
    if path.suffix.lower() in JPEG:
        with path.open("rb") as file:
            data = file.read(_FOREWORD)
    try:
        if _FLIR.search(data):
            import flyr

            return lambda path: flyr.unpack(str(path)).kelvin
        if _DJI.search(data):
            import dji_thermal_cli

            return lambda path: dji_thermal_cli.measure(str(path), unit="K").temperature
    except ModuleNotFoundError as error:
        package = str(error.name).replace("_", "-")
        log.warning("%s: its picture is taken; its temperatures need pip install %s", path, package)
    return None


def _write_image(path: Path, suffix: str, picture: FileImage) -> None:
    pixels, keep = picture.pixels, picture.keep if "extratags" not in picture.keep else {}
    deep = pixels.dtype == np.uint16 and pixels.ndim == 2 and suffix == ".png"
    if pixels.dtype != np.uint8 and not deep:
        raise ValueError(f"{suffix} does not hold {pixels.dtype} {pixels.shape}: name a .tiff")
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and suffix in (*JPEG, ".bmp"):
        raise ValueError(f"{suffix} holds no transparency: name a .png")
    best = {"quality": 95} if suffix in JPEG else {"lossless": True} if suffix == ".webp" else {}
    form = {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())
    Image.fromarray(pixels).save(path, format=form, **best, **keep)


# Stacks


def _read_array(path: Path) -> FileImages:
    """``(H, W)``, ``(H, W, 3 or 4)``, or a stack ``(N, ...)`` of either."""
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    colour = stored.ndim >= 3 and stored.shape[-1] in (3, 4)
    if stored.ndim - colour not in (2, 3):
        raise ValueError(
            f"an array (H, W) or (N, H, W), with colours or without, not {stored.shape}"
        )
    stack = stored[None] if stored.ndim - colour == 2 else stored
    return FileImages(len(stack), (FileImage(np.array(pixels)) for pixels in stack))


def _read_tiff(path: Path, window: Crop) -> FileImages:
    import tifffile

    def pages() -> Iterator[FileImage]:
        with file:
            for page in file.pages:
                if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                    raise ValueError("a TIFF with a palette: write it as grey values or colours")
                if page.nbytes > max(_LEAST_BOMB, _MOST_PACKED * path.stat().st_size):
                    raise ValueError(f"{path}: a page that unpacks to {page.nbytes} bytes")
                pixels = page.asarray()
                pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
                orientation = int(page.tags.valueof(_ORIENTATION, 1))
                no_data = _numbers(str(page.tags.valueof(_GDAL_NODATA, "")))
                keep = _kept_of_page(path, page, window)
                yield FileImage(window.cut(pixels), keep, orientation, no_data)

    file: Any = tifffile.TiffFile(path)
    return FileImages(len(file.pages), pages())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.strip("\0 ").split())
    except ValueError:
        return ()


def _kept_of_page(path: Path, page: Any, window: Crop) -> dict[str, Any]:
    """Arguments of ``TiffWriter.write``; places and pixels per inch are those of the result."""
    for code in sorted(_TIFF_FOLDERS.keys() & {tag.code for tag in page.tags}):
        log.warning("%s: its %s tags are not written", path, _TIFF_FOLDERS[code])
    extra = []
    for tag in page.tags:
        if tag.code in _TIFF_OWN or tag.code in _TIFF_FOLDERS:
            continue
        value = tag.value
        if tag.code == _PIXEL_SCALE:
            value = (value[0] / SCALE, value[1] / SCALE, *value[2:])
        elif tag.code == _TIEPOINTS:  # column, row, level, then a place, for each point
            cut = (window.left, window.top, 0, 0, 0, 0)
            times = (SCALE, SCALE, 1, 1, 1, 1)
            value = tuple((v - cut[i % 6]) * times[i % 6] for i, v in enumerate(value))
        elif tag.code == _TRANSFORM:  # 4x4, of columns and rows
            value = tuple(v / SCALE if i % 4 < 2 else v for i, v in enumerate(value))
        extra.append((tag.code, int(tag.dtype), tag.count, value, False))
    keep = {"photometric": page.photometric, "extratags": extra, "metadata": None}
    if page.is_ome:
        log.warning("%s: its OME description, which has sizes, is not written", path)
    for name, code in (("description", 270), ("software", 305)):
        if code in page.tags and not (code == 270 and (page.is_ome or page.is_shaped)):
            keep[name] = str(page.tags[code].value)
    if 282 in page.tags and 283 in page.tags:
        per_unit = [Fraction(*page.tags[code].value) for code in (282, 283)]
        keep["resolution"] = tuple(float(SCALE * value) for value in per_unit)
        keep["resolutionunit"] = page.tags[296].value if 296 in page.tags else 2
    return keep


def _write_tiff(path: Path, pictures: Iterable[FileImage]) -> int:
    import tifffile

    count = 0
    with tifffile.TiffWriter(path) as writer:
        for count, picture in enumerate(pictures, 1):
            keep, pixels = picture.keep, picture.pixels
            kinds = (np.uint8, np.uint16, np.float32)
            if "exif" in keep and count == 1 and pixels.dtype in kinds:
                # From a file of another kind; tifffile cannot write EXIF.
                Image.fromarray(pixels).save(path, format="TIFF", exif=keep["exif"])
                return 1
            own = keep if "extratags" in keep else {"metadata": None}
            colour = "rgb" if pixels.ndim == 3 else "minisblack"
            writer.write(pixels, **{"photometric": colour, **own})
    return count


# Videos


def _read_video(path: Path) -> FileImages:
    """8-bit BGR frames, or ``(H, W)`` uint16 of a grey 16-bit video."""
    import cv2

    def opened(*options: int) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, list(options))
        if not capture.isOpened():
            raise OSError(f"no video that OpenCV's FFmpeg reads: {path}")
        return capture

    capture = opened()
    if int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) == _GREY16:
        capture = opened(cv2.CAP_PROP_CONVERT_RGB, 0)
    count, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)

    def frames() -> Iterator[FileImage]:
        given = 0
        while True:
            there, pixels = capture.read()
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC)
            if not there:
                break
            given += 1
            yield FileImage(pixels, {"rate": rate}, stamp_ns=round(stamp * 1e6))
        capture.release()
        if given < count - 1:  # the container's own count may be one too high
            raise OSError(f"only {given} of about {count} frames are readable")

    return FileImages(count, frames())


def _write_video(path: Path, suffix: str, pictures: Iterable[FileImage]) -> int:
    import cv2

    lossless = suffix in LOSSLESS_VIDEO
    named = path.with_suffix(suffix)  # OpenCV takes the container from the name
    writer, count = None, 0
    try:
        for picture in pictures:
            pixels = picture.pixels
            deep, grey = pixels.dtype == np.uint16, pixels.ndim == 2
            if not (pixels.dtype == np.uint8 or (deep and grey and lossless)):
                wanted = "a grey 16-bit video is .mkv or .avi" if deep else "uint8 or uint16 only"
                raise ValueError(f"{suffix} does not hold {pixels.dtype}: {wanted}")
            if writer is None:
                codec = cv2.VideoWriter.fourcc(*("FFV1" if lossless else "mp4v"))
                options = [cv2.VIDEOWRITER_PROP_IS_COLOR, int(not grey)]
                options += [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U if deep else cv2.CV_8U]
                size, rate = (pixels.shape[1], pixels.shape[0]), picture.keep.get("rate", 10.0)
                writer = cv2.VideoWriter(str(named), cv2.CAP_FFMPEG, codec, rate, size, options)
                if not writer.isOpened():
                    raise OSError(f"OpenCV's FFmpeg writes no {suffix}")
            writer.write(pixels)
            count += 1
        if writer is None:
            raise ValueError("no frame is readable")
        writer.release()
        if (kept := sum(1 for _ in _read_video(named).images)) != count:  # OpenCV does not say
            raise OSError(f"{kept} of {count} frames were written (is the disk full?)")
        os.replace(named, path)
    finally:
        named.unlink(missing_ok=True)
    return count
