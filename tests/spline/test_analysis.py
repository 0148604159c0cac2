"""Statistics of paper 4 on made-up rows with known answers."""

import numpy as np
import pandas as pd
import pytest

from lib.spline import analysis


def test_the_slope_before_the_fall_of_the_rate_is_that_of_the_logarithm():
    halving = 0.5 ** (np.arange(39) / 10)  # by half in ten epochs
    assert analysis.slope(halving, 30) == pytest.approx(-1)
    kinked = np.concatenate([halving[:14], np.full(15, halving[14]), halving[14:24] / 8])
    assert analysis.slope(kinked, 30) == pytest.approx(0, abs=1e-9)  # neither the first epochs nor the fall count
    assert analysis.slope(kinked, 30, share=0.9) < -0.3


def test_the_last_steps_ignore_the_beginning():
    assert analysis.last_steps([8.0] * 36 + [0.25] * 4) == pytest.approx(-2)


def test_distances_read_a_row():
    matrix = np.arange(9.0).reshape(3, 3)
    row = pd.Series({"distance_canvas": matrix.ravel().tolist()})
    assert (analysis.distances(row) == matrix).all()
    assert analysis.settled(np.arange(30.0), 20) == pytest.approx(np.mean([14, 15, 16, 17, 18]))


def test_paired_differences_stay_within_their_unit():
    rows = pd.DataFrame({"seed": [0, 1, 0, 1, 0], "m": list("aabbb"), "x": [1.0, 2, 5, 7, 7]})
    assert analysis.paired(rows, "x", {"m": "b"}, {"m": "a"}, ["seed"]).tolist() == [5, 5]


def test_long_rows_repeat_their_keys():
    rows = pd.DataFrame({"seed": [0, 1], "v": [[1, 2], [3]], "w": [["a", "b"], ["c"]]})
    found = analysis.one_row_per_entry(rows, ["v", "w"], ["seed"])
    assert found.to_dict("list") == {"v": [1, 2, 3], "w": ["a", "b", "c"], "seed": [0, 0, 1]}


def test_shares_follow_sizes_in_either_direction():
    assert analysis.size_correlation([0.1, 0.2, 0.3], [9, 5, 1], [1, 1, 1]) == pytest.approx(1)
    assert analysis.size_correlation([0.2, 0.2, 0.2], [9, 5, 1]) == 0


def test_variants_of_the_detector_that_never_fire_are_nan():
    row = pd.Series(
        {f"distance_{p}": (np.ones((8, 8)) - np.eye(8)).ravel() for p in ("canvas", "images", "noise", "units")}
    )
    assert all(np.isnan(value) for value in analysis.early_bird_epochs(row).values())


def test_a_detector_that_never_fires_leaves_three_quarters_of_the_training():
    moving = np.ones((8, 8)) - np.eye(8)
    assert analysis.epochs_at_early_bird(moving) == 6
    assert analysis.epochs_at_early_bird(moving / 100) == 4
