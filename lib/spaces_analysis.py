"""The other verdict statistics of paper 3: STD spaces, limits, refined spaces, noise, schedules, predictors, contests.

Tables and dictionaries are those of `spaces_optimum`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib.agreement import rank_correlation
from lib.claims import LEVEL, mean_interval
from lib.spaces import best_of_k
from lib.spaces_optimum import WINNERS, optimum, quantiles, size, vertices

PREDICTORS = ["log_mcb", "log_mcb_squared", "std", "smallest_share", "tilt"]
RESAMPLES = 400


def spread_effect(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], seed: int = 5) -> dict:
    """Signed area between the EDFs of a wide and a narrow STD space, in pooled standard deviations, mean over regimes.

    pairs: (narrow, wide) of each regime. Above 0, the wide space loses more. p: two-sided, labels exchanged.
    """

    def area(narrow: np.ndarray, wide: np.ndarray) -> np.ndarray:
        scale = np.sqrt((narrow.var(axis=-1) + wide.var(axis=-1)) / 2)
        return (wide.mean(axis=-1) - narrow.mean(axis=-1)) / np.where(scale > 0, scale, 1)

    random, value, draws, null = np.random.default_rng(seed), 0.0, 0.0, 0.0
    for pair in pairs:
        a, b = (table["drop"].to_numpy() for table in pair)
        value = value + area(a, b) / len(pairs)
        draws = draws + area(*(random.choice(x, (RESAMPLES, len(x))) for x in (a, b))) / len(pairs)
        mixed = random.permuted(np.tile(np.concatenate([a, b]), (999, 1)), axis=1)
        null = null + area(mixed[:, : len(a)], mixed[:, len(a) :]) / len(pairs)
    low, high = quantiles(draws)
    p = (1 + (np.abs(null) >= abs(value)).sum()) / 1000
    return {"value": float(value), "low": low, "high": high, "p": float(p), "n": sum(map(size, pairs))}


def spread_contrast(mild: tuple, harsh: tuple, seed: int = 12) -> dict:
    """`spread_effect` of the harshest regime minus that of the mildest."""
    one, two = (spread_effect([pair], seed) for pair in (mild, harsh))
    error = np.hypot(one["high"] - one["low"], two["high"] - two["low"]) / 2
    value = two["value"] - one["value"]
    return {"value": value, "low": value - error, "high": value + error, "n": one["n"] + two["n"]}


def limit(table: pd.DataFrame) -> float:
    """The limit of a regime: the 5 % quantile of its drops, not the minimum, which falls with n."""
    return float(np.quantile(table["drop"], WINNERS))


def left_out_errors(tables: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Leave-one-regime-out errors of the limit (points) and of log m*, by what predicts them: see `_errors`."""
    return _errors(
        np.array([limit(table) for table in tables]),
        np.array([optimum(table) for table in tables]),
        np.array([table["kept"].iloc[0] for table in tables]),
    )


def error_ratio(tables: Sequence[pd.DataFrame], model: str, reference: str, seed: int = 6) -> dict:
    """Ratio of two of `left_out_errors`; below 1 the model predicts regimes that it has not seen better."""
    random, limits, best = np.random.default_rng(seed), [], []
    for table in tables:
        rows = random.integers(len(table), size=(RESAMPLES, len(table)))
        x, y = table["log_mcb"].to_numpy()[rows], table["drop"].to_numpy()[rows]
        limits.append(np.quantile(y, WINNERS, axis=1))
        best.append(vertices(x, y))
    kept = np.array([table["kept"].iloc[0] for table in tables])
    drawn = [_errors(*pair, kept) for pair in zip(np.transpose(limits), np.transpose(best), strict=True)]
    low, high = quantiles([errors[model] / max(errors[reference], 1e-9) for errors in drawn])
    errors = left_out_errors(tables)
    return {"value": errors[model] / max(errors[reference], 1e-9), "low": low, "high": high, "n": len(tables)}


def best_of_k_gain(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], k: int, seed: int = 8) -> dict:
    """Points of test accuracy that the best of k refined recipes gains over the best of k initial ones; mean of pairs.

    pairs: (initial, refined) with `drop` on validation images, which selects, and `test_drop`.
    """

    def gain(parts: Sequence[pd.DataFrame]) -> float:
        best = [best_of_k(part["drop"], part["test_drop"], [k])[0] for part in parts]
        return float(np.mean(np.array(best[::2]) - np.array(best[1::2])))

    return bootstrapped(gain, [part[["drop", "test_drop"]] for pair in pairs for part in pair], seed)


def reliability(table: pd.DataFrame) -> dict:
    """ICC(1): share of the variance of drop that lies between recipes and not between seeds of retraining.

    table: (recipes, seeds). The interval is the exact one of the one-way layout (F distribution).
    """
    n, seeds = table.shape
    between = seeds * table.mean(axis=1).var(ddof=1)
    within = table.var(axis=1, ddof=1).mean()
    ratio, freedom = between / within, (n - 1, n * (seeds - 1))
    low = ratio / stats.f.ppf((1 + LEVEL) / 2, *freedom)
    high = ratio * stats.f.ppf((1 + LEVEL) / 2, *freedom[::-1])
    icc = [float((f - 1) / (f + seeds - 1)) for f in (ratio, low, high)]
    return {"value": icc[0], "low": icc[1], "high": icc[2], "n": n}


