"""Show a recording, a video or images and what the model makes of them in Foxglove, without ROS.

pip install foxglove-sdk
python examples/foxglove_live.py RECORDING_OR_VIDEO_OR_FOLDER [--rate 9] [--port 8765]

Then open ws://localhost:8765 in Foxglove, with the layout config/foxglove.json.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import foxglove
import numpy as np
from cyclopts.types import ExistingPath
from foxglove.channels import RawImageChannel
from foxglove.messages import RawImage

from difiisr_models import Stream, load_upscaler
from difiisr_ros import bags, picture_files


def frames(source: Path) -> Iterator[np.ndarray]:
    """The images of a recording, of a file, or of all files in a folder, in order."""
    recordings = bags.find_recordings(source)
    for recording in recordings:
        with bags.open_bag(recording) as bag:
            topic = bags.choose_image_topic(bag, None)
        yield from (counts for _, counts in bags.frames_of(recording, topic))
    if not recordings:
        files = picture_files.list_files(source)[0] if source.is_dir() else [source]
        for file in files:
            for image in picture_files.read(file).images:
                yield picture_files.as_frame(image.pixels)[0]


def raw_image(pixels: np.ndarray) -> RawImage:
    """The message of uint8 or uint16 pixels, or of float32, which Foxglove shows from 0 to 1."""
    if pixels.dtype == np.float32:
        least, most = np.nanmin(pixels), np.nanmax(pixels)
        pixels = (pixels - least) / max(most - least, np.float32(1e-6))
    grey = {np.uint8: "mono8", np.uint16: "mono16", np.float32: "32FC1"}
    encoding = grey[pixels.dtype.type] if pixels.ndim == 2 else "bgr8"
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).tobytes()
    return RawImage(
        width=width, height=height, encoding=encoding, step=len(data) // height, data=data
    )


def main(
    source: ExistingPath, *, model: str = "difiisr-rt-x4", rate: float = 9.0, port: int = 8765
) -> None:
    """Send each image and its result, at ``rate`` Hz or as fast as the machine can."""
    up, stream = load_upscaler(model), Stream()
    server = foxglove.start_server(port=port)
    print(f"open {server.app_url()} or ws://localhost:{server.port}", flush=True)
    shown, result = RawImageChannel("/thermal/image_raw"), RawImageChannel("/thermal/sr")
    due = time.monotonic()
    try:
        for pixels in frames(source):
            shown.log(raw_image(pixels))
            result.log(raw_image(up(pixels, stream)))
            due = max(due + 1 / rate, time.monotonic() - 1)
            time.sleep(max(due - time.monotonic(), 0))
    finally:
        server.stop()


if __name__ == "__main__":
    cyclopts.run(main)
