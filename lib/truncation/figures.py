"""The figures of paper 2: each function draws one from tables and returns it with the numbers behind it."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lib import stats
from lib.figures import NULL, PALETTE
from lib.study import generator
from lib.truncation.analysis import UNIT
from lib.truncation.measures import CUTS, spectrum, weights
from lib.truncation.trials import EQUAL

DEPTH = plt.cm.viridis  # early layers dark, deep layers light
BLUE, ORANGE, RED, GREY, PURPLE, BROWN, RUST, KHAKI, SLATE, CYAN = PALETTE
# One colour and marker per form in every figure: channel cuts are circles, pixel cuts squares, pair cuts triangles.
LOOKS = {
    **{"OUT": (BLUE, "o"), "IN": (CYAN, "o"), "KH": (RED, "s"), "KW": (ORANGE, "s")},
    **{"OUT.IN": (PURPLE, "^"), "OUT.KH": (SLATE, "^"), "OUT.KW": (KHAKI, "^")},
    **{"OUT+IN": (BROWN, "D"), "OUT+KW": (RUST, "D"), "KH+KW": (GREY, "D")},
    **{"tucker2": (BROWN, "P"), "tucker": (RUST, "P"), "tt": (GREY, "X"), "ring": (SLATE, "X")},
    **{"cp": ("black", "v"), "dense": ("black", "+")},
}
ARMS = {"untruncated": ("black", "."), "dense": (RED, "."), "projected": (BLUE, "."), "factorised": (ORANGE, ".")}
ARMS |= {"batch norm": (PURPLE, "s")}
COUNTED = (*CUTS, "OUT+IN")  # forms of a whole network whose factorised parameters are counted
LABELS = {"true": (BLUE, "-"), "shuffled": (RED, "--")}
WAYS = {"dense": ("black", "+"), "truncated": (BLUE, "o"), "scratch": (RED, "s")}
PLANNED = {"outputs": (BLUE, "o"), "kernel, OUT": (CYAN, "v"), "tolerance": (ORANGE, "s")}
PLANNED |= {"error": (RED, "^"), "uniform": (PURPLE, "D")}
DROP = "change of accuracy (points)"
TOLERANCE = ["case", "seed", "layer", "shape", "place", "cut", "tolerance", "censored"]
POINT = 1.0  # of accuracy, where a line is drawn
Drawn = tuple[Figure, pd.DataFrame]


def look(form: str) -> dict:
    """Colour, marker and line of a form; dashed where two factorisations add up."""
    colour, marker = LOOKS[form]
    return {"color": colour, "marker": marker, "linestyle": "--" if "+" in form else "-", "markersize": 4}


def in_order(forms: Iterable[str]) -> list[str]:
    """Forms as LOOKS lists them, so that legends do not depend on the order of rows."""
    present = set(forms)
    return [form for form in LOOKS if form in present]


def _mean_over_layers(points: pd.DataFrame) -> dict:
    """Mean drop over layers, half of its interval (Student's t; NaN for one layer), and their number."""
    drops = points.groupby(UNIT)["drop"].mean()
    half = stats.mean_interval(drops)[1] - drops.mean() if len(drops) > 1 else np.nan
    return {"drop": drops.mean(), "half": half, "layers": len(drops), "relative_error": points["relative_error"].mean()}


def _in_points(axis: plt.Axes) -> None:
    """An axis of accuracy that shows both a loss of one point and a collapse."""
    axis.set_yscale("symlog", linthresh=2 * POINT, linscale=1)
    low, high = axis.get_ylim()[0], np.clip(1.2 * axis.dataLim.ymax, POINT / 2, 2 * POINT)  # bars may reach further
    axis.set_ylim(low, high)
    ticks = [tick for tick in (2, 1, 0, -1, -2, -5, -10, -20, -50) if low <= tick <= high]
    axis.set_yticks(ticks, map(str, ticks))
    axis.minorticks_off()


def _legend(figure: Figure, axis: plt.Axes, title: str | None = None) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right", title=title)


def _panels(keys: Iterable, margin: float, width: float, height: float, **options) -> tuple[Figure, list]:
    """A panel for each distinct key, in rows of at most four: the figure, and the axes with their keys."""
    keys = list(dict.fromkeys(keys))
    rows = -(-len(keys) // 4)
    columns = -(-len(keys) // rows)
    size = (margin + width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axis in axes.flat[len(keys) :]:
        axis.remove()
    return figure, list(zip(axes.flat, keys, strict=False))


def _cut_panels(height: float = 5.4, **options) -> tuple[Figure, dict, plt.Axes]:
    """A panel for each cut, and a free place for the legend."""
    figure, axes = plt.subplots(2, 4, figsize=(11, height), **options)
    axes[1, 3].axis("off")
    panels = dict(zip(CUTS, axes.flat, strict=False))
    for cut, axis in panels.items():
        axis.set_title(cut)
    return figure, panels, axes[1, 3]


def _depth_bar(figure: Figure, corner: plt.Axes) -> None:
    shades = ListedColormap(DEPTH(np.linspace(0, 0.9, 64)))
    place = corner.inset_axes([0.1, 0.1, 0.1, 0.8])
    bar = figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(0, 1), shades), cax=place, ticks=[0, 1])
    bar.set_ticklabels(["first layer", "last layer"])


def spectra(rows: pd.DataFrame, layers: int = 4) -> Drawn:
    """Shares p of the squared norm against the index, for some layers of one network beside random kernels.

    The rows are those of one network in `trials.spectra`; a dotted line is the mean of five Gaussian kernels.
    """
    figure, panels, corner = _cut_panels(5.2)
    square = rows[[shape[2] > 1 for shape in rows["shape"]]]
    chosen = square.iloc[np.unique(np.linspace(0, len(square) - 1, layers).round().astype(int))]
    numbers = []
    for (_, row), colour in zip(chosen.iterrows(), DEPTH(np.linspace(0, 0.85, len(chosen))), strict=True):
        stream = generator(0, "random kernels", row["layer"])
        drawn = [torch.randn(*row["shape"], generator=stream) for _ in range(5)]
        for cut in row["cut"]:
            random = torch.stack([weights(spectrum(one, cut, gram=True)) for one in drawn]).mean(0).numpy()
            place = np.arange(1, len(row[f"weights_{cut}"]) + 1)
            panels[cut].plot(place, row[f"weights_{cut}"], color=colour)
            panels[cut].plot(place, random, ":", color=colour, linewidth=1.2)
            both = {"index": place, "weight": row[f"weights_{cut}"], "random_weight": random}
            numbers.append(pd.DataFrame(both).assign(case=row["case"], layer=row["layer"], cut=cut))
        corner.plot([], [], color=colour, label=row["layer"])
    for axis in panels.values():
        axis.set(yscale="log", ylim=(1e-5, 1.5))
        axis.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
    corner.plot([], [], ":", color="black", label="random kernel")
    corner.legend(loc="center", title=rows["case"].iloc[0])
    figure.supxlabel("index k")
    figure.supylabel("share of the squared norm p")
    return figure, pd.concat(numbers)


def accuracy_by_norm_loss(points: pd.DataFrame) -> Drawn:
    """Change of accuracy against norm loss, one layer truncated at a time, one panel per cut; points of one network.

    The axis of accuracy is linear up to two points and logarithmic beyond.
    """
    figure, panels, corner = _cut_panels(5.8, sharey=True)
    numbers = points[points["method"] == "cut"]
    for (cut, _), one in numbers.groupby(["cut", "layer"], sort=False):
        one = one.sort_values("norm_loss")
        line = {"color": DEPTH(0.9 * one["depth"].iloc[0]), "linewidth": 1, "markersize": 4}
        panels[cut].plot([0, *one["norm_loss"]], [0, *-one["drop"]], ".-", **line)
    for cut, axis in panels.items():
        axis.axhline(-POINT, **NULL)
        axis.set(xlim=(0, 1))
        _in_points(axis)
        axis.set_title(cut, y=1.12)
        convert = (lambda d: np.sqrt(np.clip(1 - (1 - d) ** 2, 0, 1)), lambda e: 1 - np.sqrt(np.clip(1 - e**2, 0, 1)))
        upper = axis.secondary_xaxis("top", functions=convert)
        upper.set_xticks([0.5, 0.7, 0.9])
        upper.tick_params(labelsize=7)
    _depth_bar(figure, corner)
    figure.supxlabel("norm loss δ (upper axes: relative error ε)")
    figure.supylabel(DROP)
    columns = ["case", "layer", "depth", "cut", "rank", "relative_error", "norm_loss", "drop"]
    return figure, numbers.filter(columns)


def tolerance_maps(tolerated: pd.DataFrame) -> Drawn:
    """Median tolerance over trainings: layers downwards, cuts sideways, one panel per case; dots: lower bounds."""
    figure, panels = _panels(tolerated["case"], 2.2, 2.6, 4.8)
    for axis, case in panels:
        one = tolerated[tolerated["case"] == case]
        grid = one.pivot_table(index="place", columns="cut", values="tolerance", aggfunc="median")
        grid = grid.reindex(columns=[cut for cut in CUTS if cut in grid])
        image = axis.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        bounds = one.pivot_table(index="place", columns="cut", values="censored", aggfunc="max")[grid.columns] == 1
        down, across = np.nonzero(bounds.to_numpy())
        axis.plot(across, down, ".", color="white", markersize=4)
        names = one.drop_duplicates("place").sort_values("place")["layer"]
        axis.set_xticks(range(len(grid.columns)), grid.columns, rotation=90)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.grid(False)
        axis.set_title(case, fontsize=9)
    figure.colorbar(image, ax=[axis for axis, _ in panels], label="tolerance (relative error)")
    return figure, tolerated.filter(TOLERANCE)


def tolerance_by_depth(tolerated: pd.DataFrame) -> Drawn:
    """Mean tolerance over trainings against the layer, one line per cut, one panel per case; hollow: a lower bound."""
    figure, panels = _panels(tolerated["case"], 1.5, 2.9, 3.4, sharey=True)
    for axis, case in panels:
        here = tolerated[tolerated["case"] == case]
        for cut in in_order(here["cut"]):
            one = here[here["cut"] == cut].groupby("place").agg({"tolerance": "mean", "censored": "max"})
            axis.plot(one.index, one["tolerance"], **look(cut), label=cut, linewidth=1)
            bounds = one[one["censored"]]
            axis.plot(bounds.index, bounds["tolerance"], **look(cut) | {"linestyle": "", "markerfacecolor": "white"})
        shapes = here.drop_duplicates("place").sort_values("place").set_index("place")["shape"]
        for place in shapes.index[shapes != shapes.shift()][1:]:
            axis.axvline(place - 0.5, color="0.8", zorder=0)
        axis.set(title=case, ylim=(0, 1.02))
        axis.title.set_fontsize(9)
    first, _ = panels[0]
    figure.supxlabel("layer, from the input")
    figure.supylabel("tolerance (relative error)")
    _legend(figure, first, "hollow: at least")
    figure.legends[0].get_title().set_fontsize(8)
    return figure, tolerated.filter(TOLERANCE)


def two_mode(points: pd.DataFrame, bins: int = 8) -> Drawn:
    """Mean change of accuracy over layers against relative error, for both readings of two-mode; bars: quartiles.

    A mean of fewer than three layers is left out.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4))
    numbers = []
    pairs = points[points["method"].isin(["cut", "joint2"]) & points["cut"].str.contains(r"[.+]")]
    for form in in_order(pairs["cut"]):
        one = pairs[pairs["cut"] == form]
        lines = []
        for _, group in one.groupby(pd.cut(one["relative_error"], np.linspace(0, 1, bins + 1)), observed=True):
            lower, upper = group.groupby(UNIT)["drop"].mean().quantile([0.25, 0.75])
            lines.append(_mean_over_layers(group) | {"lower": lower, "upper": upper})
        line = pd.DataFrame(lines).query("layers >= 3").drop(columns="half")
        axis.plot(line["relative_error"], -line["drop"], **look(form), label=form)
        axis.vlines(line["relative_error"], -line["upper"], -line["lower"], look(form)["color"], linewidth=0.8)
        numbers.append(line.assign(cut=form))
    _in_points(axis)
    axis.set(xlabel="relative error ε of the kernel", ylabel=DROP)
    figure.legend(loc="outside right", title="solid: cut2\ndashed: joint2\nbars: quartiles\nof the layers")
    return figure, pd.concat(numbers)


def controls(points: pd.DataFrame, names: dict[str, str]) -> Drawn:
    """Mean change of accuracy of truncations and controls at equal relative error; bars: 95 % intervals over layers.

    The points are of `trials.controlled`; `names` holds methods with their text, in order.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4))
    numbers = []
    for k, (method, text) in enumerate(names.items()):
        groups = points[points["method"] == method].groupby("target")
        line = pd.DataFrame([{"target": error} | _mean_over_layers(one) for error, one in groups])
        moved = line["target"] + 0.01 * (k - len(names) / 2)  # side by side, not on top of each other
        style = {"color": PALETTE[k], "marker": "o", "markersize": 4, "elinewidth": 0.8}
        axis.errorbar(moved, -line["drop"], line["half"], **style, label=text)
        numbers.append(line.assign(method=text))
    table = pd.concat(numbers)
    axis.set(xlabel="relative error ε", ylabel=DROP, xticks=table["target"].unique())
    figure.legend(loc="outside right", title="bars: 95 %")
    return figure, table


