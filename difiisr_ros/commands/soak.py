"""``difiisr soak``: a node over DDS, under all that may happen to it, for minutes or hours."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import psutil
from annotated_types import Gt
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from scipy import stats
from sensor_msgs.msg import CompressedImage, Image
from tqdm import tqdm

from difiisr_models.files import write_json
from difiisr_ros import bags, node_process
from difiisr_ros.commands import hostile_messages, soak_node
from difiisr_ros.commands.answers import Answer, answers
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.node_peer import NodePeer
from difiisr_ros.parameters import CONFIGURE, DEFAULTS, LIVE
from difiisr_ros.stream_statistics import SILENCE

IMAGE, INFO, RESULT, NAME = "/soak/image_raw", "/soak/camera_info", "/soak/sr", "/sr_node"
COMPRESSED = f"{IMAGE}/compressed"
RATE = 9.0  # Hz
SIZES = ((48, 64), (60, 80), (33, 47))
SETTLE = 10.0  # minutes, or a fifth of a short run, until slopes are taken
MOST_PENDING = 3  # one is computed, one waits, one is being counted
_PERIOD = 0.5  # seconds between two messages of the diagnostics
_WRONG = 0.02  # of its span, that the mean of 4x4 pixels may differ from the pixel of a good frame
_SAMPLE = 5.0  # seconds
_UNTIL_REST = 6  # things that happen
_FATES = "frames", "dropped"  # what the names of the counts begin with
_PATIENCE = 30.0  # seconds until the node must have said what it must, on a busy machine too


@answers
def soak(
    *,
    minutes: Annotated[float, Gt(0)] = 60.0,
    seed: int = 1,
    model: str = "difiisr-rt-x4",
    device: str = "cpu",
    only: str = "",
    out: Path = Path("out/soak"),
) -> Answer:
    """Drive a node over DDS with everything that may happen to it, at random, and watch it.

    Hostile messages and requests, transitions, another size, encoding or rate, stamps that jump,
    subscribers and cameras that go and come, faults in the network, memory that runs out, floods,
    silence; at the end signals, a node killed and started again, and a second one of its name.

    Writes soak.json and the node's log. The exit code is 2 where a promise was broken: see "broken"
    in soak.json.

    Args:
        minutes: that it takes, the end (about a minute) not counted.
        seed: of all that is drawn.
        model: that the node runs.
        device: that it runs on.
        only: what shall happen, comma-separated, by the names under "actions" in soak.json.
        out: folder.
    """
    wanted = only.split(",") if only else [*ACTIONS]
    if unknown := set(wanted) - {*ACTIONS}:
        raise ValueError(f"no {', '.join(sorted(unknown))} among {', '.join(ACTIONS)}")
    os.environ.update(node_process.dds_environment())
    out.mkdir(parents=True, exist_ok=True)
    parameters = {"model": model, "device": device, "threads": 1}
    told = parameters | {"diagnostics_period": _PERIOD, "autostart": "true"}
    names = {"image_raw": IMAGE, "sr/image_raw": RESULT, "camera_info": INFO}
    arguments = node_process.ros_arguments(
        told, names | {"sr/camera_info": f"{RESULT}/camera_info"}
    )
    usual = {name: getattr(DEFAULTS, name) for name in (*LIVE, *CONFIGURE)}
    watch = Watch()
    with NodePeer(IMAGE, RESULT, INFO, watch.record) as peer:
        peer.appear({COMPRESSED: CompressedImage})
        run = Soak(peer, watch, out, arguments, usual | parameters, np.random.default_rng(seed))
        try:
            run.go(minutes, wanted)
            run.end()
        finally:
            run.process.kill()
    report = {"minutes": minutes, "seed": seed, "model": model} | run.report(minutes)
    write_json(out / "soak.json", report)
    text = (
        f"slopes per minute: {report['slopes_per_minute']}\n"
        f"broken: {report['broken'] or 'nothing'}; see {out}/soak.json"
    )
    return Answer(report, text, 2 if report["broken"] else 0)


class Watch:
    """What an outside recorder sees: results against what was sent, and the node's own account.

    Attributes:
        sent, answered: stamp -> how many frames were sent under it, and results came.
        truth: stamp -> a good frame.
        good, heard: how many results were judged, and messages of the diagnostics.
        twins: two nodes answer.
        values, text: of the last message of the diagnostics.
        broken: what must not be, and how often it was.
    """

    def __init__(self) -> None:
        self.sent: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.broken: Counter[str] = Counter()
        self.truth: dict[int, np.ndarray] = {}
        self.values: dict[str, str] = {}
        self.text, self.good, self.heard, self.twins = "", 0, 0, False

    def record(self, topic: str, raw: bytes) -> None:
        """Take what the peer hears."""
        if topic == RESULT:
            self._judge(raw)
        elif topic == "/diagnostics":
            for status in bags.parse_message(raw, bags.DIAGNOSTICS_TYPE).status:
                self._account(status)

    def _judge(self, raw: bytes) -> None:
        stamp = bags.stamp_of(raw)
        self.answered[stamp] += 1
        if stamp not in self.sent:
            self.broken["result of a stamp that was never sent"] += 1
        elif self.answered[stamp] > self.sent[stamp] and not self.twins:
            self.broken["frame answered twice"] += 1
        if (frame := self.truth.pop(stamp, None)) is None:
            return
        self.good += 1
        pixels = image_to_array(bags.parse_message(raw, bags.IMAGE_TYPE)).astype(np.float64)
        height, width = frame.shape
        if pixels.shape != (4 * height, 4 * width):
            self.broken["good frame of another size"] += 1
            return
        error = np.abs(pixels.reshape(height, 4, width, 4).mean((1, 3)) - frame).max()
        self.broken["good frame wrong"] += int(error > _WRONG * np.ptp(frame))

    def _account(self, status: Any) -> None:
        values = {value.key: value.value for value in status.values}
        fates = {k: int(v) for k, v in values.items() if k.startswith(_FATES)}
        received, pending = fates.pop("frames received"), fates["frames pending"]
        del fates["frames lost before"]  # they never came
        self.broken["account that does not add up"] += int(received != sum(fates.values()))
        self.broken["frames pending for ever"] += int(not 0 <= pending <= MOST_PENDING)
        self.values, self.text, self.heard = values, status.message, self.heard + 1


class Soak:
    """A run: ``peer`` is camera and operator, ``arguments`` are the node's at its start.

    ``parameters``: of the node, but those that it only reads at its start.
    """

    def __init__(
        self,
        peer: NodePeer,
        watch: Watch,
        folder: Path,
        arguments: list[str],
        parameters: dict[str, Any],
        rng: np.random.Generator,
    ) -> None:
        self.peer, self.watch, self.rng, self.parameters = peer, watch, rng, parameters
        self._folder, self._arguments = folder, arguments
        self.series: dict[str, list[float]] = defaultdict(list)
        self.at_rest: dict[str, list[float]] = defaultdict(list)
        self.done: Counter[str] = Counter()
        self.took: dict[str, list[float]] = defaultdict(list)  # until the node said what it must
        self.logs: list[str] = []
        self.messages = self.hostile = self._shift = self._number = 0
        self._size, self._encoding, self._rate = SIZES[0], "mono16", RATE
        self._topic, self._sampled = IMAGE, 0.0
        self.slopes_until: int | None = None
        self._began = time.monotonic()
        self.process = self._started("node.log")
        self._began = time.monotonic()

    def go(self, minutes: float, wanted: Sequence[str]) -> None:
        """One thing of :data:`ACTIONS` after another, good frames in between, now and then rest."""
        until, bar = self._began + 60 * minutes, tqdm(total=round(60 * minutes), unit="s")
        while time.monotonic() < until:
            for name in self.rng.permutation(wanted):
                if time.monotonic() > until:
                    break
                ACTIONS[name](self)
                self.done[str(name)] += 1
                self.stream(float(self.rng.uniform(2, 6)))
                if sum(self.done.values()) % _UNTIL_REST == 0:
                    self._rest()
                bar.update(min(int(time.monotonic() - self._began), bar.total) - bar.n)
        bar.close()

    def _rest(self) -> None:
        """The usual camera, in every size, and free memory returned: what is left is in use."""
        camera = self._size, self._encoding, self._rate, self._shift
        self._encoding, self._rate, self._shift = "mono16", RATE, 0
        small = (hostile_messages.SIDE,) * 2
        for self._size in (small, *SIZES[1:], SIZES[0]):  # backends keep something of each
            self.stream(1.5, judged=False)
        for _ in range(3):
            stamp = self._send_marked(soak_node.RESTS)
            time.sleep(2.0)
            if self.watch.answered[stamp]:  # no frame was in its way, and none comes after it
                self.at_rest["minute"].append((time.monotonic() - self._began) / 60)
                self.at_rest["rss_at_rest_mb"].append(self._watched.memory_info().rss / 1e6)
                break
        self._size, self._encoding, self._rate, self._shift = camera

    def _listeners(self) -> None:
        self.peer.leave(RESULT)
        self.stream(2.0, judged=False)
        self.peer.listen({RESULT: Image})

    def _restarted_camera(self) -> None:
        self.peer.appear({IMAGE: Image})
        time.sleep(1.0)

    def _fails(self) -> None:
        self._ask_for(soak_node.RAISES, "a fault that the frame asked for")

    def _no_memory(self) -> None:
        """The fallback answers, and the model does again in the end."""
        self._ask_for(soak_node.NO_MEMORY, "out of memory")
        self._wait_for("recovery of memory", "out of memory", gone=True, patience=90.0)

    def _hangs(self) -> None:
        self._ask_for(soak_node.HANGS, f"one frame of {IMAGE} computes", soak_node.HANG)

    def _flood(self) -> None:
        self.stream(3.0, 10 * self._rate, judged=False)

    def _silence(self) -> None:
        """The camera says nothing; the node does."""
        text = f"no image on {IMAGE}"
        self._wait_for("silence", text, patience=SILENCE + _PATIENCE, sending=False)
        self._wait_for("end of silence", text, gone=True)

    def end(self) -> None:
        """Signals, a node killed and started again, a second one of its name."""
        self.slopes_until = len(self.series["minute"])
        for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0), (signal.SIGINT, 0)):
            began = time.monotonic()
            self.process.send_signal(number)
            if self.process.wait(120.0) != code:
                self.watch.broken[f"exit code {self.process.returncode} of {number.name}"] += 1
            self.took[f"end by {number.name}"].append(time.monotonic() - began)
            self.process = self._started(f"node_after_{number.name}.log")
            self.stream(3.0)
        self.watch.twins = True
        twin = self._node("twin.log")
        self._wait_for("twin", f"another node is named {NAME}", patience=180.0)
        twin.stop()
        self._wait_for("end of twin", "another node", gone=True, patience=90.0)
        time.sleep(2.0)
        self.watch.broken["frames pending in the end"] += self.watch.values["frames pending"] != "0"

    # Good frames

    def stream(self, seconds: float, rate: float | None = None, judged: bool = True) -> None:
        """Good frames for a while; not judged before two of them, after what was, are answered."""
        rate, until = rate or self._rate, time.monotonic() + seconds
        first: list[int] = []
        while time.monotonic() < until:
            is_settled = sum(self.watch.answered[stamp] for stamp in first) >= 2
            stamp = self.send(self.frame(), judged and is_settled)
            if not is_settled:
                first.append(stamp)
            time.sleep(1 / rate)
            self._sample()
        self.watch.truth.clear()  # what comes next may spoil what is under way

    def frame(self) -> np.ndarray:
        """A smooth scene whose level is another in each of 20 frames, uint16."""
        self._number += 1
        y, x = np.mgrid[: self._size[0], : self._size[1]]
        body = 900 * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 150)
        return (7300 + 0.5 * x + body + 37 * (self._number % 20)).astype(np.uint16)

    def send(self, frame: np.ndarray, judged: bool, encoding: str | None = None) -> int:
        """Publish a frame under a stamp that no other has; returns that."""
        encoding = encoding or self._encoding
        stamp = time.time_ns() + self._shift
        while stamp in self.watch.sent:
            stamp += 1
        if judged:
            self.watch.truth[stamp] = frame
        seconds, nanoseconds = divmod(stamp, 10**9)
        at = SimpleNamespace(sec=seconds, nanosec=nanoseconds)
        header = SimpleNamespace(stamp=at, frame_id="soak")
        if self._topic == COMPRESSED:
            self._publish(bags.compressed_bytes(header, frame, "mono16"))
        else:
            pixels = frame if encoding == "mono16" else frame.astype(np.float32)
            self._publish(bags.image_bytes(header, pixels, encoding))
        return stamp

    def _publish(self, raw: bytes) -> None:
        if len(raw) >= 12:
            self.watch.sent[bags.stamp_of(raw)] += 1
        self.messages += 1
        self.peer.send(raw, self._topic)

    # What may happen

    def _hostile_frames(self) -> None:
        """Among good ones that are not judged."""
        for _ in range(400):
            if self._topic == IMAGE:
                image, kind = hostile_messages.hostile_image(self.rng), bags.IMAGE_TYPE
            else:
                image, kind = hostile_messages.hostile_compressed(self.rng), bags.COMPRESSED_TYPE
            self._publish(hostile_messages.hostile_bytes(self.rng, image, kind, 0.3))
            self.hostile += 1
            time.sleep(0.02)

    def _hostile_compressed(self) -> None:
        """The node reads compressed images meanwhile; good ones at the end are judged."""
        self._restore(transport="compressed")
        self._topic = COMPRESSED
        self._hostile_frames()
        self.stream(3.0)
        self._topic = IMAGE
        self._restore()

    def _hostile_info(self) -> None:
        for _ in range(20):
            info = hostile_messages.hostile_info(self.rng)
            self.peer.send(
                hostile_messages.hostile_bytes(self.rng, info, bags.CAMERA_INFO_TYPE, 1.0), INFO
            )
            self.hostile += 1
            self.stream(0.1)

    def _hostile_requests(self) -> None:
        self.stream(0.5, judged=False)
        for kind, name, request in hostile_messages.hostile_requests(self.rng):
            self.hostile += 1
            if self.peer.call(kind, f"{NAME}/{name}", request) is None:
                self.watch.broken[f"no answer of {name}"] += 1
        self._restore()

    def _transitions(self) -> None:
        for label in self.rng.choice(["deactivate", "cleanup", "activate"], 3):
            self._transition(str(label))
            self.stream(0.3, judged=False)
        self._restore()

    def _another_camera(self) -> None:
        """Another size, encoding and rate from one frame to the next."""
        self._size = SIZES[self.rng.integers(len(SIZES))]
        self._encoding = str(self.rng.choice(["mono16", "32FC1"]))
        self._rate = float(self.rng.uniform(4, 12))

    def _stamps(self) -> None:
        """They jump back or far ahead, as where a bag starts again or simulated time does."""
        self._shift = int(self.rng.choice([0, -(10**9), -(10**16), 9 * 10**9, 10**16]))

    # What it takes

    def _ask_for(self, fault: int, text: str, seconds: float = 0.0) -> None:
        for _ in range(3):  # the model may be busy, and a frame stale
            self._send_marked(fault)
            time.sleep(0.5)
        self._wait_for(text, text, patience=seconds + _PATIENCE)

    def _send_marked(self, fault: int) -> int:
        frame = self.frame()
        frame.flat[:4] = (*soak_node.MARK, fault)
        return self.send(frame, judged=False, encoding="mono16")

    def _wait_for(
        self,
        what: str,
        text: str,
        gone: bool = False,
        patience: float = _PATIENCE,
        sending: bool = True,
    ) -> None:
        """Until the diagnostics have the text, or have it no more."""
        began = time.monotonic()
        while (text in self.watch.text) == gone:
            if time.monotonic() > began + patience:
                self.watch.broken[f"not told in {patience:.0f} s: {what}"] += 1
                return
            if sending:
                self.stream(0.2, judged=False)
            time.sleep(0.05)
        self.took[what].append(time.monotonic() - began)

    def _transition(self, label: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        answer = self.peer.call(ChangeState, f"{NAME}/change_state", request, 60.0)
        return answer is not None and answer.success

    def _restore(self, **but: Any) -> None:
        """All parameters ``but`` some as they were, and active."""
        for label in ("deactivate", "cleanup"):
            self._transition(label)
        parameters = self.parameters | but
        changes = [Parameter(k, value=v).to_parameter_msg() for k, v in parameters.items()]
        request = SetParametersAtomically.Request(parameters=changes)
        service = f"{NAME}/set_parameters_atomically"
        answer = self.peer.call(SetParametersAtomically, service, request)
        if answer is None or not answer.result.successful:
            self.watch.broken["parameters not restored"] += 1
        if not (self._transition("configure") and self._transition("activate")):
            self.watch.broken["not active again"] += 1

    def _node(self, log: str) -> node_process.NodeProcess:
        module = "difiisr_ros.commands.soak_node"
        return node_process.NodeProcess(self._folder / log, *self._arguments, module=module)

    def _started(self, log: str) -> node_process.NodeProcess:
        self.logs.append(log)
        self.watch.values = {}
        process = self._node(log)

        def ready() -> bool:
            self.send(self.frame(), judged=False)
            return self.watch.values.get("frames published", "0") != "0"

        try:
            process.wait_until(ready, 2 * node_process.START_PATIENCE, "the first result")
        except node_process.ProcessFailed:
            process.kill()
            raise
        self._watched = psutil.Process(process.pid)
        return process

    def _sample(self) -> None:
        self.process.check()
        now = time.monotonic()
        if now - self._sampled < _SAMPLE:
            return
        self._sampled, values = now, self.watch.values
        for name, value in {
            "minute": (now - self._began) / 60,
            "rss_mb": self._watched.memory_info().rss / 1e6,
            "gpu_mb": float(values.get("GPU memory (MB)", 0.0)),
            "files": self._watched.num_fds(),
            "threads": self._watched.num_threads(),
            "latency_p50_ms": float(values["latency p50 (ms)"]),
            "dropped": sum(int(v) for k, v in values.items() if k.startswith("dropped")),
        }.items():
            self.series[name].append(value)

    def report(self, minutes: float) -> dict[str, Any]:
        """What soak.json holds."""
        watch = self.watch
        logs = "\n".join((self._folder / log).read_text(errors="replace") for log in self.logs)
        for what in ("Traceback", "left by a callback"):
            watch.broken[what] += logs.count(what)
        series = {name: np.array(v)[: self.slopes_until] for name, v in self.series.items()}
        rest = {name: np.array(v) for name, v in self.at_rest.items()}
        settled = min(SETTLE, minutes / 5)
        return {
            "broken": dict(+watch.broken),
            "messages_sent": self.messages,
            "hostile_messages_and_requests": self.hostile,
            "good_frames_judged": watch.good,
            "diagnostics_checked": watch.heard,
            "actions": dict(self.done),
            "told_after_s": {
                k: np.round([min(v), max(v)], 1).tolist() for k, v in self.took.items()
            },
            "last_account": {k: v for k, v in watch.values.items() if k.startswith(_FATES)},
            "slopes_per_minute": slopes(rest, settled) | slopes(series, settled),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}",
            "series": {k: v[::12].round(3).tolist() for k, v in series.items()},
            "at_rest": {k: v.round(3).tolist() for k, v in rest.items()},
        }


ACTIONS = {
    action.__name__.removeprefix("_"): action
    for action in (
        Soak._hostile_frames, Soak._hostile_compressed, Soak._hostile_info, Soak._hostile_requests,
        Soak._transitions, Soak._another_camera, Soak._stamps, Soak._listeners,
        Soak._restarted_camera, Soak._fails, Soak._no_memory, Soak._hangs, Soak._flood,
        Soak._silence,
    )
}  # fmt: skip
"""What may happen, by name."""


def slopes(series: dict[str, np.ndarray], settled: float) -> dict[str, dict[str, float | None]]:
    """Of each series but "minute" and "dropped", from the minute ``settled`` on."""
    kept = {name: values[series["minute"] > settled] for name, values in series.items()}
    minutes = kept.pop("minute").astype(int)
    return {name: slope(minutes, values) for name, values in kept.items() if name != "dropped"}


def slope(minutes: np.ndarray, values: np.ndarray) -> dict[str, float | None]:
    """Slope (of Theil and Sen) per minute of the medians of each minute; NaN is left out.

    ``upper_95``: that of the 95 % confidence interval; both None of fewer than three minutes.
    """
    known = np.isfinite(values)
    ends = np.unique(minutes[known])
    medians = [float(np.median(values[known & (minutes == end)])) for end in ends]
    if len(ends) < 3:
        return {"slope": None, "upper_95": None}
    fit = stats.theilslopes(medians, ends, 0.95)  # which a passing step does not move
    return {"slope": round(float(fit.slope), 5), "upper_95": round(float(fit.high_slope), 5)}
