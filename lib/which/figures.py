"""The figures of the notebook that compares the four papers; most functions return a figure and its numbers."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import stats
from lib.figures import NULL, PALETTE, colours, legend
from lib.spaces.figures import mcb_axis
from lib.which import analysis
from lib.which.contest import BOTH, PAPERS, PLAIN
from lib.which.measures import VIEWS

Drawn = tuple[Figure, pd.DataFrame]
NAMES = {  # of measures, as axes say them
    "ap2": "AP2",
    "relative_error": "relative error",
    "t_ap3": "t-AP3",
    "norm_loss": "norm loss",
    "entropy_change": "entropy lost",
    "effective_rank_lost": "effective rank lost",
    "output_error": "error of the layer's outputs",
    "kl": "KL of the network's outputs",
    "fisher_ap3": "AP3, Fisher diagonal",
    "curvature_ap3": "AP3, Gauss-Newton",
    "taylor_1": "loss to first order",
    "taylor_2": "loss to second order",
    "code_change": "changed codes, layers from there on",
    "last_code_change": "changed codes, last layer",
    "map_change": "change of the regions' maps",
    "size": "share of weights saved",
    "depth": "depth",
    "gap_few": "loss on the same images",
}
ARM_STYLES = {
    **{arm: {"color": PALETTE[k], "ls": "-", "marker": "o"} for k, arm in enumerate(PAPERS)},
    **{arm: {"color": PALETTE[k], "ls": "--", "marker": "s"} for k, arm in enumerate(PLAIN, 5)},
    BOTH: {"color": PALETTE[4], "ls": "-.", "marker": "D"},
}


def measures_by_question(found: pd.DataFrame) -> Drawn:
    """Spearman's correlation of every measure with damage: a row a measure, by view; a column a question."""
    order = [name for view in VIEWS.values() for name in view]
    table = found.loc[order]
    figure, axis = plt.subplots(figsize=(8.4, 6.2))
    axis.imshow(table.to_numpy(dtype=float), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (line, column), value in np.ndenumerate(table.to_numpy(dtype=float)):
        shade = "white" if abs(value) > 0.6 else "black"
        text = "–" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, line, text, ha="center", va="center", color=shade, fontsize=9)
    axis.set_xticks(range(table.shape[1]), [name.replace(", ", ",\n") for name in table])
    axis.set_yticks(range(len(table)), [NAMES[name] for name in order])
    axis.grid(False)
    start = 0
    for view, names in VIEWS.items():
        axis.axhline(start - 0.5, color="k", lw=0.8)
        axis.text(table.shape[1] - 0.45, start + len(names) / 2 - 0.5, view, va="center", fontsize=10, clip_on=False)
        start += len(names)
    axis.set_title("Spearman's correlation with damage, mean over families", fontsize=11)
    return figure, table.rename_axis("measure").reset_index()


def against_damage(table: pd.DataFrame, measures: Sequence[str], outcome: str = analysis.DAMAGE) -> Drawn:
    """Damage against some measures, a dot a change, a colour a family; damage below the floor is drawn at it."""
    figure, axes = plt.subplots(1, len(measures), figsize=(3.7 * len(measures), 4.0), sharey=True)
    by_family = colours(table["family"].unique())
    for axis, measure in zip(np.atleast_1d(axes), measures, strict=True):
        for family, one in table.groupby("family", sort=False):
            x, y = one[measure].clip(lower=analysis.SMALLEST), one[outcome].clip(lower=analysis.FLOOR)
            axis.plot(x, y, ".", color=by_family[family], ms=4, alpha=0.6, rasterized=True)
        axis.set(xscale="log", yscale="log", xlabel=NAMES[measure])
    np.atleast_1d(axes)[0].set_ylabel("rise of the test loss at once (nats)")
    counts = table["family"].value_counts(sort=False)
    legend(
        figure, {f"{f} ({counts[f]:,})": {"color": c, "ls": "", "marker": "o"} for f, c in by_family.items()}, columns=3
    )
    kept = ["network", "dataset", "family", "layer", "kind", "strength", *measures, outcome]
    return figure, table[kept]