def tolerance_by_entropy(joined: pd.DataFrame) -> Drawn:
    """Tolerance against how far a kernel's entropy is below that of a random one, one panel per cut, coloured by depth.

    Hollow points are lower bounds.
    """
    figure, panels, corner = _cut_panels(sharey=True)
    for cut, one in joined.groupby("cut", sort=False):
        shades = DEPTH(0.9 * one["depth"])
        inside = np.where(one["censored"].to_numpy()[:, None], 1.0, shades)
        panels[cut].scatter(one["excess"], one["tolerance"], color=inside, edgecolors=shades, linewidths=1, s=14)
        panels[cut].set(ylim=(0, 1.02))
    _depth_bar(figure, corner)
    figure.supxlabel("entropy below that of a random kernel (nats)")
    figure.supylabel("tolerance (relative error; hollow: at least)")
    return figure, joined.filter(["case", "seed", "layer", "depth", "cut", "excess", "tolerance", "censored"])


def forms(points: pd.DataFrame, budgets: Sequence[float]) -> Drawn:
    """Mean change of accuracy over layers of every form at equal parameters, and against its mean relative error.

    The points are of `trials.formed`; all starts of CP and all orders of a tensor train are averaged within a layer;
    ranks of equal shares are left out. Bars: 95 % intervals over layers. Hollow symbols: the last budget; forms that
    do not fit it stand last.
    """
    shown = points[~points["method"].isin(["dense", "as cp"]) & ~points["method"].str.endswith(EQUAL)].copy()
    shown["form"] = shown["method"].replace({"cp, not converged": "cp"}).where(shown["method"] != "cut", shown["cut"])
    groups = shown.groupby(["form", "target"], sort=False)
    means = pd.DataFrame([{"form": f, "target": t} | _mean_over_layers(one) for (f, t), one in groups])
    by_drop = means.sort_values("drop")
    order = list(dict.fromkeys(form for t in budgets[::-1] for form in by_drop.loc[by_drop["target"] == t, "form"]))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for form in in_order(means["form"]):
        for k, budget in enumerate(budgets):
            one = means[(means["form"] == form) & (means["target"] == budget)]
            hollow = {"markerfacecolor": "white"} if k == len(budgets) - 1 else {"label": form}
            style = look(form) | {"linestyle": "", "markersize": 6, "elinewidth": 0.8} | hollow
            place = np.full(len(one), order.index(form) + 0.3 * k)
            axes[0].errorbar(place, -one["drop"], one["half"], **style)
            axes[1].errorbar(one["relative_error"], -one["drop"], one["half"], **style)
    axes[0].set_xticks(range(len(order)), order, rotation=60, ha="right", rotation_mode="anchor")
    axes[0].set(ylabel=DROP, title="at equal parameters")
    axes[1].set(xlabel="mean relative error ε", title="the same, by the error that they make")
    kept = f"filled: {budgets[0]:.0%}\nhollow: {budgets[-1]:.0%} of the\nparameters\nbars: 95 %"
    _legend(figure, axes[1], kept)
    return figure, means


