"""Rows of paper 1's studies as tables by epoch, and its verdict statistics.

A case is a network with a data set, a configuration what was done to its head. A statistic is taken in each case, and
claims are judged on its mean over cases (`stats.mean_gain`), because trials and configurations of one network are not
independent. Functions that return a statistic of rows are made for `per_case`.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats as scipy_stats

from lib import stats
from lib.latent import measures
from lib.latent.trials import DF, GROUPS
from lib.masks import METHODS
from lib.parameters import DEPTHS
from lib.provenance import unknown

NAMES = {"lowest": 0, "random": 1, "highest": 2}  # the order of the lengths that the methods remove
KEY = ["case", "method", "fraction"]
CHANGE = ["structure", "method", "fraction", "rank", "bits", "steps_of_pruning", "exponents", "target"]
MEASURES = "t_ap3 fisher_ap3 kfac_ap3 ggn_ap3 input_ap3 outputs_moved".split()
SERIES = "ap2 ap2_to_last r2 train_accuracy train_loss select_loss test_accuracy test_loss".split() + MEASURES

Statistic = Callable[[pd.DataFrame], float]


def with_case(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `case`: "network, data set", for a head on other data "network, data set to data set".

    Trainings of one network with seeds above 0 are cases of their own, "network, data set, seed".
    """
    seen = rows["seen"].map(lambda name: "" if pd.isna(name) else f" to {name}") if "seen" in rows else ""
    seeds = rows["seed"].map(lambda seed: f", seed {seed:.0f}" if seed > 0 else "") if "seed" in rows else ""
    return rows.assign(case=rows["network"] + ", " + rows["dataset"] + seen + seeds)


def chosen(asked: Sequence[str], cases: Sequence[str], count: int | None = None) -> list[str]:
    """The cases that a parameter asks for, the first `count` if it is empty.

    Raises:
        CompanionError: for a case that does not exist.
    """
    for case in asked:
        if case not in cases:
            raise unknown("case", case, cases)
    return list(asked or cases)[: None if asked else count]


def cifar_resnets(cases: Sequence[str]) -> list[str]:
    """The cases whose network is a ResNet of 6n + 2 layers for CIFAR (He and others 2016), on CIFAR."""
    depths = "|".join(map(str, DEPTHS))
    return [case for case in cases if re.match(rf"resnet({depths})(-B|-x[\d.]+)?, cifar", case)]


def by_epoch(heads: pd.DataFrame, fractions: Sequence[float]) -> pd.DataFrame:
    """The rows of `trials.heads`, one a recorded epoch, with performance differences and the lambda rule applied.

    Added are `configuration` (the change as text), `epoch`, `pd` (points), `gap` and `train_gap` (nats), `train_change`
    (nats, with its sign), `largest_ap2` of the twelve configurations of the paper, which have one of the fractions
    (epochs 1 on, by case and trial), `kl` = 1.9 ap2 / largest_ap2, and `scaled_r2`, the squared distance of group means
    for the covariance I / lambda.

    Source: the lambda rule is that of paper 1's released code, main.py, `modify_first_column`.
    """
    done = heads[heads["status"] == "done"].reset_index(drop=True)
    done = done.reindex(columns=list(dict.fromkeys([*done, *CHANGE, "mode", "gamma"])))
    texts = done[CHANGE].astype(object).where(done[CHANGE].notna(), "").astype(str)
    done["configuration"] = texts.agg(" ".join, axis=1).str.split().str.join(" ")
    record = done.explode(["epoch", *SERIES], ignore_index=True)
    record[SERIES] = record[SERIES].astype(float)
    record["pd"] = (record["dense_test_accuracy"] - record["test_accuracy"]).abs()
    record["gap"] = (record["test_loss"] - record["dense_test_loss"]).abs()
    record["train_change"] = record["train_loss"] - record["dense_train_loss"]
    record["train_gap"] = record["train_change"].abs()
    twelve = record[plain(record) & record["fraction"].isin(fractions) & (record["epoch"] > 0)]
    largest = twelve.groupby(["case", "tuning_lr", "trial"])["ap2"].max().rename("largest_ap2").reset_index()
    record = record.merge(largest, on=["case", "tuning_lr", "trial"], how="left")
    record["kl"] = measures.KL_LIMIT * record["ap2"] / record["largest_ap2"]
    record["scaled_r2"] = 2 * measures.KL_LIMIT * record["r2"] / record["largest_ap2"]
    return record


