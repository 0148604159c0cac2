"""The statistics and the drawing of paper 4, on rows of its trials."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats as scipy_stats

from lib import figures, stats
from lib.spline import measures

LAYER_COLOURS = (figures.PALETTE[3], figures.PALETTE[0], figures.PALETTE[9])
BOUNDARY = figures.PALETTE[2]
METHOD_STYLES = {
    "merged": (figures.PALETTE[2], "o"),
    "signed": (figures.PALETTE[6], "s"),
    "raw": (figures.PALETTE[4], "D"),
    "normalised": (figures.PALETTE[5], "^"),
    "data": (figures.PALETTE[9], "v"),
    "magnitude": (figures.COLOURS["lowest"], "o"),
    "median": (figures.PALETTE[7], "P"),
    "slimming": (figures.PALETTE[3], "s"),
    "random": (figures.COLOURS["random"], "x"),
}
WINDOW_EPOCHS, FLATTER = 10, 0.1  # a plateau: over 10 epochs less than a tenth of the first 10 epochs' slope


def distances(row: pd.Series, probes: str = "canvas") -> np.ndarray:
    """Code distances (T, T) between all epochs of a search; probes may also be "units", the other weighting."""
    flat = np.asarray(row[f"distance_{probes}"], dtype=float)
    return flat.reshape(int(len(flat) ** 0.5), -1)


def steps(matrix: np.ndarray) -> np.ndarray:
    """d(t, t - 1) for the epochs 2, 3, … (counted from 1), of a (T, T) matrix."""
    return np.diagonal(matrix, 1)


def plateau(step: Sequence[float], drop: int) -> int | None:
    """The first of ten epochs over which log d(t, t - 1) is nearly flat, all before the first drop of the rate.

    step: d(t, t - 1) from epoch 2 on. drop: epochs trained when the rate falls first.

    Returns: an epoch, counted from 1; None if there is no plateau, or if the distance did not fall at first.
    Source: P4.5 names no rule; this companion's.
    """
    log, x = np.log(np.maximum(np.asarray(step, dtype=float), 1e-12)), np.arange(WINDOW_EPOCHS)
    slopes = [np.polyfit(x, log[s : s + WINDOW_EPOCHS], 1)[0] for s in range(drop - WINDOW_EPOCHS)]
    if not slopes or slopes[0] >= 0:
        return None
    flat = [s for s in range(1, len(slopes)) if abs(slopes[s]) < FLATTER * abs(slopes[0])]
    return flat[0] + 2 if flat else None


def settled(step: Sequence[float], drop: int) -> float:
    """Mean of d(t, t - 1) over the five epochs before the rate first falls."""
    return float(np.mean(step[drop - 6 : drop - 1]))


def mean_above(values: Sequence[float]) -> dict:
    """Mean of independent units with its interval, and one-sided p of a mean of at most 0."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return {
            "value": float(np.mean(values)) if len(values) else np.nan,
            "low": np.nan,
            "high": np.nan,
            "n": len(values),
        }
    low, high = stats.mean_interval(values)
    p = (
        1.0
        if np.ptp(values) == 0 and values[0] <= 0
        else float(scipy_stats.ttest_1samp(values, 0, alternative="greater").pvalue)
    )
    return {
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "n": len(values),
        "p": p if np.isfinite(p) else 0.0,
    }


def paired(rows: pd.DataFrame, column: str, first: dict, second: dict, units: Sequence[str]) -> pd.Series:
    """Difference of a column between two sets of rows, by unit; a set with several rows a unit is averaged first."""

    def by_unit(wanted: dict) -> pd.Series:
        chosen = np.logical_and.reduce([rows[name] == value for name, value in wanted.items()])
        return rows[chosen].groupby(list(units), sort=False)[column].mean()

    return (by_unit(first) - by_unit(second)).dropna()


