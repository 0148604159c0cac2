"""Recipes of a regime that are constructed directly instead of by rejection sampling, and the feasible range of mCB.

Every sampler starts from patterns of pruned shares, shifts and tilts them until the unrounded widths meet the targets,
rounds, and adds or removes single channels until the rounded widths fit the regime again.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from scipy import optimize

from lib.channels import Groups
from lib.provenance import CompanionError
from lib.spaces.measures import Regime, mean_computation_budget, resolution, rounded
from lib.study import seed_from

FLOOR = 1 / 16  # smallest kept share of a group; this companion's choice
MCB_TOLERANCE = 0.05  # largest |log(mCB / target)| of a recipe that hits its target
REPAIRS = 8  # channels that may be added or removed after rounding
STEPS, TILT_STEPS, SPREAD_STEPS = 32, 24, 14  # bisections
LARGEST_TILT, LARGEST_SPREAD = 4.0, 1.0
INSETS = (1, 0.97, 0.94, 0.9, 0.85, 0.8)  # shares of its logarithmic range that a ladder tries to span
TRIES, JITTER = 40, 0.03  # draws of scatter for a target that is missed, and the least scatter of a second one


def patterned(groups: Groups, regime: Regime, patterns: np.ndarray) -> np.ndarray:
    """Recipes (n, G) whose pruned shares are patterns (n, G) shifted to the regime's budget, clipped and rounded.

    Raises:
        CompanionError: for an empty regime.
    """
    regime.check(groups, FLOOR)
    return _repaired(groups, regime, rounded(groups, _shifted(groups, regime, patterns, FLOOR)), FLOOR)


def tilted(groups: Groups, regime: Regime, tilt: float, spread: float, *, seed: int) -> np.ndarray:
    """Widths (G,) of one recipe; tilt > 0 prunes layers with many pixels more, spread scatters the pruned shares."""
    noise = np.random.default_rng(seed_from(seed, "explorer")).standard_normal(len(groups))
    return patterned(groups, regime, (tilt * resolution(groups) + spread * noise)[None])[0]


def with_targets(
    groups: Groups,
    regime: Regime,
    mcb: Sequence[float],
    *,
    seed: int,
    sigma: float = 0.1,
    std: float | None = None,
    floor: float = FLOOR,
) -> np.ndarray:
    """Different recipes (len(mcb), G) of given normalised mCB, by tilting ratios along the resolution.

    Args:
        groups: of the network.
        regime: that all recipes fit.
        mcb: a target for each recipe, in their order.
        seed: of the scatter.
        sigma: scatter around the tilted pattern, a standard deviation of pruned shares.
        std: if given, the scatter of each recipe is solved so that its STD is this one where possible: a tilt alone
            raises the STD, and recipes of one STD differ in mCB only.
        floor: smallest kept share of a group.

    Raises:
        CompanionError: for an empty regime, and if some target has no recipe or none that is new.
    """
    regime.check(groups, floor)
    random = np.random.default_rng(seed_from(seed, "patterns"))
    targets = np.log(np.asarray(mcb, dtype=float))
    found = np.zeros((len(targets), len(groups)), dtype=np.int64)
    for attempt in range(TRIES):
        left = np.flatnonzero(found[:, 0] == 0)
        if not len(left):
            return found
        noise = random.standard_normal((len(targets), len(groups)))[left]
        scatter = sigma if std is not None or not attempt else max(sigma, JITTER)
        widths = _tilted_to(groups, regime, targets[left], noise, scatter, std, floor)
        hit = np.abs(np.log(mean_computation_budget(groups, widths)) - targets[left]) < MCB_TOLERANCE
        hit &= regime.holds(groups, widths)
        seen = {tuple(row) for row in found.tolist()}
        for place, row in zip(left[hit], widths[hit], strict=True):
            if tuple(row.tolist()) not in seen:
                found[place] = row
                seen.add(tuple(row.tolist()))
    missed = ", ".join(f"{value:.2f}" for value in np.exp(targets[found[:, 0] == 0][:3]))
    raise CompanionError(
        f"{(found[:, 0] == 0).sum()} of {len(targets)} different recipes that keep {regime.kept:.1%} of "
        f"{regime.budget} were not found, for example of mCB {missed}: ask for fewer, or for mCB in `tilted_range`."
    )


def ladder(
    groups: Groups, regime: Regime, n: int, *, std: float | None = None, floor: float = FLOOR, reach: float = 1.0
) -> np.ndarray:
    """Different recipes (n, G) that climb evenly in log mCB, low to high, by tilting a uniform recipe: no scatter.

    `reach` is the share of the logarithmic `tilted_range` that they span; an end that whole channels cannot meet moves
    in. `std`, if given, is the STD that scatter raises a recipe to where its tilt does not; `floor` the smallest kept
    share of a group.

    Raises:
        CompanionError: for an empty regime, and where there are too few recipes.
    """
    how = {"seed": 1, "sigma": 0.0, "std": std, "floor": floor}
    ends = []
    for bound in tilted_range(groups, regime, floor):
        for inset in INSETS:
            with suppress(CompanionError):
                with_targets(groups, regime, [bound ** (reach * inset)], **how)
                break
        ends.append(np.log(bound) * reach * inset)
    return with_targets(groups, regime, np.exp(np.linspace(*ends, n)), **how)


def tilted_range(groups: Groups, regime: Regime, floor: float = FLOOR) -> tuple[float, float]:
    """Smallest and largest mCB of a regime that tilting along the resolution reaches, for any network."""
    regime.check(groups, floor)
    patterns = np.outer([LARGEST_TILT, -LARGEST_TILT], resolution(groups))
    low, high = mean_computation_budget(groups, _widths(groups, _shifted(groups, regime, patterns, floor))).tolist()
    return low, high


def feasible_range(groups: Groups, regime: Regime) -> tuple[float, float]:
    """Smallest and largest normalised mCB of a regime with unrounded widths and kept shares from 1/16 up.

    Where MACs and parameters are linear in the widths (basic blocks, internal groups) it is exact, a fractional
    knapsack: the extreme parameters at fixed MACs prune groups in the order of parameters per MAC. Where widths
    multiply (bottlenecks, streams, plain networks) it is the best that sequential quadratic programming finds from the
    uniform and from the most tilted recipes.

    Raises:
        CompanionError: for an empty regime.
    """
    regime.check(groups, FLOOR)
    constants, linear, quadratic = groups.polynomials
    if quadratic.any():
        return _range_by_programming(groups, regime)
    total = constants + groups.dense @ linear
    fixed, other = (0, 1) if regime.budget == "macs" else (1, 0)
    cost = linear * groups.dense[:, None] * (1 - FLOOR) / total  # largest saving of each group, (G, 2)
    extremes = []
    for order in (np.argsort(cost[:, other] / cost[:, fixed]), np.argsort(-cost[:, other] / cost[:, fixed])):
        before = np.concatenate([[0.0], np.cumsum(cost[order, fixed])[:-1]])
        taken = np.clip((1 - regime.kept - before) / cost[order, fixed], 0, 1)
        extremes.append(1 - taken @ cost[order, other])
    values = sorted((regime.kept / kept if fixed == 0 else kept / regime.kept) for kept in extremes)
    return float(values[0]), float(values[1])


def _range_by_programming(groups: Groups, regime: Regime) -> tuple[float, float]:
    forms = np.stack([form + form.T for form in (groups.macs, groups.parameters)]) / 2
    unit = np.concatenate([[1.0], groups.dense])
    forms = forms * unit[:, None] * unit / (forms * unit[:, None] * unit).sum(axis=(1, 2), keepdims=True)
    fixed, other = (0, 1) if regime.budget == "macs" else (1, 0)

    def kept(shares: np.ndarray, budget: int) -> float:
        x = np.concatenate([[1.0], shares])
        return float(x @ forms[budget] @ x)

    def slope(shares: np.ndarray, budget: int) -> np.ndarray:
        return 2 * (forms[budget] @ np.concatenate([[1.0], shares]))[1:]

    patterns = np.outer([LARGEST_TILT, 0, -LARGEST_TILT], resolution(groups))
    starts = 1 - _shifted(groups, regime, patterns, FLOOR)
    equal = {
        "type": "eq",
        "fun": lambda shares: kept(shares, fixed) - regime.kept,
        "jac": lambda shares: slope(shares, fixed),
    }
    extremes = []
    for sign in (1, -1):
        found = [
            optimize.minimize(
                lambda shares, sign=sign: sign * kept(shares, other),
                start,
                jac=lambda shares, sign=sign: sign * slope(shares, other),
                method="SLSQP",
                bounds=[(FLOOR, 1)] * len(groups),
                constraints=[equal],
                options={"maxiter": 500, "ftol": 1e-12},  # the default stops up to 2 % short of the end
            )
            for start in starts
        ]
        extremes.append(min(sign * kept(one.x, other) for one in found if abs(equal["fun"](one.x)) < 1e-6) * sign)
    values = sorted((regime.kept / share if fixed == 0 else share / regime.kept) for share in extremes)
    return float(values[0]), float(values[1])


def _tilted_to(
    groups: Groups,
    regime: Regime,
    log_mcb: np.ndarray,
    noise: np.ndarray,
    sigma: float,
    std: float | None,
    floor: float,
) -> np.ndarray:
    """Widths (n, G) whose tilt, and with `std` also whose scatter along noise (n, G), is solved for targets (n,)."""
    direction = resolution(groups)

    def ratios(spread: np.ndarray) -> np.ndarray:
        def leaning(tilt: np.ndarray) -> np.ndarray:
            return _shifted(groups, regime, tilt[:, None] * direction + spread[:, None] * noise, floor)

        def too_much(tilt: np.ndarray) -> np.ndarray:  # a larger tilt prunes more where MACs are, which lowers mCB
            return np.log(mean_computation_budget(groups, _widths(groups, leaning(tilt)))) < log_mcb

        return leaning(_bisect(too_much, -LARGEST_TILT, LARGEST_TILT, len(noise), TILT_STEPS))

    spread = np.full(len(noise), sigma)
    if std is not None:
        spread = _bisect(lambda s: ratios(s).std(axis=1) > std, 0.0, LARGEST_SPREAD, len(noise), SPREAD_STEPS)
    return _repaired(groups, regime, rounded(groups, ratios(spread)), floor, log_mcb)


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


def _shifted(groups: Groups, regime: Regime, patterns: np.ndarray, floor: float) -> np.ndarray:
    """Ratios clip(a + pattern, 0, 1 - floor), with the level a of each row that keeps the regime's budget."""

    def ratios(level: np.ndarray) -> np.ndarray:
        return np.clip(level[:, None] + patterns, 0, 1 - floor)

    far = 1 + np.abs(patterns).max()

    def keeps_less(level: np.ndarray) -> np.ndarray:
        return regime.share(groups, _widths(groups, ratios(level))) < regime.kept

    return ratios(_bisect(keeps_less, -far, far, len(patterns), STEPS))


