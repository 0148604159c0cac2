"""Whether two measures order the same configurations alike: ranks within strata, orders of a few, separations."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats as scipy_stats

LEVEL = 0.95  # of every interval and band


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values (Holm 1979), in their order."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion, for example of an accuracy on n test images."""
    interval = scipy_stats.binomtest(int(correct), int(n)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Student's t interval of a mean, for example over seeds; ValueError for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError("An interval of a mean needs at least two values: ask for more seeds, trials or networks.")
    half = scipy_stats.sem(values) * scipy_stats.t.ppf((1 + level) / 2, len(values) - 1)
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_interval(
    statistic: Callable[..., float], *samples: Sequence[float], seed: int, resamples: int = 2000, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of one sample, or of several paired ones.

    Args:
        statistic: takes as many 1-D arrays as there are samples.
        samples: arrays of one length; units are resampled, so paired values stay together.
        seed: of the resampling; the same seed gives the same interval.
    """
    arrays = [np.asarray(sample) for sample in samples]
    random = np.random.default_rng(seed)
    draws = random.integers(len(arrays[0]), size=(resamples, len(arrays[0])))
    values = [statistic(*(array[draw] for array in arrays)) for draw in draws]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_gain(
    a: np.ndarray, b: np.ndarray, *, seed: int, resamples: int = 2000, level: float = LEVEL
) -> dict[str, float]:
    """Mean of a minus mean of b, with a percentile bootstrap interval and a one-sided p against no gain.

    Args:
        a, b: (seeds, images) of scores on the same images; seeds of each are drawn anew, images for both together.
        seed: of the resampling.

    Returns: `gain`, `low`, `high`, in the unit of the scores; and `p`.
    """
    random, (rows_a, images), rows_b = np.random.default_rng(seed), a.shape, len(b)
    draws = np.empty(resamples)
    for draw in range(resamples):
        chosen = random.integers(images, size=images)
        ours, theirs = (m[random.integers(n, size=n)][:, chosen] for m, n in ((a, rows_a), (b, rows_b)))
        draws[draw] = ours.mean() - theirs.mean()
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    p = (1 + np.sum(draws <= 0)) / (1 + resamples)
    return {"gain": float(a.mean() - b.mean()), "low": float(low), "high": float(high), "p": float(p)}


def dkw_half_width(n: int, level: float = LEVEL) -> float:
    """Half-width of the band that holds a whole distribution function with this probability (Massart 1990)."""
    return float(np.sqrt(np.log(2 / (1 - level)) / (2 * n)))


def rank_correlation(x: Sequence[float], y: np.ndarray | Sequence[float], strata: Sequence = ()) -> float | np.ndarray:
    """Spearman's correlation of the ranks that two measures have within each stratum, pooled over strata.

    Args:
        x: (n,) values.
        y: (n,) values, or (..., n) of many other measures. A NaN takes its pair out.
        strata: (n,) labels; without them all values form one stratum. What strata have in common (a network, a
            sparsity) then adds nothing to the correlation.

    Returns: a value in [-1, 1], or (...) of them; NaN where a measure is constant within every stratum.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or y.shape[-1:] != x.shape or len(strata) not in (0, len(x)):
        raise ValueError(f"Measures and strata must be of one length, not {x.shape}, {y.shape} and {len(strata)}.")
    # A pair that is out is a stratum of its own, where its rank is the mean rank.
    labels = np.where(np.isnan(x) | np.isnan(y), len(x) + np.arange(len(x)), _labels(strata, len(x)))
    pooled = _pooled(_centred_ranks(np.broadcast_to(x, y.shape), labels), _centred_ranks(y, labels))
    return pooled if y.ndim > 1 else float(pooled)


def nested_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    trials: int,
    units: int,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of several trials of several units (configurations, panels).

    Args:
        statistic: takes indices of trials and indices of units, drawn with replacement, each independently.
    """
    return _middle([statistic(*draw) for draw in _draws(trials, units, seed, resamples)], level)


def rank_correlation_interval(x: np.ndarray, y: np.ndarray, strata: Sequence = (), *, seed: int) -> tuple[float, float]:
    """Interval of `rank_correlation` of means over trials, by drawing trials and configurations anew.

    Args:
        x, y: (configurations, trials); a trial is drawn for both measures. Configurations keep the ranks that they
            have within their strata when they are drawn.
        strata: (configurations,).
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    labels = _labels(strata, len(x))
    trials, units = map(np.array, zip(*_draws(x.shape[1], len(x), seed, resamples=1000), strict=True))
    ranks = (_centred_ranks(measure[:, trials].mean(-1).T, labels) for measure in (x, y))
    return _middle(_pooled(*(np.take_along_axis(rank, units, axis=1) for rank in ranks)), level=LEVEL)


def permutation_p(
    statistic: Callable[[np.ndarray], np.ndarray | float],
    y: Sequence[float],
    strata: Sequence = (),
    *,
    seed: int,
    draws: int = 999,
) -> float:
    """One-sided p of a statistic of y, where values are exchanged within strata if there is no effect.

    Args:
        statistic: takes (..., n) values of y and returns (...) values; large ones speak for an effect.
    """
    y = np.asarray(y, dtype=float)
    labels, random = _labels(strata, len(y)), np.random.default_rng(seed)
    order = np.lexsort((random.random((draws, len(y))), np.broadcast_to(labels, (draws, len(y)))))
    exchanged = np.empty(order.shape)
    exchanged[:, np.argsort(labels, kind="stable")] = y[order]
    return float((1 + np.sum(statistic(exchanged) >= statistic(y))) / (1 + draws))


def same_order(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether two measures put the last axis into one order: (..., k) and (..., k) -> (...) of bool.

    With k = 3 two unrelated measures agree once in six times. Ties agree with no strict order.
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


def _draws(trials: int, units: int, seed: int, resamples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of trials and of units, drawn with replacement, each independently."""
    random = np.random.default_rng(seed)
    return ((random.integers(trials, size=trials), random.integers(units, size=units)) for _ in range(resamples))


def _middle(values: Sequence[float], level: float) -> tuple[float, float]:
    """Between which values the middle share `level` of them lies."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
