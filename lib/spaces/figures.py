"""Paper 3's figures, drawn from rows; each function returns the figure, some also the numbers behind it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import figures, stats
from lib.channels import Groups
from lib.spaces import measures

COLOURS = {"random": figures.PALETTE[0], "ladder": figures.PALETTE[1], "refined": figures.PALETTE[4]}
COLOURS |= {"first design": figures.PALETTE[2], "initial": figures.PALETTE[0]}
MCB_TICKS = (0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 2, 2.8)
EQUIVALENT = {"color": "#e3e3e3", "zorder": 0}  # the band of 10 % around mCB 1
SHADES = (0.1, 0.8)  # part of the colour map for the kept shares
SHARE_TICKS = {"ylim": (-0.02, 1.02), "yticks": [0, 0.25, 0.5, 0.75, 1]}  # of a distribution function
ACCURACY = "test accuracy (%)"


def mcb_axis(axis: Axes, title: str, ticks: Sequence[float] = MCB_TICKS) -> None:
    """A logarithmic x axis of mCB with the dense network's marked."""
    axis.axvline(1, **figures.NULL)
    axis.set(xscale="log", title=title, xlabel="mCB (dense = 1)")
    low, high = axis.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axis.xaxis.set_minor_formatter(plt.NullFormatter())


def edf_step(axis: Axes, drops: Sequence[float], colour, label: str, band: bool = True) -> None:
    """An empirical distribution function as a step curve, with its DKW band."""
    x, n = np.sort(drops), len(drops)
    axis.step(x, np.arange(1, n + 1) / n, where="post", color=colour, label=f"{label}, n = {n}")
    if band:
        axis.fill_between(x, *stats.dkw_band(n), step="post", color=colour, alpha=0.12, lw=0)


def climb(axis: Axes, table: pd.DataFrame, colour, label: str, low: bool = True) -> None:
    """The drops of a ladder, the fitted curve, and a star at its lowest point."""
    x, y = table["log_mcb"].to_numpy(), table["drop"].to_numpy()
    places = np.linspace(x.min(), x.max(), 100)
    axis.plot(np.exp(x), y, "o", ms=4, color=colour, label=label)
    axis.plot(np.exp(places), stats.curve(x, y, places), color=colour)
    if low:
        best = stats.curve_minimum(x, y)
        axis.plot(np.exp(best), stats.curve(x, y, np.array([best])), "*", ms=13, color=colour, mec="k", zorder=3)


def samplings(tables: Sequence[pd.DataFrame], slopes: Sequence[dict], title: str) -> Figure:
    """Drop against mCB of three samples of one network's recipes, each with the p of the two-lines test."""
    figure, axes = _row(3, sharey=True, sharex=True)
    for axis, one, slope in zip(axes, tables, slopes, strict=True):
        name = one["space"].iloc[0]
        climb(axis, one, COLOURS[name], name)
        axis.text(0.97, 0.04, f"two lines: p = {slope['p']:.3f}", ha="right", size=8)
        axis.texts[-1].set_transform(axis.transAxes)
    for axis, one in zip(axes, tables, strict=True):
        title_of = f"{one['space'].iloc[0]}, n = {len(one)}\nmean STD {one['std'].mean():.2f}"
        mcb_axis(axis, title_of, (0.5, 0.7, 1, 1.4, 2, 2.8))
    axes[0].set_ylabel("drop (points)")
    figure.suptitle(title)
    return figure


def populations(frames: pd.DataFrame, feasible: dict[float, tuple[float, float]]) -> Figure:
    """STD against mCB of each space's recipes, a panel for each regime, with the ends of the feasible range."""
    figure, axes = _row(len(feasible), sharey=True, sharex=True)
    for axis, (share, bounds) in zip(axes, feasible.items(), strict=True):
        for name, one in frames[frames["kept"] == share].groupby("space", sort=False):
            axis.scatter(one["mcb"], one["std"], s=12, color=COLOURS[name], label=f"{name}, n = {len(one)}")
        for bound in bounds:
            axis.axvline(bound, color="k", lw=0.8, label="end of the feasible range")
    for axis, share in zip(axes, feasible, strict=True):
        mcb_axis(axis, f"{share:.0%} of MACs kept", (0.5, 0.7, 1, 1.4, 2, 2.8))
    axes[0].set_ylabel("STD of the pruned shares")
    _legend_above(figure)
    return figure


