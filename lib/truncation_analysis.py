"""The statistics of paper 2 on rows: tolerances, what goes with them, comparisons at equal error, plans."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lib import agreement, claims
from lib.cuts import CUTS
from lib.factorisation import parameters

ALLOWED = 1.0  # points of accuracy that a harmless truncation may cost
CHANNEL, SPATIAL = ("OUT", "IN"), ("KH", "KW")
LISTS = "method cut rank target draw relative_error norm_loss effective_norm_loss wrong wrong_even lost gained loss kl"
RESAMPLES = 1000


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows with a column `case` (network and data set) and a `seed`, 0 for public checkpoints."""
    rows = rows[rows["status"] == "done"]
    seed = rows.get("seed", pd.Series(0, rows.index)).fillna(0).astype(int)
    return rows.assign(case=rows["network"] + " / " + rows["dataset"], seed=seed)


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a kernel of single-layer rows (`truncation_trials.truncate_layer`).

    Adds `shape` as text, `place` (order of the layer among those of its case and seed, from 0), `depth` (the same from
    0 to 1), and against the dense kernel `drop` (points of accuracy; on images in even and odd places `drop_even`,
    `drop_odd`) and `rise` (loss, nats).
    """
    rows = named(rows)
    rows["shape"] = ["x".join(map(str, shape)) for shape in rows["shape"]]
    rows["place"] = rows.groupby(["case", "seed"]).cumcount()
    last = rows.groupby(["case", "seed"])["place"].transform("max").clip(lower=1)
    rows["depth"] = rows["place"] / last
    kept = ["case", "network", "dataset", "seed", "layer", "shape", "place", "depth", "n"]
    table = rows[[*kept, *LISTS.split()]].explode(LISTS.split(), ignore_index=True)
    table = table.infer_objects()
    dense = table.groupby(["case", "seed", "layer"])[["wrong", "wrong_even", "loss"]].transform("first")
    even = -(-table["n"] // 2)
    table["drop"] = 100 * (table["wrong"] - dense["wrong"]) / table["n"]
    table["drop_even"] = 100 * (table["wrong_even"] - dense["wrong_even"]) / even
    odd = (table["wrong"] - table["wrong_even"]) - (dense["wrong"] - dense["wrong_even"])
    table["drop_odd"] = 100 * odd / (table["n"] - even)
    table["rise"] = table["loss"] - dense["loss"]
    return table


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
    norm `tolerated_norm`, the largest loss of norm that the cut can reach `largest_norm`, and whether the layer is
    `idle`: zeroing its kernel costs at most `allowed` points.
    """
    key = ["case", "network", "dataset", "seed", "layer", "shape", "place", "depth", "n"]
    idle = table[table["method"] == "zero"].set_index(["case", "seed", "layer"])["drop"] <= allowed
    found = []
    for labels, one in table[table["method"] == "cut"].groupby([*key, "cut"], sort=False):
        tolerance, censored = first_crossing(one["relative_error"], one["drop"], allowed)
        row = dict(zip([*key, "cut"], labels, strict=True)) | {"tolerance": tolerance, "censored": censored}
        row["tolerated_norm"] = 1 - math.sqrt(max(0, 1 - tolerance**2))
        row["largest_norm"] = one["norm_loss"].max()
        row["idle"] = bool(idle[row["case"], row["seed"], row["layer"]])
        found.append(row)
    return pd.DataFrame(found)


def over_layers(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], seed: int = 0) -> dict:
    """A statistic of a table with its percentile bootstrap interval, where layers are drawn with all their rows.

    Returns: `value`, `low`, `high`, `n` layers. The cuts of one layer share its weights, so the layer is the unit.
    """
    groups = list(table.reset_index(drop=True).groupby(["case", "seed", "layer"], sort=False).indices.values())
    if not groups:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    random = np.random.default_rng(seed)
    draws = (random.integers(len(groups), size=len(groups)) for _ in range(RESAMPLES))
    values = [statistic(table.iloc[np.concatenate([groups[k] for k in draw])]) for draw in draws]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return {"value": float(statistic(table)), "low": float(low), "high": float(high), "n": len(groups)}


def share_tolerating(table: pd.DataFrame, column: str = "tolerance", least: float = 0.5) -> float:
    """Share of layers and cuts that tolerate at least so much; an idle layer is no evidence and counts against."""
    return float(((table[column] >= least) & ~table["idle"]).mean())


def share_with_several(table: pd.DataFrame, least: float = 0.5, cuts: int = 2) -> float:
    """Share of layers with at least so many cuts that tolerate a relative error of `least`; 1x1 kernels left out."""
    several = table[~table["shape"].str.endswith("x1x1")]
    good = (several["tolerance"] >= least) & ~several["idle"]
    copies = several.groupby(["case", "seed", "layer", "cut"]).cumcount()  # a layer drawn twice counts twice
    counts = good.groupby([several["case"], several["seed"], several["layer"], copies]).sum()
    return float((counts >= cuts).mean())


