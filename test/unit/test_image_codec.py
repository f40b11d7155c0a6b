from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from difiisr_ros.image_codec import (
    ENCODINGS,
    ImageCodecError,
    encode_rows,
    image_to_array,
    is_colour,
    is_false_colour,
    result_encoding,
)


def message(encoding, height, width, step, is_bigendian, data):
    image = {"encoding": encoding, "height": height, "width": width, "step": step}
    return SimpleNamespace(**image, is_bigendian=is_bigendian, data=data)


def decode(*fields):
    return image_to_array(message(*fields))


def padded(stored, padding=3):
    """Fields after the encoding of a message with rows that end in garbage."""
    rows = stored.reshape(len(stored), -1).view(np.uint8)
    data = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    return *stored.shape[:2], data.shape[1], stored.dtype.byteorder == ">", data.tobytes()


RED, GREY = (255, 0, 0), (90, 90, 90)
BGR_RED = RED[::-1]
OF_RED_AND_GREY = [[76, 90]]  # 0.299 x 255
Y, U, V = 200, 40, 220


@pytest.mark.parametrize(
    ("encoding", "stored", "pixels", "result"),
    [
        ("16SC1", np.array([[-300, 7]], ">i2"), [[-300, 7]], "16SC1"),
        ("16SC1", np.array([[-300, 7]], "<i2"), [[-300, 7]], "16SC1"),
        ("64FC1", np.array([[273.15, np.nan]], ">f8"), [[273.15, np.nan]], "32FC1"),
        ("64FC1", np.array([[273.15, 1e300]], "<f8"), [[273.15, np.inf]], "32FC1"),
        ("rgba8", np.array([[(*RED, 9), (*GREY, 0)]], np.uint8), OF_RED_AND_GREY, "mono8"),
        ("bgra8", np.array([[(*BGR_RED, 9), (*GREY, 0)]], np.uint8), OF_RED_AND_GREY, "mono8"),
        ("8UC4", np.array([[(*BGR_RED, 9), (*GREY, 0)]], np.uint8), OF_RED_AND_GREY, "mono8"),
        ("8UC3", np.array([[BGR_RED, GREY]], np.uint8), OF_RED_AND_GREY, "mono8"),
        ("yuv422", np.array([[(U, Y), (V, 17)]], np.uint8), [[Y, 17]], "mono8"),
        ("uyvy", np.array([[(U, Y), (V, 17)]], np.uint8), [[Y, 17]], "mono8"),
        ("yuv422_yuy2", np.array([[(Y, U), (17, V)]], np.uint8), [[Y, 17]], "mono8"),
        ("yuyv", np.array([[(Y, U), (17, V)]], np.uint8), [[Y, 17]], "mono8"),
    ],
)
def test_what_thermal_drivers_send_is_read(encoding, stored, pixels, result):
    found = decode(encoding, *padded(stored))
    np.testing.assert_array_equal(found, np.array(pixels, found.dtype))
    assert result_encoding(encoding, found) == result
    assert encode_rows(found, result).size  # the result can go out


@pytest.mark.parametrize("encoding", ["rgba8", "bgra8", "8UC4", "8UC3"])
def test_grey_in_any_colour_keeps_its_256_levels(encoding):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = np.repeat(levels[..., None], 3 if encoding == "8UC3" else 4, axis=2)
    np.testing.assert_array_equal(decode(encoding, *padded(grey)), levels)


@pytest.mark.parametrize(
    ("encoding", "pixel", "is_false"),
    [
        ("rgb8", RED, True),
        ("bgr8", GREY, False),
        ("bgra8", (*GREY, 255), False),
        ("rgba8", (90, 90, 130, 255), True),
        ("rgb8", (90, 92, 89), False),  # grey after JPEG
        ("yuv422", (128, 30), False),
        ("yuyv", (30, 90), True),
    ],
)
def test_colours_that_differ_are_false_colour(encoding, pixel, is_false):
    image = message(encoding, *padded(np.full((2, 2, len(pixel)), pixel, np.uint8)))
    assert is_false_colour(image) is is_false
    assert is_colour(encoding)


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels", "tolerance"),
    [
        ("rgba8", np.uint8, 4, 1),
        ("bgra8", np.uint8, 4, 1),
        ("yuv422", np.uint8, 2, 0),
        ("bayer_rggb8", np.uint8, 1, 0),
        ("rgb16", np.uint16, 3, 0),
        ("mono16", np.uint16, 1, 0),
        ("32SC1", np.int32, 1, 0),
        ("64FC1", np.float64, 1, 0),
    ],
)
def test_encodings_are_read_as_cv_bridge_reads_them(encoding, dtype, channels, tolerance):
    cv_bridge = pytest.importorskip("cv_bridge", reason="needs cv_bridge (python3-cv-bridge)")
    numbers = np.random.default_rng(0).integers(0, 250, (6, 8, channels)).astype(dtype)
    image = message(encoding, *padded(numbers, padding=0))  # Noetic's cannot read padded rows
    ours = image_to_array(image)
    wanted = "passthrough" if encoding.endswith("C1") else result_encoding(encoding, ours)
    theirs = cv_bridge.CvBridge().imgmsg_to_cv2(image, wanted)
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


