"""The statistics of paper 4, on rows of its trials."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from lib import stats
from lib.spline import attention, measures


def distances(row: pd.Series, probes: str = "canvas") -> np.ndarray:
    """Code distances (T, T) between all epochs of a search; probes may also be "units", the other weighting."""
    flat = np.asarray(row[f"distance_{probes}"], dtype=float)
    return flat.reshape(int(len(flat) ** 0.5), -1)


def slope(step: Sequence[float], drop: int, share: float = 0.5) -> float:
    """Slope of log2 d(t, t - 1) over the last part of the epochs before the rate first falls, in doublings per ten.

    Args:
        step: d(t, t - 1) from epoch 2 on.
        drop: epochs trained when the rate first falls.
        share: part of the epochs before the fall that is read, at least three of them.

    Source: P4.5 names no rule; this companion's.
    """
    part = np.asarray(step, dtype=float)[: drop - 1]
    part = np.log2(np.maximum(part[-max(3, round(share * drop)) :], 1e-12))
    return float(10 * np.polyfit(np.arange(len(part)), part, 1)[0])


def epochs_at_early_bird(matrix: np.ndarray) -> int:
    """Trained epochs at the early-bird epoch of the released rule, or 3/4 of all epochs if it never fires."""
    found = measures.early_bird_epoch(matrix)
    return len(matrix) * 3 // 4 if found is None else found + 1


def settled(step: Sequence[float], drop: int, epochs: int = 5) -> float:
    """Mean of d(t, t - 1) over the last epochs before the rate first falls."""
    return float(np.mean(step[drop - 1 - epochs : drop - 1]))


def last_steps(step: Sequence[float], share: float = 0.1) -> float:
    """Mean of log2 d(t, t - 1) over the last part of a training."""
    part = np.asarray(step, dtype=float)[-max(2, round(share * len(step))) :]
    return float(np.log2(np.maximum(part, 1e-12)).mean())


def early_bird_epochs(row: pd.Series) -> dict[str, float]:
    """Epochs, counted from 0, at which variants of the detector fire on a search; NaN for never."""
    rules = {f"< {t}": {"threshold": t} for t in (0.08, measures.THRESHOLD, 0.24)}
    rules |= {f"lookback {k}": {"lookback": k} for k in (1, 5)} | {"relative": {"threshold": 0.1, "relative": True}}
    found = {name: measures.early_bird_epoch(distances(row), **options) for name, options in rules.items()}
    found |= {probes: measures.early_bird_epoch(distances(row, probes)) for probes in ("images", "noise", "units")}
    return {name: np.nan if epoch is None else epoch for name, epoch in found.items()}


def gap_closed(rows: pd.DataFrame, method: str, when: str = "") -> np.ndarray:
    """Share of the accuracy between the mean and the best subset that a method's choice reaches, for each network.

    `when` is "", "_test" or "_tuned"; NaN where all subsets are equally good.
    """
    pairs = zip(rows["chosen" + when], rows["method"], strict=True)
    chosen = np.array([list(own)[list(names).index(method)] for own, names in pairs])
    room = (rows["best" + when] - rows["mean" + when]).to_numpy()
    return np.divide(chosen - rows["mean" + when], room, out=np.full(len(room), np.nan), where=room > 0)


def swept(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `toy.scratch` with one checkpoint as `width`, `seed`, `accuracy` and `arms`, one row a network."""
    last = rows.assign(accuracy=rows["accuracy"].map(lambda values: values[-1]))
    long = one_row_per_entry(last, ["seeds", "accuracy", "arms"], ["level"])
    return long.rename(columns={"seeds": "seed", "level": "width"})


def by_route(rows: pd.DataFrame) -> pd.Series:
    """Accuracies (%) over seeds, from rows of `contests.routes`, by depth, width, epochs, route, factor and method."""
    names = ["depth", "width", "epochs", "route", "factor", "method"]
    return one_row_per_entry(rows, [*names[3:], "accuracy"], names[:3]).set_index(names)["accuracy"].map(np.array)


def gains_of_routes(routes: pd.Series, method: str) -> pd.DataFrame:
    """What pruning by a method gains over training from scratch (points): `stats.mean_gain` by case and factor."""
    table = []
    for (depth, width, epochs, _, factor, own), accuracy in routes.items():
        if own == method:
            gain = stats.mean_gain(accuracy - routes[depth, width, epochs, "scratch", 1, ""])
            table.append({"depth": depth, "width": width, "epochs": epochs, "factor": factor} | gain)
    return pd.DataFrame(table)


def curves(networks: pd.DataFrame, measure: str, radius: float) -> np.ndarray:
    """A measure of `migration.migrating` by network and checkpoint, at one of its radii; rows have one network each."""
    place, count = list(networks["radii"].iloc[0]).index(radius), len(networks["radii"].iloc[0])
    return np.stack([np.reshape(np.asarray(own, dtype=float), (-1, count))[:, place] for own in networks[measure]])


def late_change(networks: pd.DataFrame, measure: str, radius: float) -> np.ndarray:
    """log2 of a measure at the end over that at a sixteenth of the training, by network; NaN where it did not exist."""
    epochs, found = list(networks["epochs"].iloc[0]), curves(networks, measure, radius)
    first = found[:, epochs.index(epochs[-1] / 16)]
    return np.log2(found[:, -1] / np.where(first > 0, first, np.nan))


