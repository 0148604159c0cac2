"""Rows of paper 1's studies as tables by epoch, and its verdict statistics.

A configuration is a case (network and data set), a method and a fraction. Statistics are dictionaries with `value`,
`low`, `high`, `n` and, where they have one, `p`, as `Ledger.enter` takes them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats as scipy_stats

from lib import stats
from lib.latent import measures
from lib.latent.trials import DF, GROUPS
from lib.masks import METHODS

KEY = ["case", "method", "fraction"]
SERIES = ["ap2", "ap2_to_last", "r2", "t_ap3", "fisher_ap3", "train_loss", "test_loss", "test_accuracy"]


def with_case(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `case`, "network, data set"."""
    return rows.assign(case=rows["network"] + ", " + rows["dataset"])


def by_epoch(heads: pd.DataFrame, fractions: Sequence[float]) -> pd.DataFrame:
    """The rows of `trials.heads`, one an epoch, with performance differences and the lambda rule applied.

    Added are `epoch`, `pd` (points), `gap` and `train_gap` (nats), `largest_ap2` of the configurations that have one of
    the fractions (epochs 1 on, by case and trial), `kl` = 1.9 ap2 / largest_ap2, and `scaled_r2`, the squared distance
    of group means for the covariance I / lambda.

    Source: the lambda rule is that of paper 1's released code, main.py, `modify_first_column`.
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
    record["kl"] = measures.KL_LIMIT * record["ap2"] / record["largest_ap2"]
    record["scaled_r2"] = 2 * measures.KL_LIMIT * record["r2"] / record["largest_ap2"]
    return record


def matrix(rows: pd.DataFrame, column: str, key: Sequence[str] = KEY) -> pd.DataFrame:
    """One column as a table (configurations, trials)."""
    return rows.pivot_table(column, list(key), "trial", sort=False)


def interval_text(found: dict) -> str:
    """A statistic with its interval, for a table."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def strata(table: pd.DataFrame, levels: Sequence[str]) -> list[tuple]:
    """For each row of a table the values of some index levels."""
    return list(zip(*(table.index.get_level_values(level) for level in levels), strict=True))


def correlation(x: pd.DataFrame, y: pd.DataFrame, *within: str) -> dict:
    """Rank correlation of means over trials within index levels, with interval and permutation p."""
    groups = strata(x, within)
    a, b = x.mean(axis=1).to_numpy(), y.mean(axis=1).to_numpy()
    low, high = stats.rank_correlation_interval(x, y, groups, seed=2)
    p = stats.permutation_p(lambda values: stats.rank_correlation(a, values, groups), b, groups, seed=2)
    return {"value": stats.rank_correlation(a, b, groups), "low": low, "high": high, "p": p, "n": len(x)}


def rank_advantage(better: pd.DataFrame, other: pd.DataFrame, target: pd.DataFrame, *within: str) -> dict:
    """Rank correlation of one measure with a target minus that of another, within index levels.

    Tables are those of `matrix`. The result is `open` if both measures rank alike in every stratum.
    """
    groups = strata(target, within)
    found = stats.rank_correlation_gain(better, other, target, groups, seed=8)
    ranks = [frame.mean(axis=1).groupby(list(map(str, groups))).rank() for frame in (better, other)]
    return found | {"open": bool(ranks[0].equals(ranks[1]))}


def pair_agreement(x: pd.DataFrame, y: pd.DataFrame, left_out: tuple[str, set[float]]) -> dict:
    """Share of pairs that means over trials order alike, a tie counting half; p by exchange within case and method.

    The two configurations of a pair differ in fraction alone; one pair of fractions of one method is left out.
    """
    x_values, y_values, index = x.to_numpy(), y.to_numpy(), list(x.index)
    places = [(i, j) for i in range(len(index)) for j in range(i) if index[i][:2] == index[j][:2]]
    pairs = np.array([(i, j) for i, j in places if (index[i][1], {index[i][2], index[j][2]}) != left_out])

    def share(a: np.ndarray, b: np.ndarray, chosen: np.ndarray = pairs) -> np.ndarray:
        i, j = chosen.T
        return (1 + np.sign((a[i] - a[j]) * (b[..., i] - b[..., j]))).mean(-1) / 2

    def drawn(trials: np.ndarray, units: np.ndarray) -> float:
        return share(x_values[:, trials].mean(1), y_values[:, trials].mean(1), pairs[units])

    a, b = x_values.mean(1), y_values.mean(1)
    p = stats.permutation_p(lambda values: share(a, values), b, strata(x, ["case", "method"]), seed=1)
    return stats.bootstrap_estimate(drawn, x.shape[1], len(pairs), seed=1) | {"p": p}


