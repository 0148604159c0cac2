"""Rows of paper 3's populations as statistics: drops by regime, the optimum of mCB, winners, limits, predictors.

A *regime* is a table of recipes with `log_mcb`, `drop` and the other coordinates. Statistics take a list of regimes
and are dictionaries with `value`, `low`, `high`, `n` (recipes) and, where they have one, `p`, as `Ledger.enter` takes
them. Intervals redraw recipes within each regime; where an optimum is used on other recipes than it was fitted to, the
two halves are redrawn separately.

The last part puts published networks into the same coordinates: EagleEye's ResNet-50 recipes and results of other
authors. Paper 3's own tables are not available.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from lib import stats
from lib.channels import Groups
from lib.spaces import measures, samplers, trials
from lib.spaces.measures import Regime, best_of_k

WINNERS, FEWEST_WINNERS = 0.05, 3  # share of a population that wins, and the fewest that have a median
CONTROL = ["network", "dataset", "mode", "retraining"]
RESAMPLES, SPLITS, REDRAWS = 1000, 20, 400


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
    """Recipes by kept share, the mildest regime first, with `drop` from a column, and `z`, drop over its spread."""
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

    They come from the pool, or are constructed where it holds too few.
    """
    inside = measures.refined(groups, pool, best)
    if inside.sum() >= count:
        return pool[inside][:count], float(inside.mean())
    return samplers.with_targets(groups, Regime(kept), [best] * count, seed=3), float(inside.mean())


def optimum(table: pd.DataFrame) -> float:
    """Log m*: the lowest point of the quadratic of drop on log mCB within the sampled range, maybe at an end of it."""
    return float(stats.quadratic_minimum(*_arrays(table)))


def optimum_interval(table: pd.DataFrame) -> dict:
    """m* of one regime with a bootstrap interval over recipes."""
    draws = np.exp(_redrawn_optima([table], seed=0)[:, 0])
    return stats.percentile_estimate(np.exp(optimum(table)), draws, len(table))


def u_shape(tables: Sequence[pd.DataFrame]) -> dict:
    """The smaller outward slope of drop on log mCB at the ends of its range, in sd of drop, by `stats.u_shape`."""
    return stats.u_shape([_arrays(table, "z") for table in tables], seed=1, resamples=RESAMPLES)


def pooled_optimum(tables: Sequence[pd.DataFrame]) -> dict:
    """Log m*, the random-effects mean over regimes."""
    values = np.array([optimum(table) for table in tables])
    variances = np.maximum(_redrawn_optima(tables, seed=2).var(axis=0), 1e-6)
    return stats.random_effects_mean(values, variances) | {"n": sum(map(len, tables))}


def trend(tables: Sequence[pd.DataFrame]) -> dict:
    """Slope of log m* on -log(kept): above 0, the optimum rises as pruning gets more aggressive."""
    level = -np.log([table["kept"].iloc[0] for table in tables])
    weights = (level - level.mean()) / ((level - level.mean()) ** 2).sum()
    value = np.array([optimum(table) for table in tables]) @ weights
    return stats.percentile_estimate(value, _redrawn_optima(tables, seed=3) @ weights, sum(map(len, tables)))


