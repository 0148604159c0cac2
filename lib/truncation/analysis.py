"""The statistics of paper 2 on rows: points, tolerances and their order, comparisons at equal error, forms, times.

A *case* is a network with its data set. The cuts of a layer share its weights, so the layer is the unit of intervals.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lib import stats
from lib.truncation.cuts import CUTS, matrix_shape

ALLOWED = 1.0  # points of accuracy that a harmless truncation may cost
# The loss at rank 1, the most that a cut loses.
REACH = {"tolerance": "largest_error", "tolerated_norm": "largest_norm"}
UNIT = ["case", "seed", "layer"]
LAYER = ["case", "network", "dataset", "seed", "layer", "shape", "place", "depth", "n"]
LISTS = "method cut rank target draw relative_error norm_loss effective_norm_loss wrong wrong_even lost gained loss kl"
CHANNEL, SPATIAL = ("OUT", "IN"), ("KH", "KW")


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows with a column `case` (network and data set) and a `seed`, 0 for public checkpoints."""
    rows = rows[rows["status"] == "done"]
    seed = rows.get("seed", pd.Series(0, rows.index)).fillna(0).astype(int)
    return rows.assign(case=rows["network"] + " / " + rows["dataset"], seed=seed)


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per kernel of single-layer rows (`trials.truncate_layer`).

    Adds `shape` as text, `place` (order of the layer among those of its case and seed, from 0), `depth` (the same from
    0 to 1), and against the dense kernel `drop` (points of accuracy; on images in even and odd places `drop_even`,
    `drop_odd`) and `rise` (loss, nats).
    """
    rows = finished(rows)
    rows["shape"] = ["x".join(map(str, shape)) for shape in rows["shape"]]
    rows["place"] = rows.groupby(["case", "seed"]).cumcount()
    last = rows.groupby(["case", "seed"])["place"].transform("max").clip(lower=1)
    rows["depth"] = rows["place"] / last
    table = rows[[*LAYER, *LISTS.split()]].explode(LISTS.split(), ignore_index=True).infer_objects()
    counted = ["wrong", "wrong_even", "loss"]
    more = table[counted] - table.groupby(UNIT)[counted].transform("first")
    even = -(-table["n"] // 2)
    table["drop"] = 100 * more["wrong"] / table["n"]
    table["drop_even"] = 100 * more["wrong_even"] / even
    table["drop_odd"] = 100 * (more["wrong"] - more["wrong_even"]) / (table["n"] - even)
    return table.assign(rise=more["loss"])


def first_crossing(error: Sequence[float], drop: Sequence[float]) -> tuple[float, bool]:
    """The relative error at which the accuracy first drops by ALLOWED points, and whether it never does.

    Errors and drops are those of one layer and cut, in any order. Between two ranks the drop is taken as linear, from 0
    at no error. A pair that never drops so far is censored at its largest error.
    """
    order = np.argsort(error, kind="stable")
    errors, drops = np.append(0, np.asarray(error)[order]), np.append(0, np.asarray(drop)[order])
    beyond = np.flatnonzero(drops > ALLOWED)
    if not len(beyond):
        return float(errors[-1]), True
    k = beyond[0]
    share = (ALLOWED - drops[k - 1]) / (drops[k] - drops[k - 1])
    return float(errors[k - 1] + share * (errors[k] - errors[k - 1])), False


def tolerances(table: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and cut of `points`: `tolerance` (relative error) and `censored` of `first_crossing`.

    A censored tolerance is a lower bound. Adds the same as a loss of norm `tolerated_norm`, the loss at rank 1 by both
    readings, `largest_error` and `largest_norm`, and whether the layer is `idle`: zeroing its kernel is harmless.
    """
    idle = table[table["method"] == "zero"].set_index(UNIT)["drop"] <= ALLOWED
    found = []
    for labels, one in table[table["method"] == "cut"].groupby([*LAYER, "cut"], sort=False):
        row = dict(zip([*LAYER, "cut"], labels, strict=True))
        row["tolerance"], row["censored"] = first_crossing(one["relative_error"], one["drop"])
        row["tolerated_norm"] = 1 - math.sqrt(max(0, 1 - row["tolerance"] ** 2))
        row |= {"largest_error": one["relative_error"].max(), "largest_norm": one["norm_loss"].max()}
        row["idle"] = bool(idle[row["case"], row["seed"], row["layer"]])
        found.append(row)
    return pd.DataFrame(found)


