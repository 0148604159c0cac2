"""Rows of the trials -> the statistics of the claims: rank correlations, predictions of unseen families, the contest.

Networks of one family are near copies of each other, so a statistic is taken within each family and averaged over
families; intervals are Student's, over families or networks.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from lib import stats
from lib.which.contest import BOTH, COSTS
from lib.which.measures import BASELINES, MEASURES, SET_BY_HAND

FLOOR = 1e-3  # nats: a smaller damage is noise of the test images
SMALLEST = 1e-9  # of a measure before its logarithm is taken
LOOK = "gap_few"
ONE_OF_EACH = ("relative_error", "output_error", "code_change")  # a measure of each view, for X.9
NETWORK = ("network", "dataset")
FACTORS = ("layer", "kind", "strength")  # of a change, within its network
DAMAGE = "gap_once"
DRAWS = 999  # permutations of each p


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of trials that did not fail."""
    return rows[rows["status"] == "done"].reset_index(drop=True)


def ranked_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of damage without the kinds of change whose strength is set by hand for each layer."""
    return table[~table["kind"].isin(SET_BY_HAND)]


def labels(table: pd.DataFrame, strata: Sequence[str]) -> np.ndarray:
    """A number for each row's combination of the columns `strata`."""
    return table.groupby(list(strata), sort=False).ngroup().to_numpy()


def correlation(table: pd.DataFrame, measure: str, outcome: str, strata: Sequence[str]) -> float:
    """`stats.rank_correlation` of two columns within strata."""
    return float(stats.rank_correlation(table[measure].to_numpy(), table[outcome].to_numpy(), labels(table, strata)))


def by_family(table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], unit: str = "family") -> pd.Series:
    """A statistic of the rows of each family, or of another unit."""
    return pd.Series({name: statistic(one) for name, one in table.groupby(unit, sort=False)}).dropna()


def estimated(values: pd.Series, p: float | None = None) -> dict:
    """`stats.mean_gain` of the values of families or networks, with another p if one is given."""
    return stats.mean_gain(values) | ({} if p is None else {"p": p})


def ranking(
    table: pd.DataFrame,
    measure: str,
    strata: Sequence[str],
    outcome: str = DAMAGE,
    unit: str = "family",
    factors: Sequence[str] = FACTORS,
) -> dict:
    """Spearman's correlation of a measure with an outcome within strata, mean over families or other units.

    The p is by permutation of whole layers, kinds or arms: outcomes of one layer, say, are no independent values. Each
    of the `factors` that strata leave free, but the strength, changes its labels within a network, all at once. Without
    factors it is Student's.
    """
    values = by_family(table, lambda one: correlation(one, measure, outcome, strata), unit)
    free = [factor for factor in factors if factor not in strata and factor != "strength"]
    if not free:
        return estimated(values)
    table = table.reset_index(drop=True)
    parts = [rows for rows in table.groupby(unit, sort=False).indices.values()]
    x, apart = table[measure].to_numpy(float), labels(table, [unit, *strata])

    def mean_correlation(outcomes: np.ndarray) -> np.ndarray:
        found = [stats.rank_correlation(x[rows], outcomes[..., rows], apart[rows]) for rows in parts]
        return np.nanmean(np.array(found), axis=0)

    y = table[outcome].to_numpy(float)
    return estimated(values, stats.upper_p(mean_correlation(y), mean_correlation(exchanged(table, y, factors, free))))


def exchanged(table: pd.DataFrame, y: np.ndarray, factors: Sequence[str], free: Sequence[str]) -> np.ndarray:
    """Outcomes (DRAWS, n) after the labels of the `free` factors change places within each network.

    A row takes the outcome of the row with its new labels; NaN where a network has none, such as merged nodes in a
    layer that reads none.
    """
    random, found = np.random.default_rng(0), np.full((DRAWS, len(y)), np.nan)
    network = [name for name in (*NETWORK, "name") if name in table]
    for rows in table.groupby(network, sort=False).indices.values():
        codes = [pd.factorize(table[factor].iloc[rows])[0] for factor in factors]
        places = np.full([code.max() + 1 for code in codes], -1)
        places[tuple(codes)] = rows
        for draw in range(DRAWS):
            sizes = zip(factors, places.shape, strict=True)
            order = [random.permutation(size) if name in free else np.arange(size) for name, size in sizes]
            source = places[tuple(new[code] for new, code in zip(order, codes, strict=True))]
            found[draw, rows] = np.where(source >= 0, y[source], np.nan)
    return found


