"""Paper 1's figures, drawn from rows by epoch; each function returns the figure and, where it makes them, its numbers.

Values below the range of a logarithmic axis are drawn at its lower edge.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import data, figures
from lib.latent.analysis import KEY, over_cases
from lib.masks import METHODS
from lib.parameters import DATASETS

LOWEST_PD, LOWEST, LOWEST_GAP = 1e-2, 1e-4, 1e-5  # points; nats; nats
CONTROL = {"color": figures.NULL["color"], "lw": 1.2}  # the dense control: a head fine-tuned with nothing removed
CLASSES = dict(zip(dict.fromkeys(entry["classes"] for entry in DATASETS.values()), cycle(figures.PALETTE[::2])))
OTHER = figures.PALETTE[1]  # for other numbers of classes


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
        axes[place, 0].set_ylabel(_lines(case))
    for axis in axes.flat:
        _logarithmic(axis, "y")
    return figure, axes


def case_row(cases: Sequence[str], height: float, rows: int = 1, **options: object) -> tuple[Figure, np.ndarray]:
    """Axes (rows, cases) with the case above each column."""
    figure, axes = plt.subplots(rows, len(cases), figsize=(10, height), squeeze=False, sharey="row", **options)
    for axis, case in zip(axes[0], cases, strict=True):
        axis.set_title(_lines(case), fontsize=10)
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
    figure.supylabel("training-loss gap (nats)")
    texts = {f"epoch {epoch}": mark | {"ls": ""} for epoch, mark in marks.items()} | {"gap = bound": figures.NULL}
    n = edges.groupby(["case", "epoch"]).size().max()
    figures.legend(figure, method_styles(marker="s", ls="") | texts, f"n = {n} a case\nand epoch")
    return figure


def sparsity(ending: pd.DataFrame, before: pd.DataFrame, control: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """PD against the share of weights removed, by case: at the last epoch, at epoch 0, and of the dense control."""
    numbers = ending.groupby(KEY, sort=False)["pd"].agg(["mean", "min", "max"])
    numbers["epoch 0"] = before.groupby(KEY, sort=False)["pd"].mean()
    numbers = numbers.reset_index().sort_values("fraction", kind="stable")
    cases, idle = list(dict.fromkeys(ending["case"])), control.groupby("case")["pd"].mean()
    figure, axes = case_row(cases, 3.8)
    for (case, method), one in numbers.groupby(["case", "method"]):
        axis, colour, x = axes[0, cases.index(case)], figures.COLOURS[method], 100 * one["fraction"]
        drawn = one[["mean", "min", "max", "epoch 0"]].clip(lower=LOWEST_PD)
        axis.plot(x, drawn["epoch 0"], "--", color=colour)
        axis.plot(x, drawn["mean"], "o-", color=colour)
        axis.fill_between(x, drawn["min"], drawn["max"], color=colour, alpha=0.2, lw=0)
    for axis, case in zip(axes[0], cases, strict=True):
        axis.axhline(max(idle[case], LOWEST_PD), **figures.NULL)
        axis.set_xticks([10, 30, 50, 70, 90])
        _logarithmic(axis, "y")
    axes[0, 0].set_ylabel("PD (points)")
    figure.supxlabel("weights removed (%)")
    texts = {"epoch 0": {"ls": "--"}, "dense control": figures.NULL}
    figures.legend(figure, method_styles(marker="o") | texts, f"mean and range,\nn = {ending['trial'].nunique()}")
    return figure, numbers


def correlations(tables: dict[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Rank correlations of measures with a loss: a dot for each case, a bar for mean and 95 % t interval over cases.

    Each table (cases, measures) has a panel under its title; NaN is left out.
    """
    first = next(iter(tables.values()))
    height = 1.3 + 0.36 * first.shape[1]
    figure, axes = plt.subplots(1, len(tables), figsize=(10, height), squeeze=False, sharey=True, sharex=True)
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        for place, measure in enumerate(table):
            known = table[measure].dropna()
            shift = np.linspace(-0.22, 0.22, len(known)) if len(known) > 1 else np.zeros(len(known))
            colours = [CLASSES.get(_classes(case), OTHER) for case in known.index]
            axis.scatter(known, place + shift, c=colours, s=16, alpha=0.75, lw=0)
            estimate = over_cases(known)
            axis.plot([estimate["low"], estimate["high"]], [place] * 2, "k", lw=7, alpha=0.25, solid_capstyle="butt")
            axis.plot(estimate["value"], place, "k|", ms=15, mew=2)
        axis.axvline(0, **figures.NULL)
        axis.set(yticks=range(table.shape[1]), yticklabels=list(table), ylim=(table.shape[1] - 0.4, -0.6))
        axis.set(title=title, xlabel="rank correlation")
        axis.xaxis.set_major_locator(plt.MaxNLocator(5))
    texts = _class_styles(first.index, marker="o", ls="", ms=4)
    texts |= {"mean and 95 % interval": {"lw": 7, "alpha": 0.25}, "unrelated": figures.NULL}
    figures.legend(figure, texts, f"a dot a case, n = {len(first)}", columns=len(texts))
    return figure, pd.concat(table.rename_axis("case").reset_index().assign(panel=t) for t, table in tables.items())