def plain(rows: pd.DataFrame) -> pd.Series:
    """Where single weights were removed in one shot by one of the three methods, as paper 1 defines them."""
    whole = (rows["structure"] == "weights") & (rows["mode"] == "paper") & rows["steps_of_pruning"].isna()
    return whole & rows["method"].isin(METHODS)


def per_case(rows: pd.DataFrame, statistic: Statistic) -> pd.Series:
    """A statistic of the rows of each case."""
    return pd.Series({case: statistic(part) for case, part in rows.groupby("case", sort=False)}, dtype=float)


def over_cases(values: pd.Series, null: float = 0.0, less: bool = False) -> dict[str, float]:
    """Mean over cases of correlations or shares, with t interval, n, and p of a mean of at most `null`.

    With `less` p is that of a mean of at least `null`. The interval is cut to [-1, 1], or to [-2, 2] where a value is
    beyond 1, as a difference of two correlations may be. NaN is left out.
    """
    sign, limit = -1 if less else 1, 2 if (values.abs() > 1).any() else 1
    found = stats.mean_gain(values)
    low, high = np.clip([found["low"], found["high"]], -limit, limit)
    return found | {"low": float(low), "high": float(high), "p": stats.mean_gain(sign * (values - null))["p"]}


def rho(measure: str, against: str = "pd", *within: str) -> Statistic:
    """Spearman's correlation of two columns over configurations (means over trials), within strata."""

    def statistic(rows: pd.DataFrame) -> float:
        means, strata = _means(rows, [measure, against], within)
        return stats.rank_correlation(means[measure], means[against].to_numpy(), strata)

    return statistic


def correlations(
    rows: pd.DataFrame, measures: dict[str, str], targets: dict[str, str], *within: str
) -> dict[str, pd.DataFrame]:
    """For each target a table of `rho` within strata: cases (rows) by measures (columns).

    Measures and targets map labels to columns.
    """
    tables: dict[str, dict] = {title: {} for title in targets}
    for case, part in rows.groupby("case", sort=False):
        means, strata = _means(part, [*measures.values(), *targets.values()], within)
        for title, target in targets.items():
            tables[title][case] = {
                name: stats.rank_correlation(means[column], means[target].to_numpy(), strata)
                for name, column in measures.items()
            }
    return {title: pd.DataFrame.from_dict(table, orient="index") for title, table in tables.items()}


def _means(rows: pd.DataFrame, columns: list[str], within: Sequence[str]) -> tuple[pd.DataFrame, Sequence]:
    """Means of columns over the trials of each configuration, and the stratum of each."""
    keys = list(dict.fromkeys(["configuration", *within]))
    means = rows.groupby(keys, sort=False)[list(dict.fromkeys(columns))].mean().reset_index()
    return means, means[list(within)].astype(str).agg(" ".join, axis=1) if within else ()


def correlation(x: pd.Series, y: pd.Series, strata: pd.DataFrame | None = None) -> dict[str, float]:
    """Spearman's correlation of two columns within the strata of a table, with bootstrap interval and permutation p."""
    labels = [] if strata is None else strata.astype(str).agg(" ".join, axis=1).to_numpy()
    a, b = x.to_numpy(dtype=float), y.to_numpy(dtype=float)
    low, high = stats.rank_correlation_interval(a[:, None], b[:, None], labels, seed=2)
    p = stats.permutation_p(lambda values: stats.rank_correlation(a, values, labels), b, labels, seed=2)
    return {"value": stats.rank_correlation(a, b, labels), "low": low, "high": high, "p": p, "n": len(a)}