def long(rows: pd.DataFrame, columns: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Rows whose cells hold lists, one row a list entry; keys are repeated."""
    parts = [
        pd.DataFrame({c: row[c] for c in columns}).assign(**{k: row[k] for k in keys}) for _, row in rows.iterrows()
    ]
    return pd.concat(parts, ignore_index=True)


def follows(share: Sequence[float], *sizes: Sequence[float]) -> float:
    """The largest |Spearman's correlation| of the share pruned per layer with one of several sizes of the layers."""
    if np.ptp(share) == 0:
        return 0.0
    return max(abs(float(scipy_stats.spearmanr(share, size).statistic)) for size in sizes if np.ptp(size) > 0)


def explains(rows: pd.DataFrame, seed: int, resamples: int = 1000) -> dict:
    """Rank correlation of the loss of accuracy with the change of the maps, minus that with the change of the codes.

    Ranks are taken within ratio and kind of pruning, so that what these have in common adds nothing; seeds are drawn
    anew for the interval.
    """
    strata = rows.groupby(["kind", "ratio"], sort=False)
    ranks = {
        c: strata[c].rank() - strata[c].transform(lambda v: v.rank().mean())
        for c in ("maps", "codes", "decision", "loss")
    }
    table = pd.DataFrame(ranks).assign(seed=rows["seed"])
    sums = {
        name: table.assign(xy=table[name] * table["loss"], xx=table[name] ** 2, yy=table["loss"] ** 2)
        .groupby("seed")[["xy", "xx", "yy"]].sum().to_numpy()
        for name in ("maps", "codes", "decision")
    }  # fmt: skip

    def correlation(name: str, units: np.ndarray) -> float:
        xy, xx, yy = sums[name][units].sum(0)
        return xy / np.sqrt(xx * yy)

    n, random = len(sums["maps"]), np.random.default_rng(seed)
    every = np.arange(n)
    draws = [random.integers(n, size=n) for _ in range(resamples)]
    gap = [correlation("maps", units) - correlation("codes", units) for units in draws]
    low, high = np.quantile(gap, [0.025, 0.975])
    found = {name: correlation(name, every) for name in sums}
    p = (1 + sum(value <= 0 for value in gap)) / (1 + resamples)
    return found | {"value": found["maps"] - found["codes"], "low": low, "high": high, "n": n, "p": p}


def draw_panel(axis: Axes, row: pd.Series, place: int, layer_width: float = 0.9, boundary: bool = True) -> None:
    """One panel of a picture: the lines of each layer, and the decision boundary."""
    lines, half = np.reshape(row["lines"][place], (-1, 6)), row["half"][place]
    for layer in sorted(set(lines[:, 4])):
        own = lines[lines[:, 4] == layer, :4].reshape(-1, 2, 2)
        axis.add_collection(LineCollection(own, colors=LAYER_COLOURS[int(layer)], linewidths=layer_width))
    if boundary:
        segments = np.reshape(row["boundary"][place], (-1, 2, 2))
        axis.add_collection(LineCollection(segments, colors=BOUNDARY, linewidths=2.0, capstyle="round"))
    plain(axis, half, row["title"][place])


def plain(axis: Axes, half: float, title: str) -> None:
    """A square window without ticks or grid."""
    axis.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(True)


def film_frame(film: pd.Series, place: int, epoch: int) -> Figure:
    """One frame of the film: the partition at this epoch above the training loss until then."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(3.2, 4.4), height_ratios=[3, 1], dpi=80)
    draw_panel(above, film, place)
    below.plot(np.arange(1, epoch + 1), film["loss"][:epoch], color=figures.PALETTE[8])
    below.set(xlim=(0, len(film["loss"])), ylim=(0, 1.05 * max(film["loss"])), xlabel="epoch", ylabel="loss (nats)")
    return figure


def draw_slice(axis: Axes, row: pd.Series, title: str) -> None:
    """The regions of a plane of images, shaded by the class that wins, with the decision boundary."""
    corners, count = np.reshape(row["corners"], (-1, 2)), np.asarray(row["count"])
    polygons = np.split(corners, np.cumsum(count)[:-1])
    winners = np.asarray(row["winner"], dtype=int)
    shade = [(*plt.matplotlib.colors.to_rgb(figures.PALETTE[w % 10]), 0.35) for w in winners]
    axis.add_collection(
        PolyCollection(polygons, facecolors=shade, edgecolors="#555555", linewidths=0.15, rasterized=True)
    )
    boundary = np.reshape(row["boundary"], (-1, 2, 2))
    axis.add_collection(LineCollection(boundary, colors="k", linewidths=1.8))
    low, high = corners.min(0), corners.max(0)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    axis.grid(False)
    axis.spines[:].set_visible(True)


def early_birds(row: pd.Series) -> dict[str, float]:
    """Epochs, counted from 0, at which variants of the detector fire on a search; NaN for never."""
    canvas = distances(row)
    rules = {f"< {t}": {"threshold": t} for t in (0.08, measures.THRESHOLD, 0.24)}
    rules |= {f"lookback {k}": {"lookback": k} for k in (1, 5)} | {"relative": {"threshold": 0.1, "relative": True}}
    found = {name: measures.early_bird_epoch(canvas, **options) for name, options in rules.items()}
    for probes in ("images", "noise", "units"):
        found[probes] = measures.early_bird_epoch(distances(row, probes))
    return {name: np.nan if epoch is None else epoch for name, epoch in found.items()}


def legend(figure: Figure, entries: dict[str, dict], title: str | None = None, **options: object) -> None:
    """A legend of text and line style: beside a figure, or below it if `columns` are given."""
    handles = [Line2D([], [], label=text, **({"color": "k"} | style)) for text, style in entries.items()]
    place = "outside lower center" if "columns" in options else "outside right"
    figure.legend(handles=handles, loc=place, title=title, ncols=options.get("columns", 1))


def method_style(method: str) -> dict:
    """Colour and marker of a way to choose nodes."""
    colour, marker = METHOD_STYLES[method]
    return {"color": colour, "marker": marker}


def arm_colour(name: str) -> str:
    """Colour of an arm: of its method for tickets, black for the dense network, one for each kind of rival."""
    method = name.split()[-1]
    if name == "dense":
        return "k"
    if method in METHOD_STYLES and name != "slimming":
        return METHOD_STYLES[method][0]
    return figures.PALETTE[6 if name in ("end", "slimming", "rewound", "snip") else 4]
