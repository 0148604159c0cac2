"""The figures of paper 4, from rows of its trials; most functions return a figure and the numbers behind it."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lib import stats
from lib.figures import COLOURS, NULL, PALETTE, legend
from lib.spline import analysis, attention
from lib.spline.measures import THRESHOLD

Drawn = tuple[Figure, pd.DataFrame]
LAYERS = (PALETTE[3], PALETTE[0], PALETTE[9])
BOUNDARY = PALETTE[2]
METHODS = {  # ways to choose nodes
    "merged": {"color": PALETTE[2], "marker": "o"},
    "signed": {"color": PALETTE[6], "marker": "s"},
    "raw": {"color": PALETTE[4], "marker": "D"},
    "normalised": {"color": PALETTE[5], "marker": "^"},
    "data": {"color": PALETTE[9], "marker": "v"},
    "magnitude": {"color": COLOURS["lowest"], "marker": "o"},
    "median": {"color": PALETTE[7], "marker": "P"},
    "random": {"color": COLOURS["random"], "marker": "x"},
    "slimming": {"color": PALETTE[3], "marker": "s"},
}
# Kinds of training and their places in the palette.
TRAININGS = {"true labels": 0, "random labels": 1, "constant rate": 2, "rate / 100": 4, "rate 0": 8}
# Ways to a small network, by label and method of an arm: the name that a reader sees, and the style.
ARMS = {
    ("ticket", "merged"): ("ticket, merged nodes", METHODS["merged"]),
    ("ticket", "random"): ("ticket, random nodes", METHODS["random"]),
    ("ticket", "magnitude"): ("ticket, by magnitude", METHODS["magnitude"]),
    ("scratch", "magnitude"): ("small, from scratch", {"color": PALETTE[4], "marker": "^"}),
    ("layerwise", "magnitude"): ("small, layer by layer", {"color": PALETTE[5], "marker": "v"}),
    ("short", "magnitude"): ("dense, fewer epochs", {"color": "k", "marker": "s"}),
    ("end", "magnitude"): ("pruned at the end, trained again", {"color": PALETTE[6], "marker": "P"}),
    ("slimming", "slimming"): ("the same, by slimming", {"color": PALETTE[3], "marker": "P"}),
    ("rewound", "merged"): ("nodes of the end, first weights", {"color": PALETTE[7], "marker": "D"}),
    ("snip", "magnitude"): ("single weights (SNIP)", {"color": PALETTE[9], "marker": "X"}),
}


def panel(axis: Axes, row: pd.Series, place: int, boundary: bool = True) -> None:
    """One panel of a picture: the lines of each layer, and the decision boundary."""
    lines = np.reshape(row["lines"][place], (-1, 6))
    for layer in sorted(set(lines[:, 4])):
        _segments(axis, lines[lines[:, 4] == layer, :4], colors=LAYERS[int(layer)], linewidths=0.9)
    if boundary:
        _segments(axis, row["boundary"][place], colors=BOUNDARY, linewidths=2.0, capstyle="round")
    _plain(axis, [-row["half"][place], row["half"][place]], row["title"][place])


def _segments(axis: Axes, flat: Sequence[float], **style: object) -> None:
    axis.add_collection(LineCollection(np.reshape(flat, (-1, 2, 2)), **style))


def _plain(axis: Axes, x: Sequence[float], title: str, y: Sequence[float] | None = None) -> None:
    """A window, by default a square, without ticks or grid."""
    axis.set(xlim=x, ylim=x if y is None else y, aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    axis.grid(False)
    axis.spines[:].set_visible(True)


def panel_numbers(pictures: dict[str, pd.Series], *kinds: str) -> pd.DataFrame:
    """The numbers behind pictures of these kinds: one row per panel."""
    columns = ["title", "half", "regions"]
    return pd.concat([pd.DataFrame({c: pictures[k][c] for c in columns}).assign(kind=k) for k in kinds])


def lines(pictures: dict[str, pd.Series]) -> Drawn:
    """A partition of three layers; four stages of node pruning; four of weight pruning."""
    figure = plt.figure(figsize=(11, 4.6))
    grid = figure.add_gridspec(2, 6)
    panel(figure.add_subplot(grid[:, :2]), pictures["deep"], 0)
    for line, kind in enumerate(("nodes", "weights")):
        for place in range(4):
            panel(figure.add_subplot(grid[line, 2 + place]), pictures[kind], place)
    names = ("layer 1", "layer 2", "layer 3", "decision boundary")
    legend(figure, {n: {"color": c} for n, c in zip(names, (*LAYERS, BOUNDARY), strict=True)}, columns=4)
    return figure, panel_numbers(pictures, "deep", "nodes", "weights")


def film(row: pd.Series, epochs: Sequence[int]) -> Figure:
    """The partition after some epochs of a training, above its loss."""
    figure = plt.figure(figsize=(11, 4.4))
    grid = figure.add_gridspec(2, len(epochs), height_ratios=[1.1, 1])
    for place, epoch in enumerate(epochs):
        panel(figure.add_subplot(grid[0, place]), row, list(row["title"]).index(f"epoch {epoch}"))
    axis = figure.add_subplot(grid[1, :])
    axis.plot(np.arange(1, len(row["loss"]) + 1), row["loss"], color=PALETTE[8])
    for epoch in epochs:
        axis.axvline(epoch, **NULL)
    axis.set(xlabel="epoch", ylabel="training loss (nats)", xlim=(-4, len(row["loss"]) + 4))
    axis.set_title("Loss of this training (n = 1); dotted: the partitions above", fontsize=10)
    return figure


def film_frames(row: pd.Series) -> Iterator[Figure]:
    """The frames of the film: the partition at each epoch above the training loss until then."""
    for place, title in enumerate(row["title"]):
        epoch = int(title.removeprefix("epoch "))
        figure, (above, below) = plt.subplots(2, 1, figsize=(3.2, 4.4), height_ratios=[3, 1], dpi=80)
        panel(above, row, place)
        below.plot(np.arange(1, epoch + 1), row["loss"][:epoch], color=PALETTE[8])
        below.set(xlim=(0, len(row["loss"])), ylim=(0, 1.05 * max(row["loss"])), xlabel="epoch", ylabel="loss (nats)")
        yield figure


def matrices(searches: pd.DataFrame, early_bird: Sequence[int], drop: int) -> Drawn:
    """Code distances of all epochs, unscaled and scaled, with the early-bird epoch and the first drop of the rate."""
    figure, axes = plt.subplots(len(searches), 2, figsize=(9, 0.3 + 3.4 * len(searches)), squeeze=False)
    table = []
    for pair, (_, row), ticket in zip(axes, searches.iterrows(), early_bird, strict=True):
        matrix = analysis.distances(row)
        epochs, scaled = len(matrix), {"share of bits": matrix, "scaled to [0, 1]": matrix / matrix.max()}
        for axis, (title, part) in zip(pair, scaled.items(), strict=True):
            image = axis.imshow(part, cmap="viridis_r", extent=(0.5, epochs + 0.5, epochs + 0.5, 0.5))
            axis.plot(ticket, ticket, "o", color=PALETTE[2], markersize=7)
            axis.axvline(drop + 0.5, color="w", linestyle=":")
            axis.set(xlabel="epoch", ylabel="epoch")
            axis.set_title(f"{row['case']}, {title}", fontsize=10)
            axis.grid(False)
            figure.colorbar(image, ax=axis, shrink=0.75)
        labelled = pd.DataFrame(matrix, np.arange(1, epochs + 1), [f"to {t + 1}" for t in range(epochs)])
        table.append(labelled.rename_axis("epoch").assign(case=row["case"], bird=ticket).reset_index())
    return figure, pd.concat(table)


def settling(searches: pd.DataFrame, drop: int) -> Drawn:
    """Code distances from the epoch before and from the last epoch, of each network and kind of training."""
    cases = searches["case"].unique()
    figure, axes = plt.subplots(len(cases), 2, figsize=(10, 0.9 + 2.7 * len(cases)), squeeze=False, sharex=True)
    curves = []
    for pair, name in zip(axes, cases, strict=True):
        for _, row in searches[searches["case"] == name].iloc[::-1].iterrows():
            matrix = analysis.distances(row)
            x, step, to_last = np.arange(1, len(matrix) + 1), np.diagonal(matrix, 1), matrix[:, -1]
            style = {"color": PALETTE[TRAININGS[row["kind"]]], "linewidth": 1.2}
            pair[0].plot(x[1:], np.maximum(step, 1e-5), **style)
            pair[1].plot(x[:-1], np.maximum(to_last[:-1], 1e-5), **style)
            numbers = pd.DataFrame({"epoch": x[1:], "step": step, "to_last": to_last[1:]})
            curves.append(numbers.assign(case=name, kind=row["kind"], seed=row["seed"]))
        for axis, title in zip(pair, ("from the epoch before", "from the last epoch"), strict=True):
            axis.axvline(drop + 0.5, **NULL)
            axis.axhline(THRESHOLD, color="k", linestyle="--", linewidth=0.9)
            axis.set_yscale("log")
            axis.set_title(f"{name}\n{title}", fontsize=10)
        pair[0].set_ylabel("code distance (share of bits)")
    figure.supxlabel("epoch")
    entries = {kind: {"color": PALETTE[place]} for kind, place in TRAININGS.items()}
    entries |= {"rate falls": NULL, "0.16": {"ls": "--", "lw": 0.9}}
    legend(figure, entries, f"n = {searches['seed'].nunique()} seeds,\n1 of the two small rates")
    return figure, pd.concat(curves)


def bundles(row: pd.Series) -> Drawn:
    """Splines in two bundles; their redundancy with one of them; the ones that greedy removal leaves."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8))
    panel(axes[0], row, 0, boundary=False)
    lines, score = np.reshape(row["lines"][0], (-1, 6)), np.asarray(row["score"], float)
    _segments(axes[1], lines[lines[:, 4] == 0, :4], colors=["#bbbbbb"], linewidths=1)
    shade = [PALETTE[2], *plt.cm.viridis(np.clip(score / score.max(), 0, 0.95))[1:]]
    for unit, colour in enumerate(shade):
        own = (lines[:, 4] == 1) & (lines[:, 5] == unit)
        _segments(axes[1], lines[own, :4], colors=[colour], linewidths=2)
    _plain(axes[1], [-row["half"][0], row["half"][0]], "redundancy with the red one")
    scale = plt.cm.ScalarMappable(plt.Normalize(0, score.max()), "viridis")
    figure.colorbar(scale, ax=axes[1], shrink=0.8, label="signed score (small: redundant)")
    panel(axes[2], row, 1, boundary=False)
    units = range(len(score))
    return figure, pd.DataFrame({"unit": units, "score": score, "kept": np.isin(units, row["kept"])})