def winners(tables: Sequence[pd.DataFrame], exchanges: int = 499) -> dict:
    """How much nearer winners are than the whole population to an optimum fitted to other recipes; log units.

    Median |log mCB - log m*| of the winners of one half minus that of the whole half, m* from the other half, mean
    over regimes and over splits; below 0, winners are nearer. p comes from `exchanges` of drops within regimes.
    """

    def nearer(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distance = np.abs(x - stats.quadratic_minimum(fit_x, fit_y)[:, None])
        best = np.take_along_axis(distance, np.argsort(y, axis=1, kind="stable")[:, : win_count(x.shape[1])], axis=1)
        return np.median(best, axis=1) - np.median(distance, axis=1)

    random, value, draws, null = np.random.default_rng(4), np.zeros(()), np.zeros(RESAMPLES), np.zeros(exchanges)
    for table in tables:
        x, y = _arrays(table)
        value = value + _over_halves(nearer, x, y, random, SPLITS).mean() / len(tables)
        draws = draws + _over_halves(nearer, x, y, random, RESAMPLES, redraw=True) / len(tables)
        mixed = random.permuted(np.tile(y, (exchanges, 1)), axis=1).repeat(SPLITS, axis=0)
        null += _over_halves(nearer, x, mixed, random, len(mixed)).reshape(exchanges, -1).mean(axis=1) / len(tables)
    found = stats.percentile_estimate(value, draws, sum(map(len, tables)))
    return found | {"p": stats.upper_p(-value, -null)}


def winning(drops: Sequence[float]) -> np.ndarray:
    """Places of the winners, the best first."""
    return np.argsort(np.asarray(drops), kind="stable")[: win_count(len(drops))]


def win_count(n: int) -> int:
    """Number of winners among n recipes: the best 5 %, at least three."""
    return max(FEWEST_WINNERS, round(WINNERS * n))


def deviation_gain(tables: Sequence[pd.DataFrame]) -> dict:
    """Share of the out-of-sample squared error within regimes that |log mCB - log m*| removes; m* of other recipes."""

    def errors(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        best = stats.quadratic_minimum(fit_x, fit_y)[:, None]
        old, new, mean = np.abs(fit_x - best), np.abs(x - best), fit_y.mean(axis=1, keepdims=True)
        centred = old - old.mean(axis=1, keepdims=True)
        slope = (centred * fit_y).sum(axis=1, keepdims=True) / (centred**2).sum(axis=1, keepdims=True)
        residual = y - mean - slope * (new - old.mean(axis=1, keepdims=True))
        return np.stack([(residual**2).sum(axis=1), ((y - mean) ** 2).sum(axis=1)], axis=1)

    random, found, draws = np.random.default_rng(7), 0.0, 0.0
    for table in tables:
        x, y = _arrays(table, "z")
        found = found + _over_halves(errors, x, y, random, SPLITS).sum(axis=0)
        draws = draws + _over_halves(errors, x, y, random, RESAMPLES, redraw=True)
    gains = 1 - draws[:, 0] / draws[:, 1]
    return stats.percentile_estimate(1 - found[0] / found[1], gains, sum(map(len, tables)))


def spread_effect(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], seed: int = 5) -> dict:
    """Signed area between the EDFs of a narrow and a wide STD space, in pooled standard deviations, mean over regimes.

    `pairs` holds (narrow, wide) of each regime. Above 0, the wide space loses more.
    """
    drops = [(narrow["drop"].to_numpy(), wide["drop"].to_numpy()) for narrow, wide in pairs]
    return stats.standardised_difference(drops, seed=seed, resamples=REDRAWS)


def spread_contrast(mild: tuple, harsh: tuple) -> dict:
    """`spread_effect` of the harshest regime minus that of the mildest."""
    one, two = (spread_effect([pair], seed=12) for pair in (mild, harsh))
    error = np.hypot(one["high"] - one["low"], two["high"] - two["low"]) / 2
    value = two["value"] - one["value"]
    return {"value": value, "low": value - error, "high": value + error, "n": one["n"] + two["n"]}


def spread_table(spread: dict[float, Sequence[pd.DataFrame]], asked: Sequence[float]) -> pd.DataFrame:
    """Achieved STD and mCB of STD spaces, and two tests of equal distributions of drop; a column for each regime."""
    columns = {}
    for kept, tables in spread.items():
        drops = [table["drop"] for table in tables]
        exchange = scipy_stats.PermutationMethod(n_resamples=999, rng=np.random.default_rng(0))
        darling = scipy_stats.anderson_ksamp(drops, variant="midrank", method=exchange)
        smirnov = scipy_stats.ks_2samp(drops[0], drops[-1])
        columns[f"{kept:.0%}"] = {
            f"STD asked {std}": f"STD {one['std'].mean():.3f}, mCB {one['mcb'].mean():.2f}, n = {len(one)}"
            for std, one in zip(asked, tables, strict=True)
        }
        p = {"Anderson-Darling, all, p": darling.pvalue, "Kolmogorov-Smirnov, outer two, p": smirnov.pvalue}
        columns[f"{kept:.0%}"] |= {name: f"{value:.3f}" for name, value in p.items()}
    return pd.DataFrame(columns)


def limit(table: pd.DataFrame) -> float:
    """The limit of a regime: the 5 % quantile of its drops, not the minimum, which falls with n."""
    return float(np.quantile(table["drop"], WINNERS))


def left_out_errors(limits: np.ndarray, best: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Leave-one-regime-out errors of limits (points) and of log m*, from a constant, from log(kept), from log m*."""
    level, left_out = np.log(kept), stats.leave_one_out_error
    errors = {"constant": left_out(limits), "level": left_out(limits, level), "optimum": left_out(limits, best)}
    return errors | {"optimum, constant": left_out(best), "optimum, level": left_out(best, level)}


def error_ratio(tables: Sequence[pd.DataFrame], model: str, reference: str) -> dict:
    """Ratio of two of `left_out_errors`; below 1 the model predicts regimes that it has not seen better."""
    limits, best = [[limit(table) for table in tables]], [[optimum(table) for table in tables]]  # found, then redrawn
    rows = stats.redrawn_rows(*map(len, tables), seed=6, resamples=REDRAWS)
    drawn = [(x[row], y[row]) for (x, y), row in zip(map(_arrays, tables), rows, strict=True)]
    limits = np.vstack([limits, np.transpose([np.quantile(y, WINNERS, axis=1) for _, y in drawn])])
    best = np.vstack([best, np.transpose([stats.quadratic_minimum(x, y) for x, y in drawn])])
    kept = np.array([table["kept"].iloc[0] for table in tables])
    errors = [left_out_errors(*pair, kept) for pair in zip(limits, best, strict=True)]
    value, *draws = (one[model] / max(one[reference], 1e-9) for one in errors)
    return stats.percentile_estimate(value, draws, len(tables))


def best_of_k_gain(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], k: int, price: int = 0) -> dict:
    """Points of test accuracy that the best of k refined recipes gains over the best initial ones; mean over pairs.

    `pairs` holds (initial, refined), with `drop` on validation images, which selects, and `test_drop`. `price` is the
    number of recipes that were needed to find m*: the rival is the best of k + price initial recipes, at most the best
    retrained one. The interval is recentred: redrawing loses the best recipe of a space in a third of the draws.
    """

    def gain(samples: Sequence[np.ndarray]) -> float:
        tries = [k + price, k] * len(pairs)
        best = [best_of_k(*sample.T, [count])[0] for sample, count in zip(samples, tries, strict=True)]
        return float(np.mean(np.array(best[::2]) - np.array(best[1::2])))

    samples = [part[["drop", "test_drop"]].to_numpy() for pair in pairs for part in pair]
    return stats.stratified_bootstrap(gain, samples, seed=8, resamples=REDRAWS, recentred=True)


def common_share(selection: pd.DataFrame, report: pd.DataFrame) -> dict:
    """Mean correlation of drops on one set of images under a seed with drops on another set under another seed.

    Both tables are (recipes, seeds), on images that have nothing in common. An intraclass correlation counts a recipe's
    luck with the images that judge it as its own; here neither images nor seed are shared. The interval draws recipes.
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

    n = len(selection)
    return stats.percentile_estimate(correlation(np.arange(n)), stats.resampled(correlation, n, seed=10), n)


def proxy_agreement(tables: Sequence[pd.DataFrame]) -> dict:
    """Spearman's correlation within regimes of the drop before retraining and that after it, on test images.

    The two are measured on different images, so that the noise of the images does not correlate them.
    """

    def correlation(samples: Sequence[np.ndarray]) -> float:
        proxy, test, kept = np.concatenate(samples).T
        return stats.rank_correlation(proxy, test, kept.tolist())

    samples = [table[["proxy_drop", "test_drop", "kept"]].to_numpy() for table in tables]
    return stats.stratified_bootstrap(correlation, samples, seed=10, resamples=REDRAWS)


def prediction_gain(tables: Sequence[pd.DataFrame], features: Sequence[str], beyond: Sequence[str] = ()) -> dict:
    """Share of the cross-validated squared error of drop within regimes that features remove, on top of others."""
    samples = [(table[[*beyond, *features]].to_numpy(), table["z"].to_numpy()) for table in tables]
    return stats.cross_validated_gain(samples, len(beyond), seed=11, resamples=REDRAWS)


def contest(rows: pd.DataFrame, champion: str, rivals: Sequence[str]) -> dict:
    """Points by which a champion beats its best rival on the same test images, by `stats.paired_gain`.

    The rows come from `trials.retrain` with `by_image`; their `space` names the contestant. The best rival, returned as
    `rival`, has the largest mean, which favours the rivals. Images are drawn anew for both together, seeds for each
    separately, which is conservative where one seed treats both alike. Failed trials are left out.
    """
    done, images = rows[rows["status"] == "done"], np.arange(int(rows["test_images"].iloc[0]))
    wrong = done.groupby("space")["test_wrong"].agg(lambda lists: [np.isin(images, one) for one in lists])
    right = {name: 100.0 - 100.0 * np.array(one) for name, one in wrong.items()}
    best = max((name for name in rivals if name in right), key=lambda name: right[name].mean())
    found = stats.paired_gain(right[champion], right[best], seed=10)
    return found | {"n": len(right[champion]), "rival": best}


def _arrays(table: pd.DataFrame, column: str = "drop") -> tuple[np.ndarray, np.ndarray]:
    return table["log_mcb"].to_numpy(dtype=float), table[column].to_numpy(dtype=float)


def _redrawn_optima(tables: Sequence[pd.DataFrame], seed: int) -> np.ndarray:
    """Bootstrap draws (RESAMPLES, regimes) of log m*."""
    rows = stats.redrawn_rows(*map(len, tables), seed=seed, resamples=RESAMPLES)
    pairs = zip(map(_arrays, tables), rows, strict=True)
    return np.stack([stats.quadratic_minimum(x[row], y[row]) for (x, y), row in pairs], axis=1)


def _over_halves(
    statistic: Callable, x: np.ndarray, y: np.ndarray, random: np.random.Generator, count: int, redraw: bool = False
) -> np.ndarray:
    """A statistic of (fit x, fit y, x, y) over random halvings, mean of both ways; y: (n,) or (count, n)."""
    order = random.permuted(np.tile(np.arange(len(x)), (count, 1)), axis=1)
    halves = [order[:, : len(x) // 2], order[:, len(x) // 2 :]]
    if redraw:
        halves = [np.take_along_axis(h, random.integers(h.shape[1], size=h.shape), axis=1) for h in halves]
    rows = np.broadcast_to(y, (count, len(x)))
    one, two = ((x[half], np.take_along_axis(rows, half, axis=1)) for half in halves)
    return (statistic(*one, *two) + statistic(*two, *one)) / 2


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
    return trials.imagenet_groups().only(order)


def eagleeye_places(n: int) -> pd.DataFrame:
    """Coordinates of the published recipes, and the places of mCB and STD among n random recipes of the same search.

    The random recipes have the search's range, rounding and tolerance. A row is one published recipe, with
    `mcb_percentile`, `std_percentile` in [0, 100], and the population's medians.
    """
    groups, rows = eagleeye_groups(), []
    for name, widths in EAGLEEYE.items():
        kept, largest, accuracy = EAGLEEYE_SEARCH[name]
        regime, search = Regime(kept, tolerance=EAGLEEYE_TOLERANCE / kept), {"ratios": (0, largest)}
        drawn = measures.sample_recipes(groups, regime, n, seed=0, rounding=measures.floored, **search).widths
        own, population = (measures.coordinates(groups, some) for some in (np.array([widths]), drawn))
        row = {"recipe": name, "accuracy": accuracy} | own.iloc[0].to_dict()
        for column in ("mcb", "std"):
            row[f"{column}_percentile"] = 100 * float((population[column] < row[column]).mean())
            row[f"{column}_median"] = float(population[column].median())
        rows.append(row)
    return pd.DataFrame(rows)


def published_results() -> pd.DataFrame:
    """Results of other authors with their normalised mCB: kept MACs over kept parameters."""
    table = pd.DataFrame(RESULTS, columns=COLUMNS)
    return table.assign(mcb=table["kept_macs"] / table["kept_parameters"])