def all_layers(table: pd.DataFrame) -> Drawn:
    """Change of accuracy with all layers truncated, against the relative error and against the parameters left.

    The table holds `form_name`, `target`, `relative_error`, `drop`, `kept`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    means = table.groupby(["form_name", "target"], sort=False)[["relative_error", "drop", "kept"]].mean().reset_index()
    for form in in_order(means["form_name"]):
        one = means[means["form_name"] == form]
        axes[0].plot([0, *one["relative_error"]], [0, *-one["drop"]], **look(form), label=form)
        if form in COUNTED:
            axes[1].plot([1, *one["kept"]], [0, *-one["drop"]], **look(form))
    axes[0].set(xlabel="relative error of all kernels together", ylabel=DROP)
    axes[1].set(xlabel="share of the network's parameters, factorised")
    _legend(figure, axes[0])
    return figure, means


def recoveries(rows: pd.DataFrame, few: int) -> Drawn:
    """Accuracy by epoch of retraining: one line per arm, a row of panels per truncation, a column per case.

    The rows hold `case`, `arm`, `form_name`, `target`, `accuracy` (lists, percent; the mean over trainings is drawn);
    the untruncated arm goes into every panel of its case. Re-estimated BatchNorm statistics are no epoch: they are a
    square at epoch 0. `few` epochs are dotted.
    """
    truncated, cases = rows[rows["arm"] != "untruncated"], list(dict.fromkeys(rows["case"]))
    kinds = list(dict.fromkeys(zip(truncated["form_name"], truncated["target"], strict=True)))
    size = (1.8 + 2.1 * len(cases), 0.9 + 2.4 * len(kinds))
    figure, axes = plt.subplots(len(kinds), len(cases), figsize=size, squeeze=False, sharex=True)
    numbers = []
    for (form, error), line_of_axes in zip(kinds, axes, strict=True):
        for case, axis in zip(cases, line_of_axes, strict=True):
            here = ((rows["form_name"] == form) & (rows["target"] == error)) | (rows["arm"] == "untruncated")
            here &= rows["case"] == case
            for arm in [name for name in ARMS if name in set(rows.loc[here, "arm"])]:
                line = np.mean(rows.loc[here & (rows["arm"] == arm), "accuracy"].tolist(), axis=0)
                line = line[1:] if arm == "batch norm" else line
                colour, marker = ARMS[arm]
                style = {"color": colour, "marker": marker, "linestyle": "--" if arm == "dense" else "-"}
                axis.plot(range(len(line)), line, **style, zorder=3 if arm == "dense" else 2, label=arm)
                labels = {"case": case, "arm": arm, "form": form, "target": error}
                numbers.append(pd.DataFrame({"epoch": range(len(line)), "accuracy": line} | labels))
            axis.axvline(few, **NULL)
            axis.set_title(f"{case}\n{form}, ε = {error:g}", fontsize=8)
            axis.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
    figure.supylabel("accuracy (%)")
    figure.supxlabel("epoch of retraining")
    _legend(figure, axes[0][0])
    return figure, pd.concat(numbers)


def by_case(tables: dict[str, pd.DataFrame], label: str) -> Drawn:
    """A statistic by case (rows of each table) and kind (columns): a dot for each case, a bar for their mean.

    One panel for each table, with its name as title; dotted: 0, where there is no effect.
    """
    most = max(len(one.columns) for one in tables.values())
    widths = [2.8 + 0.075 * max(map(len, one.columns)) for one in tables.values()]
    size = (2.4 + sum(widths), 1.3 + 0.36 * most)
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False, width_ratios=widths)
    if engine := figure.get_layout_engine():
        engine.set(w_pad=0.1)  # inches: long names of kinds reach the edge
    cases = list(dict.fromkeys(case for one in tables.values() for case in one.index))
    numbers = []
    for axis, (title, table) in zip(axes.flat, tables.items(), strict=True):
        places = np.arange(len(table.columns))
        for k, case in enumerate(cases):
            values = table.loc[case] if case in table.index else np.full(len(places), np.nan)
            shift = 0.12 * (k - (len(cases) - 1) / 2) / max(1, len(cases) / 4)
            axis.plot(values, places + shift, "o", color=PALETTE[k % len(PALETTE)], markersize=4, label=case)
        axis.plot(table.mean(), places, "|", color="black", markersize=16, markeredgewidth=2, label="mean")
        axis.axvline(0, **NULL)
        axis.set_yticks(places, table.columns)
        axis.set_ylim(len(places) - 0.5, -0.5)
        axis.set(title=title, xlabel=label)
        numbers.append(table.rename_axis("case").reset_index().assign(panel=title))
    _legend(figure, axes[0][0])
    return figure, pd.concat(numbers)


def zeroed(table: pd.DataFrame) -> Drawn:
    """The share of layers that can be zeroed against the depth of a network: a line for each series."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for k, (name, one) in enumerate(table.groupby("series", sort=False)):
        one = one.sort_values("depth")
        axis.plot(one["depth"], one["share"], "o-", color=PALETTE[k], label=f"{name} ({len(one)} networks)")
    axis.set(xlabel="depth of the network (layers)", ylabel="share of layers that can be zeroed")
    axis.set_ylim(bottom=0)
    axis.set_xticks(sorted(table["depth"].unique()))
    _legend(figure, axis)
    return figure, table


