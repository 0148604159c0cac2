import numpy as np
import pytest
from scipy import stats

from lib.stats import (
    largest_fraction,
    nested_interval,
    permutation_p,
    rank_correlation,
    rank_correlation_interval,
    same_order,
    separation,
)


def test_rank_correlation_is_spearmans_with_ties():
    random = np.random.default_rng(0)
    x, y = random.integers(5, size=(2, 40)).astype(float)
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_what_strata_have_in_common_does_not_count():
    sparsity = np.repeat([0.1, 0.3, 0.5, 0.8], 50)
    noise = np.random.default_rng(1).normal(size=(2, 200)) * 0.01
    x, y = sparsity + noise
    assert rank_correlation(x, y) > 0.9
    assert abs(rank_correlation(x, y, sparsity)) < 0.25


def test_strata_may_be_tuples_and_nan_takes_its_pair_out():
    strata = [("a", 1)] * 3 + [("b", 1)] * 3
    assert rank_correlation([1, 2, 3, 30, 20, 10], [1, 2, 3, 3, 2, 1], strata) == pytest.approx(1)
    assert rank_correlation([1, 2, np.nan, 4], [1, 2, -9, 3]) == pytest.approx(1)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3])) and np.isnan(rank_correlation([], []))


def test_many_measures_at_once_have_the_correlations_that_each_has_alone():
    random = np.random.default_rng(6)
    x, y = random.integers(6, size=30).astype(float), random.integers(6, size=(4, 5, 30)).astype(float)
    y[random.random(y.shape) < 0.1], y[0, 0] = np.nan, 1.0
    for strata in ((), random.integers(3, size=30)):
        found = rank_correlation(x, y, strata)
        assert found.shape == (4, 5) and np.isnan(found[0, 0])
        for place in np.ndindex(4, 5):
            assert found[place] == pytest.approx(rank_correlation(x, y[place], strata), nan_ok=True)


def test_interval_covers_the_correlation_and_repeats_with_the_seed():
    random = np.random.default_rng(2)
    x = random.normal(size=(24, 3))
    y = x + random.normal(size=(24, 3)) * 0.5
    value = rank_correlation(x.mean(1), y.mean(1))
    low, high = rank_correlation_interval(x, y, seed=3)
    assert low < value < high and high - low < 0.6
    assert (low, high) == rank_correlation_interval(x, y, seed=3)


def test_nested_interval_draws_trials_and_units_apart():
    values = np.arange(12.0).reshape(4, 3)
    low, high = nested_interval(lambda trials, units: values[np.ix_(units, trials)].mean(), 3, 4, seed=0)
    assert values.min() <= low < values.mean() < high <= values.max()
    assert nested_interval(lambda trials, units: trials.max(), 1, 4, seed=0) == (0.0, 0.0)


def test_permutation_p_is_small_for_an_effect_and_uniform_without():
    random = np.random.default_rng(4)
    x = random.normal(size=20)
    assert permutation_p(lambda y: rank_correlation(x, y), x, seed=0) == pytest.approx(0.001)
    p = [permutation_p(lambda y: rank_correlation(x, y), random.normal(size=20), seed=s, draws=99) for s in range(60)]
    assert 0.35 < np.mean(p) < 0.65


def test_permutation_exchanges_within_strata_only():
    strata, seen = np.repeat([0, 1], 4), []
    permutation_p(lambda y: seen.extend(np.atleast_2d(y)) or y[..., 0], np.arange(8.0), strata, seed=0, draws=20)
    assert all(sorted(y[:4]) == [0, 1, 2, 3] for y in seen) and len({tuple(y) for y in seen}) > 10


def test_unrelated_orders_of_three_agree_once_in_six_times():
    random = np.random.default_rng(5)
    x, y = random.normal(size=(2, 6000, 3))
    assert same_order(x, y).mean() == pytest.approx(1 / 6, abs=0.02)
    assert same_order([1, 2, 3], [10, 20, 30]) and not same_order([1, 2, 3], [1, 3, 2])
    assert not same_order([1, 2, 3], [1, 1, 2])  # a tie agrees with no strict order


def test_separation_is_in_pooled_standard_deviations():
    assert separation([0, 2], [10, 12]) == pytest.approx(10 / np.sqrt(2))
    assert separation([1, 1], [2, 2]) == float("inf") and separation([1, 1], [1, 1]) == 0


def test_largest_fraction_is_the_last_one_within_the_tolerance():
    assert largest_fraction([0.1, 0.5, 0.9], [0.0, 1.0, 3.0], 1.0) == 0.5
    assert largest_fraction([0.1, 0.5], [2.0, 3.0], 1.0) == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        rank_correlation([1, 2], [1, 2, 3])
