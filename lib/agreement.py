"""Whether two measures order the same configurations alike: ranks within strata, orders of a few, separations."""

from collections.abc import Callable, Sequence

import numpy as np


def rank_correlation(x: Sequence[float], y: Sequence[float], strata: Sequence = ()) -> float:
    """Spearman's correlation of the ranks that two measures have within each stratum, pooled over strata.

    Args:
        x, y: (n,) values. A NaN takes its pair out.
        strata: (n,) labels; without them all values form one stratum. What strata have in common (a network, a
            sparsity) then adds nothing to the correlation.

    Returns: a value in [-1, 1]; NaN if one of the measures is constant within every stratum.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(strata) not in (0, len(x)):
        raise ValueError(f"Measures and strata must be of one length, not {x.shape}, {y.shape} and {len(strata)}.")
    known = ~(np.isnan(x) | np.isnan(y))
    labels = _labels(strata, len(x))[known]
    return _pooled(_centred_ranks(x[known], labels), _centred_ranks(y[known], labels))


def nested_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    trials: int,
    units: int,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of several trials of several units (configurations, panels).

    Args:
        statistic: takes indices of trials and indices of units, drawn with replacement, each independently.
    """
    random = np.random.default_rng(seed)
    draws = ((random.integers(trials, size=trials), random.integers(units, size=units)) for _ in range(resamples))
    low, high = np.nanquantile([statistic(*draw) for draw in draws], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rank_correlation_interval(x: np.ndarray, y: np.ndarray, strata: Sequence = (), *, seed: int) -> tuple[float, float]:
    """Interval of `rank_correlation` of means over trials, by drawing trials and configurations anew.

    Args:
        x, y: (configurations, trials); a trial is drawn for both measures. Configurations keep the ranks that they
            have within their strata when they are drawn.
        strata: (configurations,).
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    labels = _labels(strata, len(x))

    def statistic(trials: np.ndarray, units: np.ndarray) -> float:
        a, b = (_centred_ranks(measure[:, trials].mean(1), labels) for measure in (x, y))
        return _pooled(a[units], b[units])

    return nested_interval(statistic, x.shape[1], len(x), seed=seed)


def permutation_p(
    statistic: Callable[[np.ndarray], float], y: Sequence[float], strata: Sequence = (), *, seed: int, draws: int = 999
) -> float:
    """One-sided p of a statistic of y, where values are exchanged within strata if there is no effect.

    Args:
        statistic: takes y; large values speak for an effect.
    """
    y = np.asarray(y, dtype=float)
    labels, random = _labels(strata, len(y)), np.random.default_rng(seed)
    observed, reached = statistic(y), 0
    for _ in range(draws):
        order = np.lexsort((random.random(len(y)), labels))
        exchanged = np.empty_like(y)
        exchanged[np.argsort(labels, kind="stable")] = y[order]
        reached += statistic(exchanged) >= observed
    return (1 + reached) / (1 + draws)


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


def _centred_ranks(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ranks within strata minus their mean, ties averaged: half the sum of the signs of all differences."""
    if not len(values):
        return np.zeros(0)
    order = np.lexsort((values, labels))
    values, labels = values[order], labels[order]
    stratum = labels[1:] != labels[:-1]
    centred = np.empty(len(order))
    centred[order] = _middles(stratum | (values[1:] != values[:-1])) - _middles(stratum)
    return centred


def _middles(changes: np.ndarray) -> np.ndarray:
    """The middle place of the run that each place belongs to; `changes` says after which places a run ends."""
    starts = np.flatnonzero(np.append(True, changes))
    ends = np.append(starts[1:], len(changes) + 1)
    return np.repeat((starts + ends - 1) / 2, ends - starts)


def _pooled(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")
