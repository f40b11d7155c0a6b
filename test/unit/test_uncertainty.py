"""Deviations hold the errors that they are to hold, and follow detail and noise."""

import json
import shutil

import numpy as np
import pytest

from difiisr_models.radiometry import CountRange
from difiisr_models.uncertainty import (
    DEVIATIONS,
    fitted_table,
    scores,
    standard_deviations,
    table_of_model,
)
from difiisr_models.weights import WeightsError, find_weights_folder

SHOWN = CountRange(7000.0, 8000.0)


def test_a_fitted_table_holds_nine_errors_of_ten_at_every_score():
    rng = np.random.default_rng(0)

    def drawn(count):
        score = np.exp(rng.uniform(-10, 0, count))
        return score, rng.laplace(0, 1, (count, 16)) * np.sqrt(score)[:, None] * 0.3

    table = fitted_table(*drawn(20_000))
    score, error = drawn(20_000)
    inside = np.abs(error) <= DEVIATIONS * table(score)[:, None]
    for tenth in np.array_split(np.argsort(score), 10):
        assert 0.87 < inside[tenth].mean() < 0.93


def test_deviations_are_in_counts_and_grow_with_detail_and_noise():
    table = table_of_model("difiisr-rt-x4")
    result = np.full((96, 128), 7500, np.uint16)
    result[:, 64:] += (200 * (np.indices((96, 64)).sum(0) % 2)).astype(np.uint16)
    quiet = standard_deviations(result, SHOWN, 0.0, table)
    assert (quiet.shape, quiet.dtype) == (result.shape, np.float32)
    assert (quiet > 0).all()
    assert quiet[:, 96:].mean() > 5 * quiet[:, :32].mean()
    assert (standard_deviations(result, SHOWN, 20.0, table) >= quiet).all()
    wider = CountRange(70000.0, 80000.0)
    np.testing.assert_allclose(
        standard_deviations(10.0 * result.astype(np.float32), wider, 0.0, table),
        10 * quiet,
        rtol=1e-3,
    )
    colours = np.stack([result] * 3, axis=-1)
    np.testing.assert_array_equal(scores(colours, SHOWN, 0.0), scores(result, SHOWN, 0.0))


@pytest.mark.parametrize(
    "damaged", [{"scores": [1.0]}, {"scores": [2.0, 1.0], "deviations": [1.0, 2.0]}, [1], {}]
)
def test_a_model_without_a_sound_table_is_refused(tmp_path, damaged):
    folder = tmp_path / "model"
    shutil.copytree(find_weights_folder("difiisr-rt-x4"), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"uncertainty": damaged}))
    with pytest.raises(WeightsError, match="damaged"):
        table_of_model(str(folder))
    del manifest["uncertainty"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no calibrated deviations"):
        table_of_model(str(folder))
