"""Verdict statistics of paper 1 on made-up records in which the answer is known."""

import numpy as np
import pandas as pd
import pytest

from lib.latent import analysis
from lib.latent.measures import KL_LIMIT
from lib.masks import METHODS

FRACTIONS, EPOCHS, TRIALS = (0.1, 0.3, 0.5, 0.8), 3, 2


def record(pd_of):
    """A record of one case; `pd_of(ap2, epoch)` gives the performance difference."""
    random = np.random.default_rng(0)
    rows = []
    for method, fraction, trial in [(m, f, t) for m in METHODS for f in FRACTIONS for t in range(TRIALS)]:
        ap2 = (1 + METHODS.index(method)) * 10 * fraction + random.random() * 0.01
        for epoch in range(EPOCHS + 1):
            row = {"case": "net, data", "method": method, "fraction": fraction, "trial": trial, "epoch": epoch}
            rows.append(row | {"ap2": ap2, "r2": ap2 / 4, "weights": 640, "pd": pd_of(ap2, epoch)})
    return pd.DataFrame(rows)


def last(rows, column):
    return analysis.matrix(rows[rows["epoch"] == EPOCHS], column)


def test_a_difference_that_follows_ap2_agrees_everywhere():
    rows = record(lambda ap2, epoch: ap2 / (1 + epoch))
    x, y = last(rows, "ap2"), last(rows, "pd")
    assert x.shape == (12, TRIALS)
    found = analysis.pair_agreement(x, y, left_out=("lowest", {0.3, 0.5}))
    assert found["value"] == 1 and found["n"] == 3 * 6 - 1
    for within in ((), ("case",), ("case", "fraction")):
        found = analysis.correlation(x, y, *within)
        assert found["value"] == pytest.approx(1) and found["p"] < 0.01 and found["n"] == 12
    assert analysis.order_disagreement(rows, "ap2", "pd")["value"] == 0


def test_a_difference_that_runs_against_ap2_disagrees_everywhere():
    rows = record(lambda ap2, epoch: 100 - ap2)
    x, y = last(rows, "ap2"), last(rows, "pd")
    found = analysis.pair_agreement(x, y, left_out=("none", set()))
    assert found["n"] == 18 and found["value"] == 0
    assert analysis.correlation(x, y, "case", "fraction")["value"] == pytest.approx(-1)
    assert analysis.order_disagreement(rows, "ap2", "pd")["value"] == 1


def test_a_border_shows_only_if_agreement_ends_there():
    kept, shares = analysis.border_contrast(record(lambda ap2, epoch: ap2), "r2", border=1.0)
    assert kept["value"] == 0 and 0 < shares["above"] < 1
    broken, shares = analysis.border_contrast(record(lambda ap2, epoch: ap2 if ap2 < 8.2 else -ap2), "r2", border=1.0)
    assert shares["agree below"] == 1 and shares["agree above"] == 0 and broken["value"] == 1
    one_sided, _ = analysis.border_contrast(record(lambda ap2, epoch: ap2), "r2", border=1e9)
    assert np.isnan(one_sided["value"]) and np.isnan(one_sided["low"])


def test_the_interval_of_the_border_counts_configurations_and_not_their_pairs():
    random = np.random.default_rng(3)
    noise = {key: random.random() for key in range(1000)}
    found, _ = analysis.border_contrast(record(lambda ap2, epoch: noise[int(1000 * ap2) % 1000]), "r2", border=1.0)
    configurations = len(record(lambda ap2, epoch: ap2).groupby(["case", "fraction", "method"]))
    assert found["n"] == configurations
    assert found["low"] < 0 < found["high"] and found["low"] <= found["value"] <= found["high"]


def test_order_at_equal_ap2_ignores_what_blocks_have_in_common():
    random = np.random.default_rng(1)
    blocks = pd.DataFrame({"block": np.repeat([f"b{i}" for i in range(30)], 8), "level": np.repeat(np.arange(30), 8)})
    blocks["configuration"] = blocks["level"] // 3  # three trials each
    blocks["measure"], noise = 100 * blocks["level"] + random.random(240), random.random(240)
    unrelated = analysis.order_at_equal_ap2(blocks.assign(gap=100 * blocks["level"] + noise), "measure")
    assert unrelated["low"] < 0 < unrelated["high"] and unrelated["n"] == 10
    assert analysis.order_at_equal_ap2(blocks.assign(gap=-blocks["measure"]), "measure")["value"] == pytest.approx(-1)


def test_own_series_stands_out_only_against_others_of_its_case():
    random = np.random.default_rng(2)
    series = random.normal(size=(6, 40))
    own, others = analysis.own_against_others(series, series, np.array(["a"] * 3 + ["b"] * 3))
    assert (own == 1).all() and np.abs(others).max() < 0.4
    falling = np.cumsum(-random.random((6, 40)), axis=1)
    own, others = analysis.own_against_others(falling, falling[::-1], np.array(["a"] * 6))
    assert np.allclose(own, 1) and np.allclose(others, 1)  # any two falling series agree: the null that levels have


