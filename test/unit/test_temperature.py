import numpy as np
import pytest

from difiisr_training.evaluation.temperature import BinErrors, Radiometry, bin_edges


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kelvin=0.04*counts", (0.04, 0)),
        ("kelvin = 0.1 * counts + 173.15", (0.1, 173.15)),
        ("Kelvin=-2e-2*Counts-5", (-0.02, -5)),
    ],
)
def test_a_linear_radiometry_is_read(text, wanted):
    found = Radiometry.parse(text)
    assert (found.gain, found.offset) == wanted
    assert found.kelvin(np.array([100], np.uint16)) == 100 * wanted[0] + wanted[1]


@pytest.mark.parametrize(
    "text", ["0.04", "kelvin=counts**2", "kelvin=0*counts+3", "celsius=1*counts"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="radiometry"):
        Radiometry.parse(text)


def test_bins_have_round_edges_around_all_temperatures():
    assert bin_edges(281.3, 318.9) == [280, 285, 290, 295, 300, 305, 310, 315, 320]
    assert bin_edges(300.02, 300.61)[:2] == [300.0, 300.1]
    assert len(bin_edges(300, 300)) >= 2


def test_errors_are_counted_where_the_pixel_should_be():
    """kelvin = 0.1 counts + 273: cold pixels 0.5 K too warm, hot ones right but for one."""
    errors = BinErrors(Radiometry(0.1, 273), [273, 283, 293, 303])
    hr = np.repeat(np.array([[50], [250]], np.uint16), 10, axis=1)  # 278 K and 298 K
    sr = hr.copy()
    sr[0] += 5
    sr[1, 0] -= 20
    errors.add(sr, hr)
    errors.add(sr, hr)
    assert errors.pixels() == [20, 0, 20]
    cold, none, hot = errors.errors()
    assert none is None
    assert (cold.bias, cold.p95) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (hot.bias, hot.p95) == (pytest.approx(-0.2), pytest.approx(2.0))


def test_pixels_beyond_the_edges_count_in_the_end_bins():
    errors = BinErrors(Radiometry(1, 0), [10, 20, 30])
    hr = np.array([[0, 35, 15, 25]], np.float32)
    errors.add(hr + 1, hr)
    assert errors.pixels() == [2, 2]