def schedule_agreement(table: pd.DataFrame, seed: int = 9) -> dict:
    """Smallest Spearman's correlation of drops between any two retraining schedules; table (recipes, schedules)."""

    def smallest(parts: Sequence[pd.DataFrame]) -> float:
        ranks = stats.rankdata(parts[0].to_numpy(), axis=0)
        with np.errstate(invalid="ignore"):  # a schedule that ties all redrawn recipes has no correlation
            return float(np.corrcoef(ranks.T).min())

    return bootstrapped(smallest, [table], seed)


def proxy_agreement(tables: Sequence[pd.DataFrame], seed: int = 10) -> dict:
    """Spearman's correlation within regimes of the drop before and after retraining."""

    def correlation(parts: Sequence[pd.DataFrame]) -> float:
        every = np.concatenate([part.to_numpy() for part in parts])
        return rank_correlation(every[:, 0], every[:, 1], every[:, 2].tolist())

    return bootstrapped(correlation, [table[["proxy_drop", "drop", "kept"]] for table in tables], seed)


def prediction_gain(
    tables: Sequence[pd.DataFrame], features: Sequence[str], beyond: Sequence[str] = (), seed: int = 11
) -> dict:
    """Share of the cross-validated squared error within regimes that features remove, on top of others.

    Ten folds of recipes, least squares on standardised features; drops are standardised within their regime.
    """
    random = np.random.default_rng(seed)
    parts = []
    for table in tables:
        x = np.column_stack([table[name] for name in (*beyond, *features)])
        x = np.column_stack([np.ones(len(table)), (x - x.mean(axis=0)) / x.std(axis=0)])
        parts.append((x, table["z"].to_numpy(), random.permutation(len(table)) % 10))

    def error(columns: int, chosen: Sequence[np.ndarray]) -> float:
        total = 0.0
        for (x, y, fold), rows in zip(parts, chosen, strict=True):
            x, y, fold = x[rows, :columns], y[rows], fold[rows]  # copies of a recipe stay in its fold
            for held in range(10):
                rest = fold != held
                total += ((y[~rest] - x[~rest] @ np.linalg.lstsq(x[rest], y[rest], rcond=None)[0]) ** 2).sum()
        return total

    def gain(chosen: Sequence[np.ndarray]) -> float:
        return 1 - error(1 + len(beyond) + len(features), chosen) / error(1 + len(beyond), chosen)

    draws = [gain([random.integers(len(y), size=len(y)) for _, y, _ in parts]) for _ in range(RESAMPLES // 4)]
    low, high = quantiles(draws)
    return {"value": gain([np.arange(len(y)) for _, y, _ in parts]), "low": low, "high": high, "n": size(tables)}


def contest(table: pd.DataFrame, champion: str, rivals: Sequence[str]) -> dict:
    """Points by which a champion beats the best of its rivals; table (seeds, contestants) of test accuracy (%).

    The best rival is the one of largest mean, which favours the rivals; t interval over seeds, paired.
    """
    best = table[list(rivals)].mean().idxmax()
    difference = table[champion] - table[best]
    low, high = mean_interval(difference)
    p = float(stats.ttest_1samp(difference, 0, alternative="greater").pvalue)
    return {"value": float(difference.mean()), "low": low, "high": high, "p": p, "n": len(table), "rival": best}


def bootstrapped(statistic: Callable, tables: Sequence[pd.DataFrame], seed: int) -> dict:
    """A statistic of tables, its percentile interval over recipes redrawn within each table, and their number."""
    random = np.random.default_rng(seed)
    draws = [
        statistic([table.iloc[random.integers(len(table), size=len(table))] for table in tables])
        for _ in range(RESAMPLES)
    ]
    low, high = quantiles(draws)
    return {"value": float(statistic(tables)), "low": low, "high": high, "n": size(tables)}


def _errors(limits: np.ndarray, best: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Of the limit by a constant, the level log(kept), the optimum log m*; of the optimum by a constant, the level."""
    level = np.log(kept)
    return {
        "constant": _left_out(None, limits),
        "level": _left_out(level, limits),
        "optimum": _left_out(best, limits),
        "optimum, constant": _left_out(None, best),
        "optimum, level": _left_out(level, best),
    }


def _left_out(x: np.ndarray | None, y: np.ndarray) -> float:
    """Root mean square of leave-one-out errors of a mean, or of a line on x, by the hat matrix."""
    design = np.ones((len(y), 1)) if x is None else np.column_stack([np.ones(len(y)), x])
    hat = design @ np.linalg.pinv(design)
    return float(np.sqrt(np.mean(((y - hat @ y) / np.maximum(1 - np.diag(hat), 1e-9)) ** 2)))