def scores(before: pd.DataFrame, after: pd.DataFrame, tuned: Sequence[str], width: int, epochs: int) -> Drawn:
    """Accuracy (%) of the toy against the nodes left of `width`, before fine-tuning and after some epochs of it.

    The rows hold `method`, `level`, `seed` and the accuracy, in a column `before` or `after`; `before` also `dense`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9))
    titles = {"before": "before fine-tuning", "after": f"after {epochs} epochs of fine-tuning"}
    rows = {"before": before, "after": after[after["method"].isin(tuned)]}
    order = [method for method in METHODS if method in set(before["method"])]
    points = []
    for axis, (when, title) in zip(axes, titles.items(), strict=True):
        for method in order:
            own = rows[when][rows[when]["method"] == method].groupby("level")[when]
            if len(own):
                found = pd.DataFrame({"accuracy": own.mean(), "half": stats.quantile() * own.sem(), "n": own.count()})
                axis.errorbar(found.index, found["accuracy"], found["half"], capsize=2, **METHODS[method])
                points.append(found.reset_index().assign(method=method, when=when))
        axis.axhline(before["dense"].mean(), **NULL)
        axis.set(xlabel=f"nodes left of {width}", title=f"Toy, {title}", xticks=rows[when]["level"].unique())
        axis.invert_xaxis()
    axes[0].set_ylabel("test accuracy (%)")
    entries = {method: METHODS[method] for method in order} | {"dense": NULL}
    legend(figure, entries, f"n = {before['seed'].nunique()} seeds")
    return figure, pd.concat(points, ignore_index=True)


def layers(shots: pd.DataFrame) -> Drawn:
    """Share of filters that global pruning removes from each layer, of trained and random filters."""
    cases = shots["case"].unique()
    columns, height = min(2, len(cases)), -(-len(cases) // 2)
    figure, axes = plt.subplots(height, columns, figsize=(5.6 * columns, 3.6 * height), squeeze=False, sharey=True)
    table = []
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, cases, strict=False):
        own = shots[shots["case"] == name]
        width, fan_in = own.iloc[0][["width_of", "fan_in"]]
        x, step = np.arange(len(width)), 1 + len(width) // 20
        for filters, line in (("trained", "-"), ("random", ":")):
            for label, marker, colour in (("full", "o", PALETTE[0]), ("reduced", "s", PALETTE[2])):
                share = 100 * np.stack(own[f"share_{filters}_{label}"]).mean(0)
                colour = NULL["color"] if filters == "random" else colour
                axis.plot(x, share, marker + line, color=colour, label=f"{filters}, {label}")
                table.append(
                    pd.DataFrame({"case": name, "layer": x, "share": share, "filters": filters, "rows": label})
                )
        axis.set_xticks(x[::step], [f"{w}\n{f}" for w, f in zip(width, fan_in, strict=True)][::step], fontsize=7)
        axis.set(title=name, xlabel="layer: width over fan-in")
    for axis in axes[:, 0]:
        axis.set_ylabel("filters removed (%)")
    axes[0, -1].legend(title=f"mean of n = {shots['seed'].nunique()}")
    return figure, pd.concat(table)


def subsets(rows: pd.DataFrame, methods: Sequence[str]) -> Drawn:
    """Share of the accuracy between a random and the best subset that each method reaches, before and after tuning."""
    figure, axis = plt.subplots(figsize=(7.5, 3.4))
    table = []
    for when, fill, shift in (("", "full", -0.12), ("_tuned", "none", 0.12)):
        for place, method in enumerate(methods):
            found = stats.mean_gain(analysis.gap_closed(rows, method, when))
            style = {"color": METHODS[method]["color"], "marker": "o", "fillstyle": fill, "capsize": 2}
            half = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            axis.errorbar([found["value"]], [place + shift], xerr=half, **style)
            table.append({"method": method, "when": when.strip("_") or "before"} | found)
    axis.axvline(0, **NULL)
    axis.axvline(1, color="k", linewidth=0.9)
    axis.set(xlim=(-1, 1.6), xlabel="share of the way from a random subset to the best")
    axis.set_yticks(range(len(methods)), methods)
    mark = {"marker": "o", "ls": ""}
    entries = {"before tuning": mark, "after tuning": mark | {"fillstyle": "none"}, "random": NULL, "best": {"lw": 0.9}}
    legend(figure, entries, f"n = {len(rows)} networks,\n{rows['subsets'].iloc[0]} subsets each")
    return figure, pd.DataFrame(table)


def both(row: pd.Series, ratios: Sequence[float]) -> Figure:
    """One network without a share of its nodes (above), and without as many parameters, weight by weight (below)."""
    figure, axes = plt.subplots(2, len(ratios), figsize=(0.4 + 2.15 * len(ratios), 5), squeeze=False)
    for column, ratio in zip(axes.T, ratios, strict=True):
        first = list(row["ratio"]).index(ratio)
        for axis, place in zip(column, (first, first + 1), strict=True):
            panel(axis, row, place)
            axis.set_title(row["title"][place].replace(": ", "\n"), fontsize=9)
    return figure


def routes(sweep: pd.DataFrame, gains: pd.DataFrame) -> Drawn:
    """Accuracy from scratch by width; gain of pruning over scratch, at equal operations, by width of the start.

    Args:
        sweep: `width`, `seed`, `accuracy` (%) and `arms` of the boundary.
        gains: `depth`, `width`, `epochs`, `factor`, and `value`, `low`, `high` of the gain (points), `n`.
    """
    depths, widths = sorted(gains["depth"].unique()), sorted(gains["width"].unique())
    figure, axes = plt.subplots(1, 1 + len(depths), figsize=(4.2 + 3.6 * len(depths), 3.9))
    for axis in axes[2:]:
        axis.sharey(axes[1])
    own = sweep.groupby("width")["accuracy"]
    share = 100 * sweep.assign(good=sweep["arms"] >= 4).groupby("width")["good"].mean()
    half = stats.quantile() * own.sem()
    axes[0].errorbar(share.index, own.mean(), half, color="k", marker="o", capsize=2, label="test accuracy")
    axes[0].plot(share.index, share, color=BOUNDARY, marker="s", linestyle="--", label="networks with an X")
    _ticks(axes[0], share.index)
    axes[0].set(xlabel="hidden nodes, from scratch", ylabel="%")
    axes[0].set_title(f"From scratch, n = {sweep['seed'].nunique()}")
    axes[0].legend()
    for axis, depth in zip(axes[1:], depths, strict=True):
        groups = gains[gains["depth"] == depth].groupby(["width", "epochs"])
        for place, ((width, epochs), part) in enumerate(groups):
            half = [part["value"] - part["low"], part["high"] - part["value"]]
            style = {"color": PALETTE[widths.index(width)], "marker": "o", "capsize": 2}
            line = "-" if epochs == gains["epochs"].max() else ":"
            x = part["factor"] * 1.02 ** (place - len(groups) / 2)
            axis.errorbar(x, part["value"], half, linestyle=line, label=f"{width} nodes, {epochs} epochs", **style)
        axis.axhline(0, **NULL)
        _ticks(axis, sorted(gains["factor"].unique()))
        axis.set(xlabel="width of the start (small one = 1)", title=f"Hidden layers: {depth}")
    axes[1].set_ylabel("pruned over scratch (points)")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right", title=f"n = {gains['n'].min()} seeds")
    return figure, pd.concat([sweep.assign(part="sweep"), gains.assign(part="gains")])


def _ticks(axis: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis with ticks at these places only."""
    axis.set_xscale("log")
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()