def test_large_frames_are_read_without_a_copy():
    data = np.zeros(512 * 640 * 2, np.uint8)
    assert np.shares_memory(decode("mono16", 512, 640, 1280, 0, data), data)


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        (("mono16", 4, 4, 8, 0, b""), ("0 bytes", "32")),
        (("mono16", 4, 4, 8, 0, bytes(31)), ("31 bytes", "32")),
        (("mono16", 4, 5, 8, 0, bytes(32)), ("step 8", "10 bytes")),
        (("rgb8", 4, 4, 4, 0, bytes(48)), ("step 4", "12 bytes")),
        (("mono8", 2**32 - 1, 2**32 - 1, 2**32 - 1, 0, bytes(16)), ("16 bytes", "4294967295")),
        (("mono8", 0, 4, 4, 0, bytes(16)), ("height 0",)),
        (("mono8", 4, 0, 0, 0, bytes(16)), ("width 0",)),
        (("yuv422", 4, 4, 7, 0, bytes(32)), ("step 7", "8 bytes")),
        (("rgba8", 4, 4, 16, 0, bytes(63)), ("63 bytes", "64")),
        (("16SC1", 4, 4, 8, 0, bytes(31)), ("31 bytes", "32")),
        (("nv99", 4, 4, 8, 0, bytes(32)), ("'nv99'", "cv_bridge")),
    ],
)
def test_forged_fields_are_refused_with_their_numbers(fields, numbers):
    with pytest.raises(ImageCodecError) as refusal:
        decode(*fields)
    for number in numbers:
        assert number in str(refusal.value)


@pytest.mark.parametrize(
    ("pixels", "encoding"),
    [
        (np.zeros((4, 4), np.float32), "mono16"),
        (np.zeros((4, 4), np.uint16), "mono8"),
        (np.zeros((4, 4, 3), np.uint8), "mono8"),
        (np.zeros((4, 4, 4), np.uint8), "rgb8"),
        (np.zeros((0, 4), np.uint8), "mono8"),
        (np.zeros((4, 4), np.uint8), "jpeg"),
    ],
)
def test_encode_converts_nothing_silently(pixels, encoding):
    with pytest.raises(ImageCodecError):
        encode_rows(pixels, encoding)


@st.composite
def images(draw):
    """An encoding and pixels of its dtype, any values (NaN too), sides from 1 px, odd ones too."""
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    dtype, channels = ENCODINGS[encoding]
    sides = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    shape = sides if channels == 1 else (*sides, 3)
    return encoding, draw(numpy_strategies.arrays(dtype, shape))


@given(images(), st.integers(0, 7), st.booleans(), st.binary(max_size=5))
def test_padding_byte_order_and_trailing_bytes_do_not_change_the_pixels(
    image, padding, is_bigendian, trailing
):
    encoding, pixels = image
    stored = pixels.astype(pixels.dtype.newbyteorder(">" if is_bigendian else "<"))
    rows = [row.tobytes() + b"\xaa" * padding for row in stored]
    data = b"".join(rows) + trailing
    data = memoryview(b"\xff" * padding + data)[padding:]  # at an odd address, too
    decoded = decode(encoding, *pixels.shape[:2], len(rows[0]), is_bigendian, data)
    assert decoded.flags.c_contiguous
    assert decoded.flags.aligned
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.dtype == pixels.dtype
    written = encode_rows(decoded, encoding)
    again = decode(encoding, *pixels.shape[:2], written.shape[1], 0, written.tobytes())
    np.testing.assert_array_equal(again, pixels)
