"""Bends of deep lines on earlier ones, distances of segments, and the overlay of two partitions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lib.spline import partition
from lib.spline import partition as pl
from tests.test_partition import AXES, cross, mlp

BOX = ((-2.0, 2.0), (-2.0, 2.0))
SQUARE = np.array([[[0, 0], [1, 0]], [[1, 0], [1, 1]], [[1, 1], [0, 1]], [[0, 1], [0, 0.5]], [[0, 0.5], [0, 0]]], float)


def test_a_square_bends_at_its_corners_and_not_at_a_joint():
    found = np.unique(pl.bends(SQUARE, 1e-9).round(9), axis=0)
    assert found.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert pl.length(SQUARE) == 4
    assert len(pl.bends(SQUARE[:1], 1e-9)) == len(pl.bends(SQUARE[:0], 1e-9)) == 0


def test_distances_from_segments_are_those_of_geometry():
    points = np.array([[0.5, -1], [2, 2], [0.5, 0.5], [1, 0.2]])
    assert pl.distance(points, SQUARE) == pytest.approx([1, np.sqrt(2), 0.5, 0])
    assert np.isinf(pl.distance(points, SQUARE[:0])).all()


def test_samples_stand_for_the_whole_length_and_a_shift_moves_what_it_moves():
    points, weight = pl.sampled(SQUARE, 0.01)
    assert weight.sum() == pytest.approx(4)
    assert pl.distance(points, SQUARE).max() < 1e-12
    assert pl.moved_length(SQUARE, SQUARE, 0.01) == 0
    assert pl.moved_length(SQUARE, SQUARE + [0.2, 0], 0.01) == pytest.approx(2 + 2 * 0.2, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_deep_lines_and_the_boundary_bend_only_on_earlier_lines(seed):
    found = partition.split(mlp(2, 12, 12, 12, 2, rng=np.random.default_rng(seed)), BOX)
    earlier = np.zeros((0, 2, 2))
    total = 0
    for layer in range(3):
        lines = found.lines(layer)
        bent = np.concatenate([pl.bends(line, 1e-9) for line in lines.values()])
        if layer == 0:
            assert len(bent) == 0
        elif len(bent):
            assert pl.distance(bent, earlier).max() < 1e-8
        total += len(bent)
        earlier = np.concatenate([earlier, *lines.values()])
    whole = partition.level_set(found, 0, 1)
    assert total > 20
    if len(bent := pl.bends(whole, 1e-9)):
        assert pl.distance(bent, earlier).max() < 1e-8


def test_a_bend_off_every_earlier_line_would_be_seen():
    found = partition.split(mlp(2, 12, 12, 1, rng=np.random.default_rng(0)), BOX)
    bent = np.concatenate([pl.bends(line, 1e-9) for line in found.lines(1).values()])
    earlier = np.concatenate(list(found.lines(0).values()))
    assert pl.distance(bent + 0.01, earlier).max() > 1e-3


def test_the_cross_has_four_arms():
    boundary = partition.split(cross(AXES, [1, 1, -1, -1]), ((-5, 5), (-5, 5))).boundary
    assert pl.arms(boundary, 4.0) == 4


def test_nothing_changes_if_nothing_is_pruned():
    network = mlp(2, 8, 8, 2, rng=np.random.default_rng(0))
    assert pl.change(network, copy.deepcopy(network), BOX) == {"maps": 0, "codes": 0, "decision": 0, "boundary": 0}


def test_changes_of_a_network_with_known_maps():
    before = cross(AXES, [1, 1, -1, -1])
    after = copy.deepcopy(before)
    after[2].weight.data *= 2  # maps double, lines and decisions stay
    assert pl.change(before, after, BOX) == pytest.approx({"maps": 1, "codes": 0, "decision": 0, "boundary": 0})
    dropped = copy.deepcopy(before)
    dropped[0].weight.data[3] = 0
    found = pl.change(before, dropped, BOX)
    assert found["decision"] == pytest.approx(0.25)  # T8 on the exact partition
    assert found["codes"] == 0  # what is left of the lines stays where it was
    assert found["maps"] == pytest.approx(0.5 / np.sqrt(2))


def test_the_overlay_decides_otherwise_where_samples_do():
    rng = np.random.default_rng(1)
    first, second = mlp(2, 8, 8, 3, rng=rng), mlp(2, 8, 8, 3, rng=rng)
    points = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    share = (first(points).argmax(1) != second(points).argmax(1)).double().mean().item()
    both = partition.split(pl.Pair(first, second), BOX)
    assert pl.decided_otherwise(both) == pytest.approx(share, abs=0.005)
    assert isinstance(pl.Pair(first, second), nn.Module)
