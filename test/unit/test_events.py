"""Shutter, gain and display events are told from scene changes, and spoil nothing of a stream."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from difiisr_models import Camera, Stream, Upscaler
from difiisr_models.camera_files import Calibration
from difiisr_models.events import EventDetector
from difiisr_models.frame_model import BicubicModel
from difiisr_models.radiometry import CountRange
from difiisr_models.recurrence import Past

SECOND = 1_000_000_000
PERIOD = SECOND // 9


@pytest.fixture(scope="module")
def simulated():
    """The simulator of benchmarks/stream_events.py."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "stream_events.py"
    if not path.exists():
        pytest.skip("an installed package has no benchmarks beside it")
    return SimpleNamespace(**runpy.run_path(str(path)))


@pytest.fixture
def upscaler():
    """Interpolation that counts how often it ran."""

    class Counting(BicubicModel):
        runs = 0

        def super_resolve(self, *arguments):
            self.runs += 1
            return super().super_resolve(*arguments)

    return Upscaler("counting", Counting(is_projected=True))


@pytest.fixture
def frames(simulated):
    """Twelve frames of a slow pan, uint16."""
    return [simulated.counts(f) for f in simulated.pan(np.random.default_rng(4), 12, 0.01, 1.0)]


def show(stream, frames, first=0, period=PERIOD):
    """Let the stream see frames of a steady camera; what it calls the last one."""
    for n, frame in enumerate(frames, first):
        stream.begin_frame(frame, 1000 * SECOND + n * period)
        stream.see(frame)
    return stream.events.event


@pytest.mark.parametrize("speed", [0.0, 4.0])
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("repeat", 3), ("offset", -0.15), ("offset", 1.2), ("gain", 0.4), ("gain", 1.3),
        ("flat", 0.0), ("flat", -1.0), ("flicker", 0.15), ("cut", 0.4),
    ],
)  # fmt: skip
def test_each_event_is_found_and_nothing_else(simulated, kind, size, speed):
    seen = simulated.kinds(simulated.with_event(kind, size, 0.01, speed, seed=7))
    found = seen.index(kind)
    assert found == simulated.AT + (2 if kind == "flicker" else 0)
    assert set(seen[: simulated.AT]) == {"normal"}


@pytest.mark.parametrize(
    ("kind", "size", "noise", "speed", "seed"),
    [
        ("gain", 1.2, 0.03, 10.0, 31),  # outliers are cut elsewhere in the next frame
        ("flat", 0.0, 0.03, 0.0, 24),  # a scene so smooth that its steps are below the noise
        ("cut", 0.5, 0.005, 4.0, 5004),  # a few strong edges in both scenes
        ("flicker", 0.1, 0.01, 10.0, 5015),  # the scene slides along a strong edge
    ],
)
def test_events_of_difficult_scenes_are_found(simulated, kind, size, noise, speed, seed):
    seen = simulated.kinds(simulated.with_event(kind, size, noise, speed, seed))
    assert seen[simulated.AT + (3 if kind == "flicker" else 0)] == kind
    assert set(seen[: simulated.AT]) == {"normal"}


@pytest.mark.parametrize("rate", [-0.02, 0.01, 0.03])
def test_a_drift_is_no_jump(simulated, rate):
    """Of a scene most of which is of one level, by up to a fifth of that a frame."""
    frames = simulated.pan(np.random.default_rng(5), 30, 0.01, 0.5)
    drifting = (np.clip(frame, 0.3, None) + rate * n for n, frame in enumerate(frames))
    assert set(simulated.kinds(drifting)[4:]) == {"normal"}


def test_jumps_of_several_kinds_are_no_flicker(simulated):
    frames = list(simulated.pan(np.random.default_rng(6), 24, 0.01, 1.0))
    frames[8:12] = [frame - 0.35 for frame in frames[8:12]]
    frames[16:] = [0.55 * frame - 0.1 for frame in frames[16:]]
    seen = simulated.kinds(frames)
    assert [(n, kind) for n, kind in enumerate(seen) if kind != "normal"] == [
        (8, "offset"), (12, "offset"), (16, "gain"),
    ]  # fmt: skip


