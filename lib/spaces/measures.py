"""Pruning spaces: recipes and regimes, their coordinates, random populations, and the curves that compare spaces.

A *recipe* is the vector of pruned shares of a network's channel groups, stored as integer widths. A *regime* is the
kept share of the MACs (or of the parameters). A *space* holds all recipes of a regime, or those within a constraint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.channels import Groups, count
from lib.provenance import CompanionError
from lib.study import seed_from

LARGEST_RANDOM = 0.95  # largest ratio that the random sampler draws
REFINED = 0.05  # largest |log mCB - log optimum| of a refined space
FIRST_DRAWS, MOST_DRAWS = 20_000, 20_000_000


@dataclass(frozen=True)
class Regime:
    """How much of a network is kept.

    Args:
        kept: share of the dense budget, in (0, 1).
        budget: "macs" or "parameters".
        tolerance: largest relative deviation from `kept`; 0.01 is this companion's choice.

    Raises:
        ValueError: for another share or budget.
    """

    kept: float
    budget: str = "macs"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.kept < 1 or self.budget not in ("macs", "parameters"):
            raise ValueError(f"A regime keeps a share in (0, 1) of macs or parameters, not {self.kept} {self.budget}.")

    def share(self, groups: Groups, widths: np.ndarray) -> np.ndarray:
        """The share of this regime's budget that widths (..., G) keep."""
        return kept_shares(groups, widths)[0 if self.budget == "macs" else 1]

    def holds(self, groups: Groups, widths: np.ndarray) -> np.ndarray:
        """Whether widths (..., G) are within the tolerance."""
        return np.abs(self.share(groups, widths) - self.kept) <= self.tolerance * self.kept

    def check(self, groups: Groups, floor: float = 0.0) -> None:
        """Refuse a regime that is empty if every group keeps at least a share `floor`, and at least one channel.

        Raises:
            CompanionError: if no widths can keep so little; it names the smallest possible share.
        """
        least = float(self.share(groups, rounded(groups, np.full(len(groups), 1 - floor))))
        if self.kept < least:
            smallest = f"{floor:.0%} of" if floor else "one channel in"
            raise CompanionError(
                f"A regime that keeps {self.kept:.1%} of the {self.budget} is empty: with {smallest} each prunable "
                f"group this network still keeps {least:.1%}; keep more, or prune more groups."
            )


def rounded(groups: Groups, ratios: np.ndarray) -> np.ndarray:
    """Integer widths of pruned shares (..., G): nearest, halves to even, at least one channel."""
    return np.maximum(np.rint(groups.dense * (1 - np.asarray(ratios))), 1).astype(np.int64)


def floored(groups: Groups, ratios: np.ndarray) -> np.ndarray:
    """Integer widths by EagleEye's rule, which removes floor(ratio * n) channels."""
    return groups.dense - np.floor(groups.dense * np.asarray(ratios)).astype(np.int64)


