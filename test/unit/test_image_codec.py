import array

import numpy as np
import pytest

from difiisr_ros.image_codec import ENCODINGS, ImageCodecError, decode, encode


def test_mono16_counts_are_not_rescaled_to_8_bit():
    counts = np.array([[0, 255, 256], [28000, 65535, 1]], np.uint16)
    np.testing.assert_array_equal(decode("mono16", 2, 3, 6, 0, counts.tobytes()), counts)


def test_big_endian_counts_are_read_as_such():
    counts = np.array([[0x0102, 0x0304]], np.uint16)
    pixels = decode("16UC1", 1, 2, 4, 1, b"\x01\x02\x03\x04")
    np.testing.assert_array_equal(pixels, counts)
    assert pixels.dtype.isnative


def test_row_padding_is_not_pixels_even_when_it_is_odd():
    data = bytes([1, 0, 2, 0, 99, 3, 0, 4, 0, 99])
    np.testing.assert_array_equal(decode("mono16", 2, 2, 5, 0, data), [[1, 2], [3, 4]])


def test_kelvin_and_nan_pass_through_32fc1():
    kelvin = np.array([[293.15, np.nan], [np.inf, -1.5]], np.float32)
    np.testing.assert_array_equal(decode("32FC1", 2, 2, 8, 0, kelvin.tobytes()), kelvin)


def test_colour_keeps_the_order_of_its_channels():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for encoding in ("rgb8", "bgr8"):
        np.testing.assert_array_equal(decode(encoding, 2, 2, 6, 0, pixels.tobytes()), pixels)


@pytest.mark.parametrize("container", [bytes, bytearray, lambda b: array.array("B", b)])
def test_every_message_library_s_data_type_is_read(container):
    counts = np.array([[1, 2], [3, 4]], np.uint16)
    np.testing.assert_array_equal(decode("mono16", 2, 2, 4, 0, container(counts.tobytes())), counts)


def test_data_at_an_odd_address_is_read():
    counts = np.array([[1, 2], [3, 4]], np.uint16)
    shifted = np.frombuffer(b"\xff" + counts.tobytes(), np.uint8)[1:]
    pixels = decode("mono16", 2, 2, 4, 0, shifted)
    np.testing.assert_array_equal(pixels, counts)
    assert pixels.flags.aligned


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
        (("mono8", 4, 2**32 - 1, 4, 0, bytes(16)), ("step 4", "4294967295")),
        (("mono8", 2**32 - 1, 2**32 - 1, 2**32 - 1, 0, bytes(16)), ("16 bytes", "4294967295")),
        (("mono8", 0, 4, 4, 0, bytes(16)), ("height 0",)),
        (("mono8", 4, 0, 0, 0, bytes(16)), ("width 0",)),
        (("yuv422", 4, 4, 8, 0, bytes(32)), ("'yuv422'", "mono16")),
        (("", 4, 4, 8, 0, bytes(32)), ("''",)),
    ],
)
def test_forged_fields_are_refused_with_their_numbers(fields, numbers):
    with pytest.raises(ImageCodecError) as refusal:
        decode(*fields)
    for number in numbers:
        assert number in str(refusal.value)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoded_fields_say_what_the_data_is(encoding):
    dtype, channels = ENCODINGS[encoding]
    pixels = np.ones((3, 5) if channels == 1 else (3, 5, 3), dtype)
    fields = encode(pixels, encoding)
    assert (fields.height, fields.width, fields.encoding) == (3, 5, encoding)
    assert fields.step == 5 * channels * dtype.itemsize
    assert fields.is_bigendian == 0
    assert isinstance(fields.data, array.array)
    assert fields.data.typecode == "B"
    assert len(fields.data) == 3 * fields.step


def test_counts_leave_little_endian():
    assert encode(np.array([[0x0102]], ">u2").astype(np.uint16), "mono16").data.tobytes() == (
        b"\x02\x01"
    )


@pytest.mark.parametrize(
    ("pixels", "encoding"),
    [
        (np.zeros((4, 4), np.float32), "mono16"),
        (np.zeros((4, 4), np.uint16), "mono8"),
        (np.zeros((4, 4, 3), np.uint8), "mono8"),
        (np.zeros((4, 4), np.uint8), "rgb8"),
        (np.zeros((4, 4, 4), np.uint8), "rgb8"),
        (np.zeros((0, 4), np.uint8), "mono8"),
        (np.zeros((4, 4), np.uint8), "jpeg"),
    ],
)
def test_encode_converts_nothing_silently(pixels, encoding):
    with pytest.raises(ImageCodecError):
        encode(pixels, encoding)