def unseen(found: pd.DataFrame) -> Drawn:
    """R² of log damage in families that were left out: a dot for the mean, a line from the least to the most."""
    order = found.sort_values("mean")
    figure, axis = plt.subplots(figsize=(8.6, 6.4))
    shown = order.clip(lower=-1)
    for place, (name, row) in enumerate(shown.iterrows()):
        view = next((view for view, names in VIEWS.items() if name in names), "sets")
        colour = dict(zip((*VIEWS, "sets"), PALETTE, strict=False))[view]
        axis.plot([row["least"], row["most"]], [place] * 2, color=colour, lw=5, alpha=0.35, solid_capstyle="round")
        axis.plot(row["mean"], place, "o", color=colour, mec="white", ms=8)
    axis.axvline(0, **NULL)
    axis.set_yticks(range(len(order)), [_named(name) for name in order.index])
    axis.set(xlabel="R² in a family left out (-1: or less)", xlim=(-1.05, 1))
    views = dict(zip((*VIEWS, "sets"), PALETTE, strict=False))
    legend(figure, {view: {"color": c, "ls": "", "marker": "o"} for view, c in views.items()}, "view", columns=6)
    return figure, order.rename_axis("predictors").reset_index()


def _named(name: str) -> str:
    return " + ".join(NAMES.get(part, part) for part in name.split(" + "))


def price_of_measures(found: pd.Series, seconds: pd.DataFrame) -> Drawn:
    """Measured seconds of each measure; the measures are ordered by their correlation with damage, written beside."""
    table = seconds.assign(correlation=seconds["measure"].map(found)).sort_values("correlation", ignore_index=True)
    figure, axis = plt.subplots(figsize=(9.0, 5.0))
    for view, colour in zip(VIEWS, PALETTE, strict=False):
        one = table[table["measure"].isin(VIEWS[view])]
        if len(one):
            axis.plot(one["made_seconds"], one.index, "o", ms=7, color=colour, label=view)
    for place, row in table.iterrows():
        where = (row["made_seconds"], place)
        axis.annotate(f"{row['correlation']:.2f}", where, xytext=(7, -3), textcoords="offset points", fontsize=9)
    axis.set_yticks(range(len(table)), [NAMES[name] for name in table["measure"]])
    axis.set(xscale="log", xlabel="seconds for one changed layer (median); beside: Spearman's correlation with damage")
    axis.margins(x=0.12)
    figure.legend(loc="outside right", title="view")
    return figure, table


def after_repair(found: pd.DataFrame) -> Drawn:
    """Correlation of some measures with damage at each stage of repair: a line a measure."""
    figure, axis = plt.subplots(figsize=(8.4, 4.0))
    for place, (name, row) in enumerate(found.iterrows()):
        axis.plot(range(found.shape[1]), row, "o-", color=PALETTE[place % len(PALETTE)], label=NAMES[name])
    axis.set_xticks(range(found.shape[1]), list(found))
    axis.axhline(0, **NULL)
    axis.set_ylabel("Spearman's correlation with damage\nwithin networks")
    figure.legend(loc="outside right")
    return figure, found.rename_axis("measure").reset_index()


def scattered(table: pd.DataFrame, x: str, y: str, unit: str, labels: tuple[str, str], log: str = "") -> Drawn:
    """One column against another, a colour a unit; `log` names the axes ("x", "y", "xy") that are logarithmic."""
    figure, axis = plt.subplots(figsize=(8.0, 4.2))
    counts = table[unit].value_counts(sort=False)
    for name, colour in colours(counts.index).items():
        one = table[table[unit] == name]
        axis.plot(one[x], one[y], "o", ms=4, alpha=0.7, color=colour, label=f"{name} ({counts[name]:,})")
    axis.set(xlabel=labels[0], ylabel=labels[1], xscale="log" if "x" in log else "linear")
    axis.set_yscale("log" if "y" in log else "linear")
    figure.legend(loc="outside right")
    return figure, table[[unit, x, y]]


