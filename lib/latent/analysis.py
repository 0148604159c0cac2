"""Rows of paper 1's studies as tables by epoch, and its verdict statistics.

A configuration is a case (network and data set), a method and a fraction; statistics are dictionaries with `value`,
`low`, `high`, `n` and, where they have one, `p`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats

from lib.latent import measures as latent
from lib.latent.measures import kl_student_t
from lib.latent.trials import DF, GROUPS
from lib.masks import METHODS
from lib.stats import (
    percentile_interval,
    permutation_p,
    rank_correlation,
    rank_correlation_interval,
    resampled,
    same_order,
    separation,
)

KEY = ["case", "method", "fraction"]
PAIRS = [("lowest", "random"), ("random", "highest"), ("lowest", "highest")]
SERIES = ["ap2", "ap2_to_last", "r2", "t_ap3", "fisher_ap3", "train_loss", "test_loss", "test_accuracy"]


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `case`, "network, data set"."""
    return rows.assign(case=rows["network"] + ", " + rows["dataset"])


def by_epoch(heads: pd.DataFrame, fractions: Sequence[float]) -> pd.DataFrame:
    """The rows of `latent_trials.heads`, one an epoch, with performance differences and the lambda rule applied.

    Returns: added are `epoch`, `pd` (points), `gap` and `train_gap` (nats), `largest_ap2` of the configurations that
        have one of the fractions (epochs 1 on, by case and trial), `kl` = 1.9 ap2 / largest_ap2, and `scaled_r2`, the
        squared distance of group means for the covariance I / lambda.
    """
    record = heads[heads["status"] == "done"].explode(SERIES).reset_index(drop=True)
    record[SERIES] = record[SERIES].astype(float)
    record["epoch"] = record.groupby(["case", "structure", "mode", "method", "fraction", "trial"]).cumcount()
    record["pd"] = (record["dense_test_accuracy"] - record["test_accuracy"]).abs()
    record["gap"] = (record["test_loss"] - record["dense_test_loss"]).abs()
    record["train_gap"] = (record["train_loss"] - record["dense_train_loss"]).abs()
    plain = (record["structure"] == "weights") & (record["mode"] == "paper") & record["fraction"].isin(fractions)
    largest = record[plain & (record["epoch"] > 0)].groupby(["case", "trial"])["ap2"].max().rename("largest_ap2")
    record = record.merge(largest.reset_index(), on=["case", "trial"])
    record["kl"] = latent.KL_LIMIT * record["ap2"] / record["largest_ap2"]
    record["scaled_r2"] = 2 * latent.KL_LIMIT * record["r2"] / record["largest_ap2"]
    return record


def matrix(rows: pd.DataFrame, column: str, key: Sequence[str] = KEY) -> pd.DataFrame:
    """One column as a table (configurations, trials)."""
    return rows.pivot_table(column, list(key), "trial", sort=False)


