"""Rows of paper 3's populations as drops by regime, and the optimum of mCB: where it is, whether winners lie near it.

A *regime* is a table of recipes with `log_mcb`, `drop` and the other coordinates; statistics take a list of regimes and
are dictionaries with `value`, `low`, `high`, `n` (recipes) and, where they have one, `p`. Intervals redraw recipes
within each regime; where an optimum is used on other recipes than it was fitted to, the two halves are redrawn apart.

Published pruned networks in the coordinates of paper 3: EagleEye's ResNet-50 recipes, and results of other authors.

None of them is paper 3's own: its tables are not available.

The other verdict statistics of paper 3: STD spaces, limits, refined spaces, noise, schedules, predictors, contests.

Tables and dictionaries are those of `spaces_optimum`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib import channels, models
from lib.channels import Groups
from lib.spaces import measures, samplers
from lib.spaces.measures import Regime, best_of_k
from lib.stats import LEVEL, paired_gain, percentile_interval, rank_correlation, resampled

WINNERS, FEWEST_WINNERS = 0.05, 3  # share of a population that wins, and the fewest that have a median
CONTROL = ["network", "dataset", "mode", "retraining"]
RESAMPLES, SPLITS = 1000, 20


def with_drops(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of recipes with `drop` (validation), `test_drop`, `proxy_drop` in points, and `log_mcb`.

    A drop is the accuracy of the dense control of the same network, retraining and seed, minus the recipe's own.
    """
    rows = rows[rows["status"] == "done"].reset_index(drop=True)
    accuracies = [name for name in ("validation_accuracy", "test_accuracy", "proxy_accuracy") if name in rows]
    controls = rows[rows["space"] == "dense"].groupby(CONTROL)[accuracies].mean()
    own = controls.reindex(pd.MultiIndex.from_frame(rows[CONTROL])).reset_index(drop=True)
    for name in accuracies:
        rows[name.replace("accuracy", "drop").replace("validation_", "")] = own[name] - rows[name]
    return rows.assign(log_mcb=np.log(rows["mcb"]), log_mcb_squared=np.log(rows["mcb"]) ** 2)


def regimes(rows: pd.DataFrame, column: str = "drop") -> list[pd.DataFrame]:
    """Recipes by kept share, the mildest regime first, with `drop` from another column and `z`, it over its spread."""
    tables = []
    for _, one in sorted(rows[rows["space"] != "dense"].groupby("kept"), reverse=True):
        drop = one[column].to_numpy()
        tables.append(one.assign(drop=drop, z=(drop - drop.mean()) / (drop.std() or 1)).reset_index(drop=True))
    return tables


def one_space(rows: pd.DataFrame, space: str, kept: float) -> pd.DataFrame:
    """The recipes of one space in one regime."""
    return rows[(rows["space"] == space) & (rows["kept"] == kept)].reset_index(drop=True)


def refined_recipes(groups: Groups, kept: float, pool: np.ndarray, best: float, count: int) -> tuple[np.ndarray, float]:
    """`count` recipes of the space refined around m* = `best`, and its mass, the share of a random pool (n, G) in it.

    They come from the pool, or are solved for where it holds too few.
    """
    inside = measures.refined(groups, pool, best)
    if inside.sum() >= count:
        return pool[inside][:count], float(inside.mean())
    return samplers.with_targets(groups, Regime(kept), [best] * count, seed=3), float(inside.mean())


def optimum(table: pd.DataFrame) -> float:
    """Log m*: where the quadratic of drop on log mCB is least within the sampled range, maybe at an end of it."""
    return float(vertices(*_arrays(table)))


def optimum_interval(table: pd.DataFrame, seed: int = 0) -> dict:
    """m* of one regime with a bootstrap interval over recipes."""
    low, high = quantiles(np.exp(_redrawn_optima([table], seed)[:, 0]))
    return {"value": float(np.exp(optimum(table))), "low": low, "high": high, "n": len(table)}


def u_shape(tables: Sequence[pd.DataFrame], seed: int = 1) -> dict:
    """The smaller of the two outward slopes of drop on log mCB at the ends of the range, mean over regimes.

    In standard deviations of drop a unit of log mCB; above 0 only if the drop falls at the low end and rises at the
    high end (Lind and Mehlum). p: the larger of the two one-sided p-values, of mean slopes over regimes.
    """
    pairs = [_arrays(table, "z") for table in tables]
    found = np.mean([_end_slopes(x, y) for x, y in pairs], axis=0)
    draws = np.mean([_end_slopes(x[d], y[d]) for (x, y), d in zip(pairs, _draws(tables, seed), strict=True)], axis=0)
    low, high = quantiles(draws.min(axis=1))
    p = float(max(stats.norm.sf(found / draws.std(axis=0))))
    return {"value": float(found.min()), "low": low, "high": high, "p": p, "n": size(tables)}


