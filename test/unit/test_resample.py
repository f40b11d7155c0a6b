"""The resampling pair is Pillow's BICUBIC, and D^T is D's adjoint."""

import numpy as np
import pytest
import torch
from PIL import Image

from difiisr_models.resample import (
    as_matrix_product,
    downsample,
    pack,
    tf32_products,
    unpack,
    upsample,
)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((height, width)).astype(np.float32)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[None, None]


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 132)])
def test_downsample_is_pillows_antialiased_bicubic(size):
    hr = image(*size)
    expected = np.asarray(Image.fromarray(hr).resize((size[1] // 4, size[0] // 4), Image.BICUBIC))
    np.testing.assert_allclose(downsample(pack(tensor(hr)))[0, 0], expected, atol=2e-6)


@pytest.mark.parametrize("size", [(16, 16), (17, 31)])
def test_upsample_is_pillows_bicubic(size):
    lr = image(*size)
    expected = np.asarray(Image.fromarray(lr).resize((size[1] * 4, size[0] * 4), Image.BICUBIC))
    np.testing.assert_allclose(unpack(upsample(tensor(lr)))[0, 0], expected, atol=2e-6)


@pytest.mark.parametrize(
    ("kernel", "padding"), [((16, 1, 5, 5), 2), ((4, 16, 5, 1), (2, 0)), ((1, 4, 1, 5), (0, 2))]
)
def test_what_a_gpu_multiplies_is_the_convolution(kernel, padding):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(kernel, generator=rng)
    x = torch.randn(2, kernel[1], 9, 14, generator=rng)
    expected = torch.nn.functional.conv2d(x, weight, padding=padding)
    torch.testing.assert_close(as_matrix_product(x, weight, padding), expected)


def test_products_keep_all_bits_whatever_the_process_allows():
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    try:
        for allowed in (True, False):
            switch.allow_tf32 = allowed
            with tf32_products(False):
                assert not switch.allow_tf32
            with tf32_products(True):
                assert switch.allow_tf32
            assert switch.allow_tf32 is allowed
    finally:
        switch.allow_tf32 = before