def text(found: dict) -> str:
    """A statistic with its interval, to stand in a table."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def strata(table: pd.DataFrame, *levels: str) -> list[tuple]:
    """For each row of a table the values of some index levels."""
    return list(zip(*(table.index.get_level_values(level) for level in levels), strict=True))


def correlation(x: pd.DataFrame, y: pd.DataFrame, *within: str) -> dict:
    """Rank correlation of means over trials within index levels, with interval and permutation p."""
    groups = strata(x, *within) if within else []
    a, b = x.mean(axis=1).to_numpy(), y.mean(axis=1).to_numpy()
    low, high = rank_correlation_interval(x, y, groups, seed=2)
    p = permutation_p(lambda values: rank_correlation(a, values, groups), b, groups, seed=2)
    return {"value": rank_correlation(a, b, groups), "low": low, "high": high, "p": p, "n": len(x)}


def pairs_within_method(table: pd.DataFrame, left_out: tuple[str, set[float]]) -> np.ndarray:
    """(pairs, 2) places of configurations that differ in fraction alone; one pair of fractions of one method is out."""
    index = list(table.index)
    places = [(i, j) for i in range(len(index)) for j in range(i) if index[i][:2] == index[j][:2]]
    return np.array([(i, j) for i, j in places if (index[i][1], {index[i][2], index[j][2]}) != left_out])


def pair_agreement(x: pd.DataFrame, y: pd.DataFrame, pairs: np.ndarray) -> dict:
    """Share of pairs that means over trials order alike, a tie counting half; p by exchange within case and method."""
    x_values, y_values = x.to_numpy(), y.to_numpy()

    def share(a: np.ndarray, b: np.ndarray, chosen: np.ndarray = pairs) -> np.ndarray:
        i, j = chosen.T
        return (1 + np.sign((a[i] - a[j]) * (b[..., i] - b[..., j]))).mean(-1) / 2

    def drawn(trials: np.ndarray, units: np.ndarray) -> float:
        return share(x_values[:, trials].mean(1), y_values[:, trials].mean(1), pairs[units])

    a, b = x_values.mean(1), y_values.mean(1)
    low, high = percentile_interval(resampled(drawn, x.shape[1], len(pairs), seed=1))
    p = permutation_p(lambda values: share(a, values), b, strata(x, "case", "method"), seed=1)
    return {"value": float(share(a, b)), "low": low, "high": high, "p": p, "n": len(pairs)}


def order_disagreement(rows: pd.DataFrame, measure: str, against: str) -> dict:
    """Share of epochs in which a measure and a difference order the three methods differently, over all panels.

    A panel is a case and a fraction; p is binomial against the chance order, with a panel as one unit.
    """
    wide = rows[rows["epoch"] > 0].pivot_table([measure, against], ["case", "fraction", "epoch"], ["method", "trial"])
    trials, epochs = rows["trial"].nunique(), rows["epoch"].max()
    x, y = (wide[name].to_numpy().reshape(-1, epochs, len(METHODS), trials) for name in (measure, against))

    def differ(chosen: np.ndarray, units: np.ndarray) -> float:
        return 1 - same_order(x[units][..., chosen].mean(-1), y[units][..., chosen].mean(-1)).mean()

    value = differ(np.arange(trials), np.arange(len(x)))
    low, high = percentile_interval(resampled(differ, trials, len(x), seed=3))
    p = stats.binomtest(round((1 - value) * len(x)), len(x), 1 / 6, alternative="greater").pvalue
    return {"value": value, "low": low, "high": high, "p": p, "n": len(x)}


def border_contrast(rows: pd.DataFrame, squared: str, border: float = 2.0) -> dict:
    """Agreement of t-AP3 and PD in order: pairs below a t-AP3 minus pairs above it.

    Pairs share a method or a fraction, not both; a pair is below (above) in an epoch if both of its t-AP3 are. Pairs
    across the border are left out: they lie far apart, and agree more wherever the border is. The interval is over
    configurations, which are drawn, and not over their pairs, which overlap; draws without a pair on both sides do not
    count. squared: the column of squared distances of group means.
    """
    mean = rows[rows["epoch"] > 0].groupby([*KEY, "epoch"])[[squared, "pd"]].mean().unstack("epoch")
    weights = rows.groupby("case")["weights"].first()
    dim = [-(-weights[case] // max(weights[case] // GROUPS, 1)) for case in mean.index.get_level_values("case")]
    radius = torch.tensor(np.sqrt(mean[squared].to_numpy()))
    kl = np.stack([kl_student_t(r, d, DF).numpy() for r, d in zip(radius, dim, strict=True)])
    loss, index = mean["pd"].to_numpy(), list(mean.index)
    pairs = [(i, j) for i in range(len(kl)) for j in range(i) if index[i][0] == index[j][0]]
    pairs = [(i, j) for i, j in pairs if (index[i][1] == index[j][1]) != (index[i][2] == index[j][2])]
    i, j = np.array(pairs).T
    alike = (1 + np.sign((kl[i] - kl[j]) * (loss[i] - loss[j]))) / 2
    below, above = (kl[i] < border) & (kl[j] < border), (kl[i] >= border) & (kl[j] >= border)

    def part(chosen: np.ndarray, units: np.ndarray) -> float:
        times = np.bincount(units, minlength=len(index))
        weight = (times[i] * times[j])[:, None] * chosen
        return (weight * alike).sum() / weight.sum() if weight.any() else np.nan

    every = np.arange(len(index))
    shares = {"below": below.mean(), "above": above.mean()}
    shares |= {"agree below": part(below, every), "agree above": part(above, every)}
    value, low, high = shares["agree below"] - shares["agree above"], np.nan, np.nan
    if np.isfinite(value):
        low, high = percentile_interval(
            resampled(lambda rows: part(below, rows) - part(above, rows), len(index), seed=4)
        )
    return shares | {"value": value, "low": low, "high": high, "n": len(index)}


def order_at_equal_ap2(blocks: pd.DataFrame, column: str) -> dict:
    """Rank correlation of a measure with the loss gap within blocks of equal AP2; the interval draws configurations.

    blocks: `block`, `configuration`, `gap` and the measure. Blocks of one configuration are its trials, which share the
    pruned weights wherever masks are deterministic and the dense network is one; n counts configurations.
    """
    ranks = blocks.groupby("block", sort=False)[[column, "gap"]].rank()
    ranks -= ranks.groupby(blocks["block"]).transform("mean")
    products = pd.DataFrame({"xy": ranks[column] * ranks["gap"], "xx": ranks[column] ** 2, "yy": ranks["gap"] ** 2})
    products = products.groupby(blocks["configuration"], sort=False).sum().to_numpy()

    def rho(units: np.ndarray) -> float:
        xy, xx, yy = products[units].sum(0)
        return xy / np.sqrt(xx * yy)

    low, high = percentile_interval(resampled(rho, len(products), seed=7))
    return {"value": rho(np.arange(len(products))), "low": low, "high": high, "n": len(products)}


def own_against_others(kl_gap: np.ndarray, gap: np.ndarray, case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kendall's tau over epochs of each loss gap with its own KL gap, and its mean with those of the case's others.

    kl_gap, gap: (configurations, epochs). case: (configurations,).
    """
    tau = np.array([[stats.kendalltau(k, g).statistic for k in kl_gap] for g in gap])
    tau[case[:, None] != case] = np.nan
    own = np.diag(tau).copy()
    np.fill_diagonal(tau, np.nan)
    return own, np.nanmean(tau, axis=1)