def rungs(groups: Groups, widths: np.ndarray) -> Figure:
    """The kept share of every group in each recipe of a ladder (n, G), as a map."""
    figure, axis = plt.subplots(figsize=(10, 0.9 + 0.24 * len(groups)))
    mcb = measures.mean_computation_budget(groups, widths)
    image = axis.imshow((widths / groups.dense).T, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="none")
    axis.set_xticks(range(len(widths)), [f"{value:.2f}" for value in mcb], fontsize=8)
    axis.set_yticks(
        range(len(groups)), [f"{n} ({area})" for n, area in zip(groups.names, groups.area, strict=True)], fontsize=8
    )
    axis.set(xlabel="mCB of the recipe (dense = 1)", title="kept share of each group; in brackets its pixels")
    for place, row in enumerate(widths):
        for group, width in enumerate(row):
            bright = width / groups.dense[group] > 0.6
            axis.text(place, group, str(width), ha="center", va="center", size=7, color="k" if bright else "w")
    axis.grid(False)
    figure.colorbar(image, ax=axis, pad=0.01)
    return figure


def recipe(groups: Groups, widths: np.ndarray, population: pd.DataFrame, nearest: pd.DataFrame) -> Figure:
    """The widths of a recipe, its place among a population's `measures.coordinates`, drops of `analysis.nearest`."""
    own = measures.coordinates(groups, widths[None]).iloc[0]
    percentile = 100 * (population["mcb"] < own["mcb"]).mean()
    figure, (left, right, drops) = plt.subplots(1, 3, figsize=(13, 3.8), width_ratios=[1.2, 1, 0.8])
    x = np.arange(len(groups))
    left.bar(x, groups.dense, color="#e3e3e3", label="dense")
    left.bar(x, widths, color=figures.PALETTE[0], label="kept")
    left.set_xticks(x, groups.names, rotation=60, ha="right", fontsize=7)
    left.set(ylabel="channels", title=f"{own['macs'] / 1e6:.2f} MMACs, {own['parameters'] / 1e3:.0f} k parameters")
    left.legend(loc="upper left")
    label = f"random, n = {len(population)}"
    right.scatter(population["mcb"], population["std"], s=10, color="#94a4a2", rasterized=True, label=label)
    right.scatter(own["mcb"], own["std"], s=80, marker="*", color=figures.PALETTE[2], label="this recipe", zorder=3)
    right.axvline(1, **figures.NULL)
    right.set(xscale="log", xlabel="mCB (dense = 1)", ylabel="STD of the pruned shares")
    right.set_title(f"mCB {own['mcb']:.2f} (percentile {percentile:.0f}), STD {own['std']:.2f}")
    right.xaxis.set_minor_formatter(plt.NullFormatter())
    right.set_xticks([0.7, 1, 1.4, 2], ["0.7", "1", "1.4", "2"])
    right.legend()
    drops.barh(range(len(nearest)), nearest["drop"], color=[COLOURS.get(name, "#94a4a2") for name in nearest["space"]])
    labels = [f"{one.space}, mCB {one.mcb:.2f}\n{one.distance:.2f} away" for one in nearest.itertuples()]
    drops.set_yticks(range(len(nearest)), labels, fontsize=8)
    drops.invert_yaxis()
    drops.set(xlabel="drop (points)", title="nearest retrained recipes")
    return figure


