"""Recipes of a regime that are constructed directly instead of by rejection sampling, and the feasible range of mCB.

Every sampler starts from random patterns, shifts and tilts them until the unrounded widths meet the targets, rounds,
and adds or removes single channels until the rounded widths fit the regime again.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lib.channels import Groups
from lib.spaces.measures import Regime, mean_computation_budget, recipe_std, resolution, rounded, unique
from lib.study import seed_from

LARGEST_RATIO = 15 / 16  # pruned share of a group; this companion's choice
MCB_TOLERANCE = 0.05  # largest |log(mCB / target)| of a recipe that hits its target
REACH = 0.6  # share of the logarithmic `tilted_range` that the designed sample uses
REPAIRS = 8  # channels that may be added or removed after rounding
STEPS, TILT_STEPS, SPREAD_STEPS = 32, 24, 14  # bisections
LARGEST_TILT, LARGEST_SPREAD = 4.0, 1.0


def patterned(groups: Groups, regime: Regime, patterns: np.ndarray) -> np.ndarray:
    """Recipes (n, G) whose pruned shares are patterns (n, G) shifted to the regime's budget, clipped and rounded."""
    return _repaired(groups, regime, rounded(groups, _shifted(groups, regime, patterns)))


def tilted(groups: Groups, regime: Regime, tilt: float, spread: float, *, seed: int) -> np.ndarray:
    """Widths (G,) of one recipe; tilt > 0 prunes layers with many pixels more, spread scatters the pruned shares."""
    noise = np.random.default_rng(seed_from(seed, "explorer")).standard_normal(len(groups))
    return patterned(groups, regime, (tilt * resolution(groups) + spread * noise)[None])[0]


def with_targets(
    groups: Groups, regime: Regime, mcb: Sequence[float], *, seed: int, sigma: float = 0.1, std: float | None = None
) -> np.ndarray:
    """Different recipes (at most len(mcb), G) of given normalised mCB, by tilting ratios along the resolution.

    Targets that are infeasible, or missed by rounding, are left out. `sigma` is the scatter around the tilted pattern.
    With `std` the scatter of each recipe is solved so that its STD is this one where possible: a tilt alone raises the
    STD, and recipes of one STD differ in mCB only.
    """
    regime.check(groups)
    log_mcb, direction = np.log(np.asarray(mcb, dtype=float)), resolution(groups)
    noise = np.random.default_rng(seed_from(seed, "patterns")).standard_normal((len(mcb), len(groups)))

    def ratios(spread: np.ndarray) -> np.ndarray:
        def leaning(tilt: np.ndarray) -> np.ndarray:
            return _shifted(groups, regime, tilt[:, None] * direction + spread[:, None] * noise)

        def too_much(tilt: np.ndarray) -> np.ndarray:  # a larger tilt prunes more where MACs are, which lowers mCB
            return np.log(mean_computation_budget(groups, _widths(groups, leaning(tilt)))) < log_mcb

        return leaning(_bisect(too_much, -LARGEST_TILT, LARGEST_TILT, len(noise), TILT_STEPS))

    spread = np.full(len(noise), sigma)
    if std is not None:
        spread = _bisect(lambda s: ratios(s).std(axis=1) > std, 0.0, LARGEST_SPREAD, len(noise), SPREAD_STEPS)
    widths = _repaired(groups, regime, rounded(groups, ratios(spread)), log_mcb)
    hit = np.abs(np.log(mean_computation_budget(groups, widths)) - log_mcb) < MCB_TOLERANCE
    return unique(widths[hit & regime.holds(groups, widths)])


def designed(groups: Groups, regime: Regime, n: int, *, seed: int) -> tuple[np.ndarray, float]:
    """The designed sample: different recipes (at most n, G), evenly spaced in log mCB and of one STD, and that STD.

    Only the middle of the logarithmic `tilted_range` is used: at its ends STDs cannot be matched. The STD is the
    smallest one that the ends allow, plus 5 %.
    """
    low, high = (bound**REACH for bound in tilted_range(groups, regime))
    ends = with_targets(groups, regime, [low, high], seed=seed, sigma=0.02)
    std = 1.05 * float(recipe_std(groups, ends).max())
    return with_targets(groups, regime, np.exp(np.linspace(np.log(low), np.log(high), n)), seed=seed, std=std), std