def _repaired(
    groups: Groups, regime: Regime, widths: np.ndarray, floor: float, log_mcb: np.ndarray | None = None
) -> np.ndarray:
    """Widths with single channels added or removed, the best one at a time, until each row fits the regime."""
    widths, target = widths.copy(), np.full(len(widths), np.nan) if log_mcb is None else log_mcb
    steps = np.concatenate([np.eye(len(groups), dtype=int), -np.eye(len(groups), dtype=int)])
    least = rounded(groups, np.full(len(groups), 1 - floor))

    def miss(candidates: np.ndarray, target: np.ndarray) -> np.ndarray:  # in tolerances; no target is NaN
        deviation = np.abs(regime.share(groups, candidates) / regime.kept - 1) / regime.tolerance
        off = np.abs(np.log(mean_computation_budget(groups, candidates)) - target) / MCB_TOLERANCE
        return np.fmax(deviation, off)

    for _ in range(REPAIRS):
        out = np.flatnonzero(~regime.holds(groups, widths))
        if not len(out):
            break
        moved = np.clip(widths[out, None] + steps, least, groups.dense)
        missed = miss(moved, target[out, None])
        chosen, better = missed.argmin(axis=1), missed.min(axis=1) < miss(widths[out], target[out])
        if not better.any():
            break
        widths[out[better]] = moved[better, chosen[better]]
    return widths