def migration(networks: pd.DataFrame, radius: float) -> Drawn:
    """Density of lines around kinds of places over a long training, by `kind` of training, mean and interval."""
    kinds = networks["kind"].unique()
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.2 + 2.9 * len(kinds), 3.7), sharey=True, squeeze=False)
    places = {"training points": ("data", PALETTE[0]), "decision boundary": ("boundary", BOUNDARY)}
    places |= {"anywhere": ("elsewhere", PALETTE[8])}
    table = []
    for axis, kind in zip(axes[0], kinds, strict=True):
        own = networks[networks["kind"] == kind]
        epochs = np.asarray(own["epochs"].iloc[0], dtype=float)
        for label, (name, colour) in places.items():
            values = pd.DataFrame(analysis.curves(own, f"density_{name}", radius))
            half = stats.quantile() * values.sem()
            x = np.maximum(epochs, epochs[1] / 2)
            axis.plot(x, values.mean(), color=colour, marker=".")
            axis.fill_between(x, values.mean() - half, values.mean() + half, color=colour, alpha=0.2, linewidth=0)
            numbers = {"epoch": epochs, "density": values.mean(), "half": half, "place": label, "kind": kind}
            table.append(pd.DataFrame(numbers))
        birds = pd.to_numeric(own["relative"]).dropna()
        if len(birds):
            axis.axvline(birds.median(), color="k", linestyle="--", linewidth=0.9)
        _ticks(axis, epochs[1::2])
        axis.set_xlabel("epoch (leftmost: untrained)")
        axis.set_title(f"{kind}, n = {len(own)}", fontsize=10)
    axes[0, 0].set_ylabel(f"lines within {radius:g} (1 / length)")
    entries = {label: {"color": colour} for label, (_, colour) in places.items()}
    legend(figure, entries | {"early bird": {"color": "k", "ls": "--", "lw": 0.9}})
    return figure, pd.concat(table)