def noise(epoch: pd.DataFrame, by_mode: pd.DataFrame, tables: Sequence[pd.DataFrame]) -> Figure:
    """Drops under one seed against those under another, ranks by schedule, drops after against before retraining."""
    figure, axes = _row(3)
    for share, colour, _ in shaded(tables):
        by_seed = epoch[epoch["kept"] == share].pivot(index="recipe", columns="retraining", values="drop")
        axes[0].plot(by_seed[0], by_seed[1], "o", ms=4, color=colour, label=f"{share:.0%}")
    ends = [epoch["drop"].min(), epoch["drop"].max()]
    axes[0].plot(ends, ends, **figures.NULL)
    axes[0].set(xlabel="drop, seed 0 (points)", ylabel="drop, seed 1 (points)", title="two seeds of retraining")
    axes[0].legend(title="MACs kept")
    for mode, colour in (("rewind", figures.PALETTE[1]), ("scratch", figures.PALETTE[2])):
        axes[1].plot(by_mode["finetune"].rank(), by_mode[mode].rank(), "o", color=colour, label=mode)
    ends = (0.5, len(by_mode) + 0.5)
    axes[1].plot(ends, ends, **figures.NULL, label="alike")
    axes[1].set(xlabel="rank after fine-tuning", ylabel="rank after the other", title=f"schedules, n = {len(by_mode)}")
    for axis in (axes[1].xaxis, axes[1].yaxis):
        axis.set_major_locator(plt.MaxNLocator(6, integer=True))
    axes[1].set_ylim(0.5, len(by_mode) + 3.5)
    axes[1].legend(loc="upper left", ncols=2)
    for share, colour, one in shaded(tables):
        axes[2].plot(one["proxy_drop"], one["test_drop"], "o", ms=4, color=colour, label=f"{share:.0%}")
    axes[2].set(xlabel="drop before retraining (points)", ylabel="test drop after it (points)", title="the proxy")
    return figure


def optima(epoch: pd.DataFrame, tables: Sequence[pd.DataFrame], best: dict[float, dict]) -> Figure:
    """Drop against mCB by regime: dots of both seeds, the curve of their means, the interval of its lowest point."""
    figure, axes = _row(len(tables))
    for axis, (share, colour, one) in zip(axes, shaded(tables), strict=True):
        for seed, dots in epoch[epoch["kept"] == share].groupby("retraining"):
            axis.plot(
                dots["mcb"], dots["drop"], "ox"[seed % 2], ms=4, mfc="none", color="#94a4a2", label=f"seed {seed}"
            )
        climb(axis, one, colour, "mean of the seeds")
        label = "lowest point of the curve, 95 % bootstrap"
        axis.axvspan(best[share]["low"], best[share]["high"], color=colour, alpha=0.15, lw=0, label=label)
        mcb_axis(axis, f"{share:.0%} of MACs kept")
    axes[0].set_ylabel("drop (points)")
    _legend_above(figure)
    return figure


