"""Paper 1's figures, drawn from rows by epoch; each function returns the figure and, where it makes them, its numbers.

Values below the range of a logarithmic axis are drawn at its lower edge.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import figures
from lib.latent.analysis import KEY, block_means
from lib.masks import METHODS

LOWEST_PD, LOWEST, LOWEST_GAP = 1e-2, 1e-4, 1e-5  # points; nats; nats
CONTROL = {"color": figures.NULL["color"], "lw": 1.2}  # the dense control: a head fine-tuned with nothing removed
CONTROLS = {"pruning": "o", "random direction": "x", "random signs": "+", "permuted places": "^"}


def method_styles(**style: object) -> dict[str, dict]:
    """Legend entries of the three methods."""
    return {method: {"color": figures.COLOURS[method]} | style for method in METHODS}


def case_grid(cases: Sequence[str], columns: Sequence[str], **options: object) -> tuple[Figure, np.ndarray]:
    """Axes (cases, columns) with a title above each column and the case left of each row, on logarithmic scales."""
    size = (10, 1.2 + 2.3 * len(cases))
    figure, axes = plt.subplots(len(cases), len(columns), figsize=size, squeeze=False, sharex=True, **options)
    for place, title in enumerate(columns):
        axes[0, place].set_title(title)
    for place, case in enumerate(cases):
        axes[place, 0].set_ylabel(case.replace(", ", "\n"))
    for axis in axes.flat:
        _logarithmic(axis, "y")
    return figure, axes


def case_row(cases: Sequence[str], height: float, rows: int = 1, **options: object) -> tuple[Figure, np.ndarray]:
    """Axes (rows, cases) with the case above each column."""
    figure, axes = plt.subplots(rows, len(cases), figsize=(10, height), squeeze=False, sharey=True, **options)
    for axis, case in zip(axes[0], cases, strict=True):
        axis.set_title(case.replace(", ", "\n"))
    return figure, axes


def panels(rows: pd.DataFrame, control: pd.DataFrame, measure: str, by: str, label: str) -> tuple[Figure, pd.DataFrame]:
    """The layout of paper 1's figures: panels are methods or fractions, colours the others; measure solid, PD dashed.

    Lines are means over trials, bands their range. Both tables come from `analysis.by_epoch`; `by` is "method" or
    "fraction", `label` the measure with its unit.
    """
    along = "fraction" if by == "method" else "method"
    fractions, cases = sorted(set(rows["fraction"])), list(dict.fromkeys(rows["case"]))
    colours = (
        figures.shades(fractions) if along == "fraction" else {method: figures.COLOURS[method] for method in METHODS}
    )
    values = fractions if by == "fraction" else list(METHODS)
    figure, axes = case_grid(cases, [v if by == "method" else f"{v:.0%} removed" for v in values], sharey="row")
    means = [_over_trials(frame, [measure, "pd"]) for frame in (rows, control)]
    for (case, panel, value), one in means[0].groupby(["case", by, along], sort=False):
        _measure_and_difference(axes[cases.index(case), values.index(panel)], one, measure, {"color": colours[value]})
    for case, one in means[1].groupby("case", sort=False):
        for axis in axes[cases.index(case)]:
            _measure_and_difference(axis, one, measure, CONTROL)
            axis.xaxis.set_major_locator(plt.MaxNLocator(5, integer=True))
    figure.supxlabel("epoch of fine-tuning")
    figure.supylabel(f"{label}, and PD (points)")
    texts = {value if along == "method" else f"{value:.0%}": {"color": colour} for value, colour in colours.items()}
    texts |= {"dense control": CONTROL, label: {}, "PD (points)": {"ls": "--"}}
    figures.legend(figure, texts, f"mean and range,\nn = {rows['trial'].nunique()}")
    return figure, pd.concat(means)


def _over_trials(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    table = rows.groupby([*KEY, "epoch"], sort=False)[columns].agg(["mean", "min", "max"])
    table.columns = [name if what == "mean" else f"{name} {what}" for name, what in table.columns]
    return table.reset_index()


def _measure_and_difference(axis: Axes, one: pd.DataFrame, measure: str, style: dict) -> None:
    for column, lowest, line in ((measure, LOWEST, "-"), ("pd", LOWEST_PD, "--")):
        mean, low, high = (one[name].clip(lower=lowest) for name in (column, f"{column} min", f"{column} max"))
        axis.plot(one["epoch"], mean, line, **style)
        axis.fill_between(one["epoch"], low, high, color=style["color"], alpha=0.12, lw=0)


def groups(ablation: pd.DataFrame, trials: int) -> Figure:
    """t-AP3 at epoch 0 against the number of groups, as stored and shuffled, by case and fraction."""
    cases, fractions = list(dict.fromkeys(ablation["case"])), sorted(set(ablation["fraction"]))
    figure, axes = case_grid(cases, [f"{fraction:.0%} removed" for fraction in fractions], sharey="row")
    for (case, fraction, method), one in ablation.groupby(["case", "fraction", "method"]):
        axis = axes[cases.index(case), fractions.index(fraction)]
        for order, line in (("contiguous", "o-"), ("shuffled", "o--")):
            axis.plot(one[f"{order}_dim"], one[f"{order}_t_ap3"], line, ms=3, color=figures.COLOURS[method])
    for axis in axes.flat:
        axis.axhline(2, **figures.NULL)
        axis.set(xscale="log")
    figure.supxlabel("number of groups")
    figure.supylabel("t-AP3 at epoch 0 (nats)")
    lines = {"as stored": {"marker": "o", "ms": 3}, "shuffled": {"ls": "--"}, "t-AP3 = 2": figures.NULL}
    figures.legend(figure, method_styles() | lines, f"mean of n = {trials}")
    return figure


def released_code(modes: pd.DataFrame, trials: int) -> Figure:
    """AP2 and t-AP3 by epoch, as defined and as the released code computes them; one scale for each measure.

    `modes` holds means over trials by `case`, `method` ("highest", "random"), `fraction`, `mode` and `epoch`.
    """
    columns = [(method, measure) for measure in ("ap2", "t_ap3") for method in ("highest", "random")]
    titles = [f"{method}:\n{'AP2' if measure == 'ap2' else 't-AP3 (nats)'}" for method, measure in columns]
    cases, colours = list(dict.fromkeys(modes["case"])), figures.shades(sorted(set(modes["fraction"])))
    figure, axes = case_grid(cases, titles)
    for place, (method, measure) in enumerate(columns):
        for (case, fraction, mode), one in modes[modes["method"] == method].groupby(["case", "fraction", "mode"]):
            style = {"color": colours[fraction], "ls": "-" if mode == "paper" else "--"}
            axes[cases.index(case), place].plot(one["epoch"], one[measure].clip(lower=LOWEST), **style)
    for block in (axes[:, :2], axes[:, 2:]):
        low, high = zip(*(axis.get_ylim() for axis in block.flat), strict=True)
        plt.setp(block, ylim=(min(low), max(high)))
    plt.setp(axes[:, 1::2], yticklabels=[])
    figure.supxlabel("epoch of fine-tuning")
    texts = {f"{fraction:.0%}": {"color": colour} for fraction, colour in colours.items()}
    figures.legend(figure, texts | {"as defined": {}, "released code": {"ls": "--"}}, f"mean of n = {trials}")
    return figure


def bounds(edges: pd.DataFrame) -> Figure:
    """Training-loss gap of each configuration and trial against two bounds: one row per bound, one panel per case.

    `edges` are rows of the first and the last epoch, as `analysis.with_bounds` returns them.
    """
    cases, names = list(dict.fromkeys(edges["case"])), {"lemma": "Lemma 2", "core": "½ λmax AP2"}
    figure, axes = case_row(cases, 6, 2, sharex="row")
    marks = {edges["epoch"].min(): {"marker": "o"}, edges["epoch"].max(): {"marker": "x"}}
    for row, bound in zip(axes, names, strict=True):
        known = edges[np.isfinite(edges[bound])]
        for (case, method, epoch), one in known.groupby(["case", "method", "epoch"]):
            style = {"c": figures.COLOURS[method], "s": 12, "lw": 0.9, "alpha": 0.7} | marks[epoch]
            row[cases.index(case)].scatter(one[bound], one["train_gap"].clip(lower=LOWEST_GAP), **style)
        for axis in row:
            line = known[bound].agg(["min", "max"])
            axis.plot(line, line, **figures.NULL)
            axis.set(xlabel=f"{names[bound]} (nats)")
            _logarithmic(axis, "x")
            _logarithmic(axis, "y")
            axis.set_ylim(LOWEST_GAP / 2, 1e3)
    figure.supylabel("training-loss gap (nats)")
    texts = {f"epoch {epoch}": mark | {"ls": ""} for epoch, mark in marks.items()} | {"gap = bound": figures.NULL}
    n = edges.groupby(["case", "epoch"]).size().max()
    figures.legend(figure, method_styles(marker="s", ls="") | texts, f"n = {n} a case\nand epoch")
    return figure


def controls(other: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss gap against curvature AP3 among `analysis.control_rows`, both over their means at equal AP2, by case."""
    numbers = block_means(other)
    cases = list(dict.fromkeys(numbers["case"]))
    figure, axes = case_row(cases, 3.9, sharex=True)
    for (case, method, control), one in numbers.groupby(["case", "method", "control"]):
        style = {"c": figures.COLOURS[method], "marker": CONTROLS[control], "s": 26, "lw": 1.2}
        axes[0, cases.index(case)].scatter(one["relative curvature AP3"], one["relative gap"], **style)
    for axis in axes[0]:
        axis.axhline(1, **figures.NULL)
        for which in "xy":
            _logarithmic(axis, which)
            getattr(axis, f"{which}axis").set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
            getattr(axis, f"{which}axis").set_major_formatter(plt.FormatStrFormatter("%g"))
    axes[0, 0].set_ylabel("test-loss gap over the mean\nat equal AP2")
    figure.supxlabel("curvature AP3 over the mean at equal AP2")
    texts = {name: {"marker": marker, "ls": ""} for name, marker in CONTROLS.items()}
    texts |= {"if length decided": figures.NULL}
    n = other["trial"].nunique()
    figures.legend(
        figure, method_styles(marker="s", ls="") | texts, f"mean of n = {n},\n{numbers['block'].nunique()} blocks"
    )
    return figure, numbers