def cross(row: pd.Series) -> Figure:
    """The X: the dense network and the pruned ones, above as pruned, below after fine-tuning."""
    levels = len(row["title"]) // 2
    figure, axes = plt.subplots(2, 1 + levels, figsize=(11, 4.9))
    for line in (0, 1):
        for place in range(1 + levels):
            panel(axes[line, place], row, place + line * levels if place else 0)
    axes[1, 0].set_visible(False)
    return figure


def changes(rows: pd.DataFrame) -> Figure:
    """Loss of accuracy against three changes of a network, by kind of pruning and method."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), sharey=True)
    titles = {"maps": "change of the maps", "codes": "bits that change", "decision": "area decided otherwise"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for (kind, method), own in rows.groupby(["kind", "method"], sort=False):
            style = {"color": METHODS[method]["color"], "marker": "o" if kind == "nodes" else "x"}
            axis.scatter(100 * own[name], own["loss"], s=20, linewidths=1, label=f"{method}, {kind}", **style)
        axis.set_xscale("symlog", linthresh=0.1)  # one change of ten thousand is far below all others
        axis.set(xlabel=f"{title} (%)", xlim=(0, 120))
    axes[0].set_ylabel("loss of accuracy (points)")
    title = f"n = {rows['seed'].nunique()} networks,\n{rows['ratio'].nunique()} ratios"
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", title=title)
    return figure


def operations(rows: pd.DataFrame) -> Drawn:
    """Test accuracy against training operations of the ways to a small network, one panel for each network.

    Args:
        rows: `case`, `seed`, `label`, `drawn`, `method`, `accuracy` (%), and `relative`, operations with dense = 1.
    """
    cases = [case for case, own in rows.groupby("case", sort=False) if own["label"].nunique() > 2]
    figure, axes = plt.subplots(1, len(cases), figsize=(2.4 + 5 * len(cases), 4.4), squeeze=False, sharex=True)
    points, legends = [], {}
    for axis, case in zip(axes.flat, cases, strict=True):
        own = rows[rows["case"] == case]
        dense = own[own["label"] == "dense"].assign(label="short", method="magnitude")
        for (label, method), part in pd.concat([own, dense]).groupby(["label", "method"], sort=False):
            if (label, method) in ARMS:
                name, style = ARMS[label, method]
                found = [
                    stats.mean_estimate(at["accuracy"].to_numpy()) | {"relative": at["relative"].mean()}
                    for _, at in part.groupby("drawn", sort=False)
                ]
                table = pd.DataFrame(found).sort_values("relative")
                bars = np.abs(table[["low", "high"]].T.to_numpy() - table["value"].to_numpy())
                beside = 0.008 * (list(ARMS).index((label, method)) - len(ARMS) / 2)  # so that no bar hides another
                style = style | {"capsize": 2, "markersize": 5, "linewidth": 1.2}
                axis.errorbar(table["relative"] + beside, table["value"], bars, **style)
                points.append(table.assign(case=case, way=name))
                legends[name] = {"linestyle": "-"} | {k: v for k, v in style.items() if k != "capsize"}
        axis.set(title=f"{case}, n = {own['seed'].nunique()}", xlabel="training operations (dense = 1)")
    axes[0, 0].set_ylabel("test accuracy (%)")
    legend(figure, {name: legends[name] for name, _ in ARMS.values() if name in legends})
    return figure, pd.concat(points)


def slices(rows: pd.DataFrame) -> Figure:
    """Planes of images, five of each network: the regions, shaded by the class that wins, and the decision boundary."""
    height = len(rows) // 5
    figure, axes = plt.subplots(height, 5, figsize=(13.5, 0.6 + 2.9 * height), squeeze=False)
    for axis, (_, row) in zip(axes.flat, rows.iterrows(), strict=True):
        corners, count = np.reshape(row["corners"], (-1, 2)), np.asarray(row["count"])
        polygons = np.split(corners, np.cumsum(count)[:-1])
        shade = [(*to_rgb(PALETTE[int(winner) % 10]), 0.35) for winner in row["winner"]]
        style = {"edgecolors": "#555555", "linewidths": 0.15, "rasterized": True}
        axis.add_collection(PolyCollection(polygons, facecolors=shade, **style))
        _segments(axis, row["boundary"], colors="k", linewidths=1.8)
        low, high = corners.min(0), corners.max(0)
        _plain(axis, [low[0], high[0]], f"{row['title']}\n{row['regions']:,} regions", [low[1], high[1]])
    return figure


def surroundings(rows: pd.DataFrame) -> Drawn:
    """Density of lines around four kinds of inputs, from the first epoch to the last, by network and labels."""
    panels = dict(list(rows.groupby(["case", "labels"], sort=False)))
    figure, axes = plt.subplots(1, len(panels), figsize=(2 + 3.6 * len(panels), 3.6), squeeze=False, sharey=True)
    styles = {"training": 0, "test": 4, "boundary": 2, "noise": 8}
    points = []
    for axis, ((case, labels), part) in zip(axes.flat, panels.items(), strict=True):
        for kind, place in styles.items():
            own = part[part["kind"] == kind]
            values = np.array(own["density"].tolist(), dtype=float)  # NaN where a network has no boundary yet
            bounded = [column[~np.isnan(column)] for column in values.T]
            found = pd.DataFrame([stats.mean_estimate(own if len(own) else [np.nan]) for own in bounded])
            bars = np.abs(found[["low", "high"]].T.to_numpy() - found["value"].to_numpy())
            bars[:, [len(own) < 3 for own in bounded]] = np.nan  # an interval of two is longer than the axis
            at = np.arange(len(found)) + 0.06 * (list(styles).index(kind) - 1.5)
            axis.errorbar(at, found["value"], bars, capsize=2, marker="o", markersize=4, color=PALETTE[place])
            points.append(found.assign(case=case, labels=labels, kind=kind, place=np.arange(len(found))))
        axis.set_xticks(range(4), ["1", "early\nbird", "rate\nfalls", "end"])
        axis.set_title(f"{case}, {labels}, n = {part['seed'].nunique()}", fontsize=10)
        axis.set(xlabel="epoch", yscale="log")
    axes[0, 0].set_ylabel("lines over area, median image\n(1 / normalised pixel)")
    legend(figure, {kind: {"color": PALETTE[place], "marker": "o"} for kind, place in styles.items()})
    return figure, pd.concat(points)


HELD = {  # parts of a transformer that are free while the others are held
    "everything": {"color": "k", "marker": "o"},
    "the code": {"color": PALETTE[0], "marker": "s"},
    "attention and norms": {"color": PALETTE[2], "marker": "D"},
    "attention": {"color": PALETTE[4], "marker": "^"},
    "norms": {"color": PALETTE[6], "marker": "v"},
}


def transformers(rows: pd.DataFrame, drop: int) -> Drawn:
    """Bends of trained transformers along segments, by what is free; code distances of consecutive epochs."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.9))
    true, table = rows[rows["kind"] == "true labels"], []
    for axis, activation in zip(axes, ("relu", "gelu"), strict=False):
        own = true[true["activation"] == activation]
        for (free, style), hold in zip(HELD.items(), attention.HELD, strict=True):
            for when, line in (("", "-"), ("_untrained", ":")):
                values = [
                    [analysis.log_bend(row, hold, x, when) for x in attention.LENGTHS] for _, row in own.iterrows()
                ]
                mean, half = np.mean(values, 0), stats.quantile() * np.std(values, 0, ddof=1) / len(own) ** 0.5
                spread = [10**mean - 10 ** (mean - half), 10 ** (mean + half) - 10**mean]
                axis.errorbar(attention.LENGTHS, 10**mean, None if when else spread, ls=line, capsize=2, **style)
                numbers = {"length": attention.LENGTHS, "log10 of the deviation": mean}
                table.append(pd.DataFrame(numbers).assign(activation=activation, free=free, trained=not when))
        axis.set(xscale="log", yscale="log", xlabel="length (1: the other image)")
        axis.set_title({"relu": "ReLU", "gelu": "GELU"}[activation])
    axes[0].set_ylabel("deviation from the chord")
    for _, row in rows[rows["activation"] == "relu"].iterrows():
        step = np.diagonal(analysis.distances(row), 1)
        axes[2].plot(np.arange(2, len(step) + 2), step, color=PALETTE[TRAININGS[row["kind"]]], linewidth=1.2)
        numbers = {"epoch": np.arange(2, len(step) + 2), "step": step, "seed": row["seed"], "kind": row["kind"]}
        table.append(pd.DataFrame(numbers))
    axes[2].axvline(drop + 0.5, **NULL)
    axes[2].axhline(THRESHOLD, color="k", linestyle="--", linewidth=0.9)
    axes[2].set(yscale="log", xlabel="epoch", ylabel="code distance (share of bits)")
    axes[2].set_title("ReLU, from the epoch before")
    entries = HELD | {"untrained": {"ls": ":"}} | {kind: {"color": PALETTE[TRAININGS[kind]]} for kind in rows["kind"]}
    legend(figure, entries, f"free, n = {true['seed'].nunique()} seeds")
    return figure, pd.concat(table)


