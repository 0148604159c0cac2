"""Every interval, band, bootstrap, rank correlation and correction; all of them at one level.

A resampling takes a seed, or a numpy generator where several share one stream of draws; the same seed gives the same
draws. `resamples` and `draws` are their number.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats as scipy_stats

LEVEL = 0.95  # of every interval and band
FOLDS, FOLDINGS = 10, 20  # of every cross-validation, and random divisions into folds that it is averaged over
KNOTS, RIDGE, GRID = (3, 5), 1e-9, 201  # fewest and most knots of a curve, its ridge, places where it is read
FEWEST_ON_A_SIDE = 3  # points of each of two lines
Seed = int | np.random.Generator


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values (Holm 1979), in their order.

    A p that is NaN could not be computed: it counts as 1 among the others and stays NaN itself.
    """
    p = np.asarray(p, dtype=float)
    known = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(known, kind="stable")
    corrected = np.empty_like(known)
    corrected[order] = np.minimum(np.maximum.accumulate(known[order] * np.arange(len(p), 0, -1)), 1.0)
    return np.where(np.isnan(p), np.nan, corrected).tolist()


def quantile(level: float = LEVEL) -> float:
    """Half-width of the middle share `level` of a standard normal distribution, 1.96 for .95."""
    return float(scipy_stats.norm.ppf((1 + level) / 2))


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion, for example of an accuracy on n test images."""
    interval = scipy_stats.binomtest(int(correct), int(n)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of a mean, for example over seeds.

    Raises:
        ValueError: for fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError("An interval of a mean needs at least two values: ask for more seeds, trials or networks.")
    half = scipy_stats.sem(values) * scipy_stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return float(values.mean() - half), float(values.mean() + half)


def mean_estimate(values: Sequence[float]) -> dict[str, float]:
    """A mean with its `mean_interval`, NaN for one value: `value`, `low`, `high`, `n`, as `Ledger.enter` takes them."""
    low, high = mean_interval(values) if len(values) != 1 else (float("nan"),) * 2
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def percentile_interval(draws: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the middle share LEVEL of bootstrap draws; draws that are NaN are left out."""
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def redrawn(*sizes: int, seed: Seed, resamples: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Indices drawn with replacement: for each resample one array for each of `sizes`, all of them independent.

    A size is the number of units of one kind, for example of trials or of configurations.
    """
    random = np.random.default_rng(seed)
    return (tuple(random.integers(n, size=n) for n in sizes) for _ in range(resamples))


def resampled(statistic: Callable[..., float], *sizes: int, seed: Seed, resamples: int = 1000) -> np.ndarray:
    """Bootstrap draws (resamples,) of a statistic, which takes the indices that `redrawn` yields."""
    return np.array([statistic(*rows) for rows in redrawn(*sizes, seed=seed, resamples=resamples)])


def bootstrap_interval(
    statistic: Callable[..., float], *samples: Sequence[float], seed: Seed, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of one sample, or of several paired ones.

    The samples have one length. Units are resampled, so paired values stay together.
    """
    arrays = [np.asarray(sample) for sample in samples]
    draws = resampled(
        lambda rows: statistic(*(array[rows] for array in arrays)), len(arrays[0]), seed=seed, resamples=resamples
    )
    return percentile_interval(draws)


def upper_p(value: float, null: np.ndarray) -> float:
    """One-sided p of a value among draws of its null distribution; large values are evidence of an effect.

    It is NaN for a value that could not be computed.
    """
    return float((1 + np.sum(null >= value)) / (1 + len(null))) if np.isfinite(value) else float("nan")


def paired_gain(a: np.ndarray, b: np.ndarray, *, seed: Seed, resamples: int = 2000) -> dict[str, float]:
    """Mean of a minus mean of b, with a percentile bootstrap interval and a one-sided p against no gain.

    Both are (seeds, images) scores on the same images: the seeds of each are resampled, the images for both together.

    Returns:
        `value`, `low`, `high`, in the unit of the scores; and `p`.
    """
    draws = resampled(
        lambda images, ours, theirs: a[ours][:, images].mean() - b[theirs][:, images].mean(),
        *(a.shape[1], len(a), len(b)),
        seed=seed,
        resamples=resamples,
    )
    low, high = percentile_interval(draws)
    return {"value": float(a.mean() - b.mean()), "low": low, "high": high, "p": upper_p(0, -draws)}


def rank_correlation(x: Sequence[float], y: np.ndarray | Sequence[float], strata: Sequence = ()) -> float | np.ndarray:
    """Spearman's correlation of the ranks that two measures have within each stratum, pooled over strata.

    The first measure is (n,), the second (n,), or (..., n) for many of them; a NaN removes its pair. `strata` are (n,)
    labels; without them all values form one stratum. A difference between strata (a network, a sparsity) adds nothing
    to the correlation.

    Returns:
        A value in [-1, 1], or (...) of them; NaN where a measure is constant within every stratum.

    Raises:
        ValueError: for arrays of different lengths.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or y.shape[-1:] != x.shape or len(strata) not in (0, len(x)):
        raise ValueError(f"Measures and strata must be of one length, not {x.shape}, {y.shape} and {len(strata)}.")
    # A removed pair is a stratum of its own, where its rank is the mean rank.
    labels = np.where(np.isnan(x) | np.isnan(y), len(x) + np.arange(len(x)), _labels(strata, len(x)))
    pooled = _pooled(_centred_ranks(np.broadcast_to(x, y.shape), labels), _centred_ranks(y, labels))
    return pooled if y.ndim > 1 else float(pooled)


def rank_correlation_interval(
    x: np.ndarray, y: np.ndarray, strata: Sequence = (), *, seed: Seed, resamples: int = 1000
) -> tuple[float, float]:
    """Interval of `rank_correlation` of means over trials: trials and configurations are resampled.

    Both measures are (configurations, trials), and a resampled trial counts for both; `strata` is (configurations,).
    A resampled configuration keeps the rank that it has within its stratum.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    labels, draws = _labels(strata, len(x)), redrawn(x.shape[1], len(x), seed=seed, resamples=resamples)
    trials, units = map(np.array, zip(*draws, strict=True))
    ranks = (_centred_ranks(measure[:, trials].mean(-1).T, labels) for measure in (x, y))
    return percentile_interval(_pooled(*(np.take_along_axis(rank, units, axis=1) for rank in ranks)))


def permutation_p(
    statistic: Callable[[np.ndarray], np.ndarray | float],
    y: Sequence[float],
    strata: Sequence = (),
    *,
    seed: Seed,
    draws: int = 999,
) -> float:
    """One-sided p of a statistic of y, whose values could be exchanged within strata if there were no effect.

    The statistic takes (..., n) values of y and returns (...) values; large ones are evidence of an effect. `strata`
    are (n,) labels; without them all values may be exchanged.
    """
    y = np.asarray(y, dtype=float)
    labels, random = _labels(strata, len(y)), np.random.default_rng(seed)
    order = np.lexsort((random.random((draws, len(y))), np.broadcast_to(labels, (draws, len(y)))))
    exchanged = np.empty(order.shape)
    exchanged[:, np.argsort(labels, kind="stable")] = y[order]
    return upper_p(statistic(y), statistic(exchanged))


def bootstrap_estimate(statistic: Callable[..., float], *sizes: int, seed: Seed) -> dict:
    """A statistic of all units with its percentile bootstrap interval, as `Ledger.enter` takes them.

    The statistic and the sizes are those of `resampled`; `n` counts the units of the last kind.
    """
    draws = resampled(statistic, *sizes, seed=seed)
    return percentile_estimate(statistic(*map(np.arange, sizes)), draws, sizes[-1])


def sign_test_p(a: Sequence[float], b: Sequence[float]) -> float:
    """One-sided p of paired values against a exceeding b as often as b exceeds a; ties do not count."""
    more, less = int(np.sum(np.greater(a, b))), int(np.sum(np.less(a, b)))
    return float(scipy_stats.binomtest(more, more + less, alternative="greater").pvalue) if more + less else 1.0


def paired_share_gain(a: Sequence[bool], b: Sequence[bool]) -> dict[str, float]:
    """Share of successes a minus that of b on the same units: `value`, `low`, `high`, `n`, and a one-sided p.

    The interval keeps a width when all pairs agree; p is McNemar's exact one, of the pairs that disagree.

    Source: Newcombe 1998, method 10, which combines two Wilson intervals.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    n, sums = len(a), np.array([a.sum(), b.sum(), (~a).sum(), (~b).sum()], dtype=float)
    covariance = np.sum(a & b) * np.sum(~a & ~b) - float(np.sum(a & ~b) * np.sum(~a & b))
    covariance = max(covariance - n / 2, 0) if covariance > 0 else covariance
    correlation = covariance / np.sqrt(sums.prod()) if sums.all() else 0.0
    (below_a, above_a), (below_b, above_b) = (np.abs(np.subtract(wilson(one.sum(), n), one.mean())) for one in (a, b))
    value = float(a.mean() - b.mean())
    low, high = (
        np.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0)) for x, y in ((below_a, above_b), (above_a, below_b))
    )
    return {"value": value, "low": value - float(low), "high": value + float(high), "n": n, "p": sign_test_p(a, b)}


def percentile_estimate(value: float, draws: Sequence[float], n: int) -> dict[str, float]:
    """A value with the `percentile_interval` of its draws, and n; as `Ledger.enter` takes them."""
    low, high = percentile_interval(draws)
    return {"value": float(value), "low": low, "high": high, "n": n}


def redrawn_rows(*sizes: int, seed: Seed, resamples: int) -> list[np.ndarray]:
    """Indices (resamples, n) of n units for each size, drawn with replacement, for statistics of many rows at once.

    Unlike `redrawn`, all resamples of one size are drawn before those of the next.
    """
    random = np.random.default_rng(seed)
    return [random.integers(n, size=(resamples, n)) for n in sizes]


def stratified_bootstrap(
    statistic: Callable[[list[np.ndarray]], float],
    samples: Sequence[np.ndarray],
    *,
    seed: Seed,
    resamples: int = 400,
    recentred: bool = False,
) -> dict[str, float]:
    """A statistic of several samples (units, ...) with its percentile interval; units are redrawn within each sample.

    `recentred` shifts the interval by the bias of the draws, for a statistic that redrawing biases.
    """
    draws = resampled(
        lambda *rows: statistic([sample[row] for sample, row in zip(samples, rows, strict=True)]),
        *map(len, samples),
        seed=seed,
        resamples=resamples,
    )
    found = percentile_estimate(statistic(samples), draws, sum(map(len, samples)))
    bias = np.nanmean(draws) - found["value"] if recentred else 0
    return found | {"low": float(found["low"] - bias), "high": float(found["high"] - bias)}


def dkw_band(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of the band around an empirical distribution function just above each of its n steps.

    It holds the whole distribution function with probability LEVEL (Massart 1990).
    """
    height, half = np.arange(1, n + 1) / n, float(np.sqrt(np.log(2 / (1 - LEVEL)) / (2 * n)))
    return np.maximum(height - half, 0), np.minimum(height + half, 1)


def intraclass_correlation(values: np.ndarray) -> dict[str, float]:
    """ICC(1), the share of the variance between units, of values (units, repetitions), with its exact F interval."""
    n, repetitions = values.shape
    between = repetitions * values.mean(axis=1).var(ddof=1)
    within = values.var(axis=1, ddof=1).mean()
    ratio, freedom = between / within, (n - 1, n * (repetitions - 1))
    tail = (1 + LEVEL) / 2
    low, high = ratio / scipy_stats.f.ppf(tail, *freedom), ratio * scipy_stats.f.ppf(tail, *freedom[::-1])
    value, low, high = (float((f - 1) / (f + repetitions - 1)) for f in (ratio, low, high))
    return {"value": value, "low": low, "high": high, "n": n}


def random_effects_mean(values: np.ndarray, variances: np.ndarray) -> dict[str, float]:
    """The mean of estimates that vary by more than their sampling variances, with its normal interval.

    Source: DerSimonian and Laird 1986.
    """
    weights = 1 / variances
    mean = (weights * values).sum() / weights.sum()
    excess = (weights * (values - mean) ** 2).sum() - (len(values) - 1)
    between = max(0.0, excess / max(weights.sum() - (weights**2).sum() / weights.sum(), 1e-12))
    weights = 1 / (variances + between)
    mean, half = (weights * values).sum() / weights.sum(), quantile() * weights.sum() ** -0.5
    return {"value": float(mean), "low": float(mean - half), "high": float(mean + half)}


def weakest_rank_correlation(values: np.ndarray, *, seed: Seed) -> dict:
    """The smallest of Spearman's correlations between any two columns of values (units, measures).

    The interval holds all pairs together (Fisher's z, Bonferroni). The smallest of several correlations of unrelated
    ranks is below 0 on average, so p and `null` (its mean and interval) come from exchanged ranks.

    Source: Bonett and Wright 2000 for the standard error of Spearman's z.
    """
    ranks = scipy_stats.rankdata(values, axis=0)
    n, pairs = len(ranks), np.triu_indices(ranks.shape[1], 1)

    def correlations(ranks: np.ndarray) -> np.ndarray:
        centred = ranks - ranks.mean(axis=-2, keepdims=True)
        length = np.sqrt((centred**2).sum(axis=-2))
        scale = length[..., :, None] * length[..., None, :]
        product = np.swapaxes(centred, -1, -2) @ centred
        return (product / np.where(scale > 0, scale, 1))[..., *pairs]  # a measure that ties all units ranks none

    found, random = correlations(ranks), np.random.default_rng(seed)
    z = np.arctanh(np.clip(found, -0.999, 0.999))
    half = quantile(1 - (1 - LEVEL) / len(found)) * np.sqrt((1 + found**2 / 2) / (n - 3))
    null = correlations(random.permuted(np.tile(ranks, (1999, 1, 1)), axis=1)).min(axis=1)
    bounds = {"low": float(np.tanh(z - half).min()), "high": float(np.tanh(z + half).min())}
    null_range = (float(null.mean()), *percentile_interval(null))
    return {"value": float(found.min()), **bounds, "p": upper_p(found.min(), null), "n": n, "null": null_range}


def standardised_difference(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, seed: Seed, resamples: int = 400
) -> dict[str, float]:
    """Difference of the means of two samples in pooled standard deviations, averaged over pairs of samples.

    It is the signed area between two empirical distribution functions, above 0 if the second sample of a pair is
    larger. The interval redraws each sample; the two-sided p exchanges labels within pairs.

    Source: Hedges 1981 for the factor that corrects the bias of small samples.
    """

    def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        scale = np.sqrt((first.var(axis=-1, ddof=1) + second.var(axis=-1, ddof=1)) / 2)
        unbiased = 1 - 3 / (4 * (first.shape[-1] + second.shape[-1]) - 9)
        return unbiased * (second.mean(axis=-1) - first.mean(axis=-1)) / np.where(scale > 0, scale, 1)

    random, value, redrawn_values, null = np.random.default_rng(seed), 0.0, 0.0, 0.0
    for first, second in pairs:
        rows = redrawn_rows(len(first), len(second), seed=random, resamples=resamples)
        mixed = random.permuted(np.tile(np.concatenate([first, second]), (999, 1)), axis=1)
        value = value + difference(first, second) / len(pairs)
        redrawn_values = redrawn_values + difference(first[rows[0]], second[rows[1]]) / len(pairs)
        null = null + difference(mixed[:, : len(first)], mixed[:, len(first) :]) / len(pairs)
    found = percentile_estimate(value, redrawn_values, sum(len(first) + len(second) for first, second in pairs))
    return found | {"p": upper_p(abs(value), np.abs(null))}


def curve(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The least-squares natural cubic spline of y on x, at other places: (..., n), (..., n), (..., m) -> (..., m).

    Its knots are even over the range of x: half as many as points, but three to five.
    """
    return (_spline_basis(x, at) @ _spline(x, y)[..., None])[..., 0]


def curve_minimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The place in the range of x where the `curve` of y on x is lowest: (..., n) -> (...)."""
    places = np.linspace(x.min(axis=-1), x.max(axis=-1), GRID, axis=-1)
    lowest = curve(x, y, places).argmin(axis=-1)[..., None]
    return np.take_along_axis(places, lowest, axis=-1)[..., 0]


def two_lines(samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The smaller of the two outward slopes of two lines of y on x that meet near the lowest y, mean over samples.

    It is above 0 only if y falls below the break and rises above it. The break is chosen so that both slopes are as
    significant as they can be together: within the places where the `curve` of y is within one standard error of its
    minimum, and with three or more points on each side. The standard errors of the lines bear unequal variances (HC3).

    A sample holds x (n,) and y (n,) or (repetitions, n). With repetitions, the lines of each are fitted to breaks that
    the mean of the others places: a break that is placed by the noise of the lines finds a rise too often where a steep
    wall ends in a plateau. Repetitions of one sample count as one.

    The interval is Student's, and p the larger of the two one-sided ones. A sample of fewer than three points has no
    such lines, and all values are NaN.

    Source: Simonsohn 2018, whose "Robin Hood" break this is; the curve there is a smoothing spline.
    """
    ends, errors, n = np.zeros((len(samples), 2)), np.zeros((len(samples), 2)), sum(len(x) for x, _ in samples)
    if min((len(x) for x, _ in samples), default=0) < FEWEST_ON_A_SIDE:
        return dict.fromkeys(("value", "low", "high"), np.nan) | {"n": n, "p": np.nan}
    for place, (x, y) in enumerate(samples):
        order = np.argsort(x, kind="stable")
        x, y = x[order], np.atleast_2d(y)[:, order]
        for number, own in enumerate(y):
            others = np.delete(y, number, axis=0).mean(axis=0) if len(y) > 1 else own
            slopes, variances = _outward_slopes(x, own, _robin_hood_break(x, others))
            ends[place] += slopes / len(y)
            errors[place] += np.sqrt(variances) / len(y)
    slopes, error = ends.mean(axis=0), np.sqrt((errors**2).sum(axis=0)) / len(samples)
    freedom = max(n - 4 * len(samples), 1)  # four coefficients a sample
    half, p = scipy_stats.t.ppf((1 + LEVEL) / 2, freedom) * error, scipy_stats.t.sf(slopes / error, freedom).max()
    value, low, high = (float(one.min()) for one in (slopes, slopes - half, slopes + half))
    return {"value": value, "low": low, "high": high, "n": n, "p": float(p)}


def cross_validated_gain(
    samples: Sequence[tuple[np.ndarray, np.ndarray]], base: int, *, seed: Seed, exchanges: int = 499
) -> dict[str, float]:
    """Share of the cross-validated squared error that further columns of x remove, on top of the first `base` ones.

    A sample holds x (n, columns) and y (n,); predictions are least squares on standardised columns within a sample, and
    the gain is the mean over FOLDINGS random divisions into FOLDS folds. The interval is the jackknife's over units,
    because a resample with copies of units has fewer different ones to learn from; p exchanges the further columns
    between units.
    """
    random, errors = np.random.default_rng(seed), np.zeros((2, 1))
    left_out, exchanged = [], np.zeros((2, exchanges))
    for x, y in samples:
        n, columns = len(y), (1 + x.shape[1], 1 + base)  # a constant, then all columns or the first ones
        design = np.column_stack([np.ones(n), (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)])
        folds = random.permuted(np.tile(np.arange(n) % FOLDS, (FOLDINGS, 1)), axis=1)
        kept = np.vstack([np.ones(n), 1 - np.eye(n)])  # all units, then all but one
        parts = np.array([[_fold_errors(design[None, :, :k], y, fold[None], kept) for fold in folds] for k in columns])
        parts = parts.mean(axis=1)
        mixed = design[None].repeat(exchanges, axis=0)
        rows = random.permuted(np.tile(np.arange(n), (exchanges, 1)), axis=1)
        mixed[:, :, 1 + base :] = design[rows][:, :, 1 + base :]
        drawn = folds[random.integers(FOLDINGS, size=exchanges)]
        exchanged += [_fold_errors(mixed[:, :, :k], y, drawn, np.ones((exchanges, n))) for k in columns]
        errors = errors + parts[:, :1]
        left_out.append(parts[:, 1:] - parts[:, :1])
    value, changed = 1 - errors[0, 0] / errors[1, 0], errors + np.concatenate(left_out, axis=1)
    n, without = changed.shape[1], 1 - changed[0] / changed[1]
    half = quantile() * float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    p = upper_p(value, 1 - exchanged[0] / exchanged[1])
    return {"value": float(value), "low": float(value - half), "high": float(value + half), "n": n, "p": p}


def leave_one_out_error(y: np.ndarray, *x: np.ndarray) -> float:
    """Root mean square error of predicting each of y (n,) from the others, by their mean or by least squares on x."""
    design = np.column_stack([np.ones(len(y)), *x])
    hat = design @ np.linalg.pinv(design)
    return float(np.sqrt(np.mean(((y - hat @ y) / np.maximum(1 - np.diag(hat), 1e-9)) ** 2)))


def slope_estimate(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Least-squares slope of y on x (n,) with its t interval, n, and the one-sided p of a slope of at most 0."""
    line = scipy_stats.linregress(x, y, alternative="greater")
    half = scipy_stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * line.stderr
    value = float(line.slope)
    return {"value": value, "low": value - half, "high": value + half, "n": len(x), "p": float(line.pvalue)}


def mean_gain(values: Sequence[float]) -> dict[str, float]:
    """Mean of independent differences with its interval, n, and a one-sided p of a mean of at most 0 (Student's t).

    Values that are not finite are left out. NaN stands for everything that cannot be computed: the interval of fewer
    than two values, the p of values that do not vary.
    """
    values = np.asarray(values, dtype=float)
    values, nan = values[np.isfinite(values)], float("nan")
    low, high = mean_interval(values) if len(values) > 1 else (nan, nan)
    varies = len(values) > 1 and np.ptp(values) > 0
    p = float(scipy_stats.ttest_1samp(values, 0, alternative="greater").pvalue) if varies else nan
    return {"value": float(values.mean()) if len(values) else nan, "low": low, "high": high, "n": len(values), "p": p}


def clustered_rank_correlation_gain(
    a: Sequence[float], b: Sequence[float], y: Sequence[float], strata: Sequence, clusters: Sequence, *, seed: Seed
) -> dict[str, float]:
    """How much more closely a measure follows y than another one does: the difference of two rank correlations.

    Args:
        a: (n,) values of the first measure.
        b: (n,) values of the second.
        y: (n,) values that both may follow.
        strata: (n,) labels within which values are ranked.
        clusters: (n,) labels of the independent units, such as networks. Units are drawn anew with all their values,
            which keep their ranks.
        seed: of the resampling.

    Returns:
        `value`, `low`, `high`; `n`, the number of clusters; `p`, one-sided, of no gain.
    """
    ranks = _centred_ranks(np.array([a, b, y], dtype=float), _labels(strata, len(y)))
    groups = _labels(clusters, len(y))
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]

    def gain(units: np.ndarray) -> float:
        drawn = ranks[:, np.concatenate([members[unit] for unit in units])]
        first, second = _pooled(drawn[:2], drawn[2])
        return first - second

    draws = resampled(gain, len(members), seed=seed)
    found = percentile_estimate(gain(np.arange(len(members))), draws, len(members))
    return found | {"p": upper_p(0, -draws)}


def share_estimate(good: Sequence[bool]) -> dict[str, float]:
    """A share with its `wilson` interval: `value`, `low`, `high`, `n`, as `Ledger.enter` takes them."""
    low, high = wilson(np.sum(good), len(good))
    return {"value": float(np.mean(good)), "low": low, "high": high, "n": len(good)}


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean of paired differences, whose signs are exchangeable if there is no effect.

    All flips are counted up to 12 differences, 4095 random ones beyond. NaN without differences.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return np.nan
    if exact := len(values) <= 12:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((-1, 1), size=(4095, len(values)))
    reached = np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)
    return float(reached.mean() if exact else (1 + reached.sum()) / (1 + len(reached)))


def _labels(strata: Sequence, n: int) -> np.ndarray:
    if not len(strata):
        return np.zeros(n, dtype=int)
    if not np.issubdtype(np.asarray(strata).dtype, np.integer):
        strata = [str(label) for label in strata]
    return np.unique(strata, return_inverse=True)[1]


def _centred_ranks(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ranks (..., n) within strata minus their mean, ties averaged: half the sum of the signs of all differences."""
    if not values.size:
        return np.zeros(values.shape)
    # `scipy.stats.rankdata` knows no strata; a call for each stratum of thousands of resamples is many times slower.
    labels = np.broadcast_to(labels, values.shape)
    order = np.lexsort((values, labels))
    values, labels = (np.take_along_axis(array, order, -1) for array in (values, labels))
    stratum = labels[..., 1:] != labels[..., :-1]
    centred = np.empty(values.shape)
    middles = _middles(stratum | (values[..., 1:] != values[..., :-1])) - _middles(stratum)
    np.put_along_axis(centred, order, middles, -1)
    return centred


def _middles(changes: np.ndarray) -> np.ndarray:
    """The middle place of the run that each place belongs to; `changes` says after which places a run ends."""
    edge = np.ones((*changes.shape[:-1], 1), dtype=bool)
    places = np.arange(changes.shape[-1] + 1)
    starts = np.maximum.accumulate(np.where(np.concatenate([edge, changes], -1), places, 0), axis=-1)
    ends = np.where(np.concatenate([changes, edge], -1), places, places[-1])
    return (starts + np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]) / 2


def _pooled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _spline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients (..., knots) of the natural cubic spline of y on x."""
    basis = _spline_basis(x, x)
    transposed = np.swapaxes(basis, -1, -2)
    normal = transposed @ basis + RIDGE * np.eye(basis.shape[-1])
    return np.linalg.solve(normal, transposed @ y[..., None])[..., 0]


def _spline_basis(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Natural cubic splines (..., m, knots) at places (..., m), with knots that are even over the range of x."""
    knots = np.linspace(0, 1, int(np.clip(x.shape[-1] // 2, *KNOTS)))
    u = (at - x.min(axis=-1, keepdims=True)) / np.maximum(np.ptp(x, axis=-1, keepdims=True), 1e-12)
    cubes = np.maximum(u[..., None] - knots, 0) ** 3
    steps = (cubes[..., :-1] - cubes[..., -1:]) / (1 - knots[:-1])
    return np.concatenate([np.ones_like(u)[..., None], u[..., None], steps[..., :-1] - steps[..., -1:]], axis=-1)


def _robin_hood_break(x: np.ndarray, y: np.ndarray) -> float:
    """The break of `two_lines` for sorted x (n,)."""
    basis, grid = _spline_basis(x, x), np.linspace(x[0], x[-1], GRID)
    at, fitted = _spline_basis(x, grid), curve(x, y, grid)
    variance = ((y - curve(x, y, x)) ** 2).sum() / max(len(x) - basis.shape[1], 1)
    lowest = at[fitted.argmin()]
    error = np.sqrt(variance * lowest @ np.linalg.pinv(basis.T @ basis) @ lowest)
    flat = np.clip(grid[fitted <= fitted.min() + error], x[FEWEST_ON_A_SIDE - 1], x[-FEWEST_ON_A_SIDE])
    slopes, variances = _outward_slopes(x, y, float(np.median(flat)))
    low, high = np.abs(slopes) / np.sqrt(variances)
    return float(np.quantile(flat, high / (low + high)))


def _outward_slopes(x: np.ndarray, y: np.ndarray, at: float) -> tuple[np.ndarray, np.ndarray]:
    """Outward slopes (2,) of the lines below and above a break, and their HC3 variances."""
    slopes, variances = [], []
    for sign, side in ((-1, x <= at), (1, x >= at)):
        side = side if side.sum() >= FEWEST_ON_A_SIDE else np.argsort(sign * -x)[:FEWEST_ON_A_SIDE]
        design = np.column_stack([np.ones(len(x[side])), x[side]])
        inverse = np.linalg.pinv(design.T @ design)
        line = inverse @ design.T @ y[side]
        leverage = np.einsum("ni,ij,nj->n", design, inverse, design)
        weighted = design * ((y[side] - design @ line) / np.maximum(1 - leverage, 1e-3))[:, None]
        slopes.append(sign * line[1])
        variances.append((inverse @ weighted.T @ weighted @ inverse)[1, 1])
    return np.array(slopes), np.maximum(variances, 1e-12)


def _fold_errors(x: np.ndarray, y: np.ndarray, fold: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Cross-validated squared errors (b,) of y (n,) from x (b, n, columns); `times` (b, n) weighs the units."""
    total = np.zeros(len(times))
    for held in range(FOLDS):
        learnt = times * (fold != held)
        weighted = x * learnt[..., None]
        normal = np.swapaxes(x, -1, -2) @ weighted + 1e-9 * np.eye(x.shape[-1])
        slopes = np.linalg.solve(normal, (np.swapaxes(weighted, -1, -2) @ y)[..., None])
        total += (times * (fold == held) * (y - (x @ slopes)[..., 0]) ** 2).sum(axis=1)
    return total