def order_disagreement(rows: pd.DataFrame, measure: str, against: str) -> dict:
    """Share of epochs in which a measure and a difference order the three methods differently, over all panels.

    A panel is a case and a fraction; p is binomial against the chance order, with a panel as one unit.
    """
    wide = rows[rows["epoch"] > 0].pivot_table([measure, against], ["case", "fraction", "epoch"], ["method", "trial"])
    trials, epochs = rows["trial"].nunique(), rows["epoch"].max()
    x, y = (wide[name].to_numpy().reshape(-1, epochs, len(METHODS), trials) for name in (measure, against))

    def differ(chosen: np.ndarray, units: np.ndarray) -> float:
        return 1 - same_order(x[units][..., chosen].mean(-1), y[units][..., chosen].mean(-1)).mean()

    found = stats.bootstrap_estimate(differ, trials, len(x), seed=3)
    alike = round((1 - found["value"]) * len(x))
    return found | {"p": scipy_stats.binomtest(alike, len(x), 1 / 6, alternative="greater").pvalue}


def same_order(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether two measures put the last axis into one order: (..., k) and (..., k) -> (...) of bool.

    With k = 3 two unrelated measures agree once in six times. Ties agree with no strict order.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    i, j = np.triu_indices(x.shape[-1], 1)
    return np.all(np.sign(x[..., i] - x[..., j]) == np.sign(y[..., i] - y[..., j]), axis=-1)


def border_contrast(rows: pd.DataFrame, squared: str, border: float = 2.0) -> tuple[dict, dict]:
    """Agreement of t-AP3 and PD in order: share of pairs below a border (nats) that agree, minus share above it.

    Pairs share a method or a fraction, not both; a pair is below (above) in an epoch if both of its t-AP3 are. Pairs
    across the border are left out: they are far apart, and agree more wherever the border is. The interval draws
    configurations, since their pairs overlap; draws without a pair on both sides do not count. `squared` is the column
    of squared distances of group means.

    Returns:
        The statistic, NaN if one side has no pairs; and the shares of pairs on both sides and of those that agree.
    """
    mean = rows[rows["epoch"] > 0].groupby([*KEY, "epoch"])[[squared, "pd"]].mean().unstack("epoch")
    weights = rows.groupby("case")["weights"].first()
    dim = [-(-weights[case] // max(weights[case] // GROUPS, 1)) for case in mean.index.get_level_values("case")]
    radius = torch.tensor(np.sqrt(mean[squared].to_numpy()))
    kl = np.stack([measures.kl_student_t(r, d, DF).numpy() for r, d in zip(radius, dim, strict=True)])
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
    if not (below.any() and above.any()):
        return {"value": np.nan, "low": np.nan, "high": np.nan, "n": len(index)}, shares
    found = stats.bootstrap_estimate(lambda units: part(below, units) - part(above, units), len(index), seed=4)
    return found, shares


def order_at_equal_ap2(blocks: pd.DataFrame, column: str) -> dict:
    """Rank correlation of a measure with the loss gap within blocks of equal AP2; the interval draws configurations.

    The rows hold `block`, `configuration`, `gap` and the measure. Blocks of one configuration are its trials, which
    share the pruned weights wherever masks are deterministic and the dense network is one; n counts configurations.
    """
    ranks = blocks.groupby("block", sort=False)[[column, "gap"]].rank()
    ranks -= ranks.groupby(blocks["block"]).transform("mean")
    products = pd.DataFrame({"xy": ranks[column] * ranks["gap"], "xx": ranks[column] ** 2, "yy": ranks["gap"] ** 2})
    products = products.groupby(blocks["configuration"], sort=False).sum().to_numpy()

    def rho(units: np.ndarray) -> float:
        xy, xx, yy = products[units].sum(0)
        return xy / np.sqrt(xx * yy)

    return stats.bootstrap_estimate(rho, len(products), seed=7)


def own_against_others(kl_gap: np.ndarray, gap: np.ndarray, case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kendall's tau over epochs of each loss gap with its own KL gap, and its mean with those of the case's others.

    Both gaps are (configurations, epochs), their cases (configurations,).
    """
    tau = np.array([[scipy_stats.kendalltau(k, g).statistic for k in kl_gap] for g in gap])
    tau[case[:, None] != case] = np.nan
    own = np.diag(tau).copy()
    np.fill_diagonal(tau, np.nan)
    return own, np.nanmean(tau, axis=1)


def separation(a: Sequence[float], b: Sequence[float]) -> float:
    """|difference of means| over the pooled standard deviation of two samples; infinite if neither varies."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    difference = abs(a.mean() - b.mean())
    return float(difference / pooled) if pooled > 0 else float("inf") if difference > 0 else 0.0


def separations(final: pd.DataFrame) -> pd.DataFrame:
    """For each pair of methods at one fraction of a case: how far apart AP2 and t-AP3 put them in one epoch.

    A measure has `separated` them if mean logarithms differ by two pooled standard deviations over trials or more;
    `gap` is that difference in factors of ten.
    """
    rows = []
    for (case, fraction), part in final.groupby(["case", "fraction"], sort=False):
        for pair in (("lowest", "random"), ("random", "highest"), ("lowest", "highest")):
            line = {"case": case, "fraction": fraction, "pair": ", ".join(pair)}
            for name in ("ap2", "t_ap3"):
                a, b = (np.log10(part.loc[part["method"] == m, name].clip(lower=1e-12)) for m in pair)
                line |= {f"{name} separated": separation(a, b) >= 2, f"{name} gap": abs(a.mean() - b.mean())}
            rows.append(line)
    return pd.DataFrame(rows)


def largest_fractions(ending: pd.DataFrame, allowed: Sequence[float]) -> pd.DataFrame:
    """The largest sparsity `s` by case, trial and method whose PD at the last epoch is at most `delta`; 0 if none is.

    Source: paper 1 leaves "optimal sparsity" without a number; this is the companion's s*(delta).
    """
    key = ["case", "trial", "method"]
    within = [ending.assign(delta=delta, s=ending["fraction"].where(ending["pd"] <= delta, 0.0)) for delta in allowed]
    return pd.concat(within).groupby([*key, "delta"], sort=False)["s"].max().reset_index()


def group_ablation(projections: pd.DataFrame) -> pd.DataFrame:
    """Means over trials of t-AP3 by number of groups, as stored (`contiguous`) and `shuffled`."""
    asked = [f"{order}_{what}" for order in ("contiguous", "shuffled") for what in ("dim", "r2", "t_ap3")]
    rows = projections.explode(["groups", *asked]).astype(dict.fromkeys(["groups", *asked], float))
    return rows.groupby(["case", "fraction", "method", "groups"], sort=False)[[*asked, "ap2"]].mean().reset_index()


def with_bounds(rows: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Rows by epoch with both sides of the bounds on the training-loss gap, for the covariance I / lambda.

    Added are `lemma` (Lemma 2, infinite from a KL of 2 on), `core` (half the largest eigenvalue of the dense Hessian
    times AP2), `slope` (gradient norm times distance: what a gradient that is not zero can add), and for both bounds
    `fails` and `over gap`. The features are rows of `trials.features` with `case`.
    """
    dense = features.reindex(columns=["case", "seed", "hessian_max", "gradient_norm"]).rename(columns={"seed": "own"})
    found = rows.merge(dense, on="case")  # a checkpoint has no seed and serves all trials
    found = found[found["own"].isna() | (found["own"] == found["trial"])].drop(columns="own").reset_index(drop=True)
    trace = found["weights"] * found["largest_ap2"] / (2 * measures.KL_LIMIT)
    columns = zip(found["kl"], found["hessian_max"], trace, strict=True)
    found["lemma"] = [measures.performance_bound(kl, value, t, t).item() for kl, value, t in columns]
    found["core"] = found["hessian_max"] * found["ap2"] / 2
    found["slope"] = found["gradient_norm"] * np.sqrt(found["ap2"])
    for bound in ("lemma", "core"):
        found[f"{bound} fails"] = found["train_gap"] > found[bound]
        found[f"{bound} over gap"] = found[bound] / found["train_gap"]
    return found


def control_rows(projections: pd.DataFrame) -> pd.DataFrame:
    """One row per change of equal AP2 (the pruning itself, and draws of its controls), with its PD and loss gap.

    Raises:
        ValueError: if AP2 within a block differs by more than single precision explains.
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