def with_prune_time(ending: pd.DataFrame, start: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last epoch with what was measured at epoch 0.

    Added are the measures, the loss gap and `train_change` at prune time, as `*_start`, and `name`, the place of a
    method in NAMES.
    """
    key = ["case", "configuration", "trial", "tuning_lr", "mode"]
    asked = {name: f"{name}_start" for name in ["ap2", *MEASURES, "gap", "train_change"]}
    before = start[key + list(asked)].rename(columns=asked).drop_duplicates(key)
    return ending.merge(before, on=key).assign(name=lambda rows: rows["method"].map(NAMES))


def with_exponents(ending: pd.DataFrame, start: pd.DataFrame) -> pd.DataFrame:
    """Rows of random masks at the last epoch, as `with_prune_time`, with their `gamma` and `delta`."""
    rows = with_prune_time(ending, start)
    exponents = rows["exponents"].map(list)
    return rows.assign(
        gamma=rows["gamma"].where(rows["target"].notna(), exponents.str[0]).astype(float),
        delta=exponents.str[-1].astype(float),
    )


def one_of_each(networks: dict[str, dict]) -> list[str]:
    """The first case of each set of weights: of a training, a checkpoint, or a network with ImageNet weights."""
    firsts: dict[tuple, str] = {}
    for case, spec in networks.items():
        dataset = "ImageNet" if spec["network"].endswith("-pretrained") else spec["dataset"]
        firsts.setdefault((spec["network"], dataset, spec.get("seed")), case)
    return list(firsts.values())


def kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of compressions in one shot, one rate and one mode, with their `kind`: a structure, low rank or few bits."""
    kind = rows["structure"].where(rows["rank"].isna(), "low rank").where(rows["bits"].isna(), "few bits")
    one_shot = (rows["method"] == "lowest") & rows["steps_of_pruning"].isna() & (rows["mode"] == "paper")
    chosen = rows.assign(kind=kind)[one_shot | kind.isin(["low rank", "few bits"])]
    return chosen.drop_duplicates(["case", "configuration", "tuning_lr", "trial", "epoch"])


def across_kinds(measure: str, against: str) -> Statistic:
    """Of the pairs of rows of different `kind`, the share that two columns order alike minus the share they do not."""

    def statistic(rows: pd.DataFrame) -> float:
        kind, x, y = (rows[name].to_numpy() for name in ("kind", measure, against))
        first, second = np.nonzero(np.triu(kind[:, None] != kind))
        return float(np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second])))

    return statistic


def best_of_others(table: pd.DataFrame) -> pd.Series:
    """For each case (row) the value of the column that has the best mean over all other cases; NaN without others."""
    means = {case: table.drop(index=case).mean() for case in table.index}
    best = {case: table.loc[case, mean.idxmax()] if mean.notna().any() else np.nan for case, mean in means.items()}
    return pd.Series(best, dtype=float)


def beyond_control(layers: pd.DataFrame) -> pd.DataFrame:
    """Rows of `trials.layers` with what pruning did beyond fine-tuning: differences from the mean control of the case.

    Added are `pd` (points), `gap` (nats), which are positive where the pruned network is worse, and `later`, the mean
    relative AP2 of the layers after the pruned one minus that of the same layers in the control.
    """
    rows = []
    for _, part in layers.groupby("case", sort=False):
        control = part[part["method"] == "none"]
        names = control["later_layers"].iloc[0]
        idle = pd.Series(np.mean(control["later_relative_ap2"].tolist(), axis=0), index=list(names))
        later = [
            np.mean(moved) - idle[list(after)].mean() if len(after) else np.nan
            for after, moved in zip(part["later_layers"], part["later_relative_ap2"], strict=True)
        ]
        worse = control["tuned_test_accuracy"].mean() - part["tuned_test_accuracy"]
        gap = part["tuned_test_loss"] - control["tuned_test_loss"].mean()
        rows.append(part.assign(pd=worse, gap=gap, later=later))
    return pd.concat(rows, ignore_index=True)


