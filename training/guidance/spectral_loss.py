"""L_visual, the spectral loss of DifIISR (Eq. 10-11): how energy is spread over frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-8


def spectral_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared difference of the normalised log-magnitude spectra (Eq. 11), one per sample.

    The phase is dropped, so nothing changes at all when either image is shifted by whole pixels
    (circularly), mirrored through a point, or negated. A gain g on either image is forgotten only
    nearly: exactly where |F| >> 1, as log(1 + g |F|) = log g + log |F| and the mean is taken out,
    and where |F| << 1, as log(1 + g |F|) = g |F| and the variance is taken out, not between. On
    thermal frames in [-1, 1] doubling the contrast costs 0.5 % of what a 3x3 blur does.

    Args:
        sr: ``(B, C, H, W)``, any unit, float16 to float64.
        hr: likewise.

    Returns:
        ``(B,)`` in [0, 4], 0 for equal spectra; float32, or float64 for float64 images.

    Raises:
        ValueError: the shapes differ.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"images of one shape are compared, got {sr.shape} and {hr.shape}")
    difference = log_spectrum(sr) - log_spectrum(hr)
    return difference.square().mean(dim=(1, 2, 3))


def log_spectrum(image: Tensor) -> Tensor:
    """Eq. 10: log(1 + |shift(FFT(image))|), normalised to zero mean and unit variance per sample.

    ``(B, C, H, W)`` -> the same shape, zero frequency at the centre.
    """
    full = image.to(torch.promote_types(image.dtype, torch.float32))
    spectrum = torch.fft.fftshift(torch.fft.fft2(full), dim=(-2, -1))
    log = spectrum.abs().log1p()
    centred = log - log.mean(dim=(1, 2, 3), keepdim=True)
    variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
    return centred / (variance + _EPS).sqrt()
