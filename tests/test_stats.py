"""Intervals cover at their level, corrections and correlations agree with independent computations, draws repeat."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lib import stats
from lib.claims import INCONCLUSIVE, NOT_SUPPORTED, Ledger
from lib.spline.claims import RULES
from lib.stats import permutation_p, rank_correlation, rank_correlation_interval


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
    half = 1 - stats.dkw_band(n)[0][-1]
    for _ in range(400):
        values = np.sort(random.uniform(size=n))
        steps = np.arange(n + 1) / n
        hits += max((steps[1:] - values).max(), (values - steps[:-1]).max()) <= half
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
    assert stats.percentile_interval([*draws, np.nan]) == pytest.approx((25, 975))


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


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        rank_correlation([1, 2], [1, 2, 3])


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


def test_share_has_wilsons_interval():
    found = stats.share_estimate([True, True, False])
    assert (found["value"], found["n"]) == (pytest.approx(2 / 3), 3) and 0 < found["low"] < 0.66 < found["high"] < 1


def test_sign_flips_are_counted_exactly_for_few_and_drawn_for_many():
    assert stats.sign_flip_p([1, 2, 3]) == 2 / 8
    assert stats.sign_flip_p([1, -1]) == 1
    assert stats.sign_flip_p(np.ones(30)) == pytest.approx(1 / 4096)
    assert stats.sign_flip_p([1, -1] * 15) == pytest.approx(1)
    assert math.isnan(stats.sign_flip_p([]))


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


def test_the_measure_that_orders_losses_wins_within_its_stratum():
    random = np.random.default_rng(0)
    loss = np.concatenate([random.permutation(5) for _ in range(24)])
    ratio, seed = np.tile(np.repeat([0.1, 0.5], 5), 12), np.repeat(range(12), 10)
    noise = random.random(len(loss)) + ratio
    found = stats.clustered_rank_correlation_gain(loss, noise, loss + 10 * ratio, ratio, seed, seed=0)
    assert abs(stats.rank_correlation(loss + 10 * ratio, noise, ratio)) < 0.4
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["n"] == 12 and found["p"] < 0.01


def test_a_sign_test_leaves_out_ties_and_has_no_evidence_without_differences():
    assert stats.sign_test_p([1, 1, 1, 5], [0, 0, 0, 5]) == pytest.approx(1 / 8)
    assert stats.sign_test_p([1, 0], [1, 0]) == 1


def test_a_paired_share_gain_has_newcombes_interval_and_mcnemars_p():
    # Newcombe 1998, table III: 36 pairs both, 12 the first alone, 2 the second alone, 0 neither.
    first = np.repeat([True, True, False], [36, 12, 2])
    second = np.repeat([True, False, True], [36, 12, 2])
    found = stats.paired_share_gain(first, second)
    assert found["value"] == pytest.approx(0.2) and found["n"] == 50
    assert [found["low"], found["high"]] == pytest.approx([0.0569, 0.3404], abs=2e-4)
    assert found["p"] == pytest.approx(sum(math.comb(14, k) for k in (12, 13, 14)) / 2**14)


@pytest.mark.parametrize("good", [0, 7, 10])
def test_a_paired_share_gain_without_discordant_pairs_is_zero_with_a_width(good):
    both = np.arange(10) < good
    found = stats.paired_share_gain(both, both)
    assert found["value"] == 0 and found["low"] == pytest.approx(-found["high"]) and found["high"] > 0.05
    assert found["p"] == 1


def test_intervals_of_paired_share_gains_hold_the_difference_as_often_as_they_say():
    random, held = np.random.default_rng(0), []
    for _ in range(1000):
        level = random.random(60)
        found = stats.paired_share_gain(level < 0.8, (level < 0.6) ^ (random.random(60) < 0.1))
        held.append(found["low"] <= 0.8 - (0.6 * 0.9 + 0.4 * 0.1) <= found["high"])
    assert 0.93 < np.mean(held) < 0.98


def populations(shape, seed, noise=0.5):
    """Three standardised samples of 16 even places and a shape of them with noise."""
    random, x = np.random.default_rng(seed), np.linspace(-1, 1, 16)
    drops = shape(x) + noise * random.normal(size=(3, 16))
    return [(x, (drop - drop.mean()) / drop.std()) for drop in drops]


def supported(shape, repeats=100):
    """Share of simulated populations in which both outward slopes are above 0 with 95 % confidence."""
    found = [stats.two_lines(populations(shape, seed)) for seed in range(repeats)]
    return np.mean([one["low"] > 0 and one["p"] < 0.025 for one in found])


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: 0 * x,
        lambda x: 3 * x,
        lambda x: -3 * x,
        lambda x: 5 * (1 - np.exp(-4 * (x + 1))),
        lambda x: 5 / (1 + np.exp(-6 * x)),
        lambda x: 10 * np.exp(-6 * (x + 1)),
    ],
    ids=["flat", "rising", "falling", "saturating", "S-shaped", "a smooth wall"],
)
def test_two_lines_see_no_optimum_where_there_is_none(shape):
    assert supported(shape) <= 0.06


@pytest.mark.parametrize("side", (-1, 1))
def test_two_lines_err_a_little_more_often_where_a_wall_ends_in_a_plateau_with_a_kink(side):
    """The break is placed where noise is lowest: 6 to 9 % of populations look as if they rose again, not 2.5 %."""
    assert supported(lambda x: 8 * np.maximum(-0.5 + side * x, 0)) <= 0.13


@pytest.mark.parametrize("side", (-1, 1))
def test_a_break_from_another_seed_does_not_err_where_a_wall_ends_in_a_plateau(side):
    def twice(seed):  # the same places, two independent noises
        one, two = (populations(lambda x: 8 * np.maximum(-0.5 + side * x, 0), k) for k in (seed, seed + 1000))
        return [(x, np.stack([y, z])) for (x, y), (_, z) in zip(one, two, strict=True)]

    found = [stats.two_lines(twice(seed)) for seed in range(100)]
    assert np.mean([one["low"] > 0 and one["p"] < 0.025 for one in found]) <= 0.06


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: 4 * np.abs(x + 0.3),
        lambda x: np.where(x < -0.4, 10, 4) * np.abs(x + 0.4),
        lambda x: 6 * (x + 0.2) ** 2,
    ],
    ids=["V", "a steep side and a low one", "parabola"],
)
def test_two_lines_see_an_optimum(shape):
    assert supported(shape, 40) >= 0.95


def test_the_slopes_of_a_v_are_those_of_its_sides():
    x = np.linspace(-1, 1, 21)
    for place in (0, -0.6, 0.6):  # in any order of the points, and far from their middle
        away = x[::-1] - place
        found = stats.two_lines([(x[::-1], np.where(away < 0, -3 * away, 2 * away))])
        assert found["value"] == pytest.approx(2, abs=0.3) and found["n"] == 21 and found["p"] < 1e-4
    assert found["low"] <= found["value"] <= found["high"]
    few = np.linspace(-1, 1, 5)
    small = stats.two_lines([(few, few**2)])
    assert small["value"] == pytest.approx(1) and small["low"] < 0 < small["p"] and np.isfinite(small["high"])
    assert np.isnan(stats.two_lines([(few, few**2), (few[:2], few[:2])])["value"])


def test_a_curve_follows_a_line_exactly_and_is_a_line_beyond_its_ends():
    x = np.linspace(0, 3, 9)
    assert stats.curve(x, 2 - x, np.array([-1.0, 0.4, 5.0])) == pytest.approx([3, 1.6, -3])
    beyond = stats.curve(x, np.sin(x), np.array([3.0, 4.0, 5.0]))
    assert beyond[2] - beyond[1] == pytest.approx(beyond[1] - beyond[0])
    basis = stats._spline_basis(x, x)
    assert stats.curve(x, np.sin(2 * x), x) == pytest.approx(basis @ np.linalg.lstsq(basis, np.sin(2 * x))[0], abs=1e-5)


def test_the_lowest_place_of_a_curve_is_a_vertex_or_an_end_and_rows_are_independent():
    x = np.linspace(-0.7, 0.9, 16)
    assert stats.curve_minimum(x, (x - 0.1) ** 2) == pytest.approx(0.1, abs=0.02)
    assert stats.curve_minimum(x, x) == x[0] and stats.curve_minimum(x, -x) == x[-1]
    few = np.linspace(-1, 1, 5)
    assert stats.curve_minimum(few, (few - 0.2) ** 2) == pytest.approx(0.2, abs=0.1)
    random = np.random.default_rng(0)
    places, values = random.uniform(-1, 1, (2, 3, 4, 12))
    together = stats.curve_minimum(places, values)
    assert together.shape == (3, 4)
    for row in np.ndindex(3, 4):
        assert together[row] == pytest.approx(stats.curve_minimum(places[row], values[row]))


def test_a_slope_has_students_interval():
    random = np.random.default_rng(0)
    x = random.normal(size=12)
    y = 0.5 * x + 0.2 * random.normal(size=12)
    found, line = stats.slope_estimate(x, y), scipy_stats.linregress(x, y)
    half = scipy_stats.t.ppf(0.975, 10) * line.stderr
    assert (found["value"], found["high"] - found["value"]) == pytest.approx((line.slope, half))
    assert found["p"] == pytest.approx(line.pvalue / 2) and found["n"] == 12
    assert stats.slope_estimate(x, -y)["p"] == pytest.approx(1 - found["p"])


def gain_of(effect, seed, n=16, exchanges=99):
    """The gain of a second column, whose true effect is given, on top of a first one; two samples."""
    random, samples = np.random.default_rng(seed), []
    for _ in range(2):
        x = random.normal(size=(n, 2))
        samples.append((x, x @ [1, effect] + random.normal(size=n)))
    return stats.cross_validated_gain(samples, 1, seed=seed, exchanges=exchanges)


@pytest.fixture(scope="module")
def without_effect():
    return [gain_of(0, seed) for seed in range(100)]


def test_the_p_of_a_cross_validated_gain_is_fair_without_an_effect(without_effect):
    p = np.array([one["p"] for one in without_effect])
    assert (p <= 0.05).mean() <= 0.1 and 0.4 < p.mean() < 0.6
    assert np.mean([one["low"] > 0 for one in without_effect]) <= 0.02


def test_the_interval_of_a_cross_validated_gain_covers_the_expected_one(without_effect):
    for found in (without_effect, [gain_of(1, seed, exchanges=9) for seed in range(100)]):
        truth = np.mean([one["value"] for one in found])
        assert np.mean([one["low"] < truth < one["high"] for one in found]) >= 0.9
    assert truth > 0.3


def test_a_column_that_says_nothing_new_gains_nothing():
    random = np.random.default_rng(0)
    x = random.normal(size=40)
    y = x + 0.5 * random.normal(size=40)
    for copy in (2 * x, 0 * x):
        found = stats.cross_validated_gain([(np.column_stack([x, copy]), y)], 1, seed=0, exchanges=19)
        assert (found["value"], found["low"], found["high"]) == pytest.approx((0, 0, 0), abs=1e-6)
    alone = stats.cross_validated_gain([(x[:, None], y)], 0, seed=0, exchanges=99)
    assert alone["value"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=0.1)
    assert alone["low"] > 0.3 and alone["n"] == 40 and alone["p"] == 0.01
    assert alone == stats.cross_validated_gain([(x[:, None], y)], 0, seed=0, exchanges=99)