def masks(rows: pd.DataFrame, named: pd.DataFrame, columns: dict[str, str], title: str) -> tuple[Figure, pd.DataFrame]:
    """PD after fine-tuning of random masks of one sparsity against several columns, coloured by gamma.

    `named` are the three methods at the same sparsity, drawn as large markers where they have the column. `columns`
    maps columns to labels; all but gamma are drawn on a logarithmic axis if they are above 0.
    """
    figure, axes = plt.subplots(1, len(columns), figsize=(10, 3.6), sharey=True)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        dots = axis.scatter(rows[column], rows["pd"], c=rows["gamma"], cmap="viridis", s=16, lw=0)
        for method, one in named.groupby("method"):
            style = {"c": figures.COLOURS[method], "marker": "D", "s": 46, "ec": "k", "zorder": 3}
            if column in one:
                axis.scatter(one[column], one["pd"], **style)
        axis.set(xlabel=label)
        if column != "gamma" and rows[column].min() > 0:
            _logarithmic(axis, "x")
    axes[0].set_ylabel("PD after fine-tuning (points)")
    figure.suptitle(title)
    figure.colorbar(dots, ax=axes, label="γ of the mask")
    figures.legend(figure, method_styles(marker="D", ls=""), f"n = {len(rows)} random masks", columns=3)
    return figure, rows[["case", "fraction", "gamma", "delta", *[c for c in columns if c != "gamma"], "pd", "gap"]]