def ranked_by(table: pd.DataFrame, measure: str, strata: Sequence[str], outcome: str = DAMAGE) -> pd.Series:
    """The correlation of each family; a baseline counts with the sign that it has on average in the other families."""
    values = by_family(table, lambda one: correlation(one, measure, outcome, strata))
    if measure not in BASELINES:
        return values
    return values * pd.Series({name: np.sign(values.drop(index=name).mean()) for name in values.index})


def ranking_gain(table: pd.DataFrame, measure: str, other: str, strata: Sequence[str], outcome: str = DAMAGE) -> dict:
    """How much more closely one measure ranks an outcome than another does: difference, mean over families."""
    ours, theirs = (ranked_by(table, name, strata, outcome) for name in (measure, other))
    return estimated((ours - theirs).dropna())


def correlations(table: pd.DataFrame, questions: dict[str, Sequence[str]], outcome: str = DAMAGE) -> pd.DataFrame:
    """Spearman's correlation of every measure and baseline, by question (its strata), mean over families."""
    names = [*MEASURES, *BASELINES, LOOK]
    found = {
        question: [ranked_by(table, name, strata, outcome).mean() for name in names]
        for question, strata in questions.items()
    }
    return pd.DataFrame(found, index=names)


def ceilings(table: pd.DataFrame, questions: dict[str, Sequence[str]]) -> pd.Series:
    """Spearman's correlation that damage without noise would have with measured damage, mean over families.

    From the correlation r of damage on two halves of the test images: sqrt(2 r / (1 + r)), Spearman and Brown's
    reliability of the whole, as an index; 0 for r below 0.
    """
    found = {}
    for question, strata in questions.items():
        of_halves = by_family(table, lambda one, s=strata: correlation(one, "gap_odd", "gap_even", s)).clip(lower=0)
        found[question] = np.sqrt(2 * of_halves / (1 + of_halves)).mean()
    return pd.Series(found)


def look_first(table: pd.DataFrame, strata: Sequence[str], outcome: str = DAMAGE) -> dict:
    """Gain of the loss on few images over the measure that ranks best in the other families; see X.7."""
    by_measure = pd.DataFrame(
        {m: by_family(table, lambda one, m=m: correlation(one, m, outcome, strata)) for m in (LOOK, *MEASURES)}
    )
    gains = {}
    for name in by_measure.index:
        best = by_measure.drop(index=name)[list(MEASURES)].mean().idxmax()
        gains[name] = by_measure.loc[name, LOOK] - by_measure.loc[name, best]
    return estimated(pd.Series(gains))


def design(table: pd.DataFrame, predictors: Sequence[str]) -> np.ndarray:
    """A constant, and logarithm and its square of each predictor; the depth counts as it is.

    A value below the smallest hundredth of the positive ones counts as these. An undefined one, which is that of a zero
    kernel, counts as the largest.
    """
    columns = [np.ones(len(table))]
    for name in predictors:
        values = table[name].astype(float)
        if name != "depth":
            values = np.log10(values.fillna(values.max()).clip(lower=max(values[values > 0].quantile(0.01), SMALLEST)))
        columns += [values.to_numpy(), values.to_numpy() ** 2]
    return np.column_stack(columns)


def log_damage(table: pd.DataFrame, outcome: str = DAMAGE) -> np.ndarray:
    """Logarithm of damage; below FLOOR it counts as FLOOR."""
    return np.log10(table[outcome].clip(lower=FLOOR).to_numpy())


def left_out(table: pd.DataFrame, predictors: Sequence[str], outcome: str = DAMAGE, unit: str = "family") -> pd.Series:
    """R² of the log damage in each family, by least squares on the other families (`design`).

    The reference is the mean of the left-out family itself, which no prediction knows: R² may be negative.
    """
    x, y, units = design(table, predictors), log_damage(table, outcome), table[unit].to_numpy()
    found = {}
    for name in pd.unique(units):
        out = units == name
        slopes = np.linalg.lstsq(x[~out], y[~out], rcond=None)[0]
        found[name] = 1 - ((y[out] - x[out] @ slopes) ** 2).sum() / ((y[out] - y[out].mean()) ** 2).sum()
    return pd.Series(found)