def within(table: pd.DataFrame, x: str, y: str, *strata: str) -> float:
    """Spearman's correlation of two columns within strata, pooled (`agreement.rank_correlation`)."""
    labels = [str(values) for values in table[list(strata)].itertuples(index=False)]
    return agreement.rank_correlation(table[x], table[y], labels)


def within_p(table: pd.DataFrame, x: str, y: str, *strata: str, seed: int = 0) -> float:
    """One-sided permutation p of `within`, exchanging y within strata."""
    labels = [str(values) for values in table[list(strata)].itertuples(index=False)]

    def statistic(exchanged: np.ndarray) -> float:
        return agreement.rank_correlation(table[x], exchanged, labels)

    return agreement.permutation_p(statistic, table[y], labels, seed=seed)


def at_equal_error(table: pd.DataFrame, first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
    """Mean drop of graded truncations on two groups of cuts, at the errors that both reach: one row a layer and error.

    Columns `first`, `second`, `difference` = second - first.
    """
    key = ["case", "seed", "layer", "shape", "target"]
    graded = table[table["method"] == "graded"]
    means = [graded[graded["cut"].isin(cuts)].groupby(key)["drop"].mean() for cuts in (first, second)]
    both = pd.concat(means, axis=1, keys=["first", "second"]).dropna().reset_index()
    return both.assign(difference=both["second"] - both["first"])


def at_equal_share(table: pd.DataFrame, first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
    """The same for plain truncations at the same share of ranks kept, 1/3 and 2/3: the flat-spectrum bound is equal."""
    key = ["case", "seed", "layer", "shape"]
    found = []
    for labels, one in table[(table["method"] == "cut") & ~table["shape"].str.endswith("x1x1")].groupby(key):
        for share in (1 / 3, 2 / 3):
            row = dict(zip(key, labels, strict=True)) | {"target": share}
            for name, cuts in (("first", first), ("second", second)):
                drops = [_drop_at_share(one[one["cut"] == cut], share) for cut in cuts]
                row[name] = float(np.mean(drops))
            found.append(row)
    both = pd.DataFrame(found).dropna()
    return both.assign(difference=both["second"] - both["first"])


def _drop_at_share(one: pd.DataFrame, share: float) -> float:
    """Drop of one layer and cut at a share of its ranks, linear between ranks."""
    if one.empty:
        return math.nan
    sizes = [int(size) for size in one["shape"].iloc[0].split("x")]
    modes = CUTS[one["cut"].iloc[0]]
    rows = math.prod(sizes[mode] for mode in modes)
    largest = min(rows, math.prod(sizes) // rows)
    one = one.sort_values("rank")
    return float(np.interp(share * largest, [*one["rank"], largest], [*one["drop"], 0.0]))


def beside_controls(table: pd.DataFrame, error: float, controls: Sequence[str]) -> pd.DataFrame:
    """Drops at one relative error, a row a layer: truncations (mean over cuts) in `graded`, and every control."""
    chosen = table[(table["target"] == error) & table["method"].isin(["graded", *controls])]
    return chosen.pivot_table(index=["case", "seed", "layer"], columns="method", values="drop").reset_index()


def cross_fitted(table: pd.DataFrame, key: Sequence[str]) -> pd.Series:
    """Drop of the best of several candidates by group: chosen on even images, read on odd ones, and the reverse."""
    by_key = table.groupby(list(key), sort=False)
    even = table.loc[by_key["drop_even"].idxmin()].set_index(list(key))["drop_odd"]
    odd = table.loc[by_key["drop_odd"].idxmin()].set_index(list(key))["drop_even"]
    return (even + odd) / 2


def paired_interval(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], n: int) -> dict:
    """Accuracy of the first minus the second in points, mean over pairs of runs on the same n images.

    first, second: for each pair the indices of the wrong images. The interval is normal, over images.
    """
    scores = np.zeros(n)
    for a, b in zip(first, second, strict=True):
        scores[list(b)] += 1 / len(first)
        scores[list(a)] -= 1 / len(first)
    half = 1.96 * scores.std(ddof=1) / math.sqrt(n)
    value = float(100 * scores.mean())
    return {"value": value, "low": value - 100 * half, "high": value + 100 * half, "n": n}


# Plans for whole networks --------------------------------------------------------------------------------------------


def plan(layers: Sequence[str], forms: Sequence[str], ranks: Sequence[Sequence[int]]) -> dict:
    """A plan as `recovery` reads it."""
    return {"layers": list(layers), "forms": list(forms), "ranks": [list(map(int, one)) for one in ranks]}


def plan_at_error(spectra: pd.DataFrame, form: str, error: float) -> dict:
    """Every layer truncated to the same relative error on one cut, or on each of two single-mode cuts ("OUT+IN").

    spectra: rows of one network (`truncation_trials.spectra`). A layer where the cut is not applicable stays dense.
    """
    chosen = spectra[[set(form.split("+")) <= set(cuts) for cuts in spectra["cut"]]]
    ranks = [[_rank_at(row[f"weights_{cut}"], error) for cut in form.split("+")] for _, row in chosen.iterrows()]
    return plan(chosen["layer"], [form] * len(chosen), ranks)


def _rank_at(weights: Sequence[float], error: float) -> int:
    """The smallest rank with at most this relative error, from the weights p of a spectrum."""
    beyond = np.append(np.cumsum(np.asarray(weights)[::-1])[::-1][1:], 0)
    return int((np.sqrt(beyond) > error).sum()) + 1


def plan_at_share(spectra: pd.DataFrame, cut: str, budget: float) -> dict:
    """Every layer on one cut at the same share of its own parameters, at least rank 1: uniform ranks."""
    chosen = spectra[[cut in cuts for cuts in spectra["cut"]]]
    largest = [budget * math.prod(shape) / parameters(tuple(shape), cut, 1) for shape in chosen["shape"]]
    ranks = [[max(1, min(int(rank), len(row)))] for rank, row in zip(largest, chosen[f"weights_{cut}"], strict=True)]
    return plan(chosen["layer"], [cut] * len(chosen), ranks)


def cheapest_plan(table: pd.DataFrame, cost: str, budget: int) -> dict:
    """For each layer the cut and rank that together cost least within a number of parameters of all layers.

    table: truncations of one network (`points`); an option that saves no parameters is replaced by the dense layer.
    cost: a column, such as `rise` or `squared_error`, added over layers. Solved by a price on parameters (Lagrange).
    """
    options = {}
    for layer, one in table[table["method"] == "cut"].groupby("layer", sort=False):
        shape = tuple(int(size) for size in one["shape"].iloc[0].split("x"))
        listed = [(math.prod(shape), 0.0, "", 0)]
        for entry in one.itertuples():
            size = parameters(shape, entry.cut, entry.rank)
            if size < math.prod(shape):
                listed.append((size, max(0.0, getattr(entry, cost)), entry.cut, entry.rank))
        options[layer] = listed
    for price in np.geomspace(1e-9, 1e3, 600):
        chosen = {layer: min(listed, key=lambda o: o[1] + price * o[0]) for layer, listed in options.items()}
        if sum(option[0] for option in chosen.values()) <= budget:
            break
    kept = {layer: option for layer, option in chosen.items() if option[2]}
    return plan(kept, [option[2] for option in kept.values()], [[option[3]] for option in kept.values()])


# Retraining ----------------------------------------------------------------------------------------------------------


def recovery_gaps(rows: pd.DataFrame, margin: float, few: int) -> pd.DataFrame:
    """Rows of `recovery.recoveries` that were truncated, against the untruncated control of their case and seed.

    Adds `gap` (points missing to the control, by epoch), `before`, `soon` and `late` (the gap before retraining, after
    `few` epochs and at the end), and `epochs` (the first epoch within the margin, infinite if there is none). The arm
    "batch norm" has one step and is compared with the control's first epoch.
    """
    control = rows[rows["arm"] == "untruncated"].set_index(["case", "seed"])["accuracy"]
    arms = rows[rows["arm"] != "untruncated"].copy()
    arms["gap"] = [control[row.case, row.seed][: len(row.accuracy)] - row.accuracy for row in arms.itertuples()]
    arms["before"] = [gap[0] for gap in arms["gap"]]
    arms["soon"] = [gap[min(few, len(gap) - 1)] for gap in arms["gap"]]
    arms["late"] = [gap[-1] for gap in arms["gap"]]
    arms["epochs"] = [next((e for e, g in enumerate(gap) if g <= margin), np.inf) for gap in arms["gap"]]
    return arms


def share(good: Sequence[bool]) -> dict:
    """A share with Wilson's interval, as `claims` enters it."""
    good = np.asarray(good, dtype=bool)
    low, high = claims.wilson(good.sum(), len(good))
    return {"value": float(good.mean()), "low": low, "high": high, "n": len(good)}


def best_form(table: pd.DataFrame) -> pd.DataFrame:
    """Drops of the best candidates at equal parameters, a row a layer and budget of `truncation_trials.forms`.

    Columns: `cut` (the best single cut), `other form` (the best of Tucker, Tucker-2 and all tensor trains), `as cp`
    (the best cut graded to the error of the best CP fit), `CP` (the fit of least error). The best: `cross_fitted`.
    """
    key = ["case", "seed", "layer", "target"]
    is_cp = table["method"].str.startswith("cp")
    least = table.loc[table[is_cp].groupby(key)["relative_error"].idxmin()].set_index(key)
    candidates = {"cut": ["cut"], "other form": ["tucker2", "tucker", "tt"], "as cp": ["as cp"]}
    best = {name: cross_fitted(table[table["method"].isin(methods)], key) for name, methods in candidates.items()}
    return pd.DataFrame(best | {"CP": least["drop"]}).reset_index()


def train_cuts(order: str) -> list[str]:
    """The three cuts that a tensor train in an order of modes ("OUT KH KW IN") truncates: its ends, its middle."""
    first, second, third, last = order.split()
    middle = next(cut for cut in CUTS if set(cut.split(".")) in ({first, second}, {third, last}))
    return [first, middle, last]