def lengths(tables: dict[int, pd.DataFrame], title: str) -> tuple[Figure, pd.DataFrame]:
    """Drop against mCB after retrainings of different length (images), and m* against the length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=[1.5, 1])
    rows, tones = [], plt.cm.viridis(np.linspace(0.85, 0.1, len(tables)))
    for (images, one), tone in zip(tables.items(), tones, strict=True):
        climb(left, one, tone, f"{images:,} images")
        draws = stats.redrawn_rows(len(one), seed=0, resamples=1000)[0]
        x, y = (one[name].to_numpy() for name in ("log_mcb", "drop"))
        low, high = np.exp(stats.percentile_interval(stats.curve_minimum(x[draws], y[draws])))
        best = float(np.exp(stats.curve_minimum(x, y)))
        right.errorbar(
            images, best, [[best - min(low, best)], [max(high, best) - best]], fmt="*", ms=11, color=tone, capsize=3
        )
        rows.append({"images": images, "optimum": best, "low": low, "high": high, "n": len(one)})
    mcb_axis(left, title)
    left.set_ylabel("drop (points)")
    left.legend()
    right.axhline(1, **figures.NULL)
    right.axhspan(1 / 1.1, 1.1, **EQUIVALENT)
    right.set(xscale="log", xlabel="images of retraining", ylabel="m*, in mCB; bars: 95 % bootstrap")
    right.set_xticks(list(tables), [f"{images:,}" for images in tables], fontsize=8)
    right.xaxis.set_minor_formatter(plt.NullFormatter())
    return figure, pd.DataFrame(rows)


def factors(tables: dict[str, pd.DataFrame]) -> Figure:
    """Drop against mCB of ladders with and without scatter and a floor on the smallest kept share."""
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for (name, one), colour in zip(tables.items(), figures.PALETTE[1:], strict=False):
        climb(axis, one, colour, f"{name}, n = {len(one)}")
    for dots, marker in zip(axis.lines[::3], "o^sD", strict=False):  # ladders share recipes: open markers show all
        dots.set(marker=marker, mfc="none", ms=7)
    mcb_axis(axis, "")
    axis.set_ylabel("drop (points)")
    axis.legend()
    return figure


def places(found: pd.DataFrame, pooled: dict) -> Figure:
    """m* of every ladder with its interval and best rung, and the mean of all m*; hollow where m* is an end."""
    figure, axis = plt.subplots(figsize=(9, 1.4 + 0.27 * len(found)))
    height = np.arange(len(found))
    for place, (_, one) in zip(height, found.iterrows(), strict=True):
        colour = figures.PALETTE[0]
        axis.plot([one["low"], one["high"]], [place] * 2, color=colour)
        axis.plot(one["optimum"], place, "o", color=colour, mfc=colour if one["inside"] else "w")
        axis.plot(one["best_rung"], place, "x", color=figures.PALETTE[2])
    low, value, high = np.exp([pooled["low"], pooled["value"], pooled["high"]])
    axis.plot([low, high], [len(found)] * 2, color="k")
    axis.plot(value, len(found), "D", color="k")
    labels = [f"{one['name']}, {one['kept']:.0%}, n = {one['n']}" for _, one in found.iterrows()]
    axis.set_yticks([*height, len(found)], [*labels, "random-effects mean"], fontsize=8)
    axis.invert_yaxis()
    axis.axvspan(1 / 1.1, 1.1, **EQUIVALENT)
    mcb_axis(axis, "dots: m* (hollow: an end of the range); crosses: best rung")
    axis.set_xlabel("mCB (dense = 1); bars: 95 % bootstrap; grey: within 10 % of 1")
    return figure


def kinds(tables: dict[str, pd.DataFrame], title: str) -> Figure:
    """Drop against mCB of ladders of filters, of streams too, and of single weights, at equal MACs."""
    figure, axis = plt.subplots(figsize=(7, 3.5))
    for (name, one), colour in zip(
        tables.items(), (figures.PALETTE[1], figures.PALETTE[3], figures.PALETTE[0]), strict=True
    ):
        climb(axis, one, colour, f"{name}, n = {len(one)}")
    mcb_axis(axis, title)
    axis.set_ylabel("drop (points)")
    axis.legend()
    return figure


def at_fixed_parameters(table: pd.DataFrame, share: float) -> Figure:
    """Drop against kept MACs of recipes that keep one share of the parameters."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    x, y = table["log_mcb"].to_numpy(), table["drop"].to_numpy()
    places = np.linspace(x.min(), x.max(), 100)
    axis.plot(100 * table["kept_macs"], y, "o", color=COLOURS["ladder"], label=f"ladder, n = {len(table)}")
    axis.plot(100 * share * np.exp(places), stats.curve(x, y, places), color=COLOURS["ladder"])
    axis.axvline(100 * share, **figures.NULL, label="mCB 1")
    axis.set(xlabel="MACs kept (%)", ylabel="drop (points)", title=f"{share:.0%} of parameters kept")
    axis.legend()
    return figure


def std_spaces(spread: dict[float, list[pd.DataFrame]], stds: Sequence[float]) -> Figure:
    """EDFs of the drop of STD spaces, a panel for each regime; bands around the outer two."""
    figure, axes = _row(len(spread), sharey=True)
    tones = plt.cm.plasma(np.linspace(0.1, 0.75, len(stds)))
    for axis, (share, tables) in zip(axes, spread.items(), strict=True):
        for std, one, tone in zip(stds, tables, tones, strict=True):
            edf_step(axis, one["drop"], tone, f"STD {std}", band=std in (stds[0], stds[-1]))
        axis.set(title=f"{share:.0%} of MACs kept, mCB 1", xlabel="drop before retraining (points)", **SHARE_TICKS)
    axes[0].set_ylabel("share of recipes below")
    _legend_above(figure)
    return figure


