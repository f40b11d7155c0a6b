"""The published noise schedule, value by value, and its respacings."""

import numpy as np
import pytest

from difiisr_models.diffusion import exponential_schedule, respace

PUBLISHED_SQRT_ETA = [
    0.02, 0.11716508, 0.17630456, 0.23362892, 0.29157413, 0.35100928, 0.41235614, 0.47585773,
    0.54167168, 0.60990993, 0.68065802, 0.75398526, 0.82995066, 0.90860639, 0.99,
]  # fmt: skip


def test_the_fifteen_published_levels():
    np.testing.assert_allclose(np.sqrt(exponential_schedule().eta), PUBLISHED_SQRT_ETA, atol=5e-9)


@pytest.mark.parametrize("steps", range(1, 16))
def test_respacing_keeps_the_heaviest_step_and_the_order(steps):
    full = exponential_schedule()
    kept = respace(full, steps)
    assert kept.steps == steps
    assert kept.timesteps[-1] == 14
    assert (np.diff(kept.timesteps) > 0).all()
    np.testing.assert_array_equal(kept.eta, full.eta[kept.timesteps])


@pytest.mark.parametrize(
    ("steps", "kept"), [(1, [0]), (2, [0, 7]), (4, [0, 3, 7, 11]), (15, list(range(15)))]
)
def test_the_authors_respacing_keeps_the_first_step(steps, kept):
    full = exponential_schedule(respacing="first")
    assert respace(full, steps).timesteps.tolist() == kept
    np.testing.assert_array_equal(respace(full, steps).eta, full.eta[kept])
    with pytest.raises(ValueError, match="last or first, got 'middle'"):
        exponential_schedule(respacing="middle")


@pytest.mark.parametrize("steps", [0, 16, -1])
def test_respacing_outside_the_schedule_names_both_numbers(steps):
    with pytest.raises(ValueError, match=rf"1\.\.15.*{steps}"):
        respace(exponential_schedule(), steps)


@pytest.mark.parametrize(
    ("wrong", "text"), [({"steps": 1}, "respace"), ({"sqrt_eta_end": 0.01}, "sqrt")]
)
def test_a_schedule_of_one_step_or_of_falling_levels_is_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        exponential_schedule(**wrong)
