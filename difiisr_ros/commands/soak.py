"""``difiisr soak``: a node over DDS, under all that may happen to it, for minutes or hours."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
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
from sensor_msgs.msg import Image
from tqdm import tqdm

from difiisr_models.files import write_json
from difiisr_ros.bags import (
    CAMERA_INFO_TYPE,
    DIAGNOSTICS_TYPE,
    IMAGE_TYPE,
    STORE,
    image_bytes,
    parse_message,
    stamp_of,
)
from difiisr_ros.commands import soak_node
from difiisr_ros.commands.hostile_messages import (
    hostile_image,
    hostile_info,
    hostile_requests,
    mutated,
)
from difiisr_ros.image_codec import image_to_array
from difiisr_ros.node_peer import NodePeer
from difiisr_ros.node_process import (
    START_PATIENCE,
    NodeProcess,
    ProcessFailed,
    dds_environment,
    ros_arguments,
)
from difiisr_ros.parameters import CONFIGURE, DEFAULTS, LIVE
from difiisr_ros.stream_statistics import SILENCE

IMAGE, INFO, RESULT, NAME = "/soak/image_raw", "/soak/camera_info", "/soak/sr", "/sr_node"
RATE = 9.0  # Hz
SIZES = ((48, 64), (60, 80), (33, 47))
SETTLE = 10.0  # minutes, or a fifth of a short run, until slopes are taken
MOST_PENDING = 3  # one is computed, one waits, one is being counted
_PERIOD = 0.5  # seconds between two messages of the diagnostics
_WRONG = 0.02  # of its span, that the mean of 4x4 pixels may differ from the pixel of a good frame
_SAMPLE = 5.0  # seconds
_FATES = "frames", "dropped"  # what the names of the counts begin with
_PATIENCE = 30.0  # seconds until the node must have said what it must, on a busy machine too


def soak(
    *,
    minutes: Annotated[float, Gt(0)] = 60.0,
    seed: int = 1,
    model: str = "difiisr-rt-x4",
    device: str = "cpu",
    out: Path = Path("out/soak"),
) -> int:
    """Drive a node over DDS with everything that may happen to it, at random, and watch it.

    Hostile messages and requests, transitions, another size, encoding or rate, stamps that jump,
    subscribers and cameras that go and come, faults in the network, memory that runs out, floods,
    silence; at the end signals, a node killed and started again, and a second one of its name.

    Writes soak.json, soak.png where matplotlib is installed, and the node's log. The exit code is 2
    where a promise was broken: see "broken" in soak.json.

    Args:
        minutes: that it takes, the end (about a minute) not counted.
        seed: of all that is drawn.
        model: that the node runs.
        device: that it runs on.
        out: folder.
    """
    os.environ.update(dds_environment())
    out.mkdir(parents=True, exist_ok=True)
    parameters = {"model": model, "device": device, "threads": 1}
    remaps = {"image_raw": IMAGE, "sr/image_raw": RESULT, "camera_info": INFO}
    remaps["sr/camera_info"] = f"{RESULT}/camera_info"
    arguments = ros_arguments(
        parameters | {"diagnostics_period": _PERIOD, "autostart": "true"}, remaps
    )
    usual = {name: getattr(DEFAULTS, name) for name in (*LIVE, *CONFIGURE)}

    def start(name: str) -> NodeProcess:
        return NodeProcess(out / name, *arguments, module="difiisr_ros.commands.soak_node")

    watch = Watch()
    with NodePeer(IMAGE, RESULT, INFO, watch.record) as peer:
        run = Soak(peer, watch, start, usual | parameters, np.random.default_rng(seed))
        try:
            run.go(minutes)
            run.end()
        finally:
            run.process.kill()
    report = {"minutes": minutes, "seed": seed, "model": model} | run.report(minutes, out)
    write_json(out / "soak.json", report)
    _plot(run.series, out / "soak.png")
    print(f"slopes per minute: {report['slopes_per_minute']}")
    print(f"broken: {report['broken'] or 'nothing'}; see {out}/soak.json")
    return 2 if report["broken"] else 0


class Watch:
    """What an outside recorder sees: results against what was sent, and the node's own account.

    Attributes:
        sent: stamp -> how many frames were sent under it.
        truth: stamp -> a good frame.
        twins: two nodes answer.
        values, text: of the last message of the diagnostics.
        broken: what must not be, and how often it was.
    """

    def __init__(self) -> None:
        self.sent: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.truth: dict[int, np.ndarray] = {}
        self.twins = False
        self.values: dict[str, str] = {}
        self.text = ""
        self.heard = 0
        self.good = 0
        self.broken: Counter[str] = Counter()

    def record(self, topic: str, raw: bytes) -> None:
        """Take what the peer hears."""
        if topic == RESULT:
            self._judge(raw)
        elif topic == "/diagnostics":
            for status in parse_message(raw, DIAGNOSTICS_TYPE).status:
                self._account(status)

    def _judge(self, raw: bytes) -> None:
        stamp = stamp_of(raw)
        self.answered[stamp] += 1
        if stamp not in self.sent:
            self.broken["result of a stamp that was never sent"] += 1
        elif self.answered[stamp] > self.sent[stamp] and not self.twins:
            self.broken["frame answered twice"] += 1
        if (frame := self.truth.pop(stamp, None)) is None:
            return
        self.good += 1
        pixels = image_to_array(parse_message(raw, IMAGE_TYPE)).astype(np.float64)
        height, width = frame.shape
        if pixels.shape != (4 * height, 4 * width):
            self.broken["good frame of another size"] += 1
            return
        error = np.abs(pixels.reshape(height, 4, width, 4).mean((1, 3)) - frame).max()
        if error > _WRONG * np.ptp(frame):
            self.broken["good frame wrong"] += 1

    def _account(self, status: Any) -> None:
        values = {value.key: value.value for value in status.values}
        fates = {k: int(v) for k, v in values.items() if k.startswith(_FATES)}
        received, pending = fates.pop("frames received"), fates["frames pending"]
        del fates["frames lost before"]  # they never came
        if received != sum(fates.values()):
            self.broken["account that does not add up"] += 1
        if not 0 <= pending <= MOST_PENDING:
            self.broken["frames pending for ever"] += 1
        self.values, self.text, self.heard = values, status.message, self.heard + 1


class Soak:
    """A run: ``peer`` is camera and operator, ``start`` starts a node with a log of that name.

    ``parameters``: of the node, but those that it only reads at its start.
    """

    def __init__(
        self,
        peer: NodePeer,
        watch: Watch,
        start: Callable[[str], NodeProcess],
        parameters: dict[str, object],
        rng: np.random.Generator,
    ) -> None:
        self.peer, self.watch, self.rng, self._start = peer, watch, rng, start
        self.series: dict[str, list[float]] = defaultdict(list)
        self.done: Counter[str] = Counter()
        self.took: dict[str, list[float]] = defaultdict(list)  # until the node said what it must
        self.logs: list[str] = []
        self.messages = self.hostile = self._shift = self._number = 0
        self._size, self._encoding, self._rate = SIZES[0], "mono16", RATE
        self._sampled, self.slopes_until = 0.0, None
        self.parameters = parameters
        self._began = time.monotonic()
        self.process = self._started("node.log")
        self._began = time.monotonic()

    def go(self, minutes: float) -> None:
        """One thing after another, good frames in between."""
        actions = (
            self.hostile_frames, self.hostile_info, self.hostile_requests, self.transitions,
            self.another_camera, self.stamps, self.listeners, self.restarted_camera, self.fails,
            self.no_memory, self.hangs, self.flood, self.silence,
        )  # fmt: skip
        until, bar = self._began + 60 * minutes, tqdm(total=round(minutes, 1), unit="min")
        while time.monotonic() < until:
            for index in self.rng.permutation(len(actions)):
                if time.monotonic() > until:
                    break
                actions[index]()
                self.done[actions[index].__name__] += 1
                self.stream(float(self.rng.uniform(2, 6)))
                passed = (time.monotonic() - self._began) / 60
                bar.update(round(min(minutes, passed) - bar.n, 1))

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

    def send(self, frame: np.ndarray, judged: bool) -> int:
        """Publish a frame under a stamp that no other has; returns that."""
        pixels = frame if self._encoding == "mono16" else frame.astype(np.float32)
        stamp = time.time_ns() + self._shift
        while stamp in self.watch.sent:
            stamp += 1
        if judged:
            self.watch.truth[stamp] = frame
        seconds, nanoseconds = divmod(stamp, 10**9)
        header = SimpleNamespace(
            stamp=SimpleNamespace(sec=seconds, nanosec=nanoseconds), frame_id="soak"
        )
        self._publish(image_bytes(header, pixels, self._encoding))
        return stamp

    def _publish(self, raw: bytes) -> None:
        if len(raw) >= 12:
            self.watch.sent[stamp_of(raw)] += 1
        self.messages += 1
        self.peer.send(raw, IMAGE)

    # What may happen

    def hostile_frames(self) -> None:
        """Forged fields and bytes, among good frames that are not judged."""
        for _ in range(40):
            image = hostile_image(self.rng)
            image.data = np.frombuffer(image.data, np.uint8)
            raw = bytes(STORE.serialize_cdr(image, IMAGE_TYPE))
            if self.rng.random() < 0.3:
                raw = raw[:4] + mutated(self.rng, raw[4:])  # the first four are DDS's
            self._publish(raw)
            self.hostile += 1
            time.sleep(0.02)

    def hostile_info(self) -> None:
        """Forged camera_info while good frames go on."""
        for _ in range(20):
            info = hostile_info(self.rng)
            info.d = np.array(info.d)
            raw = bytes(STORE.serialize_cdr(info, CAMERA_INFO_TYPE))
            self.peer.send(raw[:4] + mutated(self.rng, raw[4:]), INFO)
            self.hostile += 1
            self.stream(0.1)

    def hostile_requests(self) -> None:
        """Every service of parameters and transitions, with what it cannot take."""
        self.stream(0.5, judged=False)
        for kind, name, request in hostile_requests(self.rng):
            self.hostile += 1
            if self.peer.call(kind, f"{NAME}/{name}", request) is None:
                self.watch.broken[f"no answer of {name}"] += 1
        self._restore()

    def transitions(self) -> None:
        """Down and up again, in the middle of a stream."""
        for label in self.rng.choice(["deactivate", "cleanup", "activate"], 3):
            self._transition(str(label))
            self.stream(0.3, judged=False)
        self._restore()

    def another_camera(self) -> None:
        """Another size, encoding and rate from one frame to the next."""
        self._size = SIZES[self.rng.integers(len(SIZES))]
        self._encoding = str(self.rng.choice(["mono16", "32FC1"]))
        self._rate = float(self.rng.uniform(4, 12))

    def stamps(self) -> None:
        """Stamps jump back or far ahead, as where a bag starts again or simulated time does."""
        self._shift = int(self.rng.choice([0, -(10**9), -(10**16), 9 * 10**9, 10**16]))

    def listeners(self) -> None:
        """The subscriber goes and comes back."""
        self.peer.leave(RESULT)
        self.stream(2.0, judged=False)
        self.peer.listen({RESULT: Image})

    def restarted_camera(self) -> None:
        """The publisher is another one from now on."""
        self.peer.appear({IMAGE: Image})
        time.sleep(1.0)

    def fails(self) -> None:
        """The network raises."""
        self._ask_for(soak_node.RAISES, "a fault that the frame asked for")

    def no_memory(self) -> None:
        """Memory runs out; the fallback answers, and the model does again in the end."""
        self._ask_for(soak_node.NO_MEMORY, "out of memory")
        self._wait_for("recovery of memory", lambda: "out of memory" not in self.watch.text, 90.0)

    def hangs(self) -> None:
        """One frame computes for long."""
        self._ask_for(soak_node.HANGS, f"one frame of {IMAGE} computes", soak_node.HANG)

    def flood(self) -> None:
        """Ten times the rate."""
        self.stream(3.0, 10 * self._rate, judged=False)

    def silence(self) -> None:
        """The camera says nothing; the node does."""
        text = f"no image on {IMAGE}"
        self._wait_for("silence", lambda: text in self.watch.text, SILENCE + _PATIENCE, silent=True)
        self._wait_for("end of silence", lambda: text not in self.watch.text)

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
        twin = self._start("twin.log")
        self._wait_for("twin", lambda: f"another node is named {NAME}" in self.watch.text, 180.0)
        twin.stop()
        self._wait_for("end of twin", lambda: "another node" not in self.watch.text, 90.0)
        time.sleep(2.0)
        if self.watch.values["frames pending"] != "0":
            self.watch.broken["frames pending in the end"] += 1

    # What it takes

    def _ask_for(self, fault: int, text: str, seconds: float = 0.0) -> None:
        frame = self.frame()
        frame.flat[:4] = (*soak_node.MARK, fault)
        encoding, self._encoding = self._encoding, "mono16"
        for _ in range(3):  # the model may be busy, and a frame stale
            self.send(frame, judged=False)
            time.sleep(0.5)
        self._encoding = encoding
        self._wait_for(text, lambda: text in self.watch.text, seconds + _PATIENCE)

    def _wait_for(
        self,
        what: str,
        is_so: Callable[[], bool],
        patience: float = _PATIENCE,
        silent: bool = False,
    ) -> None:
        began = time.monotonic()
        while not is_so():
            if time.monotonic() > began + patience:
                self.watch.broken[f"not told in {patience:.0f} s: {what}"] += 1
                return
            if not silent:
                self.stream(0.2, judged=False)
            time.sleep(0.05)
        self.took[what].append(time.monotonic() - began)

    def _transition(self, label: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        answer = self.peer.call(ChangeState, f"{NAME}/change_state", request, 60.0)
        return answer is not None and answer.success

    def _restore(self) -> None:
        """All parameters as they were, and active."""
        changes = [Parameter(name, value=value) for name, value in self.parameters.items()]
        for label in ("deactivate", "cleanup"):
            self._transition(label)
        request = SetParametersAtomically.Request(
            parameters=[change.to_parameter_msg() for change in changes]
        )
        answer = self.peer.call(
            SetParametersAtomically, f"{NAME}/set_parameters_atomically", request
        )
        if answer is None or not answer.result.successful:
            self.watch.broken["parameters not restored"] += 1
        if not (self._transition("configure") and self._transition("activate")):
            self.watch.broken["not active again"] += 1

    def _started(self, name: str) -> NodeProcess:
        self.logs.append(name)
        self.watch.values = {}
        process = self._start(name)

        def ready() -> bool:
            self.send(self.frame(), judged=False)
            return self.watch.values.get("frames published", "0") != "0"

        try:
            process.wait_until(ready, 2 * START_PATIENCE, "the first result")
        except ProcessFailed:
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
        series = {
            "minute": (now - self._began) / 60,
            "rss_mb": self._watched.memory_info().rss / 1e6,
            "gpu_mb": float(values.get("GPU memory (MB)", 0.0)),
            "files": self._watched.num_fds(),
            "threads": self._watched.num_threads(),
            "latency_p50_ms": float(values["latency p50 (ms)"]),
            "dropped": sum(int(v) for k, v in values.items() if k.startswith("dropped")),
        }
        for name, value in series.items():
            self.series[name].append(value)

    def report(self, minutes: float, folder: Path) -> dict[str, Any]:
        """What soak.json holds."""
        logs = "\n".join((folder / name).read_text(errors="replace") for name in self.logs)
        told = self.took.items()
        watch, settle = self.watch, min(SETTLE, minutes / 5)
        for what in ("Traceback", "left by a callback"):
            watch.broken[what] += logs.count(what)
        series = {name: values[: self.slopes_until] for name, values in self.series.items()}
        return {
            "broken": dict(+watch.broken),
            "messages_sent": self.messages, "hostile_messages_and_requests": self.hostile,
            "good_frames_judged": watch.good, "diagnostics_checked": watch.heard,
            "actions": dict(self.done),
            "told_after_s": {k: (round(min(v), 1), round(max(v), 1)) for k, v in told},
            "last_account": {k: v for k, v in watch.values.items() if k.startswith(_FATES)},
            "slopes_per_minute": {
                name: slope(series["minute"], values, settle) for name, values in series.items()
                if name not in ("minute", "dropped")
            },
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}",
            "series": {name: np.round(v[::12], 3).tolist() for name, v in series.items()},
        }  # fmt: skip


def slope(minutes: list[float], values: list[float], settle: float) -> dict[str, float | None]:
    """Slope per minute after ``settle`` minutes, of the medians of each minute, and its limit.

    ``upper_95``: that of the 95 % confidence interval; both None of fewer than three minutes.
    """
    at, of = np.array(minutes), np.array(values)
    ends = np.unique(at[(at > settle) & np.isfinite(of)].astype(int))
    medians = [float(np.nanmedian(of[at.astype(int) == end])) for end in ends]
    if len(ends) < 3:
        return {"slope": None, "upper_95": None}
    fit = stats.linregress(ends, medians)
    spread = 0.0 if np.ptp(medians) == 0 else fit.stderr * stats.t.ppf(0.975, len(ends) - 2)
    return {"slope": round(fit.slope, 5), "upper_95": round(float(fit.slope + spread), 5)}


def _plot(series: dict[str, list[float]], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    names = ("rss_mb", "threads", "latency_p50_ms", "dropped")
    figure = Figure((9, 8), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), sharex=True), names, strict=True):
        axes.plot(series["minute"], series[name], linewidth=0.8)
        axes.set_ylabel(name)
    axes.set_xlabel("minute")
    figure.savefig(path, dpi=120)