def test_a_lens_may_shade_its_shutter_steeply(simulated):
    frames = list(simulated.pan(np.random.default_rng(7), 15, 0.03, 0.5))
    y, x = np.mgrid[-1:1:120j, -1:1:160j]
    shutter = np.median(frames[11]) + 0.15 * (np.abs(x) ** 3 + y**2 - 0.6)
    noise = np.random.default_rng(8).normal(0, 0.03, (3, 120, 160))
    frames[12:] = shutter + noise
    assert simulated.kinds(frames)[12:] == ["flat"] * 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e19, 5e37])
def test_frames_of_absurd_counts_make_no_event_among_themselves(frames, size):
    detector = EventDetector()
    usual = [frame.astype(np.float32) for frame in frames[:3]]
    absurd = [(frame - 4000) / 800 * np.float32(size) for frame in usual]
    holes = np.where(absurd[0] > 0, np.float32(np.inf), absurd[0])
    kinds = [detector.update(frame).kind for frame in (*usual, *absurd, holes, *usual)]
    assert {kinds[n] for n in (1, 2, 8, 9)} == {"normal"}
    assert {kinds[n] for n in (4, 5)} == {"flat" if size < 1 else "normal"}


@pytest.mark.parametrize(("noise", "speed"), [(0.005, 10.0), (0.01, 3.0), (0.03, 1.0)])
def test_there_is_no_false_alarm_on_a_noisy_pan_with_hot_objects(simulated, noise, speed):
    stream = simulated.pan(np.random.default_rng(11), 240, noise, speed)
    assert set(simulated.kinds(stream)) == {"normal"}


@pytest.mark.parametrize(
    ("clip", "jumps"),
    [
        ("recorder_skyline", {4: -183, 14: -164, 24: -146, 34: -132, 44: -117, 54: -107}),
        ("classifier_possum", {1: -34}),
        ("recorder_noise_01", {}),
        ("recorder_rat", {}),
    ],
)
def test_the_jumps_of_real_cameras_are_found(shared_data, clip, jumps):
    detector, found = EventDetector(), {}
    folder = shared_data / "video" / "native16" / "lepton" / clip
    for n, path in enumerate(sorted(folder.iterdir())):
        event = detector.update(np.asarray(Image.open(path)))
        if event.kind != "normal":
            assert event.kind == "offset"
            found[n] = event.offset
    assert found == pytest.approx(jumps, abs=2)


def test_telemetry_may_go_on_in_a_frozen_frame(frames):
    detector, frozen = EventDetector(), frames[0].astype(np.float32)
    frozen[10, 10] = np.nan
    telemetry = frozen.copy()
    telemetry[:2] += 1
    events = [detector.update(frame) for frame in (frozen, frozen.copy(), telemetry)]
    assert [(event.kind, event.is_exact) for event in events] == [
        ("normal", False), ("repeat", True), ("repeat", False),
    ]  # fmt: skip


def test_a_repeated_frame_is_not_computed_unless_settings_changed(upscaler, frames):
    stream, model = Stream(), upscaler._model
    first = upscaler(frames[0], stream, SECOND)
    first_copy = first.copy()
    first[:] = 0  # the caller's own
    again = upscaler(frames[0], stream, 2 * SECOND)
    assert (model.runs, stream.is_repeat) == (1, True)
    np.testing.assert_array_equal(again, first_copy)
    upscaler.change(consistency=0.0)
    assert not np.array_equal(upscaler(frames[0], stream, 3 * SECOND), again)
    stream.no_data = (int(frames[0][50, 50]),)
    upscaler(frames[0], stream, 4 * SECOND)
    assert model.runs == 3
    assert stream.seen.invalid_count > 0


def test_one_message_computed_twice_is_no_repeat(upscaler, frames):
    stream = Stream()
    for _ in range(2):
        upscaler(frames[0], stream, SECOND)
    assert not stream.is_repeat
    assert stream.events.counts["repeat"] == 0


