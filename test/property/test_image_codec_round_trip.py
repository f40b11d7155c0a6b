from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from difiisr_ros.image_codec import ENCODINGS, encode_rows, image_to_array


def decode(encoding, height, width, step, is_bigendian, data):
    image = {"encoding": encoding, "height": height, "width": width, "step": step}
    return image_to_array(SimpleNamespace(**image, is_bigendian=is_bigendian, data=data))


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
