"""Intervals cover at their level, corrections and correlations agree with independent computations, draws repeat."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lib import stats
from lib.stats import permutation_p, rank_correlation, rank_correlation_interval, same_order


def test_the_normal_deviate_is_the_familiar_one():
    assert stats.quantile() == pytest.approx(1.959964, abs=1e-6) and stats.quantile(0.9) == pytest.approx(1.644854)


def test_holm_agrees_with_its_definition_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_a_p_that_is_nan_stays_nan_and_counts_as_one_among_the_others():
    corrected = stats.holm([0.01, float("nan"), 0.02])
    assert corrected[::2] == pytest.approx([0.03, 0.04]) and np.isnan(corrected[1])
    assert corrected[::2] == stats.holm([0.01, 1.0, 0.02])[::2]


def test_wilson_agrees_with_its_closed_form():
    z, n, p = scipy_stats.norm.ppf(0.975), 300, 291 / 300
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert stats.wilson(291, 300) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))
    assert stats.wilson(0, 20)[0] == 0 and stats.wilson(20, 20)[1] == 1


def covered(interval, truth, repeats=200):
    """In which share of repetitions an interval, made from a generator, holds the true value."""
    hits = 0
    for repeat in range(repeats):
        low, high = interval(np.random.default_rng(repeat))
        hits += low <= truth <= high
    return hits / repeats


def of_a_difference_of_pairs(random):
    x, noise = random.normal(size=(2, 80))
    return stats.bootstrap_interval(lambda a, b: (a - b).mean(), x, x + noise, seed=random, resamples=150)


def of_a_rank_correlation(random):
    x, noise = random.normal(size=(2, 60, 2))
    return rank_correlation_interval(x, x.mean(1, keepdims=True) + 0.7 * noise, seed=random, resamples=200)


def of_a_gain(random):
    images = random.random(200) < 0.7
    a, b = ((images ^ (random.random((4, 200)) < share)).astype(float) for share in (0.05, 0.1))
    found = stats.paired_gain(a, b, seed=random, resamples=200)
    return found["low"], found["high"]


@pytest.mark.parametrize(
    ("interval", "truth"),
    [
        (lambda random: stats.mean_interval(random.normal(1, 2, size=6)), 1),
        (lambda random: stats.mean_interval(random.exponential(size=60)), 1),
        (lambda random: stats.wilson(random.binomial(40, 0.9), 40), 0.9),
        (lambda random: stats.bootstrap_interval(np.mean, random.normal(1, 2, 60), seed=random, resamples=150), 1),
        (of_a_difference_of_pairs, 0),
        (of_a_gain, 0.02),  # on 70 % of the images an error costs a point, on the others it gains one
    ],
    ids=["mean of 6", "skewed mean of 60", "proportion", "bootstrapped mean", "difference of pairs", "paired gain"],
)
def test_intervals_cover_at_their_level(interval, truth):
    assert 0.9 < covered(interval, truth) < 1


def test_the_interval_of_a_rank_correlation_covers_the_one_of_many_configurations():
    x, noise = np.random.default_rng(0).normal(size=(2, 20_000, 2))
    truth = rank_correlation(x.mean(1), x.mean(1) + 0.7 * noise.mean(1))
    assert 0.88 < covered(of_a_rank_correlation, truth) < 1


def test_the_band_holds_whole_distribution_functions_at_its_level():
    random, n, hits = np.random.default_rng(0), 40, 0
    for _ in range(400):
        values = np.sort(random.uniform(size=n))
        steps = np.arange(n + 1) / n
        hits += max((steps[1:] - values).max(), (values - steps[:-1]).max()) <= stats.dkw_half_width(n)
    assert hits / 400 > 0.93


def test_a_mean_has_its_interval_and_its_n_and_one_value_has_none():
    found = stats.mean_estimate([1.0, 2.0, 4.0])
    half = scipy_stats.t.ppf(0.975, 2) * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    assert found == pytest.approx({"value": 7 / 3, "low": 7 / 3 - half, "high": 7 / 3 + half, "n": 3})
    with pytest.raises(ValueError, match="more seeds"):
        stats.mean_interval([1.0])


def test_a_percentile_interval_holds_the_middle_of_the_draws_and_leaves_nan_out():
    draws = np.arange(1001.0)
    assert stats.percentile_interval(draws) == pytest.approx((25, 975))
    assert stats.percentile_interval([*draws, np.nan], level=0.5) == pytest.approx((250, 750))


def test_resampling_one_kind_of_unit_equals_one_call_of_both_dimensions():
    draws = stats.resampled(lambda rows: float("".join(map(str, rows))), 7, seed=3, resamples=40)
    expected = np.random.default_rng(3).integers(7, size=(40, 7))
    assert draws.tolist() == [float("".join(map(str, rows))) for rows in expected]


def test_units_of_several_kinds_are_drawn_one_kind_after_the_other_from_one_stream():
    random = np.random.default_rng(5)
    expected = [(random.integers(3, size=3), random.integers(9, size=9)) for _ in range(4)]
    shared = np.random.default_rng(5)  # a generator goes on where the last resampling stopped
    found = [*stats.redrawn(3, 9, seed=shared, resamples=2), *stats.redrawn(3, 9, seed=shared, resamples=2)]
    assert all(
        np.array_equal(a, b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_the_bootstrap_repeats_by_seed_and_keeps_pairs_together():
    x = np.random.default_rng(0).normal(size=50)
    correlation = lambda a, b: np.corrcoef(a, b)[0, 1]  # noqa: E731
    one, two, other = (stats.bootstrap_interval(correlation, x, 2 * x, seed=s) for s in (0, 0, 1))
    assert one == two and one == other == pytest.approx((1, 1))
    assert stats.bootstrap_interval(np.mean, x, seed=0) != stats.bootstrap_interval(np.mean, x, seed=1)
    narrow, wide = (stats.bootstrap_interval(np.mean, x, seed=0, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_an_upper_p_counts_the_value_itself_among_the_draws():
    assert stats.upper_p(3, np.array([1, 2, 3, 4])) == 3 / 5 and stats.upper_p(9, np.zeros(99)) == 1 / 100


def test_a_paired_gain_counts_seeds_and_images():
    random = np.random.default_rng(0)
    images = random.random(400) < 0.7
    a, b = (np.tile(images, (3, 1)).astype(float) for _ in range(2))
    same = stats.paired_gain(a, b, seed=0, resamples=200)
    assert same == {"value": 0, "low": 0, "high": 0, "p": 1}  # the same images right: pairing removes their luck
    b[:, :40] = 0
    found = stats.paired_gain(a, b, seed=0, resamples=500)
    value = found["value"]
    assert value == pytest.approx(a[0, :40].sum() / 400) and 0 < found["low"] < value < found["high"]
    error = np.sqrt(value * (1 - value) / 400)  # only images vary: a binomial standard error
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.2) and found["p"] == 1 / 501


def test_rank_correlation_is_spearmans_with_ties():
    random = np.random.default_rng(0)
    x, y = random.integers(5, size=(2, 40)).astype(float)
    assert rank_correlation(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_differences_between_strata_do_not_count():
    sparsity = np.repeat([0.1, 0.3, 0.5, 0.8], 50)
    noise = np.random.default_rng(1).normal(size=(2, 200)) * 0.01
    x, y = sparsity + noise
    assert rank_correlation(x, y) > 0.9
    assert abs(rank_correlation(x, y, sparsity)) < 0.25


def test_strata_may_be_tuples_and_a_nan_removes_its_pair():
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


def test_the_interval_of_a_rank_correlation_holds_its_value_and_repeats_with_the_seed():
    random = np.random.default_rng(2)
    x = random.normal(size=(24, 3))
    y = x + random.normal(size=(24, 3)) * 0.5
    low, high = rank_correlation_interval(x, y, seed=3)
    assert low < rank_correlation(x.mean(1), y.mean(1)) < high and high - low < 0.6
    assert (low, high) == rank_correlation_interval(x, y, seed=3)


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
    x, y = np.random.default_rng(5).normal(size=(2, 6000, 3))
    assert same_order(x, y).mean() == pytest.approx(1 / 6, abs=0.02)
    assert same_order([1, 2, 3], [10, 20, 30]) and not same_order([1, 2, 3], [1, 3, 2])
    assert not same_order([1, 2, 3], [1, 1, 2])  # a tie agrees with no strict order


def test_separation_is_in_pooled_standard_deviations():
    assert stats.separation([0, 2], [10, 12]) == pytest.approx(10 / np.sqrt(2))
    assert stats.separation([1, 1], [2, 2]) == float("inf") and stats.separation([1, 1], [1, 1]) == 0


def test_largest_fraction_is_the_last_one_within_the_tolerance():
    assert stats.largest_fraction([0.1, 0.5, 0.9], [0.0, 1.0, 3.0], 1.0) == 0.5
    assert stats.largest_fraction([0.1, 0.5], [2.0, 3.0], 1.0) == 0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        rank_correlation([1, 2], [1, 2, 3])
