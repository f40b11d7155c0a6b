"""Images, and recordings like them, are read as stored; damaged ones cost but themselves."""

import logging
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from thermal_bags import IMAGE, record
from wave_frames import save_image

from difiisr_ros.commands.train_model import load_source
from difiisr_training.data.images import (
    ImageSource,
    list_images,
    load_images,
    read_counts,
    read_pages,
)
from difiisr_training.degradations import pillow_resize


def gradient(dtype, top=None):
    top = top or (1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max)
    return np.linspace(0, top, 24 * 32).reshape(24, 32).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint16, ".tif"), (np.float32, ".tif")],
)
def test_counts_come_back_as_stored_and_resized_in_their_dtype(tmp_path, dtype, suffix):
    Image.fromarray(gradient(dtype)).save(tmp_path / f"a{suffix}")
    read = read_counts(tmp_path / f"a{suffix}")
    assert read.dtype == dtype
    assert (read == gradient(dtype)).all()
    small = pillow_resize(np.where(read < read.mean(), 0, read.max()).astype(dtype), 6, 8)
    assert small.dtype == dtype
    assert small.mean() == pytest.approx(read.max() / 2, rel=0.01)  # nothing wraps at the ends


def test_nothing_is_left_out_in_silence(tmp_path):
    """Pages behind the first, folders behind links, and what EXIF says is turned."""
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "in").mkdir()
    (tmp_path / "behind").mkdir()
    Image.fromarray(gradient(np.uint8)).save(tmp_path / "behind" / "a.jpg", exif=turned, quality=99)
    tifffile.imwrite(
        tmp_path / "in" / "b.tif", np.stack([gradient(np.uint16)] * 3), photometric="minisblack"
    )
    (tmp_path / "in" / "link").symlink_to(tmp_path / "behind")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        list_images(tmp_path / "absent")
    pages, photo = list_images(tmp_path / "in")
    assert (pages.name, photo.name) == ("b.tif", "a.jpg")
    assert len(list(read_pages(pages))) == 3
    assert np.abs(read_counts(photo).astype(int) - np.rot90(gradient(np.uint8), -1)).max() < 9


def test_a_colour_file_gives_its_mean_channel_and_counts_beyond_16_bit_are_refused(tmp_path):
    Image.new("RGB", (20, 20), (30, 60, 90)).save(tmp_path / "a.png")
    assert (read_counts(tmp_path / "a.png") == 60).all()
    Image.fromarray(gradient(np.int32, 70000)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"70000.*16 bit"):
        read_counts(tmp_path / "a.tif")


def deep(*shape):
    return np.full(shape, 30996, np.uint16)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda path: cv2.imwrite(str(path), deep(24, 32, 3))),  # Pillow cuts it to 8 bit
        ("a.png", lambda path: cv2.imwrite(str(path), deep(24, 32, 4))),
        ("a.tif", lambda path: tifffile.imwrite(path, deep(4, 4, 3), photometric="rgb")),
        ("a.tif", lambda path: tifffile.imwrite(
            path, deep(3, 4, 4), byteorder=">", photometric="rgb", planarconfig="separate"
        )),
    ],
)  # fmt: skip
def test_16_bit_colours_are_refused_and_never_cut_to_8_bit(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: 16-bit colour; write it as one 16-bit channel"):
        read_counts(tmp_path / name)


def test_colours_of_5_and_6_bit_are_read(tmp_path):
    """A bitmap of 16 bit per pixel has no channel of 16 bit."""
    pixels = np.full(8 * 8, 0xFFFF, "<u2").tobytes()
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    head = struct.pack("<2sIHHI", b"BM", 66 + len(pixels), 0, 0, 66)
    head += struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(head + masks + pixels)
    assert (read_counts(tmp_path / "a.bmp") == 255).all()


def damage(good: bytes):
    """Ways in which files are found broken."""
    yield "empty", b""
    yield "text", b"not an image at all"
    yield "half", good[: len(good) // 2]
    yield "header", good[:20]
    for position in range(8, len(good), max(1, len(good) // 40)):
        yield f"byte{position}", good[:position] + b"\xff\x00\xff\x00" + good[position + 4 :]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_damaged_files_are_skipped_counted_and_named(tmp_path, caplog, suffix):
    folder = tmp_path / "frames"
    for i in range(3):
        save_image(folder / f"good{i}{suffix}", gradient(np.uint8))
    good = (folder / f"good0{suffix}").read_bytes()
    for name, data in damage(good):
        (folder / f"bad_{name}{suffix}").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        images = load_images(ImageSource("frames", val_share=0.0), data=tmp_path, part="train")
    # Bytes that are wrong yet readable cannot be told from right ones.
    files = list_images(folder)
    skipped = len(files) - len(images)
    assert 4 <= skipped <= len(files) - 3
    assert f"skipped {skipped} that were damaged" in caplog.text
    assert caplog.text.count("skipped damaged image") == skipped
    for name in ("empty", "text", "half"):
        assert f"bad_{name}{suffix}" in caplog.text


def test_a_cut_image_is_an_error_with_its_name(tmp_path):
    save_image(tmp_path / "cut.png", gradient(np.uint8))
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"cut\.png: "):
        read_counts(tmp_path / "cut.png")


def test_float_frames_with_missing_pixels_are_skipped(tmp_path, caplog):
    for i, value in enumerate((1.0, np.nan)):
        pixels = np.full((20, 20), 300, np.float32)
        pixels[3, 3] = value
        save_image(tmp_path / "frames" / f"{i}.tif", pixels)
    assert len(load_images(ImageSource("frames"), data=tmp_path, part="train")) == 1
    assert "skipped 1" in caplog.text
    assert "1.tif: 1 pixels are NaN or infinity" in caplog.text


def load(source, data, part="train"):
    return load_source(source, data=data, part=part)


def test_a_recording_is_a_sequence_and_every_nth_message_is_used(tmp_path):
    for drive in range(5):
        record(tmp_path / "bags" / f"drive{drive}", frames=4 + drive)
    source = ImageSource("bags", val_share=0.4)
    train, val = (load(source, tmp_path, part) for part in ("train", "val"))
    assert len(train) + len(val) == 4 + 5 + 6 + 7 + 8
    assert len(val) > 8  # two whole recordings
    record(tmp_path / "one", frames=10)
    assert len(load(ImageSource("one", every=4), tmp_path)) == 3
    assert load(ImageSource("one"), tmp_path, "val") == []


def test_the_topic_may_be_asked_for(tmp_path):
    record(tmp_path / "bag")
    found = load(ImageSource("bag", topic=IMAGE), tmp_path)
    assert found[0].dtype == np.uint16
    with pytest.raises(ValueError, match="no image topic '/c'"):
        load(ImageSource("bag", topic="/c"), tmp_path)


def test_images_beside_a_recording_are_not_left_out_in_silence(tmp_path):
    record(tmp_path / "bag", frames=2)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="1 recordings and 1 images"):
        load(ImageSource("."), tmp_path)