def law(found: pd.DataFrame, main: str) -> Figure:
    """The limit of each ladder by its kept share and by its m*; the main network is filled."""
    figure, axes = _row(2, sharey=True)
    for axis, column, scale in ((axes[0], "kept", 100), (axes[1], "optimum", 1)):
        for name, one in found.groupby("name", sort=False):
            own = name == main
            style = {"color": "k", "label": name} if own else {"label": name, "mfc": "none"}
            axis.plot(scale * one[column], one["limit"], "o" if own else "s", ms=6 if own else 5, **style)
    axes[0].invert_xaxis()
    axes[0].set(xlabel="MACs kept (%)", ylabel="limit: lowest fitted drop (points)", title="by kept share")
    mcb_axis(axes[1], "by m*")
    axes[1].set_xlabel("m*, in mCB (dense = 1)")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def refined(pair: tuple[pd.DataFrame, pd.DataFrame], ks: np.ndarray, title: str) -> tuple[Figure, pd.DataFrame]:
    """EDFs of test drops in the initial and the refined space, and the expected best of k."""
    figure, (left, right) = _row(2)
    frames = []
    for name, one in zip(("initial", "refined"), pair, strict=True):
        edf_step(left, one["test_drop"], COLOURS[name], name)
        best = measures.best_of_k(one["drop"], one["test_drop"], ks)
        right.plot(ks, best, "o-", ms=4, color=COLOURS[name])
        frames.append(pd.DataFrame({"space": name, "k": ks, "best": best}))
    left.set(title=title, xlabel="drop on test images (points)", ylabel="share of recipes below", **SHARE_TICKS)
    right.set(xlabel="k, retrained recipes to choose from", ylabel="expected test drop of\nthe best of k (points)")
    _legend_above(figure)
    return figure, pd.concat(frames)