def rank_advantage(better: pd.DataFrame, other: pd.DataFrame, target: pd.DataFrame, *within: str) -> dict:
    """Rank correlation of one measure with a target minus that of another; `tied` if both rank alike in every stratum.

    better, other, target: (configurations, trials), as `matrix` returns them. within: index levels that make strata.
    """
    labels = np.unique([str(group) for group in strata(target, *within)], return_inverse=True)[1]
    arrays = [frame.to_numpy() for frame in (better, other, target)]

    def difference(trials: np.ndarray, units: np.ndarray) -> float:
        a, b, y = (array[:, trials].mean(1)[units] for array in arrays)
        return rank_correlation(a, y, labels[units]) - rank_correlation(b, y, labels[units])

    low, high = percentile_interval(resampled(difference, target.shape[1], len(target), seed=8))
    value = difference(np.arange(target.shape[1]), np.arange(len(target)))
    ranks = [frame.mean(axis=1).groupby(labels).rank() for frame in (better, other)]
    return {"value": value, "low": low, "high": high, "n": len(target), "tied": bool(ranks[0].equals(ranks[1]))}


def separations(final: pd.DataFrame, measures: Sequence[str] = ("ap2", "t_ap3")) -> pd.DataFrame:
    """For each pair of methods at one fraction of a case: how far apart each measure puts them.

    final: rows of one epoch. Returns, for each measure, whether the difference of mean logarithms is at least two
    pooled standard deviations over trials (`separated`), and its size in factors of ten (`gap`).
    """
    rows = []
    for (case, fraction), part in final.groupby(["case", "fraction"], sort=False):
        for pair in PAIRS:
            line = {"case": case, "fraction": fraction, "pair": ", ".join(pair)}
            for name in measures:
                a, b = (np.log10(part.loc[part["method"] == m, name].clip(lower=1e-12)) for m in pair)
                line |= {f"{name} separated": separation(a, b) >= 2, f"{name} gap": abs(a.mean() - b.mean())}
            rows.append(line)
    return pd.DataFrame(rows)


