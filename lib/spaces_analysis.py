"""The other verdict statistics of paper 3: STD spaces, limits, refined spaces, noise, schedules, predictors, contests.

Tables and dictionaries are those of `spaces_optimum`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib.agreement import nested_interval, rank_correlation
from lib.claims import LEVEL, paired_gain
from lib.spaces import best_of_k
from lib.spaces_optimum import WINNERS, optimum, quantiles, size, vertices

MCB, FOLDS = ["log_mcb", "log_mcb_squared"], 10
PREDICTORS = [*MCB, "std", "smallest_share", "tilt"]
PREDICTIONS = {  # what predicts, and on top of what
    "all: mCB, STD, smallest kept share, tilt": (PREDICTORS, []),
    "mCB": (MCB, []),
    "tilt": (["tilt"], []),
    "STD": (["std"], []),
    "smallest kept share": (["smallest_share"], []),
    "STD and smallest kept share": (["std", "smallest_share"], []),
    "mCB beyond STD and smallest kept share": (MCB, ["std", "smallest_share"]),
    "tilt beyond STD and smallest kept share": (["tilt"], ["std", "smallest_share"]),
    "mCB beyond these two and tilt": (MCB, ["std", "smallest_share", "tilt"]),
}
REDRAWS, EXCHANGES = 400, 1999


def spread_effect(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], seed: int = 5) -> dict:
    """Signed area between the EDFs of a wide and a narrow STD space, in pooled standard deviations, mean over regimes.

    pairs: (narrow, wide) of each regime. Above 0, the wide space loses more. p: two-sided, labels exchanged.
    Source: Hedges 1981 for the factor that takes the small-sample bias from a difference in standard deviations.
    """

    def area(narrow: np.ndarray, wide: np.ndarray) -> np.ndarray:
        scale = np.sqrt((narrow.var(axis=-1, ddof=1) + wide.var(axis=-1, ddof=1)) / 2)
        unbiased = 1 - 3 / (4 * (narrow.shape[-1] + wide.shape[-1]) - 9)
        return unbiased * (wide.mean(axis=-1) - narrow.mean(axis=-1)) / np.where(scale > 0, scale, 1)

    random, value, draws, null = np.random.default_rng(seed), 0.0, 0.0, 0.0
    for pair in pairs:
        a, b = (table["drop"].to_numpy() for table in pair)
        value = value + area(a, b) / len(pairs)
        draws = draws + area(*(random.choice(x, (REDRAWS, len(x))) for x in (a, b))) / len(pairs)
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


def spread_table(spread: dict[float, Sequence[pd.DataFrame]], asked: Sequence[float]) -> pd.DataFrame:
    """Achieved STD and mCB of STD spaces, and two tests of equal distributions of drop; a column a regime."""
    columns = {}
    for kept, tables in spread.items():
        drops = [table["drop"] for table in tables]
        exchange = stats.PermutationMethod(n_resamples=999, rng=np.random.default_rng(0))
        darling = stats.anderson_ksamp(drops, variant="midrank", method=exchange)
        columns[f"{kept:.0%}"] = {
            f"STD asked {std}": f"STD {one['std'].mean():.3f}, mCB {one['mcb'].mean():.2f}, n = {len(one)}"
            for std, one in zip(asked, tables, strict=True)
        } | {
            "Anderson-Darling, all, p": f"{darling.pvalue:.3f}",
            "Kolmogorov-Smirnov, outer two, p": f"{stats.ks_2samp(drops[0], drops[-1]).pvalue:.3f}",
        }
    return pd.DataFrame(columns)


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
        rows = random.integers(len(table), size=(REDRAWS, len(table)))
        x, y = table["log_mcb"].to_numpy()[rows], table["drop"].to_numpy()[rows]
        limits.append(np.quantile(y, WINNERS, axis=1))
        best.append(vertices(x, y))
    kept = np.array([table["kept"].iloc[0] for table in tables])
    drawn = [_errors(*pair, kept) for pair in zip(np.transpose(limits), np.transpose(best), strict=True)]
    low, high = quantiles([errors[model] / max(errors[reference], 1e-9) for errors in drawn])
    errors = left_out_errors(tables)
    return {"value": errors[model] / max(errors[reference], 1e-9), "low": low, "high": high, "n": len(tables)}


def best_of_k_gain(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], k: int, price: int = 0, seed: int = 8) -> dict:
    """Points of test accuracy that the best of k refined recipes gains over the best initial ones; mean of pairs.

    Args:
        pairs: (initial, refined) with `drop` on validation images, which selects, and `test_drop`.
        price: recipes that it took to find where to refine; the best of k + price initial ones is the rival. It is
            at most the best of those that were retrained.

    The interval is recentred: redrawing loses the best recipe of a space in a third of the draws.
    """

    def gain(parts: Sequence[pd.DataFrame]) -> float:
        tries = [k + price, k] * len(pairs)
        best = [best_of_k(part["drop"], part["test_drop"], [k])[0] for part, k in zip(parts, tries, strict=True)]
        return float(np.mean(np.array(best[::2]) - np.array(best[1::2])))

    tables = [part[["drop", "test_drop"]] for pair in pairs for part in pair]
    return bootstrapped(gain, tables, seed, recentred=True)


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


def common_share(selection: pd.DataFrame, report: pd.DataFrame, seed: int = 10) -> dict:
    """Mean correlation of drops on one set of images under a seed with drops on another under another seed.

    selection, report: (recipes, seeds), on images that have nothing in common. An intraclass correlation counts a
    recipe's luck with the images that judge it as its own; here neither images nor seed are shared, so that only the
    recipe is. The interval draws recipes; n counts them.
    """
    pairs = [(i, j) for i in range(selection.shape[1]) for j in range(selection.shape[1]) if i != j]
    first, second = (
        table.to_numpy()[:, list(order)]
        for table, order in zip((selection, report), zip(*pairs, strict=True), strict=True)
    )

    def correlation(rows: np.ndarray) -> float:
        a, b = (values[rows] - values[rows].mean(axis=0) for values in (first, second))
        with np.errstate(invalid="ignore"):  # a draw of one recipe alone has no correlation
            return float(((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))).mean())

    low, high = nested_interval(lambda _, rows: correlation(rows), 1, len(selection), seed=seed)
    return {"value": correlation(np.arange(len(selection))), "low": low, "high": high, "n": len(selection)}


def schedule_agreement(table: pd.DataFrame, seed: int = 9) -> dict:
    """Smallest Spearman's correlation of drops between any two retraining schedules; table (recipes, schedules).

    The interval holds all pairs together (Fisher's z, Bonferroni). The smallest of several correlations of unrelated
    ranks is below 0 on average, so p and `null` (mean and 95 % range) come from exchanged ranks.
    Source: Bonett and Wright 2000 for the standard error of Spearman's z.
    """
    ranks = stats.rankdata(table.to_numpy(), axis=0)
    n, pairs = len(ranks), np.triu_indices(ranks.shape[1], 1)

    def correlations(ranks: np.ndarray) -> np.ndarray:
        centred = ranks - ranks.mean(axis=-2, keepdims=True)
        length = np.sqrt((centred**2).sum(axis=-2))
        product = np.swapaxes(centred, -1, -2) @ centred
        scale = length[..., :, None] * length[..., None, :]
        return (product / np.where(scale > 0, scale, 1))[..., *pairs]  # a schedule that ties all recipes ranks none

    found = correlations(ranks)
    z = np.arctanh(np.clip(found, -0.999, 0.999))
    half = stats.norm.ppf(1 - (1 - LEVEL) / 2 / len(found)) * np.sqrt((1 + found**2 / 2) / (n - 3))
    random = np.random.default_rng(seed)
    null = correlations(random.permuted(np.tile(ranks, (EXCHANGES, 1, 1)), axis=1)).min(axis=1)
    p = (1 + (null >= found.min()).sum()) / (1 + EXCHANGES)
    bounds = {"low": float(np.tanh(z - half).min()), "high": float(np.tanh(z + half).min())}
    return {
        "value": float(found.min()),
        **bounds,
        "p": float(p),
        "n": n,
        "null": (float(null.mean()), *quantiles(null)),
    }


def proxy_agreement(tables: Sequence[pd.DataFrame], seed: int = 10) -> dict:
    """Spearman's correlation within regimes of the drop before retraining and that after it, on test images.

    The two are measured on different images, so that the noise of the images does not correlate them.
    """

    def correlation(parts: Sequence[pd.DataFrame]) -> float:
        every = np.concatenate([part.to_numpy() for part in parts])
        return rank_correlation(every[:, 0], every[:, 1], every[:, 2].tolist())

    return bootstrapped(correlation, [table[["proxy_drop", "test_drop", "kept"]] for table in tables], seed)


def prediction_gain(
    tables: Sequence[pd.DataFrame], features: Sequence[str], beyond: Sequence[str] = (), seed: int = 11
) -> dict:
    """Share of the cross-validated squared error within regimes that features remove, on top of others.

    Ten folds of recipes, least squares on standardised features; drops are standardised within their regime. The
    interval redraws recipes; copies of one stay in its fold, so fewer recipes are left to learn from, and it lies low.
    """
    random = np.random.default_rng(seed)
    columns, full, rest = [*beyond, *features], 0.0, 0.0
    for table in tables:
        n, x, y = len(table), table[columns].to_numpy(), table["z"].to_numpy()
        x = np.column_stack([np.ones(n), (x - x.mean(axis=0)) / x.std(axis=0)])
        fold = random.permutation(n) % FOLDS
        times = np.vstack([np.ones(n, dtype=int), random.multinomial(n, np.full(n, 1 / n), REDRAWS)])
        full = full + _fold_errors(x, y, fold, times)
        rest = rest + _fold_errors(x[:, : 1 + len(beyond)], y, fold, times)
    value, *draws = 1 - full / rest
    low, high = quantiles(draws)
    return {"value": float(value), "low": low, "high": high, "n": size(tables)}


def prediction_table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """`prediction_gain` of each of `PREDICTIONS`."""
    return pd.DataFrame({name: prediction_gain(tables, *asked) for name, asked in PREDICTIONS.items()}).T


def contest(rows: pd.DataFrame, champion: str, rivals: Sequence[str], seed: int = 10) -> dict:
    """Points by which a champion beats the best of its rivals on the same test images, by `claims.paired_gain`.

    The best rival is the one of largest mean, which favours the rivals. Images are drawn anew for both together, seeds
    for each by itself, which is on the safe side where one seed treats both alike.

    rows: of `spaces_trials.retrain` with `by_image`; `space` names the contestant. Failed trials are left out.
    """
    done, images = rows[rows["status"] == "done"], np.arange(int(rows["test_images"].iloc[0]))
    wrong = done.groupby("space")["test_wrong"].agg(lambda lists: [np.isin(images, one) for one in lists])
    right = {name: 100.0 - 100.0 * np.array(one) for name, one in wrong.items()}
    best = max((name for name in rivals if name in right), key=lambda name: right[name].mean())
    found = paired_gain(right[champion], right[best], seed=seed)
    return {"value": found.pop("gain"), "n": len(right[champion]), "rival": best} | found


def bootstrapped(statistic: Callable, tables: Sequence[pd.DataFrame], seed: int, recentred: bool = False) -> dict:
    """A statistic of tables, its percentile interval over recipes redrawn within each table, and their number.

    recentred: shift the interval by as much as the redrawn statistic differs from the found one on average.
    """
    random = np.random.default_rng(seed)
    draws = [
        statistic([table.iloc[random.integers(len(table), size=len(table))] for table in tables])
        for _ in range(REDRAWS)
    ]
    value = float(statistic(tables))
    low, high = np.array(quantiles(draws)) - (np.nanmean(draws) - value if recentred else 0)
    return {"value": value, "low": float(low), "high": float(high), "n": size(tables)}


def _fold_errors(x: np.ndarray, y: np.ndarray, fold: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Summed squared error on held-out folds by least squares on the others, for each row of counts (draws, n)."""
    total = np.zeros(len(times))
    for held in range(FOLDS):
        learnt = times * (fold != held)
        normal = np.einsum("bn,ni,nj->bij", learnt, x, x) + 1e-9 * np.eye(x.shape[1])
        slopes = np.linalg.solve(normal, np.einsum("bn,ni,n->bi", learnt, x, y)[..., None])[..., 0]
        total += (times * (fold == held) * (y - slopes @ x.T) ** 2).sum(axis=1)
    return total


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
