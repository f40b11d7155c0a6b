"""A fixed pattern is found while the scene moves, and no scene is ever taken for one."""

import numpy as np
import pytest
from PIL import Image

from difiisr_models.fixed_pattern import PatternStrength, PatternTracker

SIZE = (96, 128)
SPAN = 200.0  # of the scenes, counts, about
NOISE = 0.025 * SPAN
CENTRE = (60.0, 60.0)


def still(seed: int = 0) -> np.ndarray:
    """A textured scene ``(500, 560)``, twice as fine as the frames, that spans 200 counts."""
    noise = np.random.default_rng(seed).normal(size=(500, 560))
    frequency = np.hypot(np.fft.fftfreq(500)[:, None], np.fft.rfftfreq(560)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.3, (500, 560))
    return field * (SPAN / np.ptp(np.quantile(field, (0.002, 0.998))))


def stripes(axis: int, period: int) -> np.ndarray:
    """As fine as :func:`still`; ``period`` in pixels of the frames, ``axis`` it repeats along."""
    at = np.arange(500 if axis == 0 else 560) // 2 % period
    bars = SPAN / 2 * (at < period // 2)
    return np.broadcast_to(bars[:, None] if axis == 0 else bars[None], (500, 560))


def walk(count: int, reach: float = 4.0, seed: int = 1) -> list[tuple[float, float]]:
    """Positions that wander, in halves of a pixel."""
    rng, at, found = np.random.default_rng(seed), np.array(CENTRE), []
    for _ in range(count):
        at = np.clip(at + rng.uniform(-reach, reach, 2), 0, 140)
        found.append(tuple(at))
    return found


def frames(scene: np.ndarray, positions, pattern: np.ndarray | float = 0.0, noise: float = NOISE):
    """The scene as a camera sees it from ``positions``."""
    rng = np.random.default_rng(2)
    height, width = SIZE
    for position in positions:
        y, x = np.round(np.multiply(position, 2)).astype(int)
        fine = scene[y : y + 2 * height, x : x + 2 * width]
        view = fine.reshape(height, 2, width, 2).mean((1, 3))
        yield (view + pattern + rng.normal(0, noise, SIZE)).astype(np.float32)


def largest(scene, positions, noise: float = NOISE) -> float:
    """Root mean square of the strongest pattern that was found, share of the span."""
    tracker = PatternTracker()
    found = (tracker.update(frame, noise) for frame in frames(scene, positions, 0.0, noise))
    return max(0.0 if p is None else float(np.sqrt((p**2).mean())) for p in found) / SPAN


def left(scene, positions, pattern: np.ndarray) -> float:
    """Share of the pattern's power that is left when the last frame's finding is taken off."""
    tracker = PatternTracker()
    for frame in frames(scene, positions, pattern):
        found = tracker.update(frame, NOISE)
    assert found.dtype == np.float32
    assert found.shape == SIZE
    return np.var(pattern - found) / np.var(pattern)


def lines(seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.3 * NOISE, (SIZE[0], 1)) + rng.normal(0, 0.5 * NOISE, (1, SIZE[1]))


def test_rows_and_columns_are_found_while_the_scene_moves():
    assert left(still(), walk(60), lines()) < 0.3


def test_rows_and_columns_are_found_in_a_real_scene(shared_data):
    path = sorted((shared_data / "pbvs_tisr" / "val").glob("*.png"))[9]
    scene = np.asarray(Image.open(path).convert("F"))[:440, :560]
    scene = scene * (SPAN / np.ptp(np.quantile(scene, (0.002, 0.998))))
    positions = np.clip(walk(60), 0, 120)
    assert left(scene, positions, lines()) < 0.3
    assert largest(scene, positions) < 0.001


def test_pixels_are_found_while_the_scene_moves():
    pattern = np.random.default_rng(3).normal(0, 0.5 * NOISE, SIZE)
    assert left(still(), walk(120), pattern) < 0.5


def test_a_camera_without_a_pattern_is_left_alone():
    assert largest(still(), walk(80)) < 0.001


def test_a_pan_finds_the_columns_alone():
    tracker = PatternTracker()
    for frame in frames(still(), [(60, 5 + 2 * t) for t in range(60)], lines()):
        tracker.update(frame, NOISE)
    assert tracker.strength.columns == pytest.approx(0.5 * NOISE, rel=0.3)
    assert tracker.strength.rows == tracker.strength.pixels == 0


@pytest.mark.parametrize("noise", [NOISE, 0.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_static_camera_finds_nothing(axis, noise):
    scene = still() + stripes(axis, 8)
    assert largest(scene, [CENTRE] * 30, noise) == 0


def panned(axis):
    """Along stripes that repeat along ``axis``."""
    return [(60, 5 + 1.5 * t) if axis == 0 else (5 + 1.5 * t, 60) for t in range(60)]


def shaken():
    rng = np.random.default_rng(4)
    return [(60 + rng.uniform(-2, 2), 5 + 1.5 * t) for t in range(60)]


def jumping(period):
    return 6 + period * np.random.default_rng(5).integers(0, 5, (60, 2))


@pytest.mark.parametrize("noise", [NOISE, 0.2 * NOISE])
@pytest.mark.parametrize(
    ("axes", "period", "positions"),
    [
        *(((axis,), period, panned(axis)) for axis in (0, 1) for period in (6, 16)),
        ((0,), 6, shaken()),
        ((0,), 16, shaken()),
        ((0, 1), 6, jumping(6)),
        ((0, 1), 12, jumping(12)),
    ],
)
def test_stripes_and_fences_stay_however_the_camera_moves(axes, period, positions, noise):
    bars = sum(stripes(axis, period) for axis in axes)
    assert largest(bars + still() / 2, positions, noise) < 0.001


def test_a_large_object_before_a_still_scene_is_not_taken_for_motion():
    behind, moving = (list(frames(still(s) + stripes(0, 8), [CENTRE] * 40)) for s in (0, 1))
    tracker = PatternTracker()
    for t, (frame, other) in enumerate(zip(behind, moving, strict=True)):
        at = abs(3 * t % 100 - 50)
        frame[20:90, at : at + 60] = other[20:90, :60]
        found = tracker.update(frame, NOISE)
        assert found is None or np.sqrt((found**2).mean()) < 0.001 * SPAN


@pytest.mark.parametrize("frame", [np.zeros(SIZE), np.full((3, 5), 7.0), np.zeros((1, 1))])
def test_frames_without_anything_to_see_are_no_error(frame):
    tracker = PatternTracker()
    assert [tracker.update(frame.astype(np.uint16), noise) for noise in (0.0, 1.0, 1.0)] == [
        None
    ] * 3
    assert tracker.strength == PatternStrength()
