"""Compressed images, in the bytes that image_transport's plugins write, and their way through."""

import struct
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from thermal_bags import header, info_of, messages, pixels
from thermal_bags import record as record_raw

from difiisr_models import Camera, load_upscaler
from difiisr_ros import bags
from difiisr_ros.bag_writing import write_bag
from difiisr_ros.image_codec import (
    ImageCodecError,
    ImageTooLarge,
    compress,
    decompress,
    image_to_array,
)
from difiisr_ros.replay import replay

TOPIC = "/cam/image_raw/compressed"
GREY = (np.arange(20 * 24) % 251).reshape(20, 24).astype(np.uint8)
DEEP = (np.arange(20 * 24) * 131 % 65536).reshape(20, 24).astype(np.uint16)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def file(array, kind="PNG", **options):
    data = BytesIO()
    Image.fromarray(array).save(data, kind, **options)
    return data.getvalue()


def message(form, data):
    return SimpleNamespace(header="the header", format=form, data=data)


@pytest.mark.parametrize(
    ("form", "data", "encoding", "counts"),
    [
        ("mono16; png compressed ", file(DEEP), "mono16", DEEP),
        ("16UC1; png compressed ", file(DEEP), "16UC1", DEEP),
        ("png", file(GREY), "mono8", GREY),
        ("16UC1; compressedDepth png", struct.pack("<iff", 0, 1, 2) + file(DEEP), "16UC1", DEEP),
        ("rgb8; png compressed bgr8", file(RGB), "rgb8", RGB),
        ("bgr8; png compressed bgr8", file(RGB), "bgr8", RGB[..., ::-1]),
    ],
)
def test_what_image_transport_sends_comes_in_bit_for_bit(form, data, encoding, counts):
    image = decompress(message(form, data), 1.0)
    assert (image.encoding, image.header) == (encoding, "the header")
    np.testing.assert_array_equal(image_to_array(image), counts)


def test_jpeg_comes_in_as_grey():
    smooth = np.add.outer(np.arange(20), np.arange(24)).astype(np.uint8) * 4
    image = decompress(message("mono8; jpeg compressed ", file(smooth, "JPEG", quality=95)), 1.0)
    assert image.encoding == "mono8"
    assert np.abs(image_to_array(image).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize(
    ("counts", "encoding"), [(GREY, "mono8"), (DEEP, "16UC1"), (RGB, "rgb8"), (RGB, "bgr8")]
)
def test_what_goes_out_comes_in_again(counts, encoding):
    form, data = compress(counts, encoding)
    assert form.startswith(f"{encoding}; png compressed ")
    np.testing.assert_array_equal(image_to_array(decompress(message(form, data), 1.0)), counts)


def test_a_bomb_is_refused_by_the_size_that_it_declares():
    head = struct.pack(">II5B", 9000, 9000, 16, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + head)) + struct.pack(">I", 9) + b"IDAT"
    with pytest.raises(ImageTooLarge, match="9000x9000 is 81"):
        decompress(message("png", b"\x89PNG\r\n\x1a\n" + chunk), 2.0)


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("png", b""),
        ("png", b"no picture"),
        ("mono16; png compressed ", file(DEEP)[:-200]),
        ("32FC1; compressedDepth png", bytes(12) + file(DEEP)),
        ("16UC1; compressedDepth rvl", bytes(40)),
        ("png", file(GREY, "GIF")),
    ],
)
def test_what_is_no_image_is_refused(form, data):
    with pytest.raises(ImageCodecError, match=form.split(";")[0]):
        decompress(message(form, data), 2.0)


def test_a_jpeg_that_would_take_minutes_is_refused():
    data = file(GREY, "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    for times, is_read in ((10, True), (200, False)):
        image = message("mono8; jpeg compressed mono8", data[:end] + times * data[last:])
        if is_read:
            assert decompress(image, 100).height == len(GREY)
        else:
            with pytest.raises(ImageCodecError, match="scans, 100 may be"):
                decompress(image, 100)


def test_floats_have_no_png():
    with pytest.raises(ImageCodecError, match="not 32FC1"):
        compress(np.zeros((4, 4), np.float32), "32FC1")


def record(path, frames=3):
    with write_bag(path) as writer:
        for n in range(frames):
            data = bags.compressed_bytes(header(n), pixels(n), "mono16")
            at = 10**9 + n * 10**8
            writer.write(bags.Message(bags.ros_topic(TOPIC, bags.COMPRESSED_TYPE), at, data))
    return path


def test_a_compressed_recording_is_evaluated_and_replayed_like_a_raw_one(tmp_path):
    packed, raw = record(tmp_path / "packed"), record_raw(tmp_path / "raw", frames=3)
    for found, counts in zip(bags.frames_of(packed), bags.frames_of(raw), strict=True):
        np.testing.assert_array_equal(found[1], counts[1])
    upscaler = load_upscaler("bicubic")
    report = replay(packed, tmp_path / "a", upscaler, compressed=True)
    replay(raw, tmp_path / "b", upscaler)
    assert (report.frames_out, report.sr_topic) == (3, "/cam/sr/compressed")
    with bags.open_bag(tmp_path / "a") as ours, bags.open_bag(tmp_path / "b") as theirs:
        assert bags.choose_image_topic(ours, TOPIC) == TOPIC
        ours, theirs = (
            [image_to_array(bags.read_image(m)) for m in bag.messages({topic})]
            for bag, topic in ((ours, "/cam/sr/compressed"), (theirs, "/cam/sr"))
        )
    np.testing.assert_array_equal(ours, theirs)


def test_colours_are_told_of_once_in_replay(tmp_path):
    source = record_raw(tmp_path / "in", images=[RGB] * 3, encoding="rgb8")
    report = replay(source, tmp_path / "out", load_upscaler("bicubic"))
    assert sum("false colour" in warning for warning in report.warnings) == 1


def test_telemetry_is_cut_and_no_data_filled_for_evaluation(tmp_path):
    frame = pixels(0, 20, 24)
    frame[:2], frame[9, 9] = 7, 0
    source = record_raw(tmp_path / "in", images=[frame])
    camera = Camera(telemetry_rows=2, no_data="0", crop="0,0,0,4")
    ((_, found),) = bags.frames_of(source, camera=camera)
    assert found.shape == (18, 20)
    assert found.min() > 20000
    assert (found != frame[2:, :20]).sum() == 1
    without = Camera(telemetry_rows=2)
    report = replay(source, tmp_path / "out", load_upscaler("bicubic"), camera=without)
    assert not report.warnings  # the camera_info is of 18 rows: without telemetry
    ((_, _, before),) = messages(source, "/cam/camera_info")
    ((_, _, after),) = messages(tmp_path / "out", "/cam/sr/camera_info")
    assert info_of(after).height == 72
    assert info_of(after).k[5] == 4 * info_of(before).k[5] + 1.5
