"""Times the node over DDS: frames at a fixed rate, results matched by their stamps."""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from tqdm import tqdm

from difiisr_models import Runtime
from difiisr_models.frame_model import BICUBIC
from difiisr_ros import node_process
from difiisr_ros.bags import STORE, image_bytes
from difiisr_ros.commands.bench_calls import (
    Bench,
    Row,
    Size,
    camera_frames,
    described,
    kept_runs,
    percentiles,
)
from difiisr_ros.diagnostics import UPSCALING
from difiisr_ros.node_process import NodeProcess, ProcessFailed
from difiisr_ros.stream_statistics import WINDOW

if TYPE_CHECKING:
    from difiisr_ros.node_peer import NodePeer

IMAGE, RESULT = "/bench/image_raw", "/bench/sr"
TAIL_PATIENCE = 2.0  # seconds for the last results
_FRAMES = 4  # different ones that the camera sends over and over


def node_rows(bench: Bench, rates: Sequence[float], logs: Path) -> Iterator[Row]:
    """The node at fixed rates, model by model and size by size.

    A stream that fails is a row without a result, and the next one begins.
    """
    os.environ.update(node_process.dds_environment())
    streams = [(model, size) for model in bench.names for size in bench.sizes]
    for model, size in tqdm(streams, desc="node", unit="stream"):
        row = described("node", model, size)
        try:
            with node_under_test(bench, model, size, logs) as node:
                told = node.peer.identity
                row |= {"backend": told["backend"], "weights_sha256": told["weights sha256"]}
                row |= {"device": told["device"].partition(":")[0]}
                for rate in rates:
                    runs = [node.run(rate, bench.seconds) for _ in range(bench.runs)]
                    yield row | stream_row(rate, runs)
        except ProcessFailed as error:
            yield row | {"rate": None, "no_result": str(error)}


@contextmanager
def node_under_test(bench: Bench, model: str, size: Size, logs: Path) -> Iterator[NodeUnderTest]:
    """A node that has answered a frame, else ProcessFailed.

    This process's environment must be that of :func:`.dds_environment`.
    """
    from difiisr_ros.node_peer import NodePeer

    parameters = {"autostart": "true", "model": model, "threads": bench.runtime.threads}
    if model not in BICUBIC:
        asked, usual = asdict(bench.runtime), asdict(Runtime())
        parameters |= {name: value for name, value in asked.items() if value != usual[name]}
    parameters |= {"device": bench.device}
    arguments = node_process.ros_arguments(parameters, {"image_raw": IMAGE, "sr/image_raw": RESULT})
    with NodePeer(IMAGE, RESULT) as peer, NodeProcess(logs / "node.log", *arguments) as process:
        frames = _stamped(camera_frames(size, _FRAMES))

        def answered() -> bool:
            peer.send(next(frames))
            return bool(peer.arrived and peer.identity)

        process.wait_until(answered, node_process.START_PATIENCE, "the first result")
        time.sleep(1.0)  # results of the other frames that called it
        yield NodeUnderTest(process, peer, frames)


def _stamped(frames: Iterable[np.ndarray]) -> Iterator[bytes]:
    """Serialised frames, over and over, each with the time as its stamp."""
    zero = STORE.types["builtin_interfaces/msg/Time"](0, 0)
    header = STORE.types["std_msgs/msg/Header"](stamp=zero, frame_id="thermal")
    stamp = 0
    for raw in cycle([bytearray(image_bytes(header, frame, "mono16")) for frame in frames]):
        stamp = max(stamp + 1, time.time_ns())
        struct.pack_into("<iI", raw, 4, *divmod(stamp, 10**9))
        yield bytes(raw)


@dataclass
class NodeUnderTest:
    """A node with its camera and consumer."""

    process: NodeProcess
    peer: NodePeer
    frames: Iterator[bytes]

    def run(self, rate: float, seconds: float) -> Row:
        """Send frames at ``rate`` Hz for ``seconds`` and wait for the results.

        Returns:
            The columns of a row, of one run; besides ``latencies``, seconds from sending to the
            result's arrival, and ``intervals`` between results.
        """
        count, peer = max(2, round(rate * seconds)), self.peer
        node = psutil.Process(self.process.pid)
        peer.sent, peer.arrived = {}, {}  # results of earlier runs do not count
        before = sum(node.cpu_times()[:2])
        messages = ((i / rate, next(self.frames), None) for i in range(count))
        took = max(peer.play(self.process, messages, TAIL_PATIENCE), 1e-9)
        answers, cpu = peer.answers(), (sum(node.cpu_times()[:2]) - before) / took
        return {
            "rate": (count - 1) / took, "sent": count, "received": len(answers),
            "latencies": [(arrived - sent) / 1e9 for sent, arrived in answers],
            "intervals": [(b - a) / 1e9 for (_, a), (_, b) in pairwise(answers)],
            "cpu": cpu, "memory_mib": node.memory_info().rss / 2**20,
            # The diagnostics look back on so long.
            "upscaling": float(peer.identity[UPSCALING]) / 1e3 if seconds >= WINDOW else None,
        }  # fmt: skip


def stream_row(rate: float, runs: Sequence[Row]) -> Row:
    """The row of runs at a rate, all columns from the same kept ones; one without result is worst.

    The node keeps the newest frame: where it loses frames, ``fps`` is what it holds at most.
    """
    kept = kept_runs(runs, lambda r: np.mean(r["latencies"]) if r["latencies"] else math.inf)
    columns = {name: [run[name] for run in kept] for name in kept[0]}
    row = {"rate": rate, "sent": sum(columns["sent"]), "received": sum(columns["received"])}
    row["loss"] = 1 - row["received"] / row["sent"]
    if not row["received"]:
        return row | {"no_result": f"no result of {row['sent']} frames at {rate:g} Hz"}
    between = np.concatenate(columns["intervals"])
    upscaling = [value for value in columns["upscaling"] if value is not None]
    return row | {
        "rate": float(np.mean(columns["rate"])),
        # Results over the time between them: None of a single one.
        "fps": len(between) / float(between.sum()) if len(between) else None,
        **percentiles(np.concatenate(columns["latencies"])),
        "jitter": float(between.std()) if len(between) else 0.0,
        "upscaling_p50": float(np.median(upscaling)) if upscaling else None,
        "cpu": float(np.mean(columns["cpu"])),
        "memory_mib": max(columns["memory_mib"]),
    }
