"""The statistics of paper 2 on rows: points, tolerances and their order, comparisons at equal error, forms, plans.

A *case* is a network with its data set. Layers of a network are not independent, so a statistic is taken in each case,
as the mean over its trainings, and claims are judged on its mean over cases (`over_cases`).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from lib import stats
from lib.models import PUBLIC
from lib.truncation.measures import CUTS, matrix_shape

# The loss at rank 1, the most that a cut loses.
REACH = {"tolerance": "largest_error", "tolerated_norm": "largest_norm"}
UNIT = ["case", "seed", "layer"]
LAYER = ["case", "network", "dataset", "seed", "layer", "shape", "place", "depth"]
LISTS = """
    method cut rank target draw relative_error norm_loss effective_norm_loss n wrong lost gained lost_even gained_even
    lost_first gained_first rise kl
""".split()
CHANNEL, SPATIAL = ("OUT", "IN"), ("KH", "KW")
Statistic = Callable[[pd.DataFrame], float]


@dataclass(frozen=True)
class Harm:
    """When the change of a kernel is harmful: if it costs more than is allowed, and more than chance explains.

    Args:
        share: of the cost of zeroing the kernel that a harmless change may cost.
        points: of accuracy, allowed in place of a share.
        tested: whether a harmful change differs from the dense network by McNemar's exact test on the same images, too.
        idle: points; a layer whose zeroing costs at most these is idle. If tested, so is one whose zeroing chance
            explains.
        first: whether the drops are those on the first images alone.
    """

    share: float = 0.05
    points: float | None = None
    tested: bool = True
    idle: float = 1.0
    first: bool = False


HARM = Harm()
HARM_FORKS = {
    "1 point allowed, no test": Harm(points=1.0, tested=False),
    "2 % of zeroing allowed": Harm(share=0.02),
    "10 % of zeroing allowed": Harm(share=0.1),
    "idle up to 2 points": Harm(idle=2.0),
    "idle up to 3.5 points": Harm(idle=3.5),
    "without McNemar's test": Harm(tested=False),
    "the first images alone": Harm(first=True),
}


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows with a column `case` (network and data set) and a `seed`, 0 for public checkpoints."""
    rows = rows[rows["status"] == "done"]
    seed = rows.get("seed", pd.Series(0, rows.index)).fillna(0).astype(int)
    return rows.assign(case=rows["network"] + " / " + rows["dataset"], seed=seed)


def points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per kernel of single-layer rows (`trials.truncate_layer`).

    Adds `shape` as text, `place` (order of the layer among those of its case and seed, from 0), `depth` (the same from
    0 to 1), `drop` (points of accuracy against the dense kernel; on images in even and odd places `drop_even`,
    `drop_odd`, on the first ones `drop_first`), and one-sided p-values of McNemar's exact test that the kernel loses no
    more images than it gains, `p` and `p_first`.
    """
    rows = finished(rows)
    rows["shape"] = ["x".join(map(str, shape)) for shape in rows["shape"]]
    table = _placed(rows)[[*LAYER, "n_first", *LISTS]].explode(LISTS, ignore_index=True).infer_objects()
    table, even = _drops(table), -(-table["n"] // 2)
    table["drop_even"] = 100 * (table["lost_even"] - table["gained_even"]) / even
    odd = table["lost"] - table["gained"] - table["lost_even"] + table["gained_even"]
    return table.assign(drop_odd=100 * odd / (table["n"] - even).clip(lower=1))


def zeroed(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per layer of the rows of `trials.zero_layers`: a table of `points` that has zero kernels alone."""
    lists = "layer shape n lost gained n_first lost_first gained_first".split()
    return _drops(_placed(finished(rows).explode(lists, ignore_index=True).infer_objects())).assign(method="zero")


def _placed(layers: pd.DataFrame) -> pd.DataFrame:
    place = layers.groupby(["case", "seed"]).cumcount()
    last = place.groupby([layers["case"], layers["seed"]]).transform("max").clip(lower=1)
    return layers.assign(place=place, depth=place / last)