def best_measures(table: pd.DataFrame, outcome: str = DAMAGE, unit: str = "family") -> pd.Series:
    """For each family, the measure that predicts best among the others, each of these left out in turn."""
    found = {}
    for name in table[unit].unique():
        others = table[table[unit] != name]
        found[name] = max(MEASURES, key=lambda m, others=others: left_out(others, [m], outcome, unit).mean())
    return pd.Series(found)


def unseen(table: pd.DataFrame, outcome: str = DAMAGE, unit: str = "family") -> pd.DataFrame:
    """R² in each left-out family: of the `measure` that is best among the others, `one`, and of ONE_OF_EACH, `set`."""
    best, together = best_measures(table, outcome, unit), left_out(table, ONE_OF_EACH, outcome, unit)
    one = {name: left_out(table, [measure], outcome, unit)[name] for name, measure in best.items()}
    return pd.DataFrame({"measure": best, "one": pd.Series(one), "set": together})


def predictions(table: pd.DataFrame, outcome: str = DAMAGE) -> pd.DataFrame:
    """Mean, least and largest R² in a left-out family of each measure and baseline alone, and of sets."""
    sets = {name: [name] for name in (*MEASURES, *BASELINES, LOOK)}
    sets |= {"one of each view": ONE_OF_EACH, "all measures": MEASURES, "size + depth": BASELINES}
    found = {name: left_out(table, predictors, outcome) for name, predictors in sets.items()}
    return pd.DataFrame(
        {name: {"mean": r2.mean(), "least": r2.min(), "most": r2.max()} for name, r2 in found.items()}
    ).T


