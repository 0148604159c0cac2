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
from lib.spaces.analysis import winning

COLOURS = {"initial": figures.PALETTE[0], "designed": figures.PALETTE[1], "refined": figures.PALETTE[4]}
MCB_TICKS = (0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 2, 2.8)
EQUIVALENT = {"color": "#e3e3e3", "zorder": 0}  # the band of 10 % around mCB 1
SHADES = (0.1, 0.8)  # part of the colour map for the kept shares
SHARE_TICKS = {"ylim": (-0.02, 1.02), "yticks": [0, 0.25, 0.5, 0.75, 1]}  # of a distribution function


def shaded(tables: Sequence[pd.DataFrame]) -> list[tuple[float, tuple, pd.DataFrame]]:
    """Kept share, colour and table of each regime."""
    colours = figures.shades([table["kept"].iloc[0] for table in tables], *SHADES)
    return [(*pair, table) for pair, table in zip(colours.items(), tables, strict=True)]


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


def recipe(groups: Groups, widths: np.ndarray, population: pd.DataFrame) -> Figure:
    """The widths of a recipe beside the dense ones, and its place among a population's `measures.coordinates`."""
    own = measures.coordinates(groups, widths[None]).iloc[0]
    percentile = 100 * (population["mcb"] < own["mcb"]).mean()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    x = np.arange(len(groups))
    left.bar(x, groups.dense, color="#e3e3e3", label="dense")
    left.bar(x, widths, color=figures.PALETTE[0], label="kept")
    left.set_xticks(x, groups.names, rotation=60, ha="right", fontsize=7)
    left.set(ylabel="channels", title=f"{own['macs'] / 1e6:.2f} MMACs, {own['parameters'] / 1e3:.0f} k parameters")
    left.legend(loc="upper left")
    right.scatter(population["mcb"], population["std"], s=10, color="#94a4a2", label=f"random, n = {len(population)}")
    right.scatter(own["mcb"], own["std"], s=80, marker="*", color=figures.PALETTE[2], label="this recipe", zorder=3)
    right.axvline(1, **figures.NULL)
    right.set(xscale="log", xlabel="mCB (dense = 1)", ylabel="STD of the pruned shares")
    right.set_title(f"mCB {own['mcb']:.2f} (percentile {percentile:.0f}), STD {own['std']:.2f}")
    right.xaxis.set_minor_formatter(plt.NullFormatter())
    right.set_xticks([0.7, 1, 1.4, 2], ["0.7", "1", "1.4", "2"])
    right.legend()
    return figure


def edfs(tables: Sequence[pd.DataFrame]) -> Figure:
    """EDF of the drop of each regime with its band; dashed with kept parameters made uniform over five bins (NDS)."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for share, colour, one in shaded(tables):
        edf_step(axis, one["drop"], colour, f"{share:.0%} of MACs kept")
        x = np.sort(one["drop"])
        weighted = measures.edf(one["drop"], measures.complexity_weights(one["kept_parameters"], 5))
        axis.step(x, weighted(np.nextafter(x, np.inf)), "--", where="post", color=colour)
    axis.set(xlabel="drop after fine-tuning (points)", ylabel="share of recipes below", **SHARE_TICKS)
    axis.set_title("random recipes; dashed: kept parameters made uniform")
    _legend_above(figure)
    return figure


def noise(by_seed: pd.DataFrame, by_mode: pd.DataFrame, tables: Sequence[pd.DataFrame], icc: float) -> Figure:
    """Drops by seed, ranks by schedule, test drops after retraining against drops before."""
    figure, axes = _row(3)
    order = by_seed.mean(axis=1).sort_values().index
    places, style = np.arange(1, len(order) + 1), {"ms": 4, "color": figures.PALETTE[0], "alpha": 0.7}
    for seed in by_seed:
        axes[0].plot(places, by_seed.loc[order, seed], "o", **style)
    axes[0].set(xlabel="recipe, by mean drop", ylabel="drop (points)")
    axes[0].set_title(f"{by_seed.shape[1]} seeds: ICC {icc:.2f}")
    for mode, colour in (("rewind", figures.PALETTE[1]), ("scratch", figures.PALETTE[2])):
        axes[1].plot(by_mode["finetune"].rank(), by_mode[mode].rank(), "o", color=colour, label=mode)
    ends = (0.5, len(by_mode) + 0.5)
    axes[1].plot(ends, ends, **figures.NULL, label="alike")
    axes[1].set(xlabel="rank after fine-tuning", ylabel="rank after the other", title=f"schedules, n = {len(by_mode)}")
    for axis in (axes[0].xaxis, axes[1].xaxis, axes[1].yaxis):
        axis.set_major_locator(plt.MaxNLocator(6, integer=True))
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handletextpad=0.2, columnspacing=0.8)
    for share, colour, one in shaded(tables):
        label = f"{share:.0%}, n = {len(one)}"
        axes[2].plot(one["proxy_drop"], one["test_drop"], "o", ms=4, color=colour, label=label)
    axes[2].set(xlabel="drop before retraining (points)", ylabel="test drop after it (points)", title="the proxy")
    axes[2].legend(title="MACs kept")
    return figure


def optima(final: pd.DataFrame, tables: Sequence[pd.DataFrame], best: dict[float, dict]) -> Figure:
    """Drop against mCB by regime, the parabola of the designed sample, and the 95 % interval of its lowest point."""
    figure, axes = _row(len(tables))
    for axis, (share, place), one in zip(axes, best.items(), tables, strict=True):
        random = final[(final["space"] == "initial") & (final["kept"] == share)]
        for name, part in (("initial", random), ("designed", one)):
            axis.scatter(part["mcb"], part["drop"], s=14, color=COLOURS[name], label=f"{name}, n = {len(part)}")
        _parabola(axis, one, 1)
        label = "lowest point of the fit, 95 % bootstrap"
        axis.axvspan(place["low"], place["high"], color=COLOURS["designed"], alpha=0.15, lw=0, label=label)
        mcb_axis(axis, f"{share:.0%} of MACs kept")
    axes[0].set_ylabel("drop after fine-tuning (points)")
    _legend_above(figure)
    return figure


def at_fixed_parameters(table: pd.DataFrame, share: float) -> Figure:
    """Drop against kept MACs of recipes that keep one share of the parameters, with the parabola in log mCB."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    style = {"s": 16, "color": COLOURS["designed"], "label": f"designed, n = {len(table)}"}
    axis.scatter(100 * table["kept_macs"], table["drop"], **style)
    _parabola(axis, table, 100 * share)
    axis.axvline(100 * share, **figures.NULL, label="mCB 1")
    axis.set(xlabel="MACs kept (%)", ylabel="drop after fine-tuning (points)")
    axis.set_title(f"{share:.0%} of parameters kept")
    axis.legend()
    return figure


