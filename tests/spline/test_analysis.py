"""Statistics of paper 4 on made-up rows with known answers."""

import numpy as np
import pandas as pd
import pytest

from lib import stats
from lib.claims import INCONCLUSIVE, NOT_SUPPORTED, Ledger
from lib.spline import analysis
from lib.spline.claims import RULES


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


def test_gains_have_the_interval_and_the_p_of_students_t():
    found = stats.mean_gain([1.0, 2.0, 3.0, np.nan])
    assert found["n"] == 3
    assert (found["low"], found["high"]) == pytest.approx((2 - 4.3027 / np.sqrt(3), 2 + 4.3027 / np.sqrt(3)), abs=1e-3)
    assert found["p"] == pytest.approx(0.0371, abs=1e-3)


@pytest.mark.parametrize("gains", [[], [1.0], [np.nan, 2.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_a_p_that_cannot_be_computed_leaves_its_claim_open(gains):
    found = stats.mean_gain(gains)
    assert np.isnan(found["p"])
    ledger = Ledger([rule for rule in RULES if rule.id == "P4.13"])
    ledger.enter("P4.13", **found)
    assert ledger.entries()[0]["verdict"] == (NOT_SUPPORTED if gains == [0.0, 0.0] else INCONCLUSIVE)


def test_paired_differences_stay_within_their_unit():
    rows = pd.DataFrame({"seed": [0, 1, 0, 1, 0], "m": list("aabbb"), "x": [1.0, 2, 5, 7, 7]})
    assert analysis.paired(rows, "x", {"m": "b"}, {"m": "a"}, ["seed"]).tolist() == [5, 5]


def test_long_rows_repeat_their_keys():
    rows = pd.DataFrame({"seed": [0, 1], "v": [[1, 2], [3]], "w": [["a", "b"], ["c"]]})
    found = analysis.long(rows, ["v", "w"], ["seed"])
    assert found.to_dict("list") == {"v": [1, 2, 3], "w": ["a", "b", "c"], "seed": [0, 0, 1]}


def test_shares_follow_sizes_in_either_direction():
    assert analysis.follows([0.1, 0.2, 0.3], [9, 5, 1], [1, 1, 1]) == pytest.approx(1)
    assert analysis.follows([0.2, 0.2, 0.2], [9, 5, 1]) == 0


def test_the_measure_that_orders_losses_wins_within_its_stratum():
    random = np.random.default_rng(0)
    loss = np.concatenate([random.permutation(5) for _ in range(24)])
    ratio, seed = np.tile(np.repeat([0.1, 0.5], 5), 12), np.repeat(range(12), 10)
    noise = random.random(len(loss)) + ratio
    found = stats.clustered_rank_correlation_gain(loss, noise, loss + 10 * ratio, ratio, seed, seed=0)
    assert abs(stats.rank_correlation(loss + 10 * ratio, noise, ratio)) < 0.4
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["n"] == 12 and found["p"] < 0.01


def test_variants_of_the_detector_that_never_fire_are_nan():
    row = pd.Series(
        {f"distance_{p}": (np.ones((8, 8)) - np.eye(8)).ravel() for p in ("canvas", "images", "noise", "units")}
    )
    assert all(np.isnan(value) for value in analysis.early_birds(row).values())


def test_a_detector_that_never_fires_leaves_three_quarters_of_the_training():
    moving = np.ones((8, 8)) - np.eye(8)
    assert analysis.trained_at_bird(moving) == 6
    assert analysis.trained_at_bird(moving / 100) == 4