def lowest_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and cut of `points`: the lowest rank above which every rank is harmless; no row if none is."""
    key = ["case", "network", "dataset", "seed", "layer", "cut"]
    cut = table[table["method"] == "cut"].sort_values("rank", ascending=False)
    harmless = (cut["drop"] <= ALLOWED).groupby([cut[name] for name in key], sort=False).cummin()
    return cut[harmless].groupby(key, sort=False).last().reset_index()


def read_again(chosen: pd.DataFrame, read: pd.DataFrame, tolerated: pd.DataFrame) -> pd.DataFrame:
    """Chosen truncations (`lowest_ranks`) with the drop on other images, `drop_read`, and whether it is `harmless`.

    `read` are the points on those images. `tolerance` is the relative error of a harmless truncation, 0 of another.
    """
    key = [*UNIT, "cut"]
    other = read[read["method"] == "cut"].set_index(key)["drop"].rename("drop_read")
    both = chosen.join(other, on=key, how="inner").merge(tolerated[[*key, "idle", "largest_error"]], on=key)
    both["harmless"] = both["drop_read"] <= ALLOWED
    return both.assign(tolerance=both["relative_error"].where(both["harmless"], 0.0))


def tolerating(table: pd.DataFrame, column: str = "tolerance", least: float = 0.5) -> pd.Series:
    """1 for each layer and cut that tolerates at least `least`, 0 for others and for idle layers.

    NaN where rank 1 loses less: such a pair could not show that it tolerates as much, whatever the network does. The
    column is "tolerance" or "tolerated_norm".
    """
    good = (table[column] >= least) & ~table["idle"].astype(bool)
    return good.astype(float).where(table[REACH[column]] >= least)


def tolerating_several(table: pd.DataFrame) -> pd.DataFrame:
    """One row per layer, in `several` whether at least two of its cuts are `tolerating`; NaN where fewer could be."""
    good = tolerating(table).mask(table["shape"].str.endswith("x1x1"))
    counts = good.groupby([table[name] for name in UNIT], sort=False).agg(["sum", "count"])
    several = (counts["sum"] >= 2).astype(float).where(counts["count"] >= 2)
    return several.rename("several").reset_index()


def concordance(table: pd.DataFrame, predictor: str, *strata: str, resamples: int = 1000) -> dict:
    """Whether layers with more of a predictor tolerate more, where some tolerances are only lower bounds.

    Of two layers in one stratum the order of tolerances is known if the smaller one is not censored. Over the known
    pairs whose predictors differ, the value is the share in which the predictor has the same order minus the share in
    which it has the reverse one: Harrell's concordance C (1982) as 2 C - 1, in [-1, 1], which for tolerances without
    ties or bounds is Kendall's tau. Unrelated predictors give 0 on average, even if the bounds depend on them.

    Args:
        table: of `tolerances`, one row per layer and cut.
        predictor: a column.
        strata: columns; pairs are taken within them. One of them must be "cut".
        resamples: number of draws.

    Returns:
        `value`; `low` and `high` of a percentile bootstrap over layers; one-sided `p` by exchanging the predictors of
        whole layers, all cuts at once, within the other strata; `n`, layers in such pairs. Without pairs n is 0 and all
        others are NaN.
    """
    if "cut" not in strata:
        raise ValueError(f"Tolerances are compared within a cut, not within {strata}: name it among the strata.")
    layer, cut = _numbered(table, UNIT), _numbered(table, ["cut"])
    less, more = _known_pairs(table, strata)
    values = np.full((layer.max(initial=0) + 1, cut.max(initial=0) + 1), math.nan)
    values[layer, cut] = table[predictor]

    def signs(order: np.ndarray) -> np.ndarray:
        """By known pair, whether the predictor has its order (1) or the reverse (-1), with layers exchanged."""
        both = values[order[layer[more]], cut[more]] - values[order[layer[less]], cut[less]]
        return np.nan_to_num(np.sign(both))

    def statistic(order: np.ndarray, weight: np.ndarray) -> float:
        found = signs(order)
        both = found**2 * weight[layer[less]] * weight[layer[more]]
        return float(found @ both / both.sum()) if both.any() else math.nan

    count, random = len(values), np.random.default_rng(0)
    same, once = np.arange(count), np.ones(count)
    value = statistic(same, once)
    if math.isnan(value):
        return {"value": value, "low": value, "high": value, "n": 0, "p": value}
    draws = stats.resampled(
        lambda rows: statistic(same, np.bincount(rows, minlength=count)), count, seed=random, resamples=resamples
    )
    firsts = table.iloc[np.unique(layer, return_index=True)[1]]
    groups = _numbered(firsts, [name for name in strata if name != "cut"])
    exchanged = np.vectorize(lambda order: statistic(order.astype(int), once), signature="(n)->()")
    p = stats.permutation_p(exchanged, same, groups, seed=random, draws=resamples - 1)
    known = signs(same) != 0
    taking_part = len(np.unique(layer[np.append(less[known], more[known])]))
    return stats.percentile_estimate(value, draws, taking_part) | {"p": p}


def _known_pairs(table: pd.DataFrame, strata: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the rows of all pairs in one stratum whose order is known, the one that tolerates less first."""
    labels, tolerance = _numbered(table, strata), table["tolerance"].to_numpy(dtype=float)
    censored = table["censored"].to_numpy(dtype=bool)
    below = tolerance[:, None] < tolerance
    below |= (tolerance[:, None] == tolerance) & censored
    return np.nonzero((labels[:, None] == labels) & ~censored[:, None] & below)


