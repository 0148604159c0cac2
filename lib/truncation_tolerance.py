"""How much error a layer bears on a cut, in paper 2: tolerances, which of them are only bounds, what goes with them."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

ALLOWED = 1.0  # points of accuracy that a harmless truncation may cost
REACH = {
    "tolerance": "largest_error",
    "tolerated_norm": "largest_norm",
}  # what rank 1, the most that a cut loses, loses
UNIT = ["case", "seed", "layer"]


def first_crossing(error: Sequence[float], drop: Sequence[float], allowed: float = ALLOWED) -> tuple[float, bool]:
    """The relative error at which the accuracy first drops by `allowed` points, and whether it never does.

    error, drop: of one layer and cut, any order; between two ranks the drop is taken as linear, from 0 at no error. A
    pair that never drops so far is censored at its largest error. Source: the tolerance of paper 2's claims as this
    companion declares it.
    """
    order = np.argsort(error, kind="stable")
    errors, drops = np.append(0, np.asarray(error)[order]), np.append(0, np.asarray(drop)[order])
    beyond = np.flatnonzero(drops > allowed)
    if not len(beyond):
        return float(errors[-1]), True
    k = beyond[0]
    share = (allowed - drops[k - 1]) / (drops[k] - drops[k - 1])
    return float(errors[k - 1] + share * (errors[k] - errors[k - 1])), False


def tolerances(table: pd.DataFrame, allowed: float = ALLOWED) -> pd.DataFrame:
    """One row a layer and cut: `tolerance` (relative error) and `censored` of `first_crossing`, the same as a loss of
    norm `tolerated_norm`, what rank 1 loses by both readings, `largest_error` and `largest_norm`, and whether the layer
    is `idle`: zeroing its kernel costs at most `allowed` points. A censored tolerance is a lower bound.
    """
    key = ["case", "network", "dataset", "seed", "layer", "shape", "place", "depth", "n"]
    idle = table[table["method"] == "zero"].set_index(["case", "seed", "layer"])["drop"] <= allowed
    found = []
    for labels, one in table[table["method"] == "cut"].groupby([*key, "cut"], sort=False):
        tolerance, censored = first_crossing(one["relative_error"], one["drop"], allowed)
        row = dict(zip([*key, "cut"], labels, strict=True)) | {"tolerance": tolerance, "censored": censored}
        row["tolerated_norm"] = 1 - math.sqrt(max(0, 1 - tolerance**2))
        row |= {"largest_error": one["relative_error"].max(), "largest_norm": one["norm_loss"].max()}
        row["idle"] = bool(idle[row["case"], row["seed"], row["layer"]])
        found.append(row)
    return pd.DataFrame(found)


def lowest_ranks(table: pd.DataFrame, allowed: float = ALLOWED) -> pd.DataFrame:
    """One row a layer and cut: the lowest rank above which no rank drops by more than `allowed`; none, no row."""
    key = ["case", "network", "dataset", "seed", "layer", "cut"]
    cut = table[table["method"] == "cut"].sort_values("rank", ascending=False)
    harmless = (cut["drop"] <= allowed).groupby([cut[name] for name in key], sort=False).cummin()
    return cut[harmless].groupby(key, sort=False).last().reset_index()


def read_again(
    chosen: pd.DataFrame, read: pd.DataFrame, tolerated: pd.DataFrame, allowed: float = ALLOWED
) -> pd.DataFrame:
    """Chosen truncations (`lowest_ranks`) with the drop on other images, `drop_read`, and whether it is `harmless`.

    read: `points` of those. `tolerance` is the relative error of a harmless one, and 0 of another.
    """
    key = ["case", "seed", "layer", "cut"]
    other = read[read["method"] == "cut"].set_index(key)["drop"].rename("drop_read")
    both = chosen.join(other, on=key, how="inner").merge(tolerated[[*key, "idle", "largest_error"]], on=key)
    both["harmless"] = both["drop_read"] <= allowed
    return both.assign(tolerance=both["relative_error"].where(both["harmless"], 0.0))


def testable(table: pd.DataFrame, column: str = "tolerance", least: float = 0.5) -> pd.DataFrame:
    """The layers and cuts that can lose so much: where even rank 1 loses less, no network could say that it is borne.

    column: "tolerance" or "tolerated_norm". Which pairs are left out depends on kernels and not on accuracies.
    """
    return table[table[REACH[column]] >= least]


def share_tolerating(table: pd.DataFrame, column: str = "tolerance", least: float = 0.5) -> float:
    """Share of the `testable` layers and cuts that tolerate at least so much; an idle layer counts against."""
    able = (table[REACH[column]] >= least).to_numpy()
    good = (table[column] >= least).to_numpy() & ~table["idle"].to_numpy(dtype=bool)
    return float(good[able].mean()) if able.any() else math.nan


def share_with_several(table: pd.DataFrame, least: float = 0.5, cuts: int = 2) -> float:
    """Share of layers with at least so many cuts that tolerate a relative error of `least`, an idle layer against.

    Layers with fewer `testable` cuts, such as those of 1x1 kernels, are left out.
    """
    several = testable(table[~table["shape"].str.endswith("x1x1")], least=least)
    if several.empty:
        return math.nan
    pairs = pd.Series(numbered(several, [*UNIT, "cut"]))
    copies = pairs.groupby(pairs).cumcount().to_numpy()  # a layer drawn twice counts twice
    units = numbered(several.assign(copy=copies), [*UNIT, "copy"])
    able = np.bincount(units) >= cuts
    good = np.bincount(units, (several["tolerance"] >= least) & ~several["idle"]) >= cuts
    return float(good[able].mean()) if able.any() else math.nan


def concordance(
    table: pd.DataFrame, predictor: str, *strata: str, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict:
    """Whether layers with more of a predictor tolerate more, where some tolerances are only lower bounds.

    Of two layers in one stratum the order of tolerances is known if the smaller one is not censored. Over the known
    pairs whose predictors differ, the value is the share in which the predictor has the same order minus the share in
    which it has the reverse one: Harrell's concordance C (1982) as 2 C - 1, in [-1, 1], which for tolerances without
    ties or bounds is Kendall's tau. Unrelated predictors give 0 in the mean, even if the bounds depend on them.

    Args:
        table: of `tolerances`, one row a layer and cut, with the column `predictor`.
        strata: columns; pairs are taken within them. One of them must be "cut".

    Returns: `value`; `low` and `high` of a percentile bootstrap over layers; one-sided `p` by exchanging the predictors
        of whole layers, all cuts at once, within the other strata; `n`, layers in such pairs. NaN without pairs, p 1.
    """
    if "cut" not in strata:
        raise ValueError(f"Tolerances are compared within a cut, not within {strata}: name it among the strata.")
    layer, cut = numbered(table, UNIT), numbered(table, ["cut"])
    less, more = _known_pairs(table, strata)
    values = np.full((layer.max(initial=0) + 1, cut.max(initial=0) + 1), math.nan)
    values[layer, cut] = table[predictor]

    def statistic(order: np.ndarray, weight: np.ndarray) -> float:
        signs = np.sign(values[order[layer[more]], cut[more]] - values[order[layer[less]], cut[less]])
        signs = np.nan_to_num(signs)
        both = signs**2 * weight[layer[less]] * weight[layer[more]]
        return float(signs @ both / both.sum()) if both.any() else math.nan

    count, random = len(values), np.random.default_rng(seed)
    same, once = np.arange(count), np.ones(count)
    value = statistic(same, once)
    if math.isnan(value):
        return {"value": value, "low": value, "high": value, "n": 0, "p": 1.0}
    draws = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(resamples))
    low, high = np.nanquantile([statistic(same, draw) for draw in draws], [(1 - level) / 2, (1 + level) / 2])
    firsts = table.iloc[np.unique(layer, return_index=True)[1]]
    groups = numbered(firsts, [name for name in strata if name != "cut"])
    place, reached = np.argsort(groups, kind="stable"), 0
    for _ in range(resamples - 1):
        order = np.empty_like(same)
        order[place] = np.lexsort((random.random(count), groups))
        reached += statistic(order, once) >= value
    told = values[layer[more], cut[more]] - values[layer[less], cut[less]]
    told = ~np.isnan(told) & (told != 0)
    taking_part = len(np.unique(layer[np.append(less[told], more[told])]))
    return {"value": value, "low": float(low), "high": float(high), "n": taking_part, "p": (1 + reached) / resamples}


def _known_pairs(table: pd.DataFrame, strata: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the rows of all pairs in one stratum whose order is known, the one that tolerates less first."""
    labels, tolerance = numbered(table, strata), table["tolerance"].to_numpy(dtype=float)
    censored = table["censored"].to_numpy(dtype=bool)
    below = tolerance[:, None] < tolerance
    below |= (tolerance[:, None] == tolerance) & censored
    return np.nonzero((labels[:, None] == labels) & ~censored[:, None] & below)


def numbered(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Rows that agree in all columns get one number, in order of appearance; a bootstrap asks for it often."""
    codes = np.zeros(len(table), dtype=int)
    for column in columns:
        one = pd.factorize(table[column])[0]
        codes = codes * (one.max(initial=0) + 1) + one
    return pd.factorize(codes)[0]