WAYS = {  # ways to skip idle nodes
    "position": {"color": PALETTE[0], "marker": "o"},
    "known": {"color": PALETTE[4], "marker": "^"},
    "whole": {"color": PALETTE[2], "marker": "s"},
    "static": {"color": PALETTE[6], "marker": "D"},
    "shuffled": NULL | {"marker": "x"},
}


def skipped(rows: pd.DataFrame) -> Drawn:
    """Operations saved by ways to skip idle nodes: by epoch, every seed and its mean; by layer of the last epoch."""
    cases = rows["case"].unique()
    figure, axes = plt.subplots(len(cases), 2, figsize=(10, 0.7 + 3 * len(cases)), squeeze=False)
    table = []
    for pair, case in zip(axes, cases, strict=True):
        own = rows[rows["case"] == case]
        last = own[own["label"] == "end"]
        for shift, (way, style) in zip(np.linspace(-0.16, 0.16, len(WAYS)), WAYS.items(), strict=True):
            total = own.assign(saved=[analysis.saved(row, way) for _, row in own.iterrows()])
            x = pd.factorize(total["label"])[0]
            pair[0].plot(x + shift, total["saved"], ls="", alpha=0.5, marker=style["marker"], color=style["color"])
            means = total.groupby("label", sort=False)["saved"].mean()
            pair[0].plot(np.arange(len(means)) + shift, means, **(style | {"marker": "_", "markersize": 12}))
            shares = 100 * (1 - np.array([np.divide(row[way], row["dense"]) for _, row in last.iterrows()])).mean(0)
            pair[1].plot(range(len(shares)), shares, **style)
            table.append(total[["case", "label", "seed", "saved"]].assign(way=way))
            table.append(pd.DataFrame({"case": case, "layer": last.iloc[0]["layer"], "saved": shares, "way": way}))
        pair[0].set_xticks(range(own["label"].nunique()), own["label"].unique())
        pair[0].set(ylabel="operations saved (%)", title=f"{case}, whole network")
        pair[1].set(xlabel="convolutions and linear layers, in order", title="by layer, at the end")
        pair[1].xaxis.get_major_locator().set_params(integer=True)
    legend(figure, WAYS, f"n = {rows['seed'].nunique()} trainings")
    return figure, pd.concat(table)


