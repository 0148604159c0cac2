"""Rows of paper 3's recipes as statistics: drops, the optimum of mCB, winners, limits, predictors, contests.

A *ladder* is a table of recipes of one network and one regime with `log_mcb`, `drop` and the other coordinates.
Statistics take a list of ladders and are dictionaries with `value`, `low`, `high`, `n` and, where they have one, `p`,
as `Ledger.enter` takes them. Intervals redraw recipes within each ladder; where an optimum is used on other recipes
than it was fitted to, the two halves are redrawn separately.

The last part puts published networks into the same coordinates: EagleEye's ResNet-50 recipes and results of other
authors. Paper 3's own tables are not available.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from lib import channels, models, stats
from lib.channels import Groups
from lib.spaces import measures, samplers, trials
from lib.spaces.measures import Regime, best_of_k

WINNERS, FEWEST_WINNERS = 0.05, 3  # share of a population that wins, and the fewest that have a median
CONTROL = ["name", "mode", "retraining", "images"]  # what a recipe and the dense network that it is compared with share
RESAMPLES, SPLITS, REDRAWS = 1000, 20, 400
RATES = np.linspace(-8, 8, 321)  # of the exponential form of the limit, in 1 / mCB


def name_of(spec: dict) -> str:
    """A dense network's name with its data set, and whether it was trained here."""
    return f"{spec['network']}/{spec['dataset']}" + (", trained here" if spec["source"] == "trained" else "")