def tilted_range(groups: Groups, regime: Regime) -> tuple[float, float]:
    """Smallest and largest mCB of a regime that tilting along the resolution reaches, for any network."""
    regime.check(groups)
    patterns = np.outer([LARGEST_TILT, -LARGEST_TILT], resolution(groups))
    low, high = mean_computation_budget(groups, _widths(groups, _shifted(groups, regime, patterns))).tolist()
    return low, high


def feasible_range(groups: Groups, regime: Regime) -> tuple[float, float]:
    """Smallest and largest normalised mCB of a regime with unrounded widths and ratios up to 15/16; exact.

    A fractional knapsack: MACs and parameters are linear in the widths, so the extreme parameters at fixed MACs prune
    groups in the order of parameters per MAC (and the other way round for a regime of parameters).

    Raises:
        ValueError: where widths multiply (bottlenecks, streams, plain networks).
        CompanionError: for an empty regime.
    """
    regime.check(groups)
    constants, linear, quadratic = groups.polynomials
    if quadratic.any():
        raise ValueError("The exact range needs counts that are linear in the widths: basic blocks, internal groups.")
    total = constants + groups.dense @ linear
    fixed, other = (0, 1) if regime.budget == "macs" else (1, 0)
    cost = linear * groups.dense[:, None] * LARGEST_RATIO / total  # largest saving of each group, (G, 2)
    extremes = []
    for order in (np.argsort(cost[:, other] / cost[:, fixed]), np.argsort(-cost[:, other] / cost[:, fixed])):
        before = np.concatenate([[0.0], np.cumsum(cost[order, fixed])[:-1]])
        taken = np.clip((1 - regime.kept - before) / cost[order, fixed], 0, 1)
        extremes.append(1 - taken @ cost[order, other])
    values = sorted((regime.kept / kept if fixed == 0 else kept / regime.kept) for kept in extremes)
    return float(values[0]), float(values[1])


def _widths(groups: Groups, ratios: np.ndarray) -> np.ndarray:
    return np.maximum(groups.dense * (1 - ratios), 1.0)


def _bisect(above: Callable[[np.ndarray], np.ndarray], low: float, high: float, n: int, steps: int) -> np.ndarray:
    """For each of n rows the point of [low, high] above which `above` holds."""
    lows, highs = np.full(n, low), np.full(n, high)
    for _ in range(steps):
        middle = (lows + highs) / 2
        yes = above(middle)
        highs, lows = np.where(yes, middle, highs), np.where(yes, lows, middle)
    return (lows + highs) / 2


def _shifted(groups: Groups, regime: Regime, patterns: np.ndarray) -> np.ndarray:
    """Ratios clip(a + pattern, 0, 15/16), with the level a of each row that keeps the regime's budget."""

    def ratios(level: np.ndarray) -> np.ndarray:
        return np.clip(level[:, None] + patterns, 0, LARGEST_RATIO)

    far = 1 + np.abs(patterns).max()

    def keeps_less(level: np.ndarray) -> np.ndarray:
        return regime.share(groups, _widths(groups, ratios(level))) < regime.kept

    return ratios(_bisect(keeps_less, -far, far, len(patterns), STEPS))


def _repaired(groups: Groups, regime: Regime, widths: np.ndarray, log_mcb: np.ndarray | None = None) -> np.ndarray:
    """Widths with single channels added or removed, the best one at a time, until each row fits the regime."""
    widths, target = widths.copy(), np.full(len(widths), np.nan) if log_mcb is None else log_mcb
    steps = np.concatenate([np.eye(len(groups), dtype=int), -np.eye(len(groups), dtype=int)])

    def miss(candidates: np.ndarray, target: np.ndarray) -> np.ndarray:  # in tolerances; no target is NaN
        deviation = np.abs(regime.share(groups, candidates) / regime.kept - 1) / regime.tolerance
        off = np.abs(np.log(mean_computation_budget(groups, candidates)) - target) / MCB_TOLERANCE
        return np.fmax(deviation, off)

    for _ in range(REPAIRS):
        out = np.flatnonzero(~regime.holds(groups, widths))
        if not len(out):
            break
        moved = np.clip(widths[out, None] + steps, 1, groups.dense)
        missed = miss(moved, target[out, None])
        chosen, better = missed.argmin(axis=1), missed.min(axis=1) < miss(widths[out], target[out])
        if not better.any():
            break
        widths[out[better]] = moved[better, chosen[better]]
    return widths