def seconds(table: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of each measure of one change (`made_seconds`), by measure, once the dense network is measured."""
    columns = {name: table.get(f"made_seconds_{name}") for name in (*MEASURES, LOOK)}
    columns["taylor_2"] = columns["taylor_1"] + columns["curvature_ap3"]  # it adds these two
    found = {name: column.median() for name, column in columns.items() if column is not None}
    return pd.Series(found, name="made_seconds").rename_axis("measure").reset_index()


def advice(found: pd.DataFrame, seconds: pd.DataFrame) -> pd.DataFrame:
    """For each question the measure that ranks best, with its seconds, and the best baseline and plain look beside it.

    `found` is what `correlations` returns.
    """
    price = seconds.set_index("measure")["made_seconds"]
    rows = {}
    for question, values in found.items():
        best, plain = values[list(MEASURES)].idxmax(), values[list(BASELINES)].idxmax()
        rows[question] = {"measure": best, "correlation": values[best], "seconds": price[best]}
        rows[question] |= {"best baseline": plain, "its correlation": values[plain], "looking": values[LOOK]}
    return pd.DataFrame(rows).T


def climbs(rows: pd.DataFrame) -> pd.DataFrame:
    """The rungs of all ladders, a row each."""
    lists = ["mcb", "tilt", "kept_parameters", "relative_ap2", "loss", "accuracy"]
    return rows[[*NETWORK, "family", "kept", *lists]].explode(lists).astype(dict.fromkeys(lists, float))


def within_networks(table: pd.DataFrame, x: str, y: str, unit: str = "family") -> dict:
    """Spearman's correlation of two columns within networks, mean over families or networks."""
    return ranking(table, x, NETWORK, y, unit, ())


def twins(rows: pd.DataFrame) -> pd.DataFrame:
    """The layers of all networks, a row each: `missing_entropy` and `redundant`, both against random layers.

    `missing_entropy` is a share of the random kernel's; `redundant` is how much nearer the nearest twin is.
    """
    lists = ["layer", "nodes", "fan_in", "entropy", "random_entropy", "redundancy", "random_redundancy"]
    table = rows[[*NETWORK, "family", *lists]].explode(lists).astype(dict.fromkeys(lists[1:], float))
    missing = 1 - table["entropy"] / table["random_entropy"]
    nearer = 1 - table["redundancy"] / table["random_redundancy"]
    return table.assign(missing_entropy=missing, redundant=nearer).reset_index(drop=True)


def with_name(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the column `name`, network/dataset."""
    return rows.assign(name=rows["network"] + "/" + rows["dataset"])


def falls(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `fall`, the accuracy (points) that an arm is below the dense network retrained alike."""
    asked = [*NETWORK, "retrain_lr", "retrain_seed"]
    dense = rows[rows["arm"] == "dense"].set_index(asked)["accuracy_retrained"].rename("of_dense")
    table = rows.join(dense, on=asked)
    return rows.assign(fall=table["of_dense"] - table["accuracy_retrained"])


def standings(rows: pd.DataFrame, outcome: str = "accuracy_retrained") -> pd.DataFrame:
    """Accuracy (%) of each arm, averaged over budgets: a row for each network and cost, a column for each arm.

    NaN for an arm that lacks a budget or a seed, of which a mean over the rest would say too much.
    """
    table = with_name(rows[rows["arm"] != "dense"]).pivot_table(
        index=["cost", "name"], columns="arm", values=outcome, aggfunc=["mean", "count"], sort=False
    )
    return table["mean"].where(table["count"] == table["count"].max().max())


def at_equal_time(rows: pd.DataFrame, column: str) -> pd.Series:
    """Accuracy (%) of each arm of one network at one measured time, the median over all rows, best first.

    Linear between the two points of an arm around it, in the logarithm of the time; NaN where it has none on a side.
    """
    target, found = rows[column].median(), {}
    for arm, own in rows.sort_values(column).groupby("arm", sort=False):
        x, y = np.log(own[column].to_numpy()), own["accuracy_retrained"].to_numpy()
        found[arm] = np.interp(np.log(target), x, y, left=np.nan, right=np.nan)
    return pd.Series(found).sort_values(ascending=False)


def winners_elsewhere(table: pd.DataFrame, group: Sequence[str]) -> pd.Series:
    """Accuracy on each network of the arm of a group that is best on the other networks; a row a network."""
    own = table[[arm for arm in group if arm in table]]
    return pd.Series({name: own.loc[name, own.drop(index=name).mean().idxmax()] for name in own.index})


def duel(table: pd.DataFrame, ours: Sequence[str], theirs: Sequence[str]) -> dict:
    """Accuracy of the best of our arms minus that of the best of theirs, both chosen on the other networks."""
    return estimated(winners_elsewhere(table, ours) - winners_elsewhere(table, theirs))


def combined(table: pd.DataFrame) -> dict:
    """Accuracy of BOTH minus that of uniform channels or weighted ranks, whichever is best on the other networks."""
    return estimated(table[BOTH] - winners_elsewhere(table, ("uniform channels", "weighted ranks")))


def agreement(table: pd.DataFrame) -> dict:
    """Spearman's correlation of arms' accuracies at equal parameters and at equal MACs, mean over networks."""
    pairs = [table.loc[cost].dropna(axis=1) for cost in COSTS]
    arms = [arm for arm in pairs[0] if arm in pairs[1]]
    first, second = (one[arms].stack() for one in pairs)
    both = pd.DataFrame({"parameters": first, "macs": second}).rename_axis(["name", "arm"]).reset_index()
    return ranking(both, "parameters", ["name"], "macs", "name", ["arm"])


def told(rows: pd.DataFrame, measure: str, outcome: str = "loss_retrained") -> dict:
    """Spearman's correlation of a measure before retraining with an outcome after it, at equal cost; see X.18."""
    table = with_name(rows[rows["arm"] != "dense"])
    places = ["cost", "budget", "retrain_seed"]
    return ranking(table, measure, ["name", *places], outcome, "name", ["arm", *places])


def mean_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Mean rank of each arm over networks (1 is best) with Student's interval."""
    ranks = table.dropna(axis=1).rank(axis=1, ascending=False)
    found = {}
    for arm in ranks:
        own = stats.mean_estimate(ranks[arm])
        found[arm] = {"mean_rank": own["value"], "low": own["low"], "high": own["high"], "n": own["n"]}
    return pd.DataFrame(found).T.sort_values("mean_rank").rename_axis("arm").reset_index()


def pairs_apart(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of arms whose difference in accuracy has a Student interval, over networks, that excludes 0."""
    apart = []
    for one, other in itertools.combinations(table.dropna(axis=1), 2):
        found = stats.mean_gain(table[one] - table[other])
        if found["low"] > 0 or found["high"] < 0:
            apart.append((one, other))
    return apart