def with_drops(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of recipes with `drop` (selection images), `test_drop`, `proxy_drop` in points, and `log_mcb`.

    A drop is the accuracy of the dense control of the same network, schedule, length and seed of retraining, minus the
    recipe's own. `name` is the network's, `images` the length of retraining, `recipe` the widths as a text.
    """
    rows = rows[rows["status"] == "done"].reset_index(drop=True)
    rows["name"] = [name_of(spec) for spec in rows[["network", "dataset", "source"]].to_dict("records")]
    rows["images"] = np.where(rows["mode"] == "none", 0, rows["train_images"] * rows["retraining_epochs"])
    rows["recipe"] = [str(list(widths)) for widths in rows["widths"]]
    if "what" not in rows:
        rows["what"] = "inner"
    rows["what"] = rows["what"].fillna("inner")
    accuracies = [name for name in ("validation_accuracy", "test_accuracy", "proxy_accuracy") if name in rows]
    controls = rows[rows["space"] == "dense"].groupby(CONTROL)[accuracies].mean()
    own = controls.reindex(pd.MultiIndex.from_frame(rows[CONTROL])).reset_index(drop=True)
    for name in accuracies:
        rows[name.replace("accuracy", "drop").replace("validation_", "")] = own[name] - rows[name]
    return rows.assign(log_mcb=np.log(rows["mcb"]), log_mcb_squared=np.log(rows["mcb"]) ** 2)


def part(rows: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows whose columns have these values."""
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.reset_index(drop=True)


def nearest(groups: Groups, widths: np.ndarray, retrained: pd.DataFrame, count: int = 6) -> pd.DataFrame:
    """The retrained recipes that are most like one of widths (G,), the most alike first.

    The `distance` of two recipes is the root mean square difference of their kept shares. The rows are those of
    `with_drops`; `drop` is the mean over seeds.
    """
    found = retrained.groupby("recipe", sort=False).agg(
        {"space": "first", "widths": "first", "mcb": "first", "std": "first", "drop": "mean"}
    )
    if not len(found):
        return found.assign(distance=[]).reset_index()
    shares = np.stack(found["widths"]) / groups.dense
    distance = np.sqrt(((shares - np.asarray(widths) / groups.dense) ** 2).mean(axis=1))
    return found.assign(distance=distance).nsmallest(count, "distance").reset_index()


def ladders(rows: pd.DataFrame, column: str = "drop") -> list[pd.DataFrame]:
    """Recipes by kept share, the mildest first: `drop` is a column's mean over seeds, `z` is that over its spread."""
    tables = []
    for _, one in sorted(rows[rows["space"] != "dense"].groupby("kept"), reverse=True):
        means = one.groupby("recipe", sort=False).mean(numeric_only=True).sort_values("log_mcb").reset_index()
        drop = means[column].to_numpy()
        z, first = (drop - drop.mean()) / (drop.std() or 1), one.drop_duplicates("recipe").set_index("recipe")
        texts = {name: first.loc[means["recipe"], name].to_numpy() for name in ("widths", "name", "space")}
        by_seed = one.sort_values("retraining").groupby("recipe")[column].agg(list).loc[means["recipe"]].to_numpy()
        tables.append(means.assign(drop=drop, z=z, by_seed=by_seed, **texts))
    return tables


def optimum(table: pd.DataFrame) -> float:
    """Log m*: the lowest point of the fitted curve of drop on log mCB in the sampled range, maybe at an end of it."""
    return float(stats.curve_minimum(*_arrays(table)))


def optimum_interval(table: pd.DataFrame) -> dict:
    """m* of one ladder with a bootstrap interval over recipes."""
    draws = np.exp(_redrawn_optima([table], seed=0)[:, 0])
    return stats.percentile_estimate(np.exp(optimum(table)), draws, len(table))


def two_lines(tables: Sequence[pd.DataFrame]) -> dict:
    """The smaller outward slope of two lines of drop on log mCB, in sd of drop, by `stats.two_lines`.

    Where recipes were retrained under several seeds, one places the break and another gives the lines.
    """
    samples = []
    for table in tables:
        by_seed = np.stack(table["by_seed"]).T
        samples.append((table["log_mcb"].to_numpy(), (by_seed - by_seed.mean()) / (table["drop"].std(ddof=0) or 1)))
    return stats.two_lines(samples)


def parabola(tables: Sequence[pd.DataFrame]) -> dict:
    """The smaller of the two outward slopes of a parabola of drop on log mCB at the ends of its range, in sd of drop.

    It is the mean over ladders. The interval redraws recipes; p is the larger of the two one-sided p-values.

    Source: Lind and Mehlum 2010.
    """

    def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u = x - x.mean(axis=-1, keepdims=True)
        powers = np.stack([np.ones_like(u), u, u**2], axis=-1)
        normal = np.swapaxes(powers, -1, -2) @ powers + 1e-12 * np.eye(3)
        _, b, a = np.moveaxis(np.linalg.solve(normal, np.swapaxes(powers, -1, -2) @ y[..., None])[..., 0], -1, 0)
        return np.stack([-2 * a * u.min(axis=-1) - b, 2 * a * u.max(axis=-1) + b], axis=-1)

    samples = [_arrays(table, "z") for table in tables]
    rows = stats.redrawn_rows(*(len(x) for x, _ in samples), seed=1, resamples=RESAMPLES)
    found = np.mean([slopes(x, y) for x, y in samples], axis=0)
    draws = np.mean([slopes(x[row], y[row]) for (x, y), row in zip(samples, rows, strict=True)], axis=0)
    p = float(scipy_stats.norm.sf(found / draws.std(axis=0)).max())
    return stats.percentile_estimate(found.min(), draws.min(axis=1), sum(len(x) for x, _ in samples)) | {"p": p}


def optimum_gain(rows: pd.DataFrame) -> dict:
    """Points of test accuracy by which a recipe at m* beats the uniform one, mean over regimes and seeds of retraining.

    The curve of `drop` of all other seeds places m*, and that of one seed's `test_drop` is read there and at mCB 1; a
    single seed does both. The interval redraws recipes.
    """
    random, value, draws = np.random.default_rng(13), 0.0, np.zeros(REDRAWS)
    regimes = [one for _, one in rows.groupby("kept")]
    for one in regimes:
        x, drop, test = (
            one.pivot(index="recipe", columns="retraining", values=v) for v in ("log_mcb", "drop", "test_drop")
        )
        x, drop, test = x.iloc[:, 0].to_numpy(), drop.to_numpy().T, test.to_numpy().T

        def gain(rows: np.ndarray, x=x, drop=drop, test=test) -> np.ndarray:
            places, total = x[rows], 0.0
            for seed, judged in enumerate(test):
                others = np.delete(drop, seed, axis=0) if len(drop) > 1 else drop
                best = stats.curve_minimum(places, others.mean(axis=0)[rows])
                at = np.stack([np.zeros_like(best), best], axis=-1)
                uniform, chosen = np.moveaxis(stats.curve(places, judged[rows], at), -1, 0)
                total = total + (uniform - chosen) / len(test)
            return total

        value += float(gain(np.arange(len(x))[None])[0]) / len(regimes)
        draws += gain(random.integers(len(x), size=(REDRAWS, len(x)))) / len(regimes)
    return stats.percentile_estimate(value, draws, sum(one["recipe"].nunique() for one in regimes))


def optima(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """A row for each ladder: its network, kept share, m* with interval, its standard error in log m, and the limit.

    `best_rung` is the mCB of the recipe that loses least.

    The standard error is at least that of a place between two neighbouring recipes.
    """
    rows = []
    for table in tables:
        x, _ = _arrays(table)
        draws = _redrawn_optima([table], seed=2)[:, 0]
        error = max(draws.std(), np.ptp(x) / (len(x) - 1) / np.sqrt(12))
        low, high = np.exp(stats.percentile_interval(draws))
        best = optimum(table)
        inside = x.min() + 1e-9 < best < x.max() - 1e-9
        row = {"name": table["name"].iloc[0], "space": table["space"].iloc[0], "kept": table["kept"].iloc[0]}
        row |= {
            "log_optimum": best,
            "error": error,
            "optimum": np.exp(best),
            "low": low,
            "high": high,
            "inside": inside,
            "best_rung": np.exp(table.loc[table["drop"].idxmin(), "log_mcb"]),
        }
        rows.append(row | {"limit": limit(table), "n": len(table)})
    return pd.DataFrame(rows)


def pooled_optimum(found: pd.DataFrame) -> dict:
    """Log m*, the random-effects mean over the ladders of `optima`."""
    mean = stats.random_effects_mean(found["log_optimum"].to_numpy(), found["error"].to_numpy() ** 2)
    return mean | {"n": len(found)}


def trend(rows: pd.DataFrame) -> dict:
    """Slope of log m* on -log(kept share), each regime and seed of retraining a point; above 0, the optimum rises."""
    kept, best = [], []
    for _, one in rows.groupby("retraining"):
        for table in ladders(one):
            kept.append(table["kept"].iloc[0])
            best.append(optimum(table))
    return stats.slope_estimate(-np.log(kept), np.array(best))


def winners(tables: Sequence[pd.DataFrame], exchanges: int = 499) -> dict:
    """How much nearer winners are than all recipes to an optimum fitted to other recipes; log units.

    Median |log mCB - log m*| of the winners of one half minus that of the whole half, m* from the other half, mean
    over ladders and over splits; below 0, winners are nearer. p comes from `exchanges` of drops within ladders.
    """

    def nearer(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distance = np.abs(x - stats.curve_minimum(fit_x, fit_y)[:, None])
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
    """Share of the out-of-sample squared error within ladders that |log mCB - log m*| removes; m* of other recipes."""

    def errors(fit_x: np.ndarray, fit_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        best = stats.curve_minimum(fit_x, fit_y)[:, None]
        old, new, mean = np.abs(fit_x - best), np.abs(x - best), fit_y.mean(axis=1, keepdims=True)
        centred = old - old.mean(axis=1, keepdims=True)
        spread = np.maximum((centred**2).sum(axis=1, keepdims=True), 1e-12)  # a redrawn half may hold one recipe alone
        slope = (centred * fit_y).sum(axis=1, keepdims=True) / spread
        residual = y - mean - slope * (new - old.mean(axis=1, keepdims=True))
        return np.stack([(residual**2).sum(axis=1), ((y - mean) ** 2).sum(axis=1)], axis=1)

    random, found, draws = np.random.default_rng(7), 0.0, 0.0
    for table in tables:
        x, y = _arrays(table, "z")
        found = found + _over_halves(errors, x, y, random, SPLITS).sum(axis=0)
        draws = draws + _over_halves(errors, x, y, random, RESAMPLES, redraw=True)
    with np.errstate(invalid="ignore"):  # redraws without any error are left out
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
    """The limit of a regime: the lowest point of the fitted curve of drop on log mCB, in points."""
    x, y = _arrays(table)
    return float(stats.curve(x, y, np.array([optimum(table)]))[0])


def law_errors(found: pd.DataFrame, main: str) -> pd.DataFrame:
    """Root mean square errors (points) of forms that predict the limit of ladders that did not help to fit them.

    `found` comes from `optima`. "left out" predicts each ladder from all others, "other networks" those of other
    networks from the ladders of `main`. The forms are (a) a + b log m*, (b) a + b (m* - 1), (c) a exp(b m*), (d) a +
    b log c of the kept share c, and a constant.

    Source: paper 3's C4, whose form is unknown.
    """
    own = (found["name"] == main).to_numpy()
    table = {}
    for form in ("a + b log m*", "a + b (m* - 1)", "a exp(b m*)", "a + b log c", "constant"):
        each = [_predicted(form, found.drop(index), found.loc[[index]])[0] for index in found.index]
        errors = {"left out": np.array(each) - found["limit"].to_numpy()}
        if not own.all() and own.sum() > 2:
            errors["other networks"] = _predicted(form, found[own], found[~own]) - found["limit"].to_numpy()[~own]
        table[form] = {name: float(np.sqrt((error**2).mean())) for name, error in errors.items()}
    return pd.DataFrame(table).T


def error_ratio(tables: Sequence[pd.DataFrame], model: str, reference: str) -> dict:
    """Ratio of the left-out errors of two forms of the limit: "optimum" (a), "level" (d) or "constant".

    Below 1 the model predicts ladders that it has not seen better. The interval redraws recipes within ladders.
    """
    rows = stats.redrawn_rows(*map(len, tables), seed=6, resamples=REDRAWS)
    limits, best = [], []
    for (x, y), row in zip(map(_arrays, tables), rows, strict=True):
        x, y = (np.vstack([values[None], values[row]]) for values in (x, y))  # found, then redrawn
        best.append(stats.curve_minimum(x, y))
        limits.append(stats.curve(x, y, best[-1][:, None])[:, 0])
    level = np.log([table["kept"].iloc[0] for table in tables])

    def ratio(limit: np.ndarray, place: np.ndarray) -> float:
        predictors = {"constant": (), "level": (level,), "optimum": (place,)}
        errors = [stats.leave_one_out_error(limit, *predictors[name]) for name in (model, reference)]
        return errors[0] / max(errors[1], 1e-9)

    value, *draws = (ratio(*pair) for pair in zip(np.transpose(limits), np.transpose(best), strict=True))
    return stats.percentile_estimate(value, draws, len(tables))


def best_of_k_gain(initial: pd.DataFrame, refined: pd.DataFrame, k: int, price: int = 0) -> dict:
    """Points of test accuracy that the best of k refined recipes gains over the best initial ones.

    Both have `drop` on validation images, which selects, and `test_drop`. `price` is the number of recipes that were
    needed to find m*: the rival is the best of k + price initial recipes, at most the best retrained one. The interval
    is recentred: redrawing loses the best recipe of a space in a third of the draws.
    """

    def gain(samples: Sequence[np.ndarray]) -> float:
        rival, best = (best_of_k(*one.T, [n])[0] for one, n in zip(samples, (k + price, k), strict=True))
        return float(rival - best)

    samples = [one[["drop", "test_drop"]].to_numpy() for one in (initial, refined)]
    return stats.stratified_bootstrap(gain, samples, seed=8, resamples=REDRAWS, recentred=True)


def redrawn_winners(table: pd.DataFrame, k: int, redraws: int, seed: int) -> list[list[int]]:
    """The widths of the best of k recipes by `drop`, for each of some redraws of k different recipes of a space."""
    random = np.random.default_rng(seed)
    drawn = [table.iloc[random.choice(len(table), k, replace=False)] for _ in range(redraws)]
    return [list(one.loc[one["drop"].idxmin(), "widths"]) for one in drawn]


def transfer_gain(ladder: pd.DataFrame, log_mcb: np.ndarray, best: float, fitted: bool = True) -> float:
    """Points that knowing log m* = `best` saves on a ladder: its mean test drop over a population's log mCB minus that.

    Drops are read on the fitted curve, or, if not `fitted`, on straight lines from rung to rung. A place outside the
    ladder's range counts as its end.
    """
    x, y = _arrays(ladder, "test_drop")
    places = np.clip(np.append(log_mcb, best), x.min(), x.max())
    drops = stats.curve(x, y, places) if fitted else np.interp(places, x, y)
    return float(drops[:-1].mean() - drops[-1])


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
    """Share of the cross-validated squared error of drop within ladders that features remove, on top of others."""
    samples = [(table[[*beyond, *features]].to_numpy(), table["z"].to_numpy()) for table in tables]
    return stats.cross_validated_gain(samples, len(beyond), seed=11)


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


def _predicted(form: str, known: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
    """Limits of the ladders `asked` by a form of `law_errors`, fitted to `known` by least squares."""
    limits = known["limit"].to_numpy()
    if form == "a exp(b m*)":
        powers = np.exp(RATES[:, None] * known["optimum"].to_numpy())
        factors = (powers @ limits) / (powers**2).sum(axis=1)
        chosen = ((limits - factors[:, None] * powers) ** 2).sum(axis=1).argmin()
        return factors[chosen] * np.exp(RATES[chosen] * asked["optimum"].to_numpy())
    column = {"a + b log m*": "log_optimum", "a + b (m* - 1)": "optimum", "a + b log c": "kept"}.get(form)
    if column is None:
        return np.full(len(asked), limits.mean())
    x, at = (np.log(one[column]) if column == "kept" else one[column] for one in (known, asked))
    slope, start = np.polyfit(x, limits, 1) if np.ptp(x) > 0 else (0.0, limits.mean())
    return start + slope * at.to_numpy()


def _redrawn_optima(tables: Sequence[pd.DataFrame], seed: int) -> np.ndarray:
    """Bootstrap draws (RESAMPLES, ladders) of log m*."""
    rows = stats.redrawn_rows(*map(len, tables), seed=seed, resamples=RESAMPLES)
    pairs = zip(map(_arrays, tables), rows, strict=True)
    return np.stack([stats.curve_minimum(x[row], y[row]) for (x, y), row in pairs], axis=1)


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


def shape_of(title: str, network: str, size: int, options: dict, kept: float = 0.5) -> dict:
    """An architecture's pruning space at one kept share of MACs, without weights: counts, and what mCB it can reach.

    `options` is what `models.build` takes besides name and image size. Returns counts, the feasible range of mCB
    (`lowest`, `highest`), the middle 95 % of 500 random recipes, the `uniform` recipe's, and the shares of MACs and of
    parameters that no recipe can remove.
    """
    groups, regime = channels.find(models.build(network, size=size, **options), size), Regime(kept)
    macs, parameters = channels.count(groups, groups.dense)
    lowest, highest = samplers.feasible_range(groups, regime)
    drawn = measures.sample_recipes(groups, regime, 500, seed=0).widths
    low, high = np.quantile(measures.mean_computation_budget(groups, drawn), [0.025, 0.975])
    widths = np.maximum(groups.dense * (1 - measures.uniform_ratio(groups, regime)), 1.0)
    constants = groups.polynomials[0]
    row = {"network": title, "groups": len(groups), "macs": int(macs), "parameters": int(parameters)}
    row |= {"macs_per_parameter": macs / parameters, "lowest": lowest, "highest": highest, "random_low": low}
    row |= {"random_high": high, "uniform": float(measures.mean_computation_budget(groups, widths))}
    return row | {"fixed_macs": constants[0] / macs, "fixed_parameters": constants[1] / parameters}


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