def task_pairs(carried: pd.DataFrame) -> pd.DataFrame:
    """The rows of `trials.tasks`, one an ordered pair of tasks."""
    columns = "from_task to_task ap2 ap2_from_zero accuracy loss_gap to_accuracy steps steps_from_zero".split()
    pairs = carried.explode(columns, ignore_index=True)
    return pairs.astype(dict.fromkeys(columns, float))[["case", *columns]]


def interval_text(found: dict) -> str:
    """A statistic with its interval, for a table."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def share(true: pd.Series) -> dict[str, float]:
    """Share of cases for which something is true, with Wilson's interval and a binomial p of a half or less."""
    p = scipy_stats.binomtest(int(true.sum()), len(true), 0.5, alternative="greater").pvalue
    return stats.share_estimate(true) | {"p": p}


def pairs_alike(measure: str, against: str, left_out: tuple[str, set[float]]) -> Statistic:
    """Share of pairs of fractions of one method that two columns (means over trials) order alike, a tie counting half.

    One pair of fractions of one method is left out.
    """

    def statistic(rows: pd.DataFrame) -> float:
        shares = []
        for method, part in rows.groupby("method", sort=False):
            means = part.groupby("fraction")[[measure, against]].mean()
            for i in range(len(means)):
                for j in range(i):
                    if (method, {means.index[i], means.index[j]}) != left_out:
                        shares.append((1 + np.sign((means.iloc[i] - means.iloc[j]).prod())) / 2)
        return float(np.mean(shares))

    return statistic


def orders_differ(measure: str, against: str) -> Statistic:
    """Share of epochs (from 1) and fractions in which two columns put the three methods into different orders."""

    def statistic(rows: pd.DataFrame) -> float:
        wide = rows[rows["epoch"] > 0].pivot_table([measure, against], ["fraction", "epoch"], "method")
        return float(1 - same_order(wide[measure].to_numpy(), wide[against].to_numpy()).mean())

    return statistic