def watched(table: pd.DataFrame) -> Drawn:
    """Entropy below random kernels by epoch of training, mean over layers, one panel per cut; solid: true labels.

    The table holds `labels` ("true" or "shuffled"), `epoch`, `layer`, `cut`, `excess` (nats). Bars: 95 % over layers.
    """
    figure, panels, corner = _cut_panels()
    numbers = []
    for (cut, labels), one in table.groupby(["cut", "labels"], sort=False):
        by_epoch = one.groupby("epoch")["excess"]
        half = [stats.mean_interval(values)[1] - values.mean() if len(values) > 1 else np.nan for _, values in by_epoch]
        colour, line = LABELS[labels]
        panels[cut].errorbar(by_epoch.mean().index, by_epoch.mean(), half, color=colour, linestyle=line, elinewidth=0.8)
        numbers.append(
            by_epoch.mean().reset_index().assign(cut=cut, labels=labels, half=half, layers=by_epoch.size().max())
        )
    for axis in panels.values():
        axis.axhline(0, **NULL)
        axis.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
    for labels, (colour, line) in LABELS.items():
        corner.plot([], [], color=colour, linestyle=line, label=f"{labels} labels")
    corner.legend(loc="center", title="bars: 95 % over layers")
    figure.supxlabel("epoch of training (0: initial weights)")
    figure.supylabel("entropy below random (nats)")
    return figure, pd.concat(numbers)