def contest(scores: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    """Test accuracy of contestants, a dot for each training, mean and 95 % t interval; dotted: uniform pruning."""
    figure, axis = plt.subplots(figsize=(9, 3.6))
    for place, name in enumerate(names):
        own = scores.loc[scores["space"] == name, "test_accuracy"]
        if len(own) > 2:  # the interval of two covers the whole axis
            axis.fill_between([place - 0.25, place + 0.25], *stats.mean_interval(own), color="#e3e3e3", lw=0)
        axis.plot(np.full(len(own), place), own, "o", ms=5, color=figures.PALETTE[4 if place == 0 else 8])
        axis.plot([place - 0.25, place + 0.25], [own.mean()] * 2, "k", lw=1.5)
    axis.axhline(scores.loc[scores["space"] == "uniform", "test_accuracy"].mean(), **figures.NULL)
    axis.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    axis.set(ylabel=ACCURACY, title=title)
    axis.set_xlabel("dots: trainings; line and grey: their mean and its 95 % t interval; dotted: mean of uniform")
    return figure


def transfer(tables: Sequence[pd.DataFrame], best: float) -> Figure:
    """The ladder of each other network above its own lowest drop, and the main network's m*."""
    figure, axis = plt.subplots(figsize=(7.5, 3.3))
    for one, colour in zip(tables, plt.cm.tab10.colors * 2, strict=False):
        drop = one["drop"] - one["drop"].min()
        axis.plot(one["mcb"], drop, "o-", color=colour, ms=5, lw=1, label=one["name"].iloc[0])
    axis.axvline(best, color="k", label="m* of the main network")
    mcb_axis(axis, "")
    axis.set(ylim=(-0.5, 15), ylabel="drop above the lowest one\n(points, cut at 15)")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def ruled(scores: pd.DataFrame) -> Figure:
    """Test accuracy of each way to choose a recipe (columns) minus that of uniform pruning, on each network (rows)."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    gains = scores.sub(scores["uniform"], axis=0).drop(columns="uniform")
    for place, one in enumerate(gains[name] for name in gains):
        beside = place + np.linspace(-0.15, 0.15, len(one))  # networks of one accuracy would hide each other
        for x, height, colour, network in zip(beside, one, plt.cm.tab10.colors, gains.index, strict=False):
            axis.plot(x, height, "o", color=colour, label=network)
        axis.plot([place - 0.25, place + 0.25], [one.mean()] * 2, "k", lw=1.5)
    axis.axhline(0, **figures.NULL)
    axis.set_xticks(range(gains.shape[1]), gains.columns)
    axis.set(ylabel="test accuracy minus uniform (points)", title="equal MACs, equal total cost; lines: means")
    _legend_above(figure)
    return figure


def shapes(table: pd.DataFrame) -> Figure:
    """The range of mCB that each architecture can reach at one kept share, and where its uniform recipe lies."""
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.3 * len(table)))
    for height, (_, one) in enumerate(table.iterrows()):
        axis.plot([one["lowest"], one["highest"]], [height] * 2, color="#94a4a2", lw=5, solid_capstyle="butt")
        axis.plot(
            [one["random_low"], one["random_high"]], [height] * 2, color=COLOURS["random"], lw=5, solid_capstyle="butt"
        )
        axis.plot(one["uniform"], height, "|", ms=14, mew=2, color="k")
    axis.set_yticks(range(len(table)), table["network"], fontsize=8)
    axis.invert_yaxis()
    mcb_axis(
        axis, "grey: feasible; blue: middle 95 % of random recipes; black: uniform", (0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 8)
    )
    return figure


def published(table: pd.DataFrame) -> Figure:
    """MCB against kept MACs of published networks, each with its accuracy; the band is 10 % around mCB 1."""
    figure, axis = plt.subplots(figsize=(10, 4.4))
    family = table["method"].str.split("[- ]", regex=True).str[0]
    groups = table.groupby([family, "network", "dataset"], sort=False)
    looks = zip("oXsD^*v", (8, 5, 4, 0, 1, 2, 9), strict=True)
    for ((method, network, dataset), one), (marker, colour) in zip(groups, looks, strict=False):
        style = {"color": figures.PALETTE[colour], "label": f"{method}: {network}, {dataset}, n = {len(one)}", "ms": 8}
        axis.plot(100 * one["kept_macs"], one["mcb"], marker, **style)
        for _, line in one.iterrows():
            point = 100 * line["kept_macs"], line["mcb"]
            _annotate(axis, f"{line['accuracy']:.1f} %", point, 7 if marker in "osD" else -14, fontsize=8)
    axis.axhline(1, **figures.NULL)
    axis.axhspan(1 / 1.1, 1.1, **EQUIVALENT)
    axis.set(yscale="log", xlabel="MACs kept (%)", ylabel="mCB (dense = 1)")
    axis.set_yticks([0.8, 1, 1.4, 2], ["0.8", "1", "1.4", "2"])
    axis.yaxis.set_minor_formatter(plt.NullFormatter())
    axis.margins(y=0.12)
    axis.set_title(f"{len(table)} published pruned networks and their accuracy")
    _legend_above(figure, ncols=3)
    return figure


def latency(rows: pd.DataFrame) -> Figure:
    """Measured time of 128 images of each network; a black tick where time would be proportional to MACs."""
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.35 * len(rows)))
    dense = rows[rows["space"] == "dense"].iloc[0]
    height, time = np.arange(len(rows)), rows["made_latency_128_ms"]
    axis.barh(height, time, color=figures.PALETTE[0], height=0.6)
    expected = rows["macs"] / dense["macs"] * dense["made_latency_128_ms"]
    axis.plot(expected, height, "|", ms=16, mew=2, color="k")
    axis.set_yticks(height, rows["space"])
    axis.invert_yaxis()
    axis.set(xlabel="median time of one run, 128 images (ms)", title="time; black: proportional to MACs")
    return figure


def shaded(tables: Sequence[pd.DataFrame]) -> list[tuple[float, tuple, pd.DataFrame]]:
    """Kept share, colour and table of each regime."""
    colours = figures.shades([table["kept"].iloc[0] for table in tables], *SHADES)
    return [(*pair, table) for pair, table in zip(colours.items(), tables, strict=True)]


def _legend_above(figure: Figure, ncols: int = 4) -> None:
    """One legend for all panels, above them, each label once."""
    labelled = [pair for axis in figure.axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    once = {label: handle for handle, label in reversed(labelled)}
    figure.legend(list(once.values())[::-1], list(once)[::-1], loc="outside upper center", ncols=ncols)


def _row(count: int, **options) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(1, count, figsize=(10, 3.5), squeeze=False, **options)
    return figure, axes[0]


def _annotate(axis: Axes, text: str, point: tuple[float, float], above: float, fontsize: int) -> None:
    axis.annotate(text, point, xytext=(0, above), textcoords="offset points", ha="center", fontsize=fontsize)