def rates(control: pd.DataFrame, followed: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """What the learning rate of fine-tuning decides: the dense control's change by rate, and the order of the losses.

    `control` has columns `case`, `tuning_lr`, `change` (loss of selecting images, nats, beyond the dense head's) and
    `ap2`; `followed` has `case`, `tuning_lr` and `rho`. A line is a case.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
    quantities = {"change": "change of its test loss (nats)", "ap2": "its AP2"}
    for axis, (column, label) in zip(axes, quantities.items(), strict=False):
        for case, one in control.groupby("case", sort=False):
            axis.plot(one["tuning_lr"], one[column], "o-", ms=3, lw=1, color=CLASSES.get(_classes(case), OTHER))
        axis.set(ylabel=label)
    axes[0].axhline(0, **figures.NULL)
    axes[0].set_title("dense control")
    axes[1].set_title("dense control")
    _logarithmic(axes[1], "y")
    for case, one in followed.groupby("case", sort=False):
        axes[2].plot(one["tuning_lr"], one["rho"], "o-", ms=3, lw=1, color=CLASSES.get(_classes(case), OTHER))
    axes[2].axhline(0, **figures.NULL)
    axes[2].set(ylabel="rank correlation within sparsity", title="AP2 and PD")
    tried = sorted(set(control["tuning_lr"]))
    for axis in axes:
        axis.set(xscale="log", xlabel="peak learning rate")
        axis.set_xticks(tried, map("{:g}".format, tried))
        axis.set_xticks([], minor=True)
    texts = _class_styles(control["case"]) | {"no change, or unrelated": figures.NULL}
    figures.legend(figure, texts, columns=len(texts))
    return figure, control.merge(followed, on=["case", "tuning_lr"])


def predicted_sparsity(table: pd.DataFrame, predictors: dict[str, str]) -> Figure:
    """s* of each case against what may predict it; one panel for each column of `predictors`, which maps to labels."""
    figure, axes = plt.subplots(1, len(predictors), figsize=(10, 3.5), sharey=True)
    for axis, (column, label) in zip(axes, predictors.items(), strict=True):
        axis.scatter(table[column], table["s"], c=[CLASSES.get(_classes(case), OTHER) for case in table["case"]], s=30)
        axis.set(xlabel=label)
    axes[0].set_ylabel("s*: largest share removed\nat PD of at most 1 point")
    texts = _class_styles(table["case"], marker="o", ls="")
    figures.legend(figure, texts, f"n = {len(table)} cases", columns=len(texts))
    return figure


def layers(shown: pd.DataFrame) -> Figure:
    """Loss gap after the whole network is fine-tuned against three measures at prune time, a colour a layer.

    `shown` are rows of `trials.layers` with `case` and `gap`, without the dense control. Layers at one place of
    different networks share a colour. The axis of the gap, which may be negative, is linear near 0.
    """
    columns = {
        "relative_ap2": "AP2 over the layer's\nsquared norm",
        "fisher_ap2": "AP2 weighted by curvature",
        "inputs_moved": "relative change of\nthe head's inputs",
    }
    cases = list(dict.fromkeys(shown["case"]))
    pruned = [list(dict.fromkeys(own["layer"])) for _, own in shown.groupby("case", sort=False)]
    colours = figures.shades(range(max(map(len, pruned))))
    figure, axes = plt.subplots(len(cases), 3, figsize=(10, 1 + 2.7 * len(cases)), squeeze=False, sharey="row")
    for row, case, names in zip(axes, cases, pruned, strict=True):
        own = shown[shown["case"] == case]
        for axis, (column, label) in zip(row, columns.items(), strict=True):
            for (layer, structure), one in own.groupby(["layer", "structure"], sort=False):
                style = {"color": colours[names.index(layer)], "marker": "o" if structure == "weights" else "^"}
                axis.scatter(one[column], one["gap"], s=22, **style)
            _logarithmic(axis, "x")
            axis.set_yscale("symlog", linthresh=0.01)
            axis.axhline(0, **figures.NULL)
            axis.set(xlabel=label)
        row[0].set_ylabel(_lines(case) + "\nloss gap (nats)")
    dot, texts = {"marker": "o", "ls": ""}, {}
    for place, own in colours.items():
        texts["\n".join(dict.fromkeys(names[place] for names in pruned if place < len(names)))] = dot | {"color": own}
    texts |= {"single weights": dot, "filters": {"marker": "^", "ls": ""}, "as the control": figures.NULL}
    figures.legend(figure, texts, "layers, first to last")
    return figure


def kinds(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Loss gap before fine-tuning against AP2 of a head, a colour for each kind of compression, by case."""
    cases, names = list(dict.fromkeys(rows["case"])), list(dict.fromkeys(rows["kind"]))
    colours = dict(zip(names, figures.PALETTE, strict=False))
    figure, axes = case_row(cases, 3.8)
    for axis, case in zip(axes[0], cases, strict=True):
        for kind, one in rows[rows["case"] == case].groupby("kind", sort=False):
            axis.scatter(one["ap2"], one["gap"].clip(lower=LOWEST_GAP), color=colours[kind], s=22)
        _logarithmic(axis, "x")
        _logarithmic(axis, "y")
        axis.set(xlabel="AP2 at prune time")
    axes[0, 0].set_ylabel("test-loss gap before\nfine-tuning (nats)")
    figures.legend(figure, {name: {"color": own, "marker": "o", "ls": ""} for name, own in colours.items()})
    return figure, rows[["case", "kind", "configuration", "ap2", "gap", "pd"]]


def tasks(pairs: pd.DataFrame) -> Figure:
    """Steps until the head of one task performs as that of another, against AP2 between the heads, by network."""
    cases = list(dict.fromkeys(pairs["case"]))
    figure, axes = case_row(cases, 3.4, sharex=False)
    for axis, case in zip(axes[0], cases, strict=True):
        one = pairs[pairs["case"] == case]
        axis.scatter(one["ap2"], one["steps"].clip(lower=1), s=14, color=figures.PALETTE[0], alpha=0.7, lw=0)
        axis.axhline(one["steps_from_zero"].mean(), **figures.NULL)
        axis.set(xlabel="AP2 of two heads")
        _logarithmic(axis, "y")
    axes[0, 0].set_ylabel("steps of fine-tuning")
    figures.legend(
        figure, {"pair of tasks": {"marker": "o", "ls": "", "color": figures.PALETTE[0]}, "from zero": figures.NULL}
    )
    return figure


def _lines(case: str) -> str:
    return case.replace(", ", "\n").replace("-pretrained", "\npretrained")


def _classes(case: str) -> int:
    return data.entry(case.split(", ")[1].split(" to ")[-1])["classes"]


def _class_styles(cases: Iterable[str], **style: object) -> dict[str, dict]:
    """Legend entries of the numbers of classes that occur among cases."""
    return {
        f"{count} classes": {"color": CLASSES.get(count, OTHER)} | style for count in sorted(set(map(_classes, cases)))
    }


def _logarithmic(axis: Axes, which: str) -> None:
    """A logarithmic axis, which is labelled between powers of ten, too, if it spans two or less."""
    axis.set(**{f"{which}scale": "log"})
    own = getattr(axis, f"{which}axis")

    def label(value: float, _: int) -> str:
        low, high = own.get_view_interval()
        decades, power = np.log10(high / low), np.floor(np.log10(value) + 1e-9)
        digit = round(value / 10**power)
        if decades > 2:
            return f"$10^{{{power:.0f}}}$" if digit == 1 else ""
        shown = (1, 2, 5) if decades > 0.7 else (1, 2, 3, 5, 7) if decades > 0.35 else range(1, 11)
        return f"{value:g}" if digit in shown else ""

    own.set_major_formatter(plt.FuncFormatter(label))
    own.set_minor_formatter(plt.FuncFormatter(label))
