"""Rows of paper 1's studies as tables by epoch, its verdict statistics, and the panels of its figures.

A configuration is a case (network and data set), a method and a fraction; statistics are dictionaries with `value`,
`low`, `high`, `n` and, where they have one, `p`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from lib import figures, latent
from lib.agreement import nested_interval, permutation_p, rank_correlation, rank_correlation_interval, same_order
from lib.divergences import kl_student_t
from lib.latent_trials import DF, GROUPS
from lib.masks import METHODS

KEY = ["case", "method", "fraction"]
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

    def share(a: np.ndarray, b: np.ndarray, chosen: np.ndarray = pairs) -> float:
        i, j = chosen.T
        return float((1 + np.sign((a[i] - a[j]) * (b[i] - b[j]))).mean() / 2)

    def drawn(trials: np.ndarray, units: np.ndarray) -> float:
        return share(x_values[:, trials].mean(1), y_values[:, trials].mean(1), pairs[units])

    a, b = x_values.mean(1), y_values.mean(1)
    low, high = nested_interval(drawn, x.shape[1], len(pairs), seed=1)
    p = permutation_p(lambda values: share(a, values), b, strata(x, "case", "method"), seed=1)
    return {"value": share(a, b), "low": low, "high": high, "p": p, "n": len(pairs)}


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
    low, high = nested_interval(differ, trials, len(x), seed=3)
    p = stats.binomtest(round((1 - value) * len(x)), len(x), 1 / 6, alternative="greater").pvalue
    return {"value": value, "low": low, "high": high, "p": p, "n": len(x)}


def border_contrast(rows: pd.DataFrame, squared: str, border: float = 2.0) -> dict:
    """Agreement of t-AP3 and PD in order: pairs below a t-AP3 minus pairs above it; the interval is over pairs.

    Pairs share a method or a fraction, not both; a pair is below (above) in an epoch if both of its t-AP3 are. Pairs
    across the border are left out: they lie far apart, and agree more wherever the border is.
    squared: the column of squared distances of group means.
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
        return alike[units][chosen[units]].mean() if chosen[units].any() else np.nan

    every = np.arange(len(pairs))
    shares = {"below": below.mean(), "above": above.mean()}
    shares |= {"agree below": part(below, every), "agree above": part(above, every)}
    value, low, high = shares["agree below"] - shares["agree above"], np.nan, np.nan
    if np.isfinite(value):
        low, high = nested_interval(lambda _, u: part(below, u) - part(above, u), 1, len(pairs), seed=4)
    return shares | {"value": value, "low": low, "high": high, "n": len(pairs)}


def order_at_equal_ap2(blocks: pd.DataFrame, column: str) -> dict:
    """Rank correlation of a measure with the loss gap within blocks of equal AP2; the interval is over blocks."""
    ranks = blocks.groupby("block", sort=False)[[column, "gap"]].rank()
    ranks -= ranks.groupby(blocks["block"]).transform("mean")
    products = pd.DataFrame({"xy": ranks[column] * ranks["gap"], "xx": ranks[column] ** 2, "yy": ranks["gap"] ** 2})
    products = products.groupby(blocks["block"], sort=False).sum().to_numpy()

    def rho(_: np.ndarray, units: np.ndarray) -> float:
        xy, xx, yy = products[units].sum(0)
        return xy / np.sqrt(xx * yy)

    low, high = nested_interval(rho, 1, len(products), seed=7)
    return {"value": rho(None, np.arange(len(products))), "low": low, "high": high, "n": len(products)}


def own_against_others(kl_gap: np.ndarray, gap: np.ndarray, case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kendall's tau over epochs of each loss gap with its own KL gap, and its mean with those of the case's others.

    kl_gap, gap: (configurations, epochs). case: (configurations,).
    """
    tau = np.array([[stats.kendalltau(k, g).statistic for k in kl_gap] for g in gap])
    tau[case[:, None] != case] = np.nan
    own = np.diag(tau).copy()
    np.fill_diagonal(tau, np.nan)
    return own, np.nanmean(tau, axis=1)


def shades(fractions: Sequence[float]) -> dict[float, tuple]:
    """One colour a fraction, dark to light."""
    return dict(zip(fractions, plt.cm.viridis(np.linspace(0, 0.88, len(fractions))), strict=True))


def legend(figure: Figure, entries: dict[str, dict], title: str | None = None) -> None:
    """A legend beside a figure, of text and line style."""
    handles = [Line2D([], [], label=text, **({"color": "k"} | style)) for text, style in entries.items()]
    figure.legend(handles=handles, loc="outside right", title=title)


def method_styles(**style: object) -> dict[str, dict]:
    """Legend entries of the three methods."""
    return {method: {"color": figures.COLOURS[method]} | style for method in METHODS}


def case_grid(cases: Sequence[str], columns: Sequence[str], **options: object) -> tuple[Figure, np.ndarray]:
    """Axes (cases, columns) with a title a column and the case at the left of each row."""
    size = (10, 1.0 + 2.3 * len(cases))
    figure, axes = plt.subplots(len(cases), len(columns), figsize=size, squeeze=False, sharex=True, **options)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
    for axis, case in zip(axes[:, 0], cases, strict=True):
        axis.set_ylabel(case.replace(", ", "\n"))
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
    return figure, axes


def panels(rows: pd.DataFrame, measure: str, by: str, label: str) -> tuple[Figure, pd.DataFrame]:
    """The layout of paper 1's figures: a panel a method or a fraction, colours the other; the measure solid, PD dashed.

    by: "method" or "fraction". Returns the figure and the means over trials behind it.
    """
    mean = rows.groupby([*KEY, "epoch"], sort=False)[[measure, "pd"]].mean().reset_index()
    along = "fraction" if by == "method" else "method"
    fractions = sorted(set(rows["fraction"]))
    colours = shades(fractions) if along == "fraction" else {method: figures.COLOURS[method] for method in METHODS}
    values = fractions if by == "fraction" else list(METHODS)
    cases = list(dict.fromkeys(rows["case"]))
    titles = [value if by == "method" else f"{value:.0%} removed" for value in values]
    figure, axes = case_grid(cases, titles, sharey="row")
    for (case, panel, value), one in mean.groupby(["case", by, along], sort=False):
        axis = axes[cases.index(case), values.index(panel)]
        axis.plot(one["epoch"], one[measure].clip(lower=1e-4), color=colours[value])
        axis.plot(one["epoch"], one["pd"].clip(lower=1e-2), "--", color=colours[value])
        axis.xaxis.set_major_locator(plt.MaxNLocator(5, integer=True))
    figure.supxlabel("epoch of fine-tuning")
    texts = {value if along == "method" else f"{value:.0%}": {"color": colour} for value, colour in colours.items()}
    legend(figure, texts | {label: {}, "PD (points)": {"ls": "--"}}, f"mean of n = {rows['trial'].nunique()}")
    return figure, mean
