"""Every interval, band, bootstrap, rank correlation and correction; all of them at one level.

A resampling takes a seed, or a numpy generator where several share one stream of draws.
"""

import itertools
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
    """The standard normal deviate that the middle share `level` of a normal distribution lies within, 1.96 for .95."""
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
    """Indices of `sizes` units of each kind, drawn with replacement, each independently, `resamples` times."""
    random = np.random.default_rng(seed)
    return (tuple(random.integers(n, size=n) for n in sizes) for _ in range(resamples))


def resampled(statistic: Callable[..., float], *sizes: int, seed: Seed, resamples: int = 1000) -> np.ndarray:
    """Bootstrap draws (resamples,) of a statistic.

    Args:
        statistic: takes an array of indices for each size, drawn with replacement, each independently.
        sizes: number of units of each kind, for example of trials and of configurations.
        seed: of the resampling.
        resamples: number of draws.
    """
    return np.array([statistic(*rows) for rows in redrawn(*sizes, seed=seed, resamples=resamples)])


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: Sequence[float],
    seed: Seed,
    resamples: int = 2000,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of one sample, or of several paired ones.

    Args:
        statistic: takes as many 1-D arrays as there are samples.
        samples: arrays of one length; units are resampled, so paired values stay together.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of draws.
        level: of the interval.
    """
    arrays = [np.asarray(sample) for sample in samples]
    draws = resampled(
        lambda rows: statistic(*(array[rows] for array in arrays)), len(arrays[0]), seed=seed, resamples=resamples
    )
    return percentile_interval(draws, level)


def upper_p(value: float, null: np.ndarray) -> float:
    """One-sided p of a value among draws of its null distribution; large values speak for an effect."""
    return float((1 + np.sum(null >= value)) / (1 + len(null)))


def paired_gain(a: np.ndarray, b: np.ndarray, *, seed: Seed, resamples: int = 2000) -> dict[str, float]:
    """Mean of a minus mean of b, with a percentile bootstrap interval and a one-sided p against no gain.

    Args:
        a: (seeds, images) scores; the seeds of each are drawn anew, the images for both together.
        b: likewise, on the same images.
        seed: of the resampling.
        resamples: number of draws.

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

    Args:
        x: (n,) values.
        y: (n,) values, or (..., n) of many other measures. A NaN takes its pair out.
        strata: (n,) labels; without them all values form one stratum. What strata have in common (a network, a
            sparsity) then adds nothing to the correlation.

    Returns:
        A value in [-1, 1], or (...) of them; NaN where a measure is constant within every stratum.

    Raises:
        ValueError: for arrays of different lengths.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or y.shape[-1:] != x.shape or len(strata) not in (0, len(x)):
        raise ValueError(f"Measures and strata must be of one length, not {x.shape}, {y.shape} and {len(strata)}.")
    # A pair that is out is a stratum of its own, where its rank is the mean rank.
    labels = np.where(np.isnan(x) | np.isnan(y), len(x) + np.arange(len(x)), _labels(strata, len(x)))
    pooled = _pooled(_centred_ranks(np.broadcast_to(x, y.shape), labels), _centred_ranks(y, labels))
    return pooled if y.ndim > 1 else float(pooled)


def rank_correlation_interval(
    x: np.ndarray, y: np.ndarray, strata: Sequence = (), *, seed: Seed, resamples: int = 1000
) -> tuple[float, float]:
    """Interval of `rank_correlation` of means over trials, by drawing trials and configurations anew.

    Args:
        x: (configurations, trials). Configurations keep the ranks that they have within their strata when they are
            drawn.
        y: likewise; a trial is drawn for both measures.
        strata: (configurations,).
        seed: of the resampling.
        resamples: number of draws.
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

    Args:
        statistic: takes (..., n) values of y and returns (...) values; large ones speak for an effect.
        y: (n,) values.
        strata: (n,) labels; without them all values may be exchanged.
        seed: of the permutations.
        draws: number of permutations.
    """
    y = np.asarray(y, dtype=float)
    labels, random = _labels(strata, len(y)), np.random.default_rng(seed)
    order = np.lexsort((random.random((draws, len(y))), np.broadcast_to(labels, (draws, len(y)))))
    exchanged = np.empty(order.shape)
    exchanged[:, np.argsort(labels, kind="stable")] = y[order]
    return upper_p(statistic(y), statistic(exchanged))


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


def bootstrap_estimate(statistic: Callable[..., float], *sizes: int, seed: Seed, resamples: int = 1000) -> dict:
    """A statistic of all units with its percentile bootstrap interval, as `Ledger.enter` takes them.

    Args:
        statistic: as `resampled` takes it.
        sizes: number of units of each kind, for example of trials and of configurations.
        seed: of the resampling.
        resamples: number of draws.

    Returns:
        `value`, `low`, `high`, and as `n` the units of the last kind.
    """
    low, high = percentile_interval(resampled(statistic, *sizes, seed=seed, resamples=resamples))
    return {"value": float(statistic(*map(np.arange, sizes))), "low": low, "high": high, "n": sizes[-1]}


def rank_correlation_gain(
    a: np.ndarray, b: np.ndarray, y: np.ndarray, strata: Sequence = (), *, seed: Seed
) -> dict[str, float]:
    """`rank_correlation` of one measure with a target minus that of another; draws trials and configurations anew.

    Args:
        a: (configurations, trials); means over trials are ranked within strata, among the drawn configurations.
        b: likewise, the other measure.
        y: likewise, the target.
        strata: (configurations,).
        seed: of the resampling.

    Returns:
        `value`, `low`, `high` and `n`, the number of configurations.
    """
    arrays = [np.asarray(measure, dtype=float) for measure in (a, b, y)]
    labels = _labels(strata, len(arrays[0]))

    def gain(trials: np.ndarray, units: np.ndarray) -> float:
        first, second, target = (array[:, trials].mean(1)[units] for array in arrays)
        return rank_correlation(first, target, labels[units]) - rank_correlation(second, target, labels[units])

    return bootstrap_estimate(gain, arrays[0].shape[1], len(arrays[0]), seed=seed)


def sign_test_p(a: Sequence[float], b: Sequence[float]) -> float:
    """One-sided p of paired values against a exceeding b as often as b exceeds a; ties do not count."""
    more, less = int(np.sum(np.greater(a, b))), int(np.sum(np.less(a, b)))
    return float(scipy_stats.binomtest(more, more + less, alternative="greater").pvalue) if more + less else 1.0