def kept_shares(groups: Groups, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept shares of MACs and of parameters of widths (..., G)."""
    macs, parameters = count(groups, widths)
    dense_macs, dense_parameters = count(groups, groups.dense)
    return macs / dense_macs, parameters / dense_parameters


def mean_computation_budget(groups: Groups, widths: np.ndarray, normalised: bool = True) -> np.ndarray:
    """MACs per parameter of widths (..., G); `normalised` divides by the dense network's, which is then 1.

    Source: paper 3 names it mCB; its formula is unknown, and both forms are this companion's reading.
    """
    macs, parameters = (kept_shares if normalised else count)(groups, widths)
    return macs / parameters


def recipe_std(groups: Groups, widths: np.ndarray) -> np.ndarray:
    """Population standard deviation of the pruned shares of widths (..., G), after rounding."""
    return (1 - np.asarray(widths) / groups.dense).std(axis=-1)


def resolution(groups: Groups) -> np.ndarray:
    """Standardised logarithm of the output pixels of each group, (G,); zeros where all are equal."""
    logarithm = np.log(groups.area)
    return (logarithm - logarithm.mean()) / (logarithm.std() or 1)


def coordinates(groups: Groups, widths: np.ndarray) -> pd.DataFrame:
    """Coordinates of recipes (n, G) or (G,): MACs, parameters, their kept shares, mCB, STD, smallest kept share, tilt.

    `tilt` is the slope of the pruned share on `resolution`: above 0, layers with many pixels are pruned more.
    """
    widths = np.atleast_2d(widths)
    macs, parameters = count(groups, widths)
    kept_macs, kept_parameters = kept_shares(groups, widths)
    shares = widths / groups.dense
    return pd.DataFrame(
        {
            "macs": macs,
            "parameters": parameters,
            "kept_macs": kept_macs,
            "kept_parameters": kept_parameters,
            "mcb": kept_macs / kept_parameters,
            "std": recipe_std(groups, widths),
            "smallest_share": shares.min(axis=1),
            "tilt": -(shares * resolution(groups)).mean(axis=1),
        }
    )


def uniform_ratio(groups: Groups, regime: Regime) -> float:
    """The pruned share that, the same in all groups, keeps the regime's budget before rounding.

    Raises:
        CompanionError: for an empty regime.
    """
    regime.check(groups)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        share = regime.share(groups, np.maximum(groups.dense * (1 - middle), 1.0))
        low, high = (middle, high) if share > regime.kept else (low, middle)
    return (low + high) / 2


def ratio_range(groups: Groups, regime: Regime) -> tuple[float, float]:
    """The range of ratios whose middle u keeps the regime's budget: [max(0, 2u - 0.95), min(2u, 0.95)].

    With a lower end of 0 a regime that keeps 30 % or less is empty in practice: the mean of many ratios concentrates.
    """
    uniform = uniform_ratio(groups, regime)
    largest = min(2 * uniform, LARGEST_RANDOM if uniform < LARGEST_RANDOM else (1 + uniform) / 2)
    return max(0.0, 2 * uniform - largest), largest


@dataclass(frozen=True)
class Sample:
    """Different recipes of a space as widths (n, G), and the share of draws that was accepted."""

    widths: np.ndarray
    acceptance: float


def sample_recipes(
    groups: Groups,
    regime: Regime,
    n: int,
    *,
    seed: int,
    ratios: tuple[float, float] | None = None,
    rounding: Callable[[Groups, np.ndarray], np.ndarray] = rounded,
) -> Sample:
    """The *initial space*: n different recipes of independent uniform ratios, accepted if they fit the regime.

    `ratios` is the range of the uniform distribution, by default `ratio_range`; `rounding` is `rounded` or EagleEye's
    `floored`.

    Raises:
        CompanionError: for an empty regime, and for a range that would take too many draws.

    Source: EagleEye's search, whose acceptance and ranges paper 3 may have adapted; the range is this companion's.
    """
    regime.check(groups)
    low, high = ratios or ratio_range(groups, regime)
    random = np.random.default_rng(seed_from(seed, "recipes"))
    accepted, drawn, found = np.empty((0, len(groups)), dtype=np.int64), 0, 0
    while len(accepted) < n:
        draws = rounding(groups, random.uniform(low, high, (FIRST_DRAWS, len(groups))))
        inside = draws[regime.holds(groups, draws)]
        drawn, found = drawn + len(draws), found + len(inside)
        accepted = unique(np.concatenate([accepted, inside]))
        if len(accepted) < n and (drawn / max(len(accepted), 0.5)) * n > MOST_DRAWS:
            raise CompanionError(
                f"Ratios in [{low:.3f}, {high:.3f}] hit {regime.kept:.1%} of {regime.budget} in {found} of {drawn:,} "
                f"draws, too few to find {n} recipes: leave `ratios` out, or use samplers.with_targets."
            )
    return Sample(accepted[:n], found / drawn)


def unique(widths: np.ndarray) -> np.ndarray:
    """The rows of widths (n, G) without repetitions, in their order."""
    return widths[np.sort(np.unique(widths, axis=0, return_index=True)[1])]


def refined(groups: Groups, widths: np.ndarray, optimum: float) -> np.ndarray:
    """Which recipes are in the refined space |log mCB - log optimum| <= 0.05.

    Their share is the mass of the refined space, known without training; above one half there is little to refine.
    """
    return np.abs(np.log(mean_computation_budget(groups, widths) / optimum)) <= REFINED


def edf(drops: Sequence[float], weights: Sequence[float] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The empirical distribution function F(d) = share of drops strictly below d, or their weight (they sum to 1).

    Source: RegNet's error EDF, ported to drops; `complexity_weights` gives the NDS variant.
    """
    order = np.argsort(drops, kind="stable")
    weights = np.full(len(order), 1 / len(order)) if weights is None else np.asarray(weights)
    cumulated = np.concatenate([[0.0], np.cumsum(weights[order])])
    return lambda d: cumulated[np.searchsorted(np.asarray(drops)[order], d, side="left")]


def complexity_weights(complexity: Sequence[float], bins: int) -> np.ndarray:
    """Weights (n,) under which complexity is uniform over the bins that hold a network; they sum to 1.

    Source: NDS, w = 1 / (bins * networks in the bin); there, an empty bin and the largest value are errors.
    """
    complexity = np.asarray(complexity, dtype=float)
    edges = np.linspace(complexity.min(), complexity.max(), bins + 1)[1:-1]
    _, place, size = np.unique(np.searchsorted(edges, complexity, "right"), return_inverse=True, return_counts=True)
    return 1 / (len(size) * size[place])


def best_of_k(selection: Sequence[float], result: Sequence[float], k: Sequence[int]) -> np.ndarray:
    """Expected result of the best of k recipes drawn with replacement, chosen by `selection`; a value for each k.

    Selection and result are drops (n,), for example on validation and on test images. Exact: the sum over ranks i of
    result_(i) [(1 - (i-1)/n)^k - (1 - i/n)^k]. Ties in selection share their results' mean.
    """
    _, place = np.unique(np.asarray(selection, dtype=float), return_inverse=True)
    ordered = (np.bincount(place, result) / np.bincount(place))[np.sort(place)]
    survival = (1 - np.arange(len(ordered) + 1) / len(ordered)) ** np.asarray(k)[:, None]
    return (survival[:, :-1] - survival[:, 1:]) @ ordered