def unsettled(networks: pd.DataFrame, rule: str, checkpoint: int = -1) -> np.ndarray:
    """Code distance from the early bird of a rule to a checkpoint, over that from the untrained network, by network."""
    bird, start = (np.stack(list(networks[name]))[:, checkpoint] for name in (f"from_{rule}", "from_start"))
    return np.asarray(bird, dtype=float) / np.where(start > 0, start, np.nan)


def paired(rows: pd.DataFrame, column: str, first: dict, second: dict, units: Sequence[str]) -> pd.Series:
    """Difference of a column between two sets of rows, by unit; a set with several rows a unit is averaged first."""

    def by_unit(wanted: dict) -> pd.Series:
        chosen = (rows[list(wanted)] == pd.Series(wanted)).all(axis=1)
        return rows[chosen].groupby(list(units), sort=False)[column].mean()

    return (by_unit(first) - by_unit(second)).dropna()


def one_row_per_entry(rows: pd.DataFrame, columns: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Rows whose cells hold lists, one row per list entry; keys are repeated."""
    return rows[[*columns, *keys]].explode(list(columns), ignore_index=True).infer_objects()


def size_correlation(share: Sequence[float], *sizes: Sequence[float]) -> float:
    """The largest |Spearman's correlation| of the share pruned per layer with one of several sizes of the layers."""
    if np.ptp(share) == 0:
        return 0.0
    return max(abs(float(scipy_stats.spearmanr(share, size).statistic)) for size in sizes if np.ptp(size) > 0)


def signed_correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Signed rank correlations of the share pruned per layer with `fan_in` and `width_of`; 0 if either does not vary.

    There is a row for each of the rows' `case`, filters ("own" or "random") and rows ("full" or "reduced").
    """
    found = []
    for _, row in rows.iterrows():
        for filters, label in product(("trained", "random"), ("full", "reduced")):
            share = row[f"share_{filters}_{label}"]
            entry = {"case": row["case"], "filters": "own" if filters == "trained" else filters, "rows": label}
            for size in ("fan_in", "width_of"):
                varies = np.ptp(share) > 0 and np.ptp(row[size]) > 0
                entry[size] = float(scipy_stats.spearmanr(share, row[size]).statistic) if varies else 0.0
            found.append(entry)
    return pd.DataFrame(found)


def size_excess(rows: pd.DataFrame, *sizes: str) -> np.ndarray:
    """How much the reduction frees filters from the sizes of their layers, beyond random filters; one value a row.

    It is the largest |rank correlation| of the share pruned with one of the columns `sizes`, filters minus random ones
    of the same shapes, of full rows minus that of reduced ones.
    """

    def follows(row: pd.Series, filters: str, label: str) -> float:
        return size_correlation(row[f"share_{filters}_{label}"], *(row[size] for size in sizes))

    def beyond(row: pd.Series, label: str) -> float:
        return follows(row, "trained", label) - follows(row, "random", label)

    return np.array([beyond(row, "full") - beyond(row, "reduced") for _, row in rows.iterrows()])


def saved(row: pd.Series, way: str) -> float:
    """Share (%) of the operations of a network that a way to skip idle nodes saves."""
    return float(100 * (1 - np.sum(row[way]) / np.sum(row["dense"])))


def log_bend(row: pd.Series, hold: Sequence[str], length: float, when: str = "") -> float:
    """log10 of a transformer's deviation from the chord with some parts held, trained or `when` "_untrained"."""
    table = np.reshape(row[f"log_bend{when}"], (len(attention.HELD), len(attention.LENGTHS)))
    return float(table[attention.HELD.index(tuple(hold)), attention.LENGTHS.index(length)])


def smooth_over_code(row: pd.Series, length: float = 0.1, when: str = "") -> float:
    """log10 of the bend by attention and LayerNorm over the bend by the code, along a segment of some length."""
    return log_bend(row, ("gates",), length, when) - log_bend(row, attention.SMOOTH, length, when)


def kept_ranking(kept: pd.DataFrame, column: str = "rank") -> pd.DataFrame:
    """Mean of a column of reductions over layers and dimensions that all kinds have, by filters, unit and kind.

    The rows hold `case`, `seed`, `layer`, `filters`, `kind` and `dim`.
    """
    several = kept[kept["kind"] != "none"]
    keys = ["case", "seed", "layer", "filters", "dim"]
    common = several.groupby(keys)["kind"].transform("nunique") == several["kind"].nunique()
    return several[common].groupby(["filters", "case", "seed", "kind"], sort=False)[column].mean().unstack()


def densities(rows: pd.DataFrame, middle: str = "median") -> pd.DataFrame:
    """Rows of `trials.surroundings` as one row a training, kind and radius; a training is the median of its images.

    The mean, the other `middle`, is that of a few images: one with plain areas can hold most of the lines.

    Returns:
        `case`, `labels`, `seed`, `kind`, `radius`; `density`, a list over the epochs of `at`; `late`, log2 of the last
        of them over the second, which is the early bird's.
    """
    found = []
    for _, row in rows.iterrows():
        own = pd.DataFrame({name: row[name] for name in ("epoch_seen", "kind", "radius", "density")})
        for (kind, radius), images in own.groupby(["kind", "radius"], sort=False):
            density = images.groupby("epoch_seen")["density"].agg(middle).reindex(row["at"]).tolist()
            late = np.log2(density[-1] / density[1]) if min(density[-1], density[1]) > 0 else np.nan
            entry = {"case": row["case"], "labels": row["labels"], "seed": row["seed"], "kind": kind, "radius": radius}
            found.append(entry | {"density": density, "late": late})
    return pd.DataFrame(found)
