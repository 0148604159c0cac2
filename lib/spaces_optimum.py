"""Rows of paper 3's populations as drops by regime, and the optimum of mCB: where it is, whether winners lie near it.

A *regime* is a table of recipes with `log_mcb`, `drop` and the other coordinates; statistics take a list of regimes and
are dictionaries with `value`, `low`, `high`, `n` (recipes) and, where they have one, `p`. Intervals redraw recipes
within each regime; where an optimum is used on other recipes than it was fitted to, the two halves are redrawn apart.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib import spaces, spaces_samplers
from lib.channels import Groups
from lib.claims import LEVEL
from lib.spaces import Regime

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
    inside = spaces.refined(groups, pool, best)
    if inside.sum() >= count:
        return pool[inside][:count], float(inside.mean())
    return spaces_samplers.with_targets(groups, Regime(kept), [best] * count, seed=3), float(inside.mean())


def optimum(table: pd.DataFrame) -> float:
    """log m*: where the quadratic of drop on log mCB is least within the sampled range, maybe at an end of it."""
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
    """log m*, the random-effects mean over regimes (DerSimonian and Laird), with its normal interval."""
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
