"""Tiles cover the frame, and their blend shows no seam."""

import itertools

import pytest
import torch

from difiisr_models.tiling import Tiling, plan_axis


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(640, 256, 32), (257, 256, 32), (99, 40, 8)]
)
def test_spans_are_equal_cover_and_overlap(length, tile, overlap, balanced):
    spans = plan_axis(length, tile, overlap, balanced)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert len({last - first for first, last in spans}) == 1
    assert all(last - first <= tile for first, last in spans)
    assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(spans))


def test_too_much_overlap_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="128 of 256"):
        plan_axis(640, 256, 128, balanced=True)


def blended(tiling, process):
    """What ``process`` (a batch of places -> results) makes of a frame, tile by tile."""
    for places in tiling.batches():
        tiling.add(places, process(places))
    return tiling.result()


@pytest.mark.parametrize("batch", [1, 3])
def test_blending_reproduces_a_function_of_each_pixel(batch):
    frame = torch.rand(1, 1, 70, 90)

    def process(places):
        tiles = torch.cat([place.cut(frame) for place in places])
        return torch.cat((tiles, 2 * tiles), 1)

    result = blended(Tiling((70, 90), 32, 8, batch), process)
    torch.testing.assert_close(result, torch.cat((frame, 2 * frame), 1))


def test_a_step_between_tiles_becomes_a_ramp():
    """Tiles that disagree by 1 must not leave an edge: the blend climbs over half the overlap."""
    plan = Tiling((32, 56), 32, 8, batch=1)
    assert len(plan.tiles) == 2
    result = blended(
        plan,
        lambda places: torch.stack([torch.full((1, 32, 32), float(p.left > 0)) for p in places]),
    )
    assert result[..., 0].max() == 0
    assert result[..., -1].min() == 1
    assert result.diff(dim=-1).abs().max() <= 1 / 5 + 1e-6