def same_order(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether two measures put the last axis into one order: (..., k) and (..., k) -> (...) of bool.

    With k = 3 two unrelated measures agree once in six times. Ties agree with no strict order.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    i, j = np.triu_indices(x.shape[-1], 1)
    return np.all(np.sign(x[..., i] - x[..., j]) == np.sign(y[..., i] - y[..., j]), axis=-1)


def border_shares(rows: pd.DataFrame, squared: str, border: float = 2.0) -> dict[str, float]:
    """How many pairs of configurations of a case t-AP3 and PD order alike, below and above a border (nats).

    Pairs share a method or a fraction, not both; a pair is below (above) in an epoch if both of its t-AP3 are. Pairs
    across the border are left out: they are far apart, and agree more wherever the border is. `squared` is the column
    of squared distances of group means.

    Returns:
        The shares of pairs and epochs `below` and `above`, and of those that `agree below` and `agree above`, NaN where
        there are none.
    """
    mean = rows[rows["epoch"] > 0].groupby(["method", "fraction", "epoch"])[[squared, "pd"]].mean().unstack("epoch")
    weights = int(rows["weights"].iloc[0])
    dim = -(-weights // max(weights // GROUPS, 1))
    kl = measures.kl_student_t(torch.tensor(np.sqrt(mean[squared].to_numpy())), dim, DF).numpy()
    loss, index = mean["pd"].to_numpy(), list(mean.index)
    pairs = [(i, j) for i in range(len(kl)) for j in range(i)]
    i, j = np.array([(i, j) for i, j in pairs if sum(a == b for a, b in zip(index[i], index[j], strict=True)) == 1]).T
    alike = (1 + np.sign((kl[i] - kl[j]) * (loss[i] - loss[j]))) / 2
    below, above = (kl[i] < border) & (kl[j] < border), (kl[i] >= border) & (kl[j] >= border)
    agree = {
        f"agree {name}": alike[where].mean() if where.any() else np.nan
        for name, where in (("below", below), ("above", above))
    }
    return {"below": below.mean(), "above": above.mean()} | agree


def share_separated(measure: str) -> Statistic:
    """Share of pairs of methods, at each fraction, that a measure separates over trials (`separation` of logs >= 2)."""

    def statistic(rows: pd.DataFrame) -> float:
        found = []
        for _, part in rows.groupby("fraction"):
            logs = {m: np.log10(one[measure].clip(lower=1e-12)) for m, one in part.groupby("method")}
            found += [separation(logs[a], logs[b]) >= 2 for k, a in enumerate(METHODS) for b in METHODS[:k]]
        return float(np.mean(found))

    return statistic


def separation(a: Sequence[float], b: Sequence[float]) -> float:
    """|difference of means| over the pooled standard deviation of two samples; infinite if neither varies."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    difference = abs(a.mean() - b.mean())
    return float(difference / pooled) if pooled > 0 else float("inf") if difference > 0 else 0.0


def own_against_others(kl_gap: np.ndarray, gap: np.ndarray) -> tuple[float, float]:
    """Mean Kendall's tau over epochs of each loss gap with its own KL gap, and with those of the other configurations.

    Both gaps are (configurations of one case, epochs). A gap that never changes is left out; NaN if none is left, or
    for fewer than two epochs.
    """
    if kl_gap.shape[1] < 2:
        return np.nan, np.nan
    tau = np.array([[scipy_stats.kendalltau(k, g).statistic for k in kl_gap] for g in gap])
    own = np.eye(len(tau), dtype=bool)
    return float(pd.Series(tau[own]).mean()), float(pd.Series(tau[~own]).mean())


def largest_fractions(ending: pd.DataFrame, allowed: Sequence[float]) -> pd.DataFrame:
    """The largest sparsity `s` by case and method up to which the mean PD over trials stays at most `delta`.

    Every smaller sparsity of the grid must keep to `delta`, too; s is 0 if the smallest does not.

    Source: paper 1 leaves "optimal sparsity" without a number; this is the companion's s*(delta).
    """
    means = ending.groupby(KEY, sort=False)["pd"].mean().reset_index().sort_values("fraction")
    rows = []
    for (case, method), one in means.groupby(["case", "method"], sort=False):
        for delta in allowed:
            kept = (one["pd"] <= delta).cummin()
            rows.append({"case": case, "method": method, "delta": delta, "s": one["fraction"][kept].max()})
    return pd.DataFrame(rows).fillna({"s": 0.0})


def group_ablation(projections: pd.DataFrame) -> pd.DataFrame:
    """Means over trials of t-AP3 by number of groups, as stored (`contiguous`) and `shuffled`."""
    asked = [f"{order}_{what}" for order in ("contiguous", "shuffled") for what in ("dim", "r2", "t_ap3")]
    rows = projections.explode(["groups", *asked]).astype(dict.fromkeys(["groups", *asked], float))
    return rows.groupby(["case", "fraction", "method", "groups"], sort=False)[[*asked, "ap2"]].mean().reset_index()


def with_bounds(rows: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Rows by epoch with both sides of the bounds on the training-loss gap, for the covariance I / lambda.

    Added are `lemma` (Lemma 2, infinite from a KL of 2 on), `core` (half the largest eigenvalue of the dense Hessian
    times AP2), `core fails` and `core over gap`. The features are rows of `trials.features` with `case`.
    """
    found = rows.merge(features[["case", "hessian_max"]], on="case")
    trace = found["weights"] * found["largest_ap2"] / (2 * measures.KL_LIMIT)
    columns = zip(found["kl"], found["hessian_max"], trace, strict=True)
    found["lemma"] = [measures.performance_bound(kl, value, t, t).item() for kl, value, t in columns]
    found["core"] = found["hessian_max"] * found["ap2"] / 2
    found["core fails"] = found["train_gap"] > found["core"]
    found["core over gap"] = found["core"] / found["train_gap"]
    return found


def control_rows(projections: pd.DataFrame) -> pd.DataFrame:
    """One row per change of equal AP2 (the pruning itself, and draws of its controls), with its loss gap.

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
    other["block"] = other[["method", "fraction", "trial"]].astype(str).agg(", ".join, axis=1)
    other["configuration"] = [str(place) for place in range(len(other))]  # each draw is one
    return other
