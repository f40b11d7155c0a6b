import numpy as np
import pytest

from difiisr_training.evaluation.bootstrap import mean_and_interval


def test_the_interval_is_that_of_the_normal_law_for_many_frames():
    values = np.random.default_rng(0).normal(30, 2, 400)
    mean, (low, high) = mean_and_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert mean == values.mean()
    assert (low, high) == (
        pytest.approx(mean - half, abs=0.03),
        pytest.approx(mean + half, abs=0.03),
    )


def test_nineteen_of_twenty_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(120):
        _, (low, high) = mean_and_interval(rng.exponential(1, 60))
        held += low <= 1 <= high
    assert 0.86 <= held / 120 <= 0.99


def test_it_is_repeatable_and_leaves_frames_without_a_value_out():
    values = np.random.default_rng(2).random(30)
    assert mean_and_interval(values) == mean_and_interval(values)
    assert mean_and_interval(np.append(values, np.nan)) == mean_and_interval(values)


def test_one_frame_none_and_infinity():
    assert mean_and_interval(np.array([4.0])) == (4.0, (4.0, 4.0))
    assert np.isnan(mean_and_interval(np.array([np.nan]))[0])
    mean, (low, high) = mean_and_interval(np.array([30.0, np.inf]))
    assert mean == np.inf
    assert np.isnan([low, high]).all()