def _numbered(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Rows that agree in all columns get one number, in order of appearance."""
    return table.groupby(list(columns), sort=False).ngroup().to_numpy() if columns else np.zeros(len(table), dtype=int)


def over_layers(table: pd.DataFrame, statistic: str | Callable[[pd.DataFrame], float]) -> dict:
    """The mean of a column, or a statistic of a table, with its bootstrap interval over whole layers; `n` layers."""
    groups = list(table.reset_index(drop=True).groupby(UNIT, sort=False).indices.values())
    if not groups:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    if isinstance(statistic, str):
        table, statistic = table[statistic], lambda column: column.mean()
    draws = stats.resampled(
        lambda drawn: statistic(table.iloc[np.concatenate([groups[k] for k in drawn])]), len(groups), seed=0
    )
    return stats.percentile_estimate(statistic(table), draws, len(groups))


def within(table: pd.DataFrame, x: str, y: str, *strata: str) -> float:
    """Spearman's correlation of two columns within strata, pooled (`stats.rank_correlation`)."""
    return stats.rank_correlation(table[x].to_numpy(), table[y].to_numpy(), _numbered(table, strata))


def at_equal_error(table: pd.DataFrame, first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
    """Mean drop of graded truncations on two groups of cuts at the errors that both reach, by layer and error.

    Columns `first`, `second`, `difference` = second - first.
    """
    graded = table[table["method"] == "graded"]
    means = [
        graded[graded["cut"].isin(cuts)].groupby([*UNIT, "shape", "target"])["drop"].mean() for cuts in (first, second)
    ]
    both = pd.concat(means, axis=1, keys=["first", "second"]).dropna().reset_index()
    return both.assign(difference=both["second"] - both["first"])


def at_equal_share(table: pd.DataFrame, first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
    """The same for plain truncations at the same share of ranks kept, 1/3 and 2/3: the flat-spectrum bound is equal."""
    key, found = [*UNIT, "shape"], []
    for labels, one in table[(table["method"] == "cut") & ~table["shape"].str.endswith("x1x1")].groupby(key):
        for share in (1 / 3, 2 / 3):
            drops = [[_drop_at_share(one[one["cut"] == cut], share) for cut in cuts] for cuts in (first, second)]
            found.append([*labels, share, *map(np.mean, drops)])
    both = pd.DataFrame(found, columns=[*key, "target", "first", "second"]).dropna()
    return both.assign(difference=both["second"] - both["first"])


def _drop_at_share(one: pd.DataFrame, share: float) -> float:
    """Drop of one layer and cut at a share of its ranks, linear between ranks."""
    if one.empty:
        return math.nan
    largest = min(matrix_shape([int(size) for size in one["shape"].iloc[0].split("x")], one["cut"].iloc[0]))
    one = one.sort_values("rank")
    return float(np.interp(share * largest, [*one["rank"], largest], [*one["drop"], 0.0]))


def beside_controls(table: pd.DataFrame, error: float, controls: Sequence[str]) -> pd.DataFrame:
    """Drops at one relative error, one row per layer: truncations (mean over cuts) in `graded`, and every control.

    A control that is itself made on cuts has the truncations on its own cuts beside it, in `graded: NAME`.
    """
    here = table[table["target"] == error]
    graded = here[here["method"] == "graded"]
    chosen = here[here["method"].isin(["graded", *controls])]
    drops = chosen.pivot_table(index=UNIT, columns="method", values="drop")
    for name in controls:
        cuts = here.loc[(here["method"] == name) & here["cut"].isin(list(CUTS)), [*UNIT, "cut"]].drop_duplicates()
        if len(cuts):
            drops[f"graded: {name}"] = graded.merge(cuts).groupby(UNIT)["drop"].mean()
    return drops.reset_index()


def against_controls(drops: pd.DataFrame, controls: Sequence[str]) -> pd.DataFrame:
    """Drop of each control minus that of the truncations on its cuts (`beside_controls`), one row per control.

    Columns as `over_layers`, `p` (`stats.sign_flip_p` over layers) and `p_holm`, corrected over the controls. With no
    effect of the correlations every expected value is 0.
    """
    table = {}
    for name in controls:
        own = f"graded: {name}" if f"graded: {name}" in drops else "graded"
        both = drops.assign(difference=drops[name] - drops[own]).dropna(subset="difference")
        table[name] = over_layers(both, "difference") | {"p": stats.sign_flip_p(both["difference"])}
    rows = pd.DataFrame(table).T.astype({"n": int})
    return rows.assign(p_holm=stats.holm(rows["p"]))


def cross_fitted(table: pd.DataFrame, key: Sequence[str]) -> pd.Series:
    """Drop of the best of several candidates by group: chosen on even images, read on odd ones, and the reverse."""
    by_key = table.groupby(list(key), sort=False)
    even = table.loc[by_key["drop_even"].idxmin()].set_index(list(key))["drop_odd"]
    odd = table.loc[by_key["drop_odd"].idxmin()].set_index(list(key))["drop_even"]
    return (even + odd) / 2


def best_form(table: pd.DataFrame) -> pd.DataFrame:
    """Drops of the best candidates at equal parameters, one row per layer and budget of `trials.formed`.

    Columns: `cut` (the best single cut), `other form` (the best of Tucker, Tucker-2 and all tensor trains), `as cp`
    (the best cut graded to the error of the best CP fit), `CP` (the fit of least error). The best: `cross_fitted`.
    """
    key = [*UNIT, "target"]
    is_cp = table["method"].str.startswith("cp")
    least = table.loc[table[is_cp].groupby(key)["relative_error"].idxmin()].set_index(key)
    candidates = {"cut": ["cut"], "other form": ["tucker2", "tucker", "tt"], "as cp": ["as cp"]}
    best = {name: cross_fitted(table[table["method"].isin(methods)], key) for name, methods in candidates.items()}
    return pd.DataFrame(best | {"CP": least["drop"]}).reset_index()


def train_cuts(order: str) -> list[str]:
    """The three cuts that a tensor train in an order of modes ("OUT KH KW IN") makes, one at each bond.

    They are its first mode, its first two modes and its last mode, each against the rest.
    """
    first, second, third, last = order.split()
    middle = next(cut for cut in CUTS if set(cut.split(".")) in ({first, second}, {third, last}))
    return [first, middle, last]


def train_tolerances(table: pd.DataFrame, tolerated: pd.DataFrame) -> pd.DataFrame:
    """The tensor trains of `trials.formed` with the accuracy `kept` (minus the drop) and a mean `tolerance`.

    The mean is over the three cuts that the order makes. Layers where one of these does not apply are left out.
    """
    trains = table[table["method"] == "tt"].copy()
    limit = tolerated.set_index([*UNIT, "cut"])["tolerance"].to_dict()
    made = [[(row.case, row.seed, row.layer, cut) for cut in train_cuts(row.cut)] for row in trains.itertuples()]
    trains["tolerance"] = [np.mean([limit.get(key, np.nan) for key in keys]) for keys in made]
    return trains.assign(kept=-trains["drop"]).dropna(subset="tolerance")


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


def paired_interval(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], n: int) -> dict:
    """Accuracy of the first minus the second in points, mean over pairs of retrainings, on the same n images.

    Both give the indices of the wrong images for each pair. The bootstrap draws pairs and images, each independently. A
    single pair has no variation of its own, and its interval holds that of the images only. `n` counts pairs.
    """
    scores = np.zeros((len(first), n))
    for row, a, b in zip(scores, first, second, strict=True):
        row[list(b)] += 100
        row[list(a)] -= 100
    found = stats.bootstrap_estimate(lambda k, i: scores[np.ix_(k, i)].mean(), *scores.shape, seed=0)
    return found | {"n": len(first)}


def smallest_of_all(found: Sequence[dict]) -> dict:
    """The least of several statistics that must all exceed a threshold: least value, least low, least high, least n.

    That its lower end exceeds the threshold has at most the error of one of them (intersection-union test).
    """
    return {name: min(one[name] for one in found) for name in ("value", "low", "high", "n")}


def latency_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `trials.latencies` that fit, with MACs and measured time as shares of the dense kernel's."""
    table = rows[rows["macs"] > 0].copy()
    table["kernel"] = [f"{s[0]}x{s[1]}x3x3 on {m}x{m}" for s, m in zip(table["shape"], table["map"], strict=True)]
    dense = table[table["form"] == "dense"].set_index("kernel")
    table["macs_share"] = table["macs"] / table["kernel"].map(dense["macs"])
    table["made_latency_share"] = table["made_latency_ms"] / table["kernel"].map(dense["made_latency_ms"])
    columns = "kernel form share parameters macs macs_share made_latency_ms made_latency_share"
    return table[columns.split()]