KINDS = {
    "pca": {"color": PALETTE[2], "marker": "o"},
    "means": {"color": PALETTE[0], "marker": "s"},
    "random": {"color": COLOURS["random"], "marker": "x"},
}


def reductions(kept: pd.DataFrame, signed: pd.DataFrame) -> Drawn:
    """What directions keep of the ranking of redundant pairs; how shares pruned follow the fan-in of layers.

    `kept` has one row an entry of the trial; `signed` is of `analysis.signed_correlations`, whose cases are averaged.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.9), width_ratios=[1, 1, 1.1])
    titles = {"rank": "full scores of pairs", "data": "disagreement on images"}
    for axis, (column, title) in zip(axes, titles.items(), strict=False):
        for filters, line in (("trained", "-"), ("random", ":")):
            for kind, style in KINDS.items():
                own = kept[(kept["filters"] == filters) & (kept["kind"] == kind)]
                means = own.groupby(["dim", "case", "seed"])[column].mean().groupby("dim")
                half = stats.quantile() * means.sem().fillna(0)
                axis.errorbar(means.mean().index, means.mean(), half, capsize=2, ls=line, **style)
        axis.set(xscale="log", xlabel="directions", title=title)
        axis.set_xticks(dims := sorted(set(kept["dim"]) - {0}), dims)
        axis.minorticks_off()
    full = kept[(kept["kind"] == "none") & (kept["filters"] == "trained")]
    axes[1].axhline(full["data"].mean(), color="k", linestyle="--", linewidth=0.9)
    axes[0].set_ylabel("rank correlation")
    names = list(dict.fromkeys(signed["case"]))
    for (filters, label), own in signed.groupby(["filters", "rows"], sort=False):
        means = own.groupby("case", sort=False)["fan_in"].mean()
        style = {"color": PALETTE[0] if label == "full" else PALETTE[2], "marker": "o" if filters == "own" else "x"}
        axes[2].plot(means, [names.index(name) for name in means.index], ls="", **style)
    axes[2].axvline(0, **NULL)
    axes[2].set_yticks(range(len(names)), names, fontsize=7)
    axes[2].set(xlabel="rank correlation with fan-in", xlim=(-1.05, 1.05), title="share pruned")
    entries = {{"pca": "PCA", "means": "class means", "random": "random"}[kind]: s for kind, s in KINDS.items()}
    entries |= {"random filters": {"ls": ":"}, "full rows": {"ls": "--", "lw": 0.9}}
    entries |= {"share, full": {"ls": "", "marker": "o", "color": PALETTE[0]}}
    entries |= {"share, reduced": {"ls": "", "marker": "o", "color": PALETTE[2]}}
    legend(figure, entries | {"share, random": {"ls": "", "marker": "x"}}, f"n = {kept['seed'].nunique()} seeds")
    drawn = kept.groupby(["case", "seed", "filters", "kind", "dim"], sort=False)[["rank", "data", "overlap"]].mean()
    return figure, pd.concat([drawn.reset_index(), signed])
