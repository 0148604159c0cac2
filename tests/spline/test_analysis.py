"""Statistics of paper 4 on made-up rows with known answers."""

import numpy as np
import pandas as pd
import pytest

from lib.spline import analysis, attention


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


def test_the_share_of_the_gap_is_zero_for_the_mean_and_one_for_the_best():
    row = {"method": ["a", "b", "c"], "chosen": [60.0, 90.0, 75.0], "best": 90.0, "mean": 60.0}
    flat = row | {"best": 60.0}
    rows = pd.DataFrame([row, flat])
    assert [analysis.gap_closed(rows, name)[0] for name in "abc"] == [0, 1, 0.5]
    assert np.isnan(analysis.gap_closed(rows, "a")[1])


def test_late_changes_compare_the_end_with_a_sixteenth_of_the_training():
    epochs, radii = [0, 4, 8, 64], [0.1, 0.2]
    values = [9.0, 1, 9, 2, 9, 9, 9, 8]
    networks = pd.DataFrame({"epochs": [epochs], "radii": [radii], "density_data": [values]})
    assert analysis.curves(networks, "density_data", 0.2).tolist() == [[1, 2, 9, 8]]
    assert analysis.late_change(networks, "density_data", 0.2).tolist() == [2]


def test_what_is_left_after_the_early_bird_is_a_share_of_the_whole_way():
    networks = pd.DataFrame({"from_start": [[0.0, 0.1, 0.2]], "from_relative": [[np.nan, 0.0, 0.05]]})
    assert analysis.unsettled(networks, "relative").tolist() == [0.25]
    assert analysis.unsettled(networks, "relative", -2).tolist() == [0]


def test_routes_gain_over_scratch_by_seed():
    row = {"depth": 1, "width": 4, "epochs": 9, "route": ["scratch", "pruned", "pruned"], "factor": [1, 2.0, 2.0]}
    row |= {"method": ["", "magnitude", "random"], "accuracy": [[1.0, 2, 3], [2.0, 4, 6], [0.0, 0, 0]]}
    routes = analysis.by_route(pd.DataFrame([row]))
    (gain,) = analysis.gains_of_routes(routes, "magnitude").to_dict("records")
    assert (gain["value"], gain["n"], gain["factor"], gain["width"]) == (2, 3, 2, 4)


def test_a_sweep_has_one_row_a_network():
    rows = pd.DataFrame({"level": [3, 5], "seeds": [[7, 8]] * 2, "accuracy": [[[1.0, 2.0]]] * 2, "arms": [[4, 2]] * 2})
    swept = analysis.swept(rows)
    assert swept["width"].tolist() == [3, 3, 5, 5] and swept["seed"].tolist() == [7, 8] * 2
    assert swept["accuracy"].tolist() == [1, 2, 1, 2] and swept["arms"].tolist() == [4, 2, 4, 2]


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


def test_densities_are_of_the_median_image_and_compare_the_end_with_the_early_bird():
    row = {"case": "a", "labels": "true labels", "seed": 0, "at": [1, 4, 4, 8], "kind": ["x"] * 9, "radius": [0.1] * 9}
    row |= {"epoch_seen": [1, 1, 1, 4, 4, 4, 8, 8, 8], "density": [5.0, 1.0, 90.0, 2.0, 1.0, 99.0, 1.0, 0.5, 99.0]}
    (found,) = analysis.densities(pd.DataFrame([row])).to_dict("records")
    assert (found["density"], found["late"]) == ([5, 2, 2, 1], -1)
    assert analysis.densities(pd.DataFrame([row]), "mean")["density"][0] == [32, 34, 34, 33.5]
