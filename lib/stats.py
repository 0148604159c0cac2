"""Every interval, band, bootstrap, rank correlation and correction; all of them at one level.

A resampling takes a seed, or a numpy generator where several share one stream of draws; the same seed gives the same
draws. `resamples` and `draws` are their number.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats as scipy_stats

LEVEL = 0.95  # of every interval and band
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


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion, for example of an accuracy on n test images."""
    interval = scipy_stats.binomtest(int(correct), int(n)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of a mean, for example over seeds.

    Raises:
        ValueError: for fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError("An interval of a mean needs at least two values: ask for more seeds, trials or networks.")
    half = scipy_stats.sem(values) * scipy_stats.t.ppf((1 + level) / 2, len(values) - 1)
    return float(values.mean() - half), float(values.mean() + half)


def mean_estimate(values: Sequence[float]) -> dict[str, float]:
    """A mean with its `mean_interval`: `value`, `low`, `high`, `n`, as `Ledger.enter` takes them."""
    low, high = mean_interval(values)
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def dkw_half_width(n: int, level: float = LEVEL) -> float:
    """Half-width of the band that holds a whole distribution function with this probability (Massart 1990)."""
    return float(np.sqrt(np.log(2 / (1 - level)) / (2 * n)))


def percentile_interval(draws: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The interval that holds the middle share `level` of bootstrap draws; draws that are NaN are left out."""
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
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
    statistic: Callable[..., float],
    *samples: Sequence[float],
    seed: Seed,
    resamples: int = 2000,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of one sample, or of several paired ones.

    The samples have one length. Units are resampled, so paired values stay together.
    """
    arrays = [np.asarray(sample) for sample in samples]
    draws = resampled(
        lambda rows: statistic(*(array[rows] for array in arrays)), len(arrays[0]), seed=seed, resamples=resamples
    )
    return percentile_interval(draws, level)


def upper_p(value: float, null: np.ndarray) -> float:
    """One-sided p of a value among draws of its null distribution; large values are evidence of an effect."""
    return float((1 + np.sum(null >= value)) / (1 + len(null)))


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


def same_order(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether two measures put the last axis into the same order: (..., k) and (..., k) -> (...) of bool.

    With k = 3 two unrelated measures agree once in six times. A tie agrees with no strict order.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    pairs = [(i, j) for i in range(x.shape[-1]) for j in range(i)]
    signs = [np.sign(x[..., i] - x[..., j]) == np.sign(y[..., i] - y[..., j]) for i, j in pairs]
    return np.all(signs, axis=0)


def separation(a: Sequence[float], b: Sequence[float]) -> float:
    """|difference of means| over the pooled standard deviation of two samples; infinite if neither varies."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    difference = abs(a.mean() - b.mean())
    return float(difference / pooled) if pooled > 0 else float("inf") if difference > 0 else 0.0


def largest_fraction(fractions: Sequence[float], loss: Sequence[float], allowed: float) -> float:
    """The largest sparsity whose performance difference is at most `allowed`; 0 if none is.

    Source: paper 1 leaves "optimal sparsity" without a number; this is the companion's s*(delta).
    """
    within = [fraction for fraction, value in zip(fractions, loss, strict=True) if value <= allowed]
    return float(max(within, default=0.0))


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
