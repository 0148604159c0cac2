"""Cells of the plane cut by lines: closed-form counts of line arrangements, areas, and Euler's formula."""

from math import comb

import numpy as np
import pytest

from lib.spline import partition as pc

HUGE = ((-1e4, 1e4), (-1e4, 1e4))
BOX = ((-2.0, 2.0), (-1.0, 3.0))


def generic(k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, k, 3))


def cut(lines: np.ndarray, window=HUGE) -> pc.Cells:
    return pc.subdivide(pc.rectangle(window), lines, 0)[0]


@pytest.mark.parametrize("k", range(1, 9))
def test_generic_lines_make_as_many_cells_as_the_arrangement_formula_says(k):
    assert len(cut(generic(k))) == 1 + k + comb(k, 2)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_lines_through_one_point_make_two_cells_each(k):
    angles = np.pi * (np.arange(k) + 0.3) / k
    assert len(cut(np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)[None], BOX)) == 2 * k


@pytest.mark.parametrize("k", [1, 3, 8])
def test_parallel_lines_make_one_more_cell_than_lines(k):
    lines = np.tile([3.0, -4.0, 0.0], (1, k, 1))
    lines[0, :, 2] = np.linspace(-1, 1, k)
    assert len(cut(lines, BOX)) == k + 1


def test_scaled_and_flipped_copies_of_a_line_make_no_slivers():
    lines = generic(5)
    copies = np.concatenate([lines, 3.7 * lines[:, :1], -2 * lines[:, 1:2]], 1)
    assert len(cut(lines)) == len(cut(copies)) == 16


def test_more_lines_than_a_cell_has_corners_keep_area_and_orientation():
    cells = cut(generic(60), BOX)
    assert cells.area.sum() == pytest.approx(16, rel=1e-12)
    assert (cells.area > 0).all()
    assert cells.count.max() > 6


def test_cells_are_on_one_side_of_every_line():
    lines = generic(30)
    cells = cut(lines, BOX)
    height = cells.corners @ lines[0, :, :2].T + lines[0, :, 2]
    assert ((height > -1e-8).all(1) | (height < 1e-8).all(1)).all()


def test_edges_carry_the_line_that_drew_them():
    lines = generic(20)
    ends, labels, _ = cut(lines, BOX).edges()
    inner = labels >= 0
    drawn = lines[0, labels[inner]]
    height = (ends[inner] * drawn[:, None, :2]).sum(2) + drawn[:, 2:]
    assert np.abs(height).max() < 1e-9
    sides = {-1: (1, -1.0), -2: (0, 2.0), -3: (1, 3.0), -4: (0, -2.0)}
    for label, (axis, value) in sides.items():
        assert np.abs(ends[labels == label][:, :, axis] - value).max() < 1e-12


def test_each_cell_is_cut_by_its_own_lines_alone():
    two = pc.subdivide(pc.rectangle(BOX), np.array([[[1.0, 0, 0]]]), 0)[0]
    own = np.array([[[0, 1.0, -1]], [[1.0, 0, 9]]])  # crosses the first cell; passes outside both
    pieces, parent = pc.subdivide(two, own, 1)
    assert sorted(parent.tolist()) == [0, 0, 1]
    assert pieces.area[parent == 1] == pytest.approx(8)


def test_a_function_that_is_rounding_noise_draws_no_line():
    lines = np.array([[[1.0, 2.0, 0.5], [1e-17, -1e-17, 1e-18], [0, 0, 0]]])
    assert len(cut(lines, BOX)) == 2
    value, flat = pc.at_centre(pc.rectangle(BOX), lines)
    assert flat.tolist() == [[False, True, True]]
    assert value[0, 1] == 0


@pytest.mark.parametrize("window", [((0, 0), (0, 1)), ((1, 0), (0, 1)), ((0, np.nan), (0, 1)), ((0, 1),)])
def test_a_window_without_area_is_refused_in_a_sentence(window):
    with pytest.raises(ValueError, match="low < high"):
        pc.rectangle(window)
