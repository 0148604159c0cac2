"""Statistics of paper 4 on made-up rows with known answers."""

import numpy as np
import pandas as pd
import pytest

from lib.spline import analysis, attention


def test_a_plateau_is_found_where_a_fall_ends_and_nowhere_else():
    fall = np.exp(-0.5 * np.arange(12))
    flat = np.concatenate([fall, np.full(18, fall[-1])])
    assert analysis.plateau(flat, 30) in range(10, 15)
    assert analysis.plateau(np.exp(-0.5 * np.arange(30)), 30) is None
    assert analysis.plateau(np.ones(30), 30) is None  # it did not fall at first
    assert analysis.plateau(flat, 12) is None  # the plateau would begin after the rate falls


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


def shares(trained_full, trained_reduced, random_full, random_reduced) -> dict:
    row = {"case": "n", "fan_in": [1, 2, 3, 4], "width_of": [1, 1, 2, 2]}
    row |= {"share_trained_full": trained_full, "share_trained_reduced": trained_reduced}
    return row | {"share_random_full": random_full, "share_random_reduced": random_reduced}


UP, DOWN, MIXED = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.3, 0.1, 0.4, 0.2]


def test_random_filters_cannot_show_that_a_reduction_frees_trained_ones():
    rows = [shares(UP, MIXED, UP, MIXED), shares(UP, MIXED, DOWN, DOWN), shares(UP, UP, UP, UP)]
    assert analysis.size_excess(pd.DataFrame(rows), "fan_in") == pytest.approx([0, 1, 0])


def test_signed_correlations_tell_a_bias_from_its_opposite():
    found = analysis.signed_correlations(pd.DataFrame([shares(UP, DOWN, UP, [0.5] * 4)]))
    assert found["fan_in"].tolist() == pytest.approx([1, -1, 1, 0])
    assert found.set_index(["filters", "rows"])["width_of"]["own", "full"] == pytest.approx(0.894, abs=1e-3)


def test_operations_saved_are_a_share_of_all_layers():
    assert analysis.saved(pd.Series({"dense": [10, 30], "whole": [10, 10]}), "whole") == 50


def test_the_smooth_parts_are_compared_with_the_code_at_one_length():
    table = np.zeros((len(attention.HELD), len(attention.LENGTHS)))
    table[attention.HELD.index(("gates",)), 1], table[attention.HELD.index(attention.SMOOTH), 1] = -1.0, -3.0
    row = pd.Series({"log_bend": table.ravel(), "log_bend_untrained": 0 * table.ravel()})
    assert analysis.smooth_over_code(row) == 2
    assert analysis.smooth_over_code(row, when="_untrained") == analysis.smooth_over_code(row, 1.0) == 0


def test_rankings_are_averaged_where_every_reduction_has_the_dimension():
    keys = {"case": "n", "seed": 0, "layer": "a", "filters": "trained"}
    entries = [("none", 0, 1.0), ("pca", 2, 0.8), ("random", 2, 0.4), ("pca", 4, 0.9)]
    kept = pd.DataFrame([keys | {"kind": kind, "dim": dim, "rank": rank} for kind, dim, rank in entries])
    assert analysis.kept_ranking(kept).loc[("trained", "n", 0)].to_dict() == {"pca": 0.8, "random": 0.4}


def test_the_level_is_that_of_the_epochs_before_the_rate_falls():
    step = list(range(20))  # d(2, 1), d(3, 2), ...
    assert analysis.settled(step, 10) == np.mean([4, 5, 6, 7, 8])
    assert analysis.settled(step, 10, 3) == np.mean([6, 7, 8])