def tensorised(table: pd.DataFrame) -> Drawn:
    """Accuracy of networks trained as small tensors, of truncated ones and of dense ones, by form; a panel per network.

    The table holds `case`, `form` ("" for dense), `way`, `accuracy` (percent), and half of its interval over images
    `half`.
    """
    figure, panels = _panels(table["case"], 1.6, 2.8, 3.4)
    for axis, case in panels:
        here = table[table["case"] == case]
        forms = list(dict.fromkeys(here.loc[here["form"] != "", "form"]))
        for shift, (way, (colour, marker)) in zip((0, -0.1, 0.1), WAYS.items(), strict=True):
            one = here[here["way"] == way]
            place = [(forms.index(form) if form else len(forms)) + shift for form in one["form"]]
            style = {"color": colour, "marker": marker, "linestyle": "", "markersize": 7}
            axis.errorbar(place, one["accuracy"], one["half"], **style, elinewidth=0.8, label=way)
        axis.set_xticks(range(len(forms) + 1), [*forms, "dense"])
        axis.set_title(case, fontsize=9)
    panels[0][0].set_ylabel("accuracy (%)")
    _legend(figure, panels[0][0], "bars: 95 % (images)")
    return figure, table


def plans(table: pd.DataFrame) -> Drawn:
    """Accuracy of whole networks under each plan, before retraining (hollow) and after, a panel per network.

    The table holds `case`, `form_name`, `before` and `after` (percent), means over retrainings.
    """
    figure, panels = _panels(table["case"], 1.6, 2.6, 3.2)
    names = [name for name in PLANNED if name in set(table["form_name"])]
    for axis, case in panels:
        here = table[table["case"] == case].set_index("form_name")
        for place, name in enumerate(names):
            colour, marker = PLANNED[name]
            style = {"color": colour, "marker": marker, "markersize": 7, "linestyle": ""}
            axis.plot(place, here.loc[name, "before"], **style | {"markerfacecolor": "white"})
            axis.plot(place, here.loc[name, "after"], **style)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_title(case, fontsize=9)
    panels[0][0].set_ylabel("accuracy (%)\nhollow: before retraining")
    return figure, table