def buckets(tables: Sequence[pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Median drop and quartiles by bucket of kept parameters, a panel for each regime."""
    figure, axes = _row(len(tables))
    frames = []
    for axis, (share, colour, one) in zip(axes, shaded(tables), strict=True):
        grouped = one.groupby(measures.parameter_buckets(one["kept_parameters"]))["drop"]
        summary = grouped.describe().rename_axis("bucket").reset_index()
        spread = np.array([summary["50%"] - summary["25%"], summary["75%"] - summary["50%"]])
        axis.errorbar(100 * summary["bucket"], summary["50%"], spread, fmt="o", color=colour, capsize=3)
        for _, line in summary.iterrows():
            _annotate(axis, f"n = {line['count']:.0f}", (100 * line["bucket"], line["75%"]), 4, fontsize=7)
        axis.axvline(100 * share, **figures.NULL)
        axis.margins(0.15)
        axis.set(title=f"{share:.0%} of MACs kept", xlabel="parameters kept (%), bucket centre")
        frames.append(summary.assign(kept=share))
    axes[0].set_ylabel("drop (points): median, quartiles")
    return figure, pd.concat(frames)


def winners(final: pd.DataFrame, best: dict[float, dict]) -> tuple[Figure, pd.DataFrame]:
    """MCB of all recipes and winners by space and regime; the lowest point m* of each fit in the sampled range."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=[1.6, 1])
    frames, colours, labels = [], figures.shades(list(best), *SHADES), {}
    for share, place in best.items():
        for name in ("initial", "designed"):
            part = final[(final["space"] == name) & (final["kept"] == share)].reset_index(drop=True)
            won, height = part.index.isin(winning(part["drop"])), len(labels)
            left.plot(part["mcb"], np.full(len(part), height), "|", ms=11, color=COLOURS[name], alpha=0.7)
            left.plot(part["mcb"][won], np.full(won.sum(), height), "v", ms=7, color="k", mfc="none")
            labels[height] = f"{share:.0%} {name}, {won.sum()} of {len(part)}"
            frames.append(part.assign(won=won)[["kept", "space", "mcb", "drop", "won"]])
        right.plot([100 * share] * 2, [part["mcb"].min(), part["mcb"].max()], color="#c8c8c8", lw=6, zorder=1)
        right.errorbar(100 * share, place["value"], _reach(place), fmt="o", color=colours[share], capsize=4)
    left.set_yticks(list(labels), labels.values())
    left.set_ylim(len(labels) - 0.4, -0.6)
    mcb_axis(left, "every recipe; triangles are the winners", (0.6, 0.7, 0.85, 1, 1.2, 1.5, 2))
    right.axhline(1, **figures.NULL)
    right.axhspan(1 / 1.1, 1.1, **EQUIVALENT)
    right.margins(x=0.2)
    right.invert_xaxis()
    right.set(xlabel="MACs kept (%)", ylabel="m*, in mCB", title="lowest point of the fit")
    key = "grey bar: sampled range\nthin bar: 95 % bootstrap"
    right.text(0.02, 0.98, key, transform=right.transAxes, va="top", size=8)
    right.set_ylim(top=right.get_ylim()[1] * 1.12)
    return figure, pd.concat(frames)


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


def limits(kept: np.ndarray, values: np.ndarray, places: Sequence[dict]) -> Figure:
    """The limit of each regime by its kept share, and by the lowest point m* of its fit with 95 % interval."""
    figure, axes = _row(2, sharey=True)
    for (share, colour), y, place in zip(figures.shades(kept, *SHADES).items(), values, places, strict=True):
        axes[0].plot(100 * share, y, "o", ms=7, color=colour)
        style = {"fmt": "o", "color": colour, "capsize": 3, "label": f"{share:.0%}"}
        axes[1].errorbar(place["value"], y, xerr=_reach(place), **style)
    axes[0].invert_xaxis()
    axes[0].set(xlabel="MACs kept (%)", ylabel="limit: 5 % quantile of drop (points)", title="by kept share")
    mcb_axis(axes[1], f"by m*, {len(kept)} regimes")
    axes[1].set_xlabel("m*, in mCB (dense = 1); bars: 95 % bootstrap")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", title="MACs kept")
    return figure


def refined(pairs: dict[float, tuple[pd.DataFrame, pd.DataFrame]], ks: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """EDFs of test drops in the initial and the refined space, and the expected best of k, a column for each regime."""
    figure, axes = plt.subplots(2, len(pairs), figsize=(10, 6), squeeze=False)
    frames = []
    for (above, below), (share, pair) in zip(axes.T, pairs.items(), strict=True):
        for name, one in zip(("initial", "refined"), pair, strict=True):
            edf_step(above, one["test_drop"], COLOURS[name], name)
            curve = measures.best_of_k(one["drop"], one["test_drop"], ks)
            below.plot(ks, curve, "o-", ms=4, color=COLOURS[name])
            frames.append(pd.DataFrame({"kept": share, "space": name, "k": ks, "best": curve}))
        above.set(title=f"{share:.0%} of MACs kept", xlabel="drop on test images (points)", **SHARE_TICKS)
        below.set(xlabel="k, retrained recipes to choose from")
    axes[0, 0].set_ylabel("share of recipes below")
    axes[1, 0].set_ylabel("expected test drop of\nthe best of k (points)")
    _legend_above(figure)
    return figure, pd.concat(frames)


def contest(scores: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    """Test accuracy of contestants, a dot for each seed, mean and 95 % t interval; dotted: mean of uniform pruning."""
    figure, axis = plt.subplots(figsize=(8, 3.4))
    for place, name in enumerate(names):
        low, high = stats.mean_interval(scores[name])
        axis.fill_between([place - 0.25, place + 0.25], low, high, color="#e3e3e3", lw=0)
        axis.plot(np.full(len(scores), place), scores[name], "o", ms=5, color=figures.PALETTE[4 if place == 0 else 8])
        axis.plot([place - 0.25, place + 0.25], [scores[name].mean()] * 2, "k", lw=1.5)
    axis.axhline(scores["uniform"].mean(), **figures.NULL)
    axis.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    axis.set(ylabel="test accuracy (%)", title=title)
    axis.set_xlabel("dots: seeds; line and grey: their mean and its 95 % t interval; dotted: mean of uniform")
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


def _legend_above(figure: Figure, ncols: int = 4) -> None:
    """One legend for all panels, above them, each label once."""
    labelled = [pair for axis in figure.axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    once = {label: handle for handle, label in reversed(labelled)}
    figure.legend(list(once.values())[::-1], list(once)[::-1], loc="outside upper center", ncols=ncols)


def _row(count: int, **options) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(1, count, figsize=(10, 3.5), squeeze=False, **options)
    return figure, axes[0]


def _parabola(axis: Axes, table: pd.DataFrame, scale: float) -> None:
    """The fitted quadratic of drop on log mCB, over `scale` times mCB."""
    x = np.linspace(table["log_mcb"].min(), table["log_mcb"].max(), 100)
    fitted = np.polyval(np.polyfit(table["log_mcb"], table["drop"], 2), x)
    axis.plot(scale * np.exp(x), fitted, color=COLOURS["designed"])


def _reach(place: dict) -> np.ndarray:
    """How far an interval reaches below and above its value, (2, 1)."""
    return np.abs([[place["value"] - place["low"]], [place["high"] - place["value"]]])


def _annotate(axis: Axes, text: str, point: tuple[float, float], above: float, fontsize: int) -> None:
    axis.annotate(text, point, xytext=(0, above), textcoords="offset points", ha="center", fontsize=fontsize)
