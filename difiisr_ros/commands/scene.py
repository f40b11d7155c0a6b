"""``difiisr scene``: record the procedural thermal scene of the demo."""

from __future__ import annotations

from pathlib import Path

from difiisr_ros.commands.arguments import Count


def scene(out_bag: Path, /, *, frames: Count = 90, seed: int = 0, force: bool = False) -> None:
    """Record the procedural thermal scene of the demo.

    Args:
        out_bag: rosbag2 folder to make.
        frames: number of frames, at 9 Hz.
        seed: another seed, another scene.
        force: replace an existing OUT_BAG.
    """
    from difiisr_ros.scene import FRAME_RATE, HEIGHT, IMAGE_TOPIC, WIDTH, write_scene_bag

    write_scene_bag(out_bag, frames, seed, force)
    print(
        f"{out_bag}: {frames} frames, {WIDTH}x{HEIGHT} mono16 at {FRAME_RATE:g} Hz "
        f"on {IMAGE_TOPIC}; kelvin = 0.01 x counts"
    )
