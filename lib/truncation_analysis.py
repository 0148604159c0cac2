"""The statistics of paper 2 on rows: points, comparisons at equal error, forms, recoveries, latencies."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lib import agreement, claims
from lib.cuts import CUTS
from lib.truncation_tolerance import numbered

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


def within(table: pd.DataFrame, x: str, y: str, *strata: str) -> float:
    """Spearman's correlation of two columns within strata, pooled (`agreement.rank_correlation`)."""
    labels = numbered(table, strata)
    return agreement.rank_correlation(table[x].to_numpy(), table[y].to_numpy(), labels)


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
    """Drops at one relative error, a row a layer: truncations (mean over cuts) in `graded`, and every control.

    A control that is itself made on cuts has the truncations on its own cuts beside it, in `graded: NAME`.
    """
    key, here = ["case", "seed", "layer"], table[table["target"] == error]
    graded = here[here["method"] == "graded"]
    chosen = here[here["method"].isin(["graded", *controls])]
    drops = chosen.pivot_table(index=key, columns="method", values="drop")
    for name in controls:
        cuts = here.loc[(here["method"] == name) & here["cut"].isin(list(CUTS)), [*key, "cut"]].drop_duplicates()
        if len(cuts):
            drops[f"graded: {name}"] = graded.merge(cuts).groupby(key)["drop"].mean()
    return drops.reset_index()


def cross_fitted(table: pd.DataFrame, key: Sequence[str]) -> pd.Series:
    """Drop of the best of several candidates by group: chosen on even images, read on odd ones, and the reverse."""
    by_key = table.groupby(list(key), sort=False)
    even = table.loc[by_key["drop_even"].idxmin()].set_index(list(key))["drop_odd"]
    odd = table.loc[by_key["drop_odd"].idxmin()].set_index(list(key))["drop_even"]
    return (even + odd) / 2


def paired_interval(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], n: int, seed: int = 0) -> dict:
    """Accuracy of the first minus the second in points, mean over pairs of retrainings, on the same n images.

    first, second: for each pair the indices of the wrong images.

    Returns: `value`; `low` and `high` of a bootstrap that draws pairs and images, each independently; `n`, the pairs. A
        single pair has no variation of its own, and its interval holds that of the images only.
    """
    scores = np.zeros((len(first), n))
    for row, a, b in zip(scores, first, second, strict=True):
        row[list(b)] += 100
        row[list(a)] -= 100
    low, high = agreement.nested_interval(lambda k, i: scores[np.ix_(k, i)].mean(), *scores.shape, seed=seed)
    return {"value": float(scores.mean()), "low": low, "high": high, "n": len(first)}


def weakest(found: Sequence[dict]) -> dict:
    """The least of several statistics that must all exceed a threshold: least value, least low, least high, least n.

    That its lower end exceeds the threshold has at most the error of one of them (intersection-union test).
    """
    return {name: min(one[name] for one in found) for name in ("value", "low", "high", "n")}


def sign_flip_p(differences: Sequence[float], seed: int = 0, draws: int = 4095) -> float:
    """Two-sided p of a mean of paired differences, whose signs are exchangeable if there is no effect.

    All flips are counted up to 12 differences, `draws` random ones beyond.
    """
    values = np.asarray(differences, dtype=float)
    if exact := len(values) <= 12:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(draws, len(values)))
    reached = np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)
    return float(reached.mean() if exact else (1 + reached.sum()) / (1 + draws))


def against_controls(drops: pd.DataFrame, controls: Sequence[str]) -> pd.DataFrame:
    """Drop of each control minus that of the truncations on its cuts (`beside_controls`), a row a control.

    Columns as `over_layers`, `p` (`sign_flip_p` over layers) and `p_holm`, corrected over the controls. With no effect
    of the correlations every expected value is 0.
    """
    table = {}
    for name in controls:
        own = f"graded: {name}" if f"graded: {name}" in drops else "graded"
        both = drops.dropna(subset=[name, own])
        found = over_layers(both, lambda t, c=name, own=own: (t[c] - t[own]).mean())
        table[name] = found | {"p": sign_flip_p(both[name] - both[own])}
    rows = pd.DataFrame(table).T.astype({"n": int})
    return rows.assign(p_holm=claims.holm(rows["p"]))


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


def train_tolerances(table: pd.DataFrame, tolerated: pd.DataFrame) -> pd.DataFrame:
    """The tensor trains of `truncation_trials.forms`, with the mean `tolerance` of the three cuts that each order makes
    and the accuracy `kept` (minus the drop). Layers where one of these cuts does not apply are left out.
    """
    trains = table[table["method"] == "tt"].copy()
    limit = tolerated.set_index(["case", "seed", "layer", "cut"])["tolerance"].to_dict()
    made = [[(row.case, row.seed, row.layer, cut) for cut in train_cuts(row.cut)] for row in trains.itertuples()]
    trains["tolerance"] = [np.mean([limit.get(key, np.nan) for key in keys]) for keys in made]
    return trains.assign(kept=-trains["drop"]).dropna(subset="tolerance")


def latency_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `truncation_trials.latencies` that fit, with MACs and measured time as shares of the dense kernel's."""
    table = rows[rows["macs"] > 0].copy()
    table["kernel"] = [f"{s[0]}x{s[1]}x3x3 on {m}x{m}" for s, m in zip(table["shape"], table["map"], strict=True)]
    dense = table[table["form"] == "dense"].set_index("kernel")
    table["macs_share"] = table["macs"] / table["kernel"].map(dense["macs"])
    table["made_latency_share"] = table["made_latency_ms"] / table["kernel"].map(dense["made_latency_ms"])
    return table[
        ["kernel", "form", "share", "parameters", "macs", "macs_share", "made_latency_ms", "made_latency_share"]
    ]