def pooled_optimum(tables: Sequence[pd.DataFrame], seed: int = 2) -> dict:
    """Log m*, the random-effects mean over regimes (DerSimonian and Laird), with its normal interval."""
    values = np.array([optimum(table) for table in tables])
    variance = np.maximum(_redrawn_optima(tables, seed).var(axis=0), 1e-6)
    weights = 1 / variance
    mean = (weights * values).sum() / weights.sum()
    excess = (weights * (values - mean) ** 2).sum() - (len(values) - 1)
    between = max(0.0, excess / max(weights.sum() - (weights**2).sum() / weights.sum(), 1e-12))
    weights = 1 / (variance + between)
    mean, error = (weights * values).sum() / weights.sum(), weights.sum() ** -0.5
    half = stats.norm.ppf((1 + LEVEL) / 2) * error
    return {"value": float(mean), "low": float(mean - half), "high": float(mean + half), "n": size(tables)}


def trend(tables: Sequence[pd.DataFrame], seed: int = 3) -> dict:
    """Slope of log m* on -log(kept): above 0, the optimum rises as pruning gets more aggressive."""
    level = -np.log([table["kept"].iloc[0] for table in tables])
    weights = (level - level.mean()) / ((level - level.mean()) ** 2).sum()
    low, high = quantiles(_redrawn_optima(tables, seed) @ weights)
    value = np.array([optimum(table) for table in tables]) @ weights
    return {"value": float(value), "low": low, "high": high, "n": size(tables)}


