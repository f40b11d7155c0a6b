import array
from types import SimpleNamespace

import numpy as np
import pytest

from difiisr_ros.image_codec import ImageCodecError, encode_rows, image_to_array


def decode(encoding, height, width, step, is_bigendian, data):
    image = {"encoding": encoding, "height": height, "width": width, "step": step}
    return image_to_array(SimpleNamespace(**image, is_bigendian=is_bigendian, data=data))


@pytest.mark.parametrize("container", [bytes, bytearray, lambda b: array.array("B", b)])
def test_every_message_library_s_data_type_is_read(container):
    counts = np.array([[1, 2], [3, 4]], np.uint16)
    np.testing.assert_array_equal(decode("mono16", 2, 2, 4, 0, container(counts.tobytes())), counts)


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
        (("yuv422", 4, 4, 8, 0, bytes(32)), ("'yuv422'", "mono16")),
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
