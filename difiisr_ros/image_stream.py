"""Super-resolve the images of one stream, grey or colour, each channel with its own range."""

from __future__ import annotations

import numpy as np

from difiisr_models import RangeTracker


class ImageStream:
    """Keeps the tracked ranges of one stream; make a new one for a new stream."""

    def __init__(self) -> None:
        self._trackers = tuple(RangeTracker() for _ in range(3))

    def upscale(self, upscaler: object, pixels: np.ndarray) -> np.ndarray:
        """Return (sH, sW) for (H, W), (sH, sW, 3) for (H, W, 3); same dtype and units.

        A colour image whose channels are equal (a thermal image for display) costs one network
        run instead of three. Raises what the upscaler raises: ValueError for a bad frame.
        """
        if pixels.ndim == 2:
            return upscaler(pixels, tracker=self._trackers[0])
        first = pixels[..., :1]
        if (pixels == first).all():
            grey = upscaler(np.ascontiguousarray(first[..., 0]), tracker=self._trackers[0])
            return np.repeat(grey[..., None], 3, axis=-1)
        channels = np.moveaxis(pixels, -1, 0)
        return np.stack(
            [
                upscaler(np.ascontiguousarray(channel), tracker=tracker)
                for channel, tracker in zip(channels, self._trackers, strict=True)
            ],
            axis=-1,
        )