def winners(tables: Sequence[pd.DataFrame], seed: int = 4, exchanges: int = 499) -> dict:
    """How much nearer than the whole population winners lie to an optimum fitted to other recipes; log units.

    Median |log mCB - log m*| of the winners of one half minus that of the whole half, m* from the other half, mean
    over regimes and over splits; below 0, winners are nearer. p: drops exchanged among the recipes of a regime.
    """

    def nearer(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distance = np.abs(x - vertices(fit_x, fit_y)[:, None])
        best = np.take_along_axis(distance, np.argsort(y, axis=1, kind="stable")[:, : win_count(x.shape[1])], axis=1)
        return np.median(best, axis=1) - np.median(distance, axis=1)

    random = np.random.default_rng(seed)
    value, draws = np.zeros(()), np.zeros(RESAMPLES)
    null = np.zeros(exchanges)
    for table in tables:
        x, y = _arrays(table)
        value = value + _over_halves(nearer, x, y, random, SPLITS).mean() / len(tables)
        draws = draws + _over_halves(nearer, x, y, random, RESAMPLES, redraw=True) / len(tables)
        mixed = random.permuted(np.tile(y, (exchanges, 1)), axis=1).repeat(SPLITS, axis=0)
        null += _over_halves(nearer, x, mixed, random, len(mixed)).reshape(exchanges, -1).mean(axis=1) / len(tables)
    low, high = quantiles(draws)
    p = (1 + (null <= value).sum()) / (1 + exchanges)
    return {"value": float(value), "low": low, "high": high, "p": float(p), "n": size(tables)}


def winning(drops: Sequence[float]) -> np.ndarray:
    """Places of the winners, the best first."""
    return np.argsort(np.asarray(drops), kind="stable")[: win_count(len(drops))]


def win_count(n: int) -> int:
    """How many of n recipes win: the best 5 %, at least three."""
    return max(FEWEST_WINNERS, round(WINNERS * n))


def deviation_gain(tables: Sequence[pd.DataFrame], seed: int = 7) -> dict:
    """Share of the out-of-sample squared error within regimes that |log mCB - log m*| removes; m* of other recipes."""

    def errors(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        best = vertices(fit_x, fit_y)[:, None]
        old, new, mean = np.abs(fit_x - best), np.abs(x - best), fit_y.mean(axis=1, keepdims=True)
        centred = old - old.mean(axis=1, keepdims=True)
        slope = (centred * fit_y).sum(axis=1, keepdims=True) / (centred**2).sum(axis=1, keepdims=True)
        residual = y - mean - slope * (new - old.mean(axis=1, keepdims=True))
        return np.stack([(residual**2).sum(axis=1), ((y - mean) ** 2).sum(axis=1)], axis=1)

    random, found, draws = np.random.default_rng(seed), 0.0, 0.0
    for table in tables:
        x, y = _arrays(table, "z")
        found = found + _over_halves(errors, x, y, random, SPLITS).sum(axis=0)
        draws = draws + _over_halves(errors, x, y, random, RESAMPLES, redraw=True)
    low, high = quantiles(1 - draws[:, 0] / draws[:, 1])
    return {"value": float(1 - found[0] / found[1]), "low": low, "high": high, "n": size(tables)}


def vertices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the least-squares quadratic of y on x is least within the range of x, for each row: (..., n) -> (...)."""
    a, b, centre = _quadratic(x, y)
    low, high = x.min(axis=-1) - centre, x.max(axis=-1) - centre
    inner = np.clip(-b / (2 * np.where(a > 0, a, np.inf)), low, high)
    candidates = np.stack([low, high, np.where(a > 0, inner, low)])
    values = a * candidates**2 + b * candidates
    return np.take_along_axis(candidates, values.argmin(axis=0)[None], axis=0)[0] + centre


def _end_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Outward slopes of the quadratic at both ends of the range, (..., 2)."""
    a, b, centre = _quadratic(x, y)
    return np.stack([-2 * a * (x.min(axis=-1) - centre) - b, 2 * a * (x.max(axis=-1) - centre) + b], axis=-1)


def _quadratic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of (x - centre)^2 and (x - centre) in the least-squares quadratic of each row, and the centre."""
    centre = x.mean(axis=-1)
    u = x - centre[..., None]
    powers = np.stack([np.ones_like(u), u, u**2], axis=-1)
    normal = np.swapaxes(powers, -1, -2) @ powers + 1e-12 * np.eye(3)
    solved = np.linalg.solve(normal, np.swapaxes(powers, -1, -2) @ y[..., None])[..., 0]
    return solved[..., 2], solved[..., 1], centre


def _arrays(table: pd.DataFrame, column: str = "drop") -> tuple[np.ndarray, np.ndarray]:
    return table["log_mcb"].to_numpy(dtype=float), table[column].to_numpy(dtype=float)


def _over_halves(statistic, x: np.ndarray, y: np.ndarray, random, count: int, redraw: bool = False) -> np.ndarray:
    """A statistic of (fit x, fit y, x, y) over random halvings, mean of both ways; y: (n,) or one row a halving."""
    order = random.permuted(np.tile(np.arange(len(x)), (count, 1)), axis=1)
    halves = [order[:, : len(x) // 2], order[:, len(x) // 2 :]]
    if redraw:
        halves = [np.take_along_axis(h, random.integers(h.shape[1], size=h.shape), axis=1) for h in halves]
    rows = np.broadcast_to(y, (count, len(x)))
    one, two = ((x[half], np.take_along_axis(rows, half, axis=1)) for half in halves)
    return (statistic(*one, *two) + statistic(*two, *one)) / 2


def _draws(tables: Sequence[pd.DataFrame], seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(len(table), size=(RESAMPLES, len(table))) for table in tables]


def _redrawn_optima(tables: Sequence[pd.DataFrame], seed: int) -> np.ndarray:
    pairs = zip(map(_arrays, tables), _draws(tables, seed), strict=True)
    return np.stack([vertices(x[draw], y[draw]) for (x, y), draw in pairs], axis=1)


def quantiles(values: np.ndarray) -> tuple[float, float]:
    """The interval at the house's level that holds the middle of some draws."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def size(tables: Sequence[pd.DataFrame]) -> int:
    """Recipes in all tables."""
    return sum(len(table) for table in tables)


# Widths of EagleEye's three ResNet-50s: n - floor(ratio * n) of the ratios in its `search_results` (commit ba312d9);
# stem, then by stage both inner convolutions of each block, then the stage's stream.
EAGLEEYE = {
    "3G": [62, 57, 56, 46, 46, 50, 60, 210, 124, 124, 98, 105, 115, 117, 94, 91, 471, 237, 201, 241, 217, 223, 225]
    + [205, 255, 227, 215, 212, 185, 914, 476, 412, 410, 387, 408, 491, 1970],
    "2G": [58, 46, 35, 35, 39, 34, 36, 200, 111, 78, 123, 89, 89, 71, 79, 79, 361, 225, 197, 217, 160, 208, 179]
    + [173, 161, 246, 180, 153, 150, 568, 407, 309, 382, 299, 356, 440, 1947],
    "1G": [52, 51, 35, 22, 19, 13, 46, 92, 111, 86, 33, 55, 37, 79, 31, 58, 272, 229, 183, 114, 119, 197, 57]
    + [138, 130, 56, 96, 199, 78, 324, 158, 415, 140, 246, 425, 362, 944],
}
# Kept share, largest ratio of the random search (the smallest is 0) and top-1 accuracy (%) on ImageNet.
EAGLEEYE_SEARCH = {"3G": (0.75, 0.4, 77.1), "2G": (0.50, 0.7, 76.4), "1G": (0.25, 0.8, 74.2)}
EAGLEEYE_TOLERANCE = 0.005  # absolute, on the kept share

# Kept MACs and parameters, each against the dense count of the same counter, and accuracy (%), as the authors publish.
COLUMNS = ["method", "network", "dataset", "kept_macs", "kept_parameters", "accuracy"]
RESULTS = [
    ("uniform 0.75x", "resnet50", "imagenet", 2.322677760 / 4.089184256, 14.771992 / 25.557032, 74.8),
    ("uniform 0.5x", "resnet50", "imagenet", 1.052311552 / 4.089184256, 6.917640 / 25.557032, 72.0),
    ("ABCPruner-100", "resnet50", "imagenet", 2.556 / 4.136, 18.02 / 25.557, 74.84),
    ("ABCPruner-80", "resnet50", "imagenet", 1.891 / 4.136, 11.75 / 25.557, 73.86),
    ("ABCPruner-70", "resnet50", "imagenet", 1.794 / 4.136, 11.24 / 25.557, 73.52),
    ("ABCPruner-50", "resnet50", "imagenet", 1.295 / 4.136, 9.1 / 25.557, 72.58),
    ("ABCPruner-30", "resnet50", "imagenet", 0.945 / 4.136, 7.35 / 25.557, 70.29),
    ("ABCPruner", "resnet56", "cifar10", 58.54 / 127.62, 0.39 / 0.853018, 93.23),
    ("ABCPruner", "resnet110", "cifar10", 89.87 / 257.08, 0.56 / 1.727962, 93.58),
    ("ABCPruner", "vgg16", "cifar10", 82.81 / 314.59, 1.67 / 14.724042, 93.08),
]


def eagleeye_groups() -> Groups:
    """The 37 channel groups of torchvision's ResNet-50 at 224 pixels, in the order of EagleEye's recipes."""
    order = ["conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        order += [f"layer{stage}.{block}.conv{place}" for block in range(blocks) for place in (1, 2)]
        order.append(f"layer{stage}.0.conv3")
    return channels.find(models.build("resnet50", form="imagenet", classes=1000, size=224), 224).only(order)


def eagleeye_population(groups: Groups, name: str, n: int, seed: int = 0) -> np.ndarray:
    """N random recipes (n, 37) as the search for a published recipe drew them, with its rounding and tolerance."""
    kept, largest, _ = EAGLEEYE_SEARCH[name]
    regime = Regime(kept, tolerance=EAGLEEYE_TOLERANCE / kept)
    return measures.sample_recipes(groups, regime, n, seed=seed, ratios=(0, largest), rounding=measures.floored).widths


def eagleeye_places(n: int, seed: int = 0) -> pd.DataFrame:
    """The published recipes' coordinates, and where mCB and STD lie among n random recipes of the same search.

    Returns: a row a recipe, with `mcb_percentile`, `std_percentile` in [0, 100], and the population's medians.
    """
    groups, rows = eagleeye_groups(), []
    for name, widths in EAGLEEYE.items():
        own = measures.coordinates(groups, np.array([widths])).iloc[0]
        population = measures.coordinates(groups, eagleeye_population(groups, name, n, seed))
        row = {"recipe": name, "accuracy": EAGLEEYE_SEARCH[name][2]} | own.to_dict()
        for column in ("mcb", "std"):
            row[f"{column}_percentile"] = 100 * float((population[column] < own[column]).mean())
            row[f"{column}_median"] = float(population[column].median())
        rows.append(row)
    return pd.DataFrame(rows)


def results() -> pd.DataFrame:
    """Results of other authors with their normalised mCB: kept MACs over kept parameters."""
    table = pd.DataFrame(RESULTS, columns=COLUMNS)
    return table.assign(mcb=table["kept_macs"] / table["kept_parameters"])


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

    low, high = percentile_interval(resampled(correlation, len(selection), seed=seed))
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
    return found | {"n": len(right[champion]), "rival": best}


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
