"""Figures of the dense networks, drawn from rows; each function returns a figure and, if it made them, its numbers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lib import figures

PLACES = {1: "o", 128: "s"}  # images in a batch -> marker


def augmentation(pictures: np.ndarray) -> tuple[Figure, pd.DataFrame]:
    """Images of k classes and random draws of their augmentation.

    pictures: (1 + draws, k, channels, size, size), the originals first. Returns the figure and the numbers behind it.
    """
    draws, classes = len(pictures) - 1, len(pictures[0])
    figure, axes = plt.subplots(draws + 1, classes, figsize=(7, 3.1))
    for row, title in enumerate(["original", *(f"draw {draw + 1}" for draw in range(draws))]):
        for axis, picture in zip(axes[row], pictures[row], strict=True):
            axis.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center")
    numbers = {"label": range(classes), "mean of the original": pictures[0].mean(axis=(1, 2, 3))}
    return figure, pd.DataFrame(numbers)


def accuracy(trained: pd.DataFrame, summary: pd.DataFrame, title: str) -> Figure:
    """Test accuracy of each network: a dot a seed, a tick at the mean, a band for its interval; the null dotted.

    trained: rows with `network`, `accuracy` (%). summary: `mean`, `low`, `high`, `n` by network, "linear" among them.
    """
    figure, axis = plt.subplots(figsize=(7.4, 3.8))
    for place, (network, colour) in enumerate(figures.colours(summary.index).items()):
        values = trained.loc[trained["network"] == network, "accuracy"]
        mean, low, high = summary.loc[network, ["mean", "low", "high"]]
        axis.plot([low, high], [place, place], color=colour, lw=7, alpha=0.3, solid_capstyle="round")
        axis.plot(values, np.full(len(values), place), "o", color=colour, ms=6, mec="white", mew=0.6, zorder=3)
        axis.plot(mean, place, "|", color=colour, ms=22, mew=2.5)
    axis.axvline(summary.loc["linear", "mean"], **figures.NULL, label="linear classifier (mean)")
    axis.plot([], [], "ko", ms=6, label="one seed")
    axis.plot([], [], "k|", ms=12, mew=2.5, ls="", label="mean")
    n = f"n = {int(summary['n'].min())} seeds"
    axis.plot([], [], color="k", lw=7, alpha=0.3, label=f"95 % interval of the mean\n(Student, {n})")
    axis.set(yticks=range(len(summary)), yticklabels=summary.index, xlabel="test accuracy (%)", title=title)
    axis.set_ylim(len(summary) - 0.4, -0.6)
    figure.legend(loc="outside right")
    return figure


def learning_curves(rows: pd.DataFrame, networks: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Validation accuracy and training loss by epoch: a thin line a seed, a thick one for the mean; the null dotted.

    rows: as `dense_networks.train_baseline` returns them, with `labels` "true" or "shuffled". networks: in order.
    Returns the figure and the numbers behind it.
    """
    quantities = {
        "validation accuracy (%)": ("curve_validation_accuracy", 100),
        "training loss (nats)": ("curve_train_loss", 1),
    }
    curves = pd.concat(
        pd.DataFrame({name: scale * np.asarray(row[column]) for name, (column, scale) in quantities.items()})
        .rename_axis("epoch")
        .reset_index()
        .assign(network=row["network"], labels=row["labels"], seed=row["seed"])
        for _, row in rows.iterrows()
    )
    curves["epoch"] += 1
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    null = curves[curves["labels"] == "shuffled"]
    for axis, quantity in zip(axes, quantities, strict=True):
        for network, colour in figures.colours(networks).items():
            one = curves[(curves["network"] == network) & (curves["labels"] == "true")]
            seeds = one.pivot(index="epoch", columns="seed", values=quantity)
            axis.plot(seeds, color=colour, lw=0.7, alpha=0.6)
            axis.plot(seeds.mean(axis=1), color=colour, label=f"{network} (n = {seeds.shape[1]})")
        seeds = null.pivot(index="epoch", columns="seed", values=quantity)
        label = f"{null['network'].iloc[0]}, shuffled\nlabels (n = {seeds.shape[1]})"
        axis.fill_between(
            seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=figures.NULL["color"], alpha=0.2, lw=0
        )
        axis.plot(seeds.mean(axis=1), **figures.NULL, label=label)
        axis.set(xlabel="epoch", ylabel=quantity)
    title = "thick: mean; thin: seeds;\ngrey band: their range"
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right", title=title)
    order = ["network", "labels", "seed", "epoch", *quantities]
    return figure, curves[order]


def latency(costs: pd.DataFrame, device: str) -> tuple[Figure, pd.DataFrame]:
    """Measured time an image against its MACs, for single images and batches, with time proportional to MACs.

    costs: as `dense_networks.measure_costs` returns them. device: its name. Returns the figure and its numbers.
    """
    identity = ["dataset", "network", "parameters", "macs"]
    timing = costs.melt(identity, [f"made_latency_{n}_ms" for n in PLACES], "batch", "made_latency_ms")
    timing["batch"] = timing["batch"].str.extract(r"(\d+)").astype(int)
    timing["made_ms_per_image"] = timing["made_latency_ms"] / timing["batch"]
    colours = figures.colours(timing["network"].unique())
    figure, axis = plt.subplots(figsize=(8.4, 4.2))
    for (batch, part), line in zip(timing.groupby("batch"), (":", "--"), strict=True):
        own = part["network"].map(colours)
        axis.scatter(part["macs"], part["made_ms_per_image"], c=own, marker=PLACES[batch], s=42, alpha=0.7)
        axis.scatter([], [], c="k", marker=PLACES[batch], s=42, label=f"batch of {batch}")
        largest, ends = part.loc[part["macs"].idxmax()], part["macs"].agg(["min", "max"])
        style = {"color": figures.NULL["color"], "ls": line, "lw": 1.4}
        label = f"proportional to MACs, batch of {batch},\nthrough {largest['network']}"
        axis.plot(ends, ends * largest["made_ms_per_image"] / largest["macs"], **style, label=label)
    for network, colour in colours.items():
        axis.scatter([], [], color=colour, marker="D", s=42, label=network)
    axis.set(xscale="log", yscale="log", xlabel="MACs of one image", ylabel="milliseconds per image")
    axis.set_title(f"Time against operations, on {device}", fontsize=11)
    axis.margins(0.15, 0.12)
    figure.legend(loc="outside right", title="median of 20 passes")
    return figure, timing
