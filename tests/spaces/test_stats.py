"""Shared statistics that paper 3 needs, on simulated samples with a known answer."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lib import stats


def test_intraclass_correlation_is_the_share_of_variance_between_units():
    random = np.random.default_rng(0)
    own = random.normal(0, 3, (300, 1))
    found = stats.intraclass_correlation(own + random.normal(0, 1, (300, 3)))
    assert found["value"] == pytest.approx(0.9, abs=0.02) and found["low"] < 0.9 < found["high"]
    noise = stats.intraclass_correlation(random.normal(size=(300, 3)))
    assert noise["low"] < 0 < noise["high"]


def test_the_weakest_pair_of_measures_decides():
    random = np.random.default_rng(1)
    own = random.normal(size=60)
    alike = np.column_stack([own, own + 0.1 * random.normal(size=60)])
    found = stats.weakest_rank_correlation(alike, seed=9)
    assert found["low"] > 0.9 and found["p"] < 0.01
    three = np.column_stack([alike, random.normal(size=60)])
    found = stats.weakest_rank_correlation(three, seed=9)
    smallest = scipy_stats.spearmanr(three).statistic.min()
    assert found["value"] == pytest.approx(smallest) and found["low"] < 0 < found["high"]


def test_the_smallest_correlation_of_three_unrelated_measures_is_negative_and_p_is_fair():
    """Its mean is about -0.36 for 6 units; the interval holds the true 0 in at least 95 % of repeats."""
    samples = [np.random.default_rng(seed).normal(size=(6, 3)) for seed in range(40)]
    found = [stats.weakest_rank_correlation(sample, seed=9) for sample in samples]
    assert found[0]["null"][0] == pytest.approx(-0.36, abs=0.03) and found[0]["null"][1] < -0.8
    assert np.mean([one["value"] for one in found]) == pytest.approx(-0.36, abs=0.12)
    assert 0.35 < np.mean([one["p"] for one in found]) < 0.65
    assert np.mean([one["low"] < 0 < one["high"] for one in found]) >= 0.9


def test_a_measure_that_ties_all_units_ranks_none():
    values = np.column_stack([np.arange(8.0), np.arange(8.0), np.ones(8)])
    assert stats.weakest_rank_correlation(values, seed=9)["value"] == 0


def test_a_random_effects_mean_weighs_by_precision_and_widens_where_estimates_disagree():
    values, variances = np.array([1.0, 1.2, 0.8]), np.array([0.01, 0.04, 0.04])
    found = stats.random_effects_mean(values, variances)
    weights = 1 / variances
    assert found["value"] == pytest.approx(weights @ values / weights.sum())
    assert found["high"] - found["value"] == pytest.approx(1.96 / np.sqrt(weights.sum()), rel=1e-3)
    apart = stats.random_effects_mean(np.array([1.0, 3.0, -1.0]), variances)
    assert apart["high"] - apart["low"] > 5 * (found["high"] - found["low"])


def test_a_recentred_bootstrap_is_centred_on_what_was_found():
    sample = np.random.default_rng(2).normal(size=30)
    plain, shifted = (
        stats.stratified_bootstrap(lambda parts: parts[0].min(), [sample], seed=0, recentred=recentred)
        for recentred in (False, True)
    )
    assert plain["low"] == plain["value"] == shifted["value"] == sample.min() and shifted["low"] < sample.min()