@pytest.mark.parametrize(("gain", "offset"), [(1.0, -400.0), (0.5, 900.0)])
def test_what_is_known_follows_a_jump_of_level_or_gain(frames, gain, offset):
    stream = Stream()
    show(stream, frames)
    memory, before = stream.channel(), stream.seen
    memory.past = Past(None, None, CountRange(0.0, 100.0))
    jumped = np.rint(gain * frames[-1] + offset).astype(np.uint16)
    event = show(stream, [jumped], len(frames))
    after = stream.seen
    assert event.kind == ("offset" if gain == 1 else "gain")
    assert (event.gain, event.offset) == pytest.approx((gain, offset), abs=25, rel=0.05)
    ends = [gain * end + offset for end in (before.range.lo, before.range.hi)]
    assert (after.range.lo, after.range.hi) == pytest.approx(ends, abs=0.05 * before.range.span)
    assert after.noise == pytest.approx(gain * before.noise, rel=0.4)
    assert memory.past.range.lo == event.offset


def test_a_closed_shutter_teaches_nothing(frames):
    stream, shutter = Stream(), np.full_like(frames[0], 9000)
    shutter[::2] += 3
    show(stream, frames)
    before = stream.seen
    assert show(stream, [shutter], 12).kind == "flat"
    assert stream.seen.noise == before.noise
    assert show(stream, [frames[-1]], 13).kind == "normal"
    assert stream.seen.range.lo == pytest.approx(before.range.lo, abs=10)
    stream.is_closed = True
    assert show(stream, [frames[0]], 14).kind == "flat"  # the driver says so


def test_the_stream_survives_a_pause_and_begins_anew_after_a_long_one_or_a_cut(simulated, frames):
    other = simulated.counts(next(simulated.pan(np.random.default_rng(9), 1, 0.01, 1.0)) + 0.3)
    for frame, late, kind in (
        (frames[-1], 3, "pause"),
        (frames[-1], 7, "pause"),
        (other, 3, "cut"),
    ):
        stream, new = Stream(max_pause=5.0), Stream()
        show(stream, frames[:-1])
        tracked = stream.seen.range
        event = show(stream, [frame], len(frames) + 9 * late)
        assert (event.kind, round(event.pause)) == (kind, late)
        show(new, [frame])
        begins_anew = late == 7 or kind == "cut"
        assert (stream.seen.range == new.seen.range) == begins_anew
        if not begins_anew:
            assert stream.seen.range.lo == pytest.approx(tracked.lo, abs=10)
        assert stream.events.counts["pause"] == 1
    assert stream.events.text == "1 cut, 1 pause"


def test_a_calibration_is_known_from_the_first_frame_on(tmp_path, simulated):
    frames = [simulated.counts(f) for f in simulated.pan(np.random.default_rng(2), 40, 0.01, 6.0)]
    for frame in frames:
        frame[60, 80] = 4321
    stream = Stream()
    show(stream, frames)
    path = tmp_path / "camera.npz"
    stream.calibrate().save(path)
    known = Stream()
    known.set_camera(Camera(calibration=str(path)))
    show(known, frames[-1:])
    assert known.seen.invalid[60, 80]
    assert known.seen.pattern.columns > 0
    assert known.seen.noise == pytest.approx(stream.seen.noise, rel=0.5)
    show(known, [frames[0][:100]], 1)
    assert not known.fits(frames[0][:100].shape)
    assert known.seen.invalid_count == 0


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        b"",
        {"bad": np.zeros((20, 20), bool)},
        {"bad": np.zeros((20, 20), bool), "noise": np.nan},
        {"bad": np.zeros((20, 20), bool), "noise": 1.0, "rows": np.zeros((3, 9, 1), np.float32)},
        {"bad": np.array([{}], object), "noise": 1.0},
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, content):
    path = tmp_path / "camera.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(ValueError, match=r"camera\.npz is no calibration"):
        Calibration.load(path)


def test_frames_of_every_size_are_compared(simulated):
    for height, width in ((16, 16), (18, 24), (60, 80), (17, 200), (512, 640)):
        rng, detector = np.random.default_rng(0), EventDetector()
        scene = np.add.outer(np.arange(height), np.arange(width)) * (4000 / (height + width))
        frames = [rng.normal(7000 + scene, 20).astype(np.uint16) for _ in range(3)]
        kinds = [detector.update(f).kind for f in (*frames, frames[-1] + np.uint16(900))]
        assert kinds == ["normal", "normal", "normal", "offset"]