def sparsity(ending: pd.DataFrame, before: pd.DataFrame, control: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """PD against the share of weights removed, by case: at the last epoch, at epoch 0, and of the dense control."""
    numbers = ending.groupby(KEY, sort=False)["pd"].agg(["mean", "min", "max"])
    numbers["epoch 0"] = before.groupby(KEY, sort=False)["pd"].mean()
    numbers = numbers.reset_index()
    cases, idle = list(dict.fromkeys(numbers["case"])), control.groupby("case")["pd"].mean()
    figure, axes = case_row(cases, 3.8)
    for (case, method), one in numbers.groupby(["case", "method"]):
        axis, colour, x = axes[0, cases.index(case)], figures.COLOURS[method], 100 * one["fraction"]
        drawn = one[["mean", "min", "max", "epoch 0"]].clip(lower=LOWEST_PD)
        axis.plot(x, drawn["epoch 0"], "--", color=colour)
        axis.plot(x, drawn["mean"], "o-", color=colour)
        axis.fill_between(x, drawn["min"], drawn["max"], color=colour, alpha=0.2, lw=0)
    for axis, case in zip(axes[0], cases, strict=True):
        axis.axhline(max(idle[case], LOWEST_PD), **figures.NULL)
        axis.set(yscale="log", xticks=[10, 30, 50, 70, 90])
    axes[0, 0].set_ylabel("PD (points)")
    figure.supxlabel("weights removed (%)")
    texts = {"epoch 0": {"ls": "--"}, "dense control": figures.NULL}
    figures.legend(figure, method_styles(marker="o") | texts, f"mean and range,\nn = {ending['trial'].nunique()}")
    return figure, numbers


def layers(shown: pd.DataFrame) -> Figure:
    """PD after the head is tuned against the relative AP2 of a pruned hidden layer; single weights left, filters right.

    `shown` are rows of `trials.layers` with `case` and `pd`, without the dense control.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), sharey=True, sharex=True)
    places = dict.fromkeys(zip(shown["case"], shown["layer"], strict=True))
    shapes = dict(zip(places, "osD^vP*X<>" * 3, strict=False))
    for (structure, case, layer, method), one in shown.groupby(["structure", "case", "layer", "method"]):
        style = {"c": figures.COLOURS[method], "marker": shapes[case, layer], "s": 26}
        axes[int(structure == "filters")].scatter(one["relative_ap2"], one["pd"].clip(lower=0.03), **style)
    for axis, structure, title in zip(axes, ["weights", "filters"], ["single weights", "filters"], strict=True):
        n = (shown["structure"] == structure).sum()
        axis.set(yscale="log", xlabel="AP2 over the layer's squared norm", title=f"{title} removed, n = {n}")
    axes[0].set_ylabel("PD after the head is tuned (points)")
    texts = {f"{case}\n{name}": {"marker": shape, "ls": ""} for (case, name), shape in shapes.items()}
    figures.legend(figure, method_styles(marker="s", ls="") | texts, f"n = {shown['trial'].nunique()} trial a point")
    return figure


def _logarithmic(axis: Axes, which: str) -> None:
    axis.set(**{f"{which}scale": "log"})
    getattr(axis, f"{which}axis").set_minor_formatter(plt.NullFormatter())