def test_the_lambda_rule_makes_the_largest_kl_after_epoch_zero_nineteen_tenths():
    series = {"ap2": [1.0, 2.0, 4.0], "ap2_to_last": [0.0] * 3, "r2": [0.1] * 3, "t_ap3": [0.1] * 3}
    series |= {"fisher_ap3": [0.0] * 3, "train_loss": [1.0] * 3, "test_loss": [2.0, 1.5, 1.0]}
    series |= {"test_accuracy": [50.0, 60.0, 92.0], "status": "done", "network": "net", "dataset": "data"}
    spec = {"structure": "weights", "mode": "paper", "method": "lowest", "fraction": 0.5, "trial": 0}
    dense = {"dense_test_accuracy": 90.0, "dense_test_loss": 1.2, "dense_train_loss": 0.9}
    rows = analysis.by_epoch(analysis.with_case(pd.DataFrame([spec | series | dense])), [0.5])
    assert rows["epoch"].tolist() == [0, 1, 2] and rows["case"].unique().tolist() == ["net, data"]
    assert rows["kl"].tolist() == pytest.approx([0.475, 0.95, 1.9])
    assert rows["pd"].tolist() == [40, 30, 2] and rows["gap"].tolist() == pytest.approx([0.8, 0.3, 0.2])


def test_an_advantage_is_tied_only_if_both_measures_rank_alike_in_every_stratum():
    rows = record(lambda ap2, epoch: ap2)
    x, y = last(rows, "ap2"), last(rows, "pd")
    tied = analysis.rank_advantage(x**2, x, y, "case", "fraction")
    assert tied["open"] and tied["value"] == tied["low"] == tied["high"] == 0
    better = analysis.rank_advantage(x, -x, y, "case", "fraction")
    assert not better["open"] and better["value"] == pytest.approx(2) and better["n"] == 12


def test_methods_are_separated_by_logarithms_and_their_gap_is_in_factors_of_ten():
    random = np.random.default_rng(3)
    rows = [
        {
            "case": "c",
            "fraction": 0.5,
            "method": method,
            "ap2": 10.0**place * (1 + random.random() / 100),
            "t_ap3": random.random(),
        }
        for place, method in enumerate(("lowest", "random", "highest"))
        for _ in range(5)
    ]
    found = analysis.separations(pd.DataFrame(rows))
    assert found["ap2 separated"].all() and not found["t_ap3 separated"].any()
    assert found["ap2 gap"].tolist() == pytest.approx([1, 1, 2], abs=0.01)


def test_bounds_take_the_curvature_of_their_own_training_or_of_the_shared_checkpoint():
    rows = pd.DataFrame({"case": ["own", "own", "shared", "shared"], "trial": [0, 1, 0, 1], "ap2": 4.0})
    rows = rows.assign(kl=0.5, weights=10, largest_ap2=2 * KL_LIMIT, train_gap=5.0)
    features = pd.DataFrame({"case": ["own", "own", "shared"], "seed": [0, 1, np.nan], "hessian_max": [1.0, 2, 3]})
    found = analysis.with_bounds(rows, features.assign(gradient_norm=0.1))
    assert found["core"].tolist() == [2, 4, 6, 6] and found["core fails"].tolist() == [True, True, False, False]
    assert found["slope"].tolist() == pytest.approx([0.2] * 4)
    # Lemma 2 by hand: half the eigenvalue times 2 (tr + tr) tau / (1 - tau), tau = sqrt(KL / 2) = 1/2, trace = 10
    assert found["lemma"].tolist() == pytest.approx([20, 40, 60, 60])


def test_controls_become_rows_relative_to_equal_ap2_and_an_unequal_one_is_refused():
    row = {"case": "c", "method": "lowest", "fraction": 0.5, "trial": 0, "ap2": 2.0}
    row |= {"control": ["pruning", "random signs"], "control_ap2": [2.0, 2.0], "control_fisher_ap3": [1.0, 4.0]}
    row |= {"control_test_loss": [1.1, 1.9], "control_test_accuracy": [80.0, 95.0]}
    row |= {"dense_test_loss": 1.0, "dense_test_accuracy": 90.0}
    other = analysis.control_rows(pd.DataFrame([row]))
    assert other["gap"].tolist() == pytest.approx([0.1, 0.9]) and other["pd"].tolist() == [10, 5]
    assert analysis.block_means(other)["relative gap"].tolist() == pytest.approx([1 / 3, 3])
    with pytest.raises(ValueError, match="differs"):
        analysis.control_rows(pd.DataFrame([row | {"control_ap2": [2.0, 2.1]}]))


def test_unrelated_orders_of_three_agree_once_in_six_times():
    x, y = np.random.default_rng(5).normal(size=(2, 6000, 3))
    assert analysis.same_order(x, y).mean() == pytest.approx(1 / 6, abs=0.02)
    assert analysis.same_order([1, 2, 3], [10, 20, 30]) and not analysis.same_order([1, 2, 3], [1, 3, 2])
    assert not analysis.same_order([1, 2, 3], [1, 1, 2])  # a tie agrees with no strict order


def test_separation_is_in_pooled_standard_deviations():
    assert analysis.separation([0, 2], [10, 12]) == pytest.approx(10 / np.sqrt(2))
    assert analysis.separation([1, 1], [2, 2]) == float("inf") and analysis.separation([1, 1], [1, 1]) == 0


def test_the_largest_fraction_is_the_last_one_within_the_tolerance():
    ending = pd.DataFrame({"case": "c", "trial": 0, "method": "lowest", "fraction": [0.1, 0.5, 0.9], "pd": [0, 1.0, 3]})
    found = analysis.largest_fractions(pd.concat([ending, ending.assign(method="highest", pd=5.0)]), [1.0, 4.0])
    assert found.set_index(["method", "delta"])["s"].to_dict() == {
        ("lowest", 1.0): 0.5,
        ("highest", 1.0): 0,
        ("lowest", 4.0): 0.9,
        ("highest", 4.0): 0,
    }