def _drops(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the drop (points) and McNemar's p on all images, and on the first ones."""
    for name in ("", "_first"):
        lost, gained = table[f"lost{name}"], table[f"gained{name}"]
        table[f"drop{name}"], table[f"p{name}"] = 100 * (lost - gained) / table[f"n{name}"], mcnemar_p(lost, gained)
    return table


def mcnemar_p(lost: Sequence[int], gained: Sequence[int]) -> np.ndarray:
    """One-sided p of McNemar's exact test: of as many lost images, if an image that changes is lost half of the time.

    Source: McNemar 1947.
    """
    lost, gained = np.asarray(lost, dtype=int), np.asarray(gained, dtype=int)
    return scipy_stats.binom.sf(lost - 1, lost + gained, 0.5)


def harmed(table: pd.DataFrame, harm: Harm = HARM) -> pd.DataFrame:
    """Rows of `points` with the `allowed` drop of their layer (points), whether it is `idle`, and what is `harmful`.

    A layer without a zero kernel among its rows has no allowance.
    """
    drop, p = ("drop_first", "p_first") if harm.first else ("drop", "p")
    zero = table[table["method"] == "zero"].set_index(UNIT)[[drop, p]]
    of_layer = table[UNIT].join(zero, on=UNIT)
    allowed = of_layer[drop].clip(lower=0) * harm.share if harm.points is None else harm.points
    idle = (of_layer[drop] <= harm.idle) | (harm.tested & (of_layer[p] >= 1 - stats.LEVEL))
    harmful = (table[drop] > allowed) & ((table[p] < 1 - stats.LEVEL) | (not harm.tested))
    return table.assign(counted=table[drop], allowed=allowed, idle=idle, harmful=harmful)


def first_crossing(
    error: Sequence[float], drop: Sequence[float], allowed: float, harmful: Sequence[bool] | None = None
) -> tuple[float, bool]:
    """The relative error at which a truncation first becomes harmful, and whether it never does.

    Errors, drops and `harmful` (by default: drops above the allowed ones) are those of one layer and cut, in any order.
    Between the first harmful rank and the one before it the drop is taken as linear, from 0 at no error; a rank that is
    not harmful is tolerated whatever its drop. A pair without a harmful rank is censored at its largest error.
    """
    order = np.argsort(error, kind="stable")
    errors, drops = np.append(0, np.asarray(error)[order]), np.append(0, np.asarray(drop)[order])
    bad = drops > allowed if harmful is None else np.append(False, np.asarray(harmful, dtype=bool)[order])
    beyond = np.flatnonzero(bad)
    if not len(beyond):
        return float(errors[-1]), True
    k = beyond[0]
    share = max(0.0, allowed - drops[k - 1]) / (drops[k] - min(drops[k - 1], allowed))
    return float(errors[k - 1] + share * (errors[k] - errors[k - 1])), False


def tolerances(table: pd.DataFrame, harm: Harm = HARM) -> pd.DataFrame:
    """One row per layer and cut of `points`: `tolerance` (relative error) and `censored` of `first_crossing`.

    A censored tolerance is a lower bound. Adds the same as a loss of norm `tolerated_norm`, the loss at rank 1 by both
    readings, `largest_error` and `largest_norm`, whether the layer is `idle`, and n.
    """
    table, found = harmed(table, harm), []
    for labels, one in table[table["method"] == "cut"].groupby([*LAYER, "cut"], sort=False):
        row = dict(zip([*LAYER, "cut"], labels, strict=True))
        crossing = first_crossing(one["relative_error"], one["counted"], one["allowed"].iloc[0], one["harmful"])
        row["tolerance"], row["censored"] = crossing
        row["tolerated_norm"] = 1 - math.sqrt(max(0, 1 - row["tolerance"] ** 2))
        row |= {"largest_error": one["relative_error"].max(), "largest_norm": one["norm_loss"].max()}
        found.append(row | {"idle": bool(one["idle"].iloc[0]), "n": one["n"].max()})
    return pd.DataFrame(found)


def idle_layers(table: pd.DataFrame, harm: Harm = HARM) -> pd.DataFrame:
    """One row per layer of `points` or `zeroed`: the `drop` when its kernel is zeroed, its p, whether it is `idle`."""
    zero = harmed(table, harm)
    return zero.loc[zero["method"] == "zero", [*LAYER, "n", "drop", "p", "idle"]].reset_index(drop=True)


def lowest_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and cut of `points`: the lowest rank above which none is harmful; no row if there is none."""
    key = ["case", "network", "dataset", "seed", "layer", "cut"]
    table = harmed(table)
    cut = table[table["method"] == "cut"].sort_values("rank", ascending=False, kind="stable")
    harmless = (~cut["harmful"]).groupby([cut[name] for name in key], sort=False).cummin()
    return cut[harmless].groupby(key, sort=False).last().reset_index()


def read_again(chosen: pd.DataFrame, read: pd.DataFrame, tolerated: pd.DataFrame) -> pd.DataFrame:
    """The table of `tolerances` with chosen truncations (`lowest_ranks`) judged by other images, those of `read`.

    `drop_read` is the drop there, and `tolerance` the relative error of a truncation that is not `harmful` there. It is
    0 where it is, and where no rank was chosen.
    """
    key = [*UNIT, "cut"]
    other = harmed(read)
    other = other[other["method"] == "cut"].set_index(key)[["drop", "harmful"]].add_suffix("_read")
    both = chosen.set_index(key)[["rank", "relative_error", "drop"]].join(other, how="inner")
    both = tolerated.drop(columns="tolerance").join(both, on=key)
    good = both["harmful_read"].eq(False)  # NaN where nothing was chosen
    return both.assign(tolerance=both["relative_error"].where(good, 0.0))


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


def concordance(table: pd.DataFrame, predictor: str, *strata: str) -> float:
    """Whether layers with more of a predictor tolerate more, where some tolerances are only lower bounds.

    Of two layers in one stratum the order of tolerances is known if the smaller one is not censored. Over the known
    pairs whose predictors differ, it is the share in which the predictor has the same order minus the share in which it
    has the reverse one: Harrell's concordance C (1982) as 2 C - 1, in [-1, 1], which for tolerances without ties or
    bounds is Kendall's tau. Unrelated predictors give 0 on average, even if the bounds depend on them. NaN without such
    pairs.

    Args:
        table: of `tolerances`, one row per layer and cut.
        predictor: a column.
        strata: columns; pairs are taken within them. One of them must be "cut".
    """
    if "cut" not in strata:
        raise ValueError(f"Tolerances are compared within a cut, not within {strata}: name it among the strata.")
    less, more = _known_pairs(table, strata)
    values = table[predictor].to_numpy(dtype=float)
    signs = np.nan_to_num(np.sign(values[more] - values[less]))
    return float(signs.sum() / np.abs(signs).sum()) if signs.any() else math.nan


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


def per_case(table: pd.DataFrame, statistic: str | Statistic) -> pd.Series:
    """The mean of a column or a statistic of a table in each case: the mean over its trainings, NaN left out."""
    value = statistic if callable(statistic) else lambda one: one[statistic].mean()
    found = {key: value(one) for key, one in table.groupby(["case", "seed"], sort=False)}
    index = pd.MultiIndex.from_tuples(list(found), names=["case", "seed"])
    return pd.Series(list(found.values()), index, dtype=float).groupby("case", sort=False).mean()


def over_cases(values: pd.Series, bounded: bool = False) -> dict:
    """The mean over cases as `Ledger.enter` takes it, with p of a mean of at most 0 (`stats.mean_gain`).

    NaN is left out. A `bounded` mean, one of correlations, has its interval within [-1, 1].
    """
    found = stats.mean_gain(values)
    return found | {name: float(np.clip(found[name], -1, 1)) for name in ("low", "high") if bounded}


def share(values: pd.Series) -> dict:
    """`over_cases` of shares, with an interval within [0, 1] and without p: the threshold is no null."""
    found = over_cases(values)
    return {"value": found["value"], "n": found["n"]} | {k: float(np.clip(found[k], 0, 1)) for k in ("low", "high")}


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


AVERAGES = {
    "median": np.median,
    "mean": np.mean,
    "20 % trimmed mean": lambda values: scipy_stats.trim_mean(values, 0.2),
}


def against_control(drops: pd.DataFrame, control: str, average: str = "median") -> pd.Series:
    """Drop of a control minus that of the truncations on its cuts, an average over the layers of each case.

    With no effect of the correlations every expected value is 0. The average is one of AVERAGES.
    """
    own = f"graded: {control}" if f"graded: {control}" in drops else "graded"
    both = drops.assign(difference=drops[control] - drops[own]).dropna(subset="difference")
    return per_case(both, lambda one: AVERAGES[average](one["difference"]))


def cross_fitted(table: pd.DataFrame, key: Sequence[str]) -> pd.Series:
    """Drop of the best of several candidates by group: chosen on even images, read on odd ones, and the reverse."""
    by_key = table.groupby(list(key), sort=False)
    even = table.loc[by_key["drop_even"].idxmin()].set_index(list(key))["drop_odd"]
    odd = table.loc[by_key["drop_odd"].idxmin()].set_index(list(key))["drop_even"]
    return (even + odd) / 2


def best_form(table: pd.DataFrame, rule: str = "") -> pd.DataFrame:
    """Drops of the best candidates at equal parameters, one row per layer and budget of `trials.formed`.

    Columns: `cut` (the best single cut), `other form` (the best of Tucker, Tucker-2, the ring and all tensor trains,
    their ranks chosen by the `rule`: "" for the best, EQUAL for equal shares), `as cp` (the best cut graded to the
    error of the best CP fit), `CP` (the fit of least error). The best: `cross_fitted`.
    """
    key = [*UNIT, "target"]
    is_cp = table["method"].isin(["cp", "cp, not converged"])
    least = table.loc[table[is_cp].groupby(key)["relative_error"].idxmin()].set_index(key)
    other = [form + rule for form in ("tucker2", "tucker", "tt", "ring")]
    candidates = {"cut": ["cut"], "other form": other, "as cp": ["as cp"]}
    best = {name: cross_fitted(table[table["method"].isin(methods)], key) for name, methods in candidates.items()}
    return pd.DataFrame(best | {"CP": least["drop"]}).reset_index()


def train_cuts(order: str) -> list[str]:
    """The three cuts that a tensor train in an order of modes ("OUT KH KW IN") makes, one at each bond.

    They are its first mode, its first two modes and its last mode, each against the rest.
    """
    first, second, third, last = order.split()
    middle = next(cut for cut in CUTS if set(cut.split(".")) in ({first, second}, {third, last}))
    return [first, middle, last]


def train_tolerances(table: pd.DataFrame, tolerated: pd.DataFrame, rule: str = "") -> pd.DataFrame:
    """The tensor trains of `trials.formed` with the accuracy `kept` (minus the drop) and a mean `tolerance`.

    The mean is over the three cuts that the order makes. Layers where one of these does not apply are left out.
    """
    trains = table[table["method"] == f"tt{rule}"].copy()
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


def smallest_of_all(found: Sequence[dict]) -> dict:
    """The least of several statistics that must all exceed a threshold: least value, low, high and n, largest p.

    That its lower end exceeds the threshold has at most the error of one of them (intersection-union test).
    """
    least = {name: min(one[name] for one in found) for name in ("value", "low", "high", "n")}
    return least | {"p": float(np.max([one["p"] for one in found]))}


def recovered(arms: pd.DataFrame, margin: float, alone: str = "") -> pd.Series:
    """Whether most truncations of each case are within a margin of the control after a few epochs, keeping their rank.

    Both arms that keep it must be, or the one named `alone`, and "batch norm" must not be. `arms` are those of
    `recovery_gaps`.
    """
    soon = arms.pivot_table(index=["case", "seed", "form_name", "target"], columns="arm", values="soon") <= margin
    kept = soon[[alone] if alone else ["projected", "factorised"]].all(axis=1)
    return (kept & ~soon["batch norm"]).groupby("case", sort=False).mean() > 0.5


def settled(arms: pd.DataFrame, margin: float, barrier: float) -> pd.Series:
    """Whether most truncations of each case end within a margin of the control without a barrier, in both arms."""
    kept = arms[arms["arm"].isin(["projected", "factorised"])]
    good = (kept["late"] <= margin) & (kept["loss_barrier"] <= barrier)
    return good.groupby([kept[k] for k in ("case", "form_name", "target")]).all().groupby("case").mean() > 0.5


def in_series(idle: pd.DataFrame) -> pd.DataFrame:
    """The share of layers that can be zeroed of each public network, from `idle_layers`, with its depth and series.

    A series are the networks of one author on one data set. Added is the correlation within a series, `rho`, and the
    `median` over layers of the cost of zeroing one (points).
    """
    of_network = idle.groupby(["network", "dataset"], sort=False)
    table = of_network.agg(share=("idle", "mean"), layers=("idle", "size"), median=("drop", "median")).reset_index()
    table["depth"] = table["network"].str.extract(r"resnet(\d+)", expand=False).astype(int)
    table["series"] = [f"{PUBLIC[n, d][0]}, {d}" for n, d in zip(table["network"], table["dataset"], strict=True)]
    rho = {name: stats.rank_correlation(one["depth"], one["share"]) for name, one in table.groupby("series")}
    return table.assign(rho=table["series"].map(rho))


def deeper_p(table: pd.DataFrame) -> float:
    """One-sided p of the mean over series of `rho` in a table of `in_series`: depths change places within a series.

    All arrangements are counted, so that a series of two networks adds no more than a coin.
    """
    found, sums = table.drop_duplicates("series")["rho"].sum(), np.zeros(1)
    for _, one in table.groupby("series"):
        rhos = [stats.rank_correlation(one["depth"], list(shares)) for shares in itertools.permutations(one["share"])]
        sums = np.add.outer(sums, rhos).ravel()
    return float((sums >= found - 1e-9).mean())


def left_out(table: pd.DataFrame, predictors: Sequence[str], unit: str = "case") -> pd.Series:
    """How well the tolerances of each case are ordered by what least squares on the other cases predicts.

    With another `unit`, such as a column with the architecture, no case of the same unit is in the fit.

    Predictors are columns of a table of `tolerances`, with a level for each cut; the order is judged by `concordance`
    within the cuts of a training. Censored tolerances enter the fit as they are. NaN for a case that holds other cuts
    than all others together.
    """
    table = table.dropna(subset=list(predictors))
    levels = pd.get_dummies(table["cut"], dtype=float)
    x = np.column_stack([levels, table[list(predictors)].to_numpy(dtype=float)])
    y, found = table["tolerance"].to_numpy(dtype=float), {}
    for case, its_unit in table.groupby("case", sort=False)[unit].first().items():
        own, others = (table["case"] == case).to_numpy(), (table[unit] != its_unit).to_numpy()
        weights = np.linalg.lstsq(x[others], y[others], rcond=None)[0]
        known = set(table.loc[own, "cut"]) <= set(table.loc[others, "cut"])
        found[case] = concordance(table[own].assign(predicted=x[own] @ weights), "predicted", "seed", "cut")
        found[case] = found[case] if known else math.nan
    return pd.Series(found, dtype=float)


def signs(effects: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Whether each effect (row) has the claimed sign in each case (column): 1 if above 0, else 0, NaN if not known."""
    values = pd.DataFrame(dict(effects)).T
    return (values > 0).astype(float).where(values.notna())


def latency_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `trials.latencies` that fit, with MACs and measured time as shares of the dense kernel's."""
    table = rows[rows["macs"] > 0].copy()
    table["kernel"] = [f"{s[0]}x{s[1]}x3x3 on {m}x{m}" for s, m in zip(table["shape"], table["map"], strict=True)]
    dense = table[table["form"] == "dense"].set_index("kernel")
    table["macs_share"] = table["macs"] / table["kernel"].map(dense["macs"])
    table["made_latency_share"] = table["made_latency_ms"] / table["kernel"].map(dense["made_latency_ms"])
    columns = "kernel form share parameters macs macs_share made_latency_ms made_latency_share"
    return table[columns.split()]