def recipes(table: pd.DataFrame) -> Drawn:
    """AP2 and loss of recipes of one regime against their mCB, a line a network."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    named = analysis.with_name(table)
    for name, colour in colours(named["name"].unique()).items():
        one = named[named["name"] == name].sort_values("mcb")
        for axis, column in zip(axes, ("relative_ap2", "loss"), strict=True):
            axis.plot(one["mcb"], one[column], "o-", ms=4, color=colour, label=f"{name} (n = {len(one)})")
    for axis, label in zip(axes, ("AP2 / squared norm", "test loss (nats),\nBatchNorm re-estimated"), strict=True):
        mcb_axis(axis, "")
        axis.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure, named[["name", "kept", "mcb", "relative_ap2", "loss", "accuracy"]]


def curves(rows: pd.DataFrame, costs: dict[str, str]) -> Drawn:
    """Fall of accuracy after retraining against a cost, mean over networks with its interval; one panel a cost.

    The rows have a column `fall` (`analysis.falls`). `costs` has the axis' label by column. At `kept_<cost>` only
    networks that were matched in this cost are shown, arms a little apart; at another column each matching has its own
    points, without a line.
    """
    table = analysis.with_name(rows[rows["arm"] != "dense"])
    figure, axes = plt.subplots(1, len(costs), figsize=(2.6 + 4.0 * len(costs), 4.8), sharey=True)
    drawn = []
    for axis, (column, label) in zip(np.atleast_1d(axes), costs.items(), strict=True):
        matched = column.startswith("kept_")
        own = table[table["cost"] == column.removeprefix("kept_")] if matched else table
        for place, (arm, style) in enumerate(ARM_STYLES.items()):
            one = own[own["arm"] == arm]
            if not len(one):
                continue
            points = [
                stats.mean_estimate(at["fall"]) | {"cost": cost, "budget": budget, column: at[column].mean()}
                for (cost, budget), at in one.groupby(["cost", "budget"])
            ]
            points = pd.DataFrame(points).sort_values(column)
            half = (points["high"] - points["value"]).fillna(0)
            x = points[column] + 0.006 * (place - 4) * matched
            look = style if matched else style | {"ls": ""}
            axis.errorbar(x, points["value"], half, label=arm, ms=5, lw=1.5, capsize=2, **look)
            points = points.rename(columns={"value": "fall"})
            drawn.append(points[["cost", "budget", column, "fall", "n"]].assign(arm=arm))
        axis.set_xlabel(label)
    np.atleast_1d(axes)[0].set_ylabel("fall of test accuracy after\nretraining (points)")
    handles = {arm: style for arm, style in ARM_STYLES.items() if arm in set(table["arm"])}
    n = table["name"].nunique()
    title = f"mean of {n} networks, Student's 95 % interval" if n > 1 else "one network"
    legend(figure, handles, title, columns=1 + 2 * len(costs))
    return figure, pd.concat(drawn, ignore_index=True)


def ranks(tables: dict[str, pd.DataFrame]) -> Drawn:
    """Mean rank of each arm with its interval over networks; one panel a cost."""
    figure, axes = plt.subplots(1, len(tables), figsize=(5.0 * len(tables), 4.0))
    for axis, (cost, table) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        _ranks(axis, table)
        axis.set_title(f"equal {'MACs' if cost == 'macs' else cost} (n = {int(table['n'].iloc[0])} networks)")
    return figure, pd.concat([table.assign(cost=cost) for cost, table in tables.items()], ignore_index=True)


def _ranks(axis: Axes, table: pd.DataFrame) -> None:
    for place, row in table.reset_index(drop=True).iterrows():
        colour = ARM_STYLES[row["arm"]]["color"]
        axis.plot([row["low"], row["high"]], [place] * 2, color=colour, lw=6, alpha=0.35, solid_capstyle="round")
        axis.plot(row["mean_rank"], place, ARM_STYLES[row["arm"]]["marker"], color=colour)
    axis.set_yticks(range(len(table)), table["arm"])
    axis.invert_yaxis()
    axis.set_xlabel("mean rank, 1 is best (95 % interval)")