def ablated(projections: pd.DataFrame) -> pd.DataFrame:
    """Means over trials of t-AP3 by number of groups, as stored (`contiguous`) and `shuffled`."""
    asked = [f"{order}_{what}" for order in ("contiguous", "shuffled") for what in ("dim", "r2", "t_ap3")]
    rows = projections.explode(["groups", *asked]).astype(dict.fromkeys(["groups", *asked], float))
    return rows.groupby(["case", "fraction", "method", "groups"], sort=False)[[*asked, "ap2"]].mean().reset_index()


def method_orders(rows: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """The methods in the order of each measure, by case and fraction, as text; rows are one a method."""
    wide = rows.pivot(index=["case", "fraction"], columns="method", values=list(measures))
    return pd.DataFrame(
        {m: [" < ".join(row.sort_values().index) for _, row in wide[m].iterrows()] for m in measures}, wide.index
    )


def with_bounds(rows: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Rows by epoch with both sides of the bounds on the training-loss gap, for the covariance I / lambda.

    rows: of pruned heads, as `by_epoch` returns them. features: rows of `latent_trials.features` with `case`.
    Returns: added are `lemma` (Lemma 2, infinite from a KL of 2 on), `core` (half the largest eigenvalue of the dense
        Hessian times AP2), `slope` (gradient norm times distance: what a gradient that is not zero can add), and for
        both bounds `fails` and `over gap`.
    """
    seed = features["seed"] if "seed" in features else pd.Series(np.nan, features.index)
    dense = features.assign(trial=seed)[["case", "trial", "hessian_max", "gradient_norm"]]
    trials = pd.DataFrame({"trial": sorted(set(rows["trial"]))})
    shared = dense[dense["trial"].isna()].drop(columns="trial").merge(trials, how="cross")
    dense = pd.concat([dense[dense["trial"].notna()], shared]).astype({"trial": rows["trial"].dtype})
    found = rows.merge(dense, on=["case", "trial"], how="left", validate="many_to_one")
    trace = found["weights"] * found["largest_ap2"] / (2 * latent.KL_LIMIT)
    columns = zip(found["kl"], found["hessian_max"], trace, strict=True)
    found["lemma"] = [latent.performance_bound(kl, value, t, t).item() for kl, value, t in columns]
    found["core"] = found["hessian_max"] * found["ap2"] / 2
    found["slope"] = found["gradient_norm"] * np.sqrt(found["ap2"])
    for bound in ("lemma", "core"):
        found[f"{bound} fails"] = found["train_gap"] > found[bound]
        found[f"{bound} over gap"] = found[bound] / found["train_gap"]
    return found


def control_rows(projections: pd.DataFrame) -> pd.DataFrame:
    """One row a change of equal AP2 (the pruning itself, and draws of its controls), with its PD and loss gap.

    Raises ValueError if AP2 within a block differs by more than single precision explains.
    """
    columns = [name for name in projections if name.startswith("control")]
    other = projections.explode(columns)
    numeric = [name for name in columns if name != "control"]
    other[numeric] = other[numeric].astype(float)
    if (worst := (other["control_ap2"] / other["ap2"] - 1).abs().max()) >= 1e-4:
        raise ValueError(f"AP2 of a control differs from that of its pruning by a factor of 1 + {worst:.1g}.")
    other["gap"] = (other["control_test_loss"] - other["dense_test_loss"]).abs()
    other["pd"] = (other["control_test_accuracy"] - other["dense_test_accuracy"]).abs()
    other["configuration"] = other[KEY].astype(str).agg(", ".join, axis=1)
    other["block"] = other["configuration"] + ", " + other["trial"].astype(str)
    return other


def block_means(other: pd.DataFrame) -> pd.DataFrame:
    """Mean loss gap and curvature AP3 of pruning and controls, over the geometric mean of the kinds at equal AP2."""
    means = other.groupby([*KEY, "control"], sort=False)[["control_fisher_ap3", "gap"]].mean().reset_index()
    means["block"] = means[KEY].astype(str).agg(", ".join, axis=1)
    for column, name in (("control_fisher_ap3", "relative curvature AP3"), ("gap", "relative gap")):
        logs = np.log(means[column].clip(lower=1e-12))
        means[name] = np.exp(logs - logs.groupby(means["block"]).transform("mean"))
    return means