def signs(table: pd.DataFrame) -> Drawn:
    """A matrix of effects (rows) and cases (columns): blue where the sign is the claimed one, red where it is not."""
    figure, axis = plt.subplots(figsize=(2.6 + 0.62 * len(table.columns), 1.9 + 0.3 * len(table)))
    shades = ListedColormap([RED, BLUE])
    axis.imshow(np.ma.masked_invalid(table.to_numpy(dtype=float)), cmap=shades, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy(dtype=float)):
        axis.text(column, row, {1: "+", 0: "−"}.get(value, ""), ha="center", va="center", color="white")
    names = [name.replace(" / ", "\n") for name in table.columns]
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(range(len(table)), table.index)
    axis.grid(False)
    return figure, table.rename_axis("effect").reset_index()


def latencies(table: pd.DataFrame) -> Drawn:
    """Measured time against MACs of factorised layers, as shares of the dense layer; dotted: time as MACs.

    The table is that of `analysis.latency_shares`.
    """
    figure, panels = _panels(table["kernel"], 1.4, 3.8, 3.8, sharey=True)
    for axis, kernel in panels:
        axis.plot([0, 1], [0, 1], **NULL)
        here = table[table["kernel"] == kernel]
        for form in in_order(here["form"]):
            one = here[here["form"] == form]
            style = look(form) | {"linestyle": "", "markersize": 6}
            axis.plot(one["macs_share"], one["made_latency_share"], **style, label=form)
        axis.set(title=kernel, xlabel="MACs, share of the dense layer", xlim=(0, 1.05))
    panels[0][0].set_ylabel("measured time, share of the dense layer")
    _legend(figure, panels[0][0])
    return figure, table
