"""The dense networks that every notebook starts from: their specs, their trials, and where their weights are.

Figures of the dense networks, drawn from rows; each function returns a figure and, if it made them, its numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from lib import data, figures, models, training
from lib.data import Data
from lib.parameters import DATASETS, profile_parameters
from lib.provenance import CompanionError
from lib.store import canonical
from lib.study import Study, generator, seed_from

DENSE = (
    "dataset network source seed epochs batch_size lr schedule augment weight_decay limit labels form shortcut width"
).split()


def train_baseline(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the study of baselines: one dense network, trained, or loaded from its authors' checkpoint.

    Args:
        spec: `dataset`, `network`, `source` ("trained" or "public"); for a trained one also `seed`, `epochs`, `lr`, and
            optionally `batch_size`, `schedule`, `weight_decay`, `augment`, `limit` (training images), and `labels`:
            "shuffled" trains on permuted labels, the null of a network that can learn nothing about the test set.

    Returns: test accuracy, loss, n and the wrong images; learning curves, one value an epoch.
    """
    dataset = data.load(spec["dataset"], device=device, seed=spec.get("seed", 0), limit=spec.get("limit"))
    if spec["source"] == "public":
        model, (mean, std) = models.public(spec["network"], spec["dataset"])
        dataset = replace(dataset, mean=mean, std=std)
        history: list[dict] = []
    else:
        if spec.get("labels") == "shuffled":
            order = torch.randperm(len(dataset.train), generator=generator(spec["seed"], "shuffled labels"))
            dataset.train.labels.copy_(dataset.train.labels[order.to(device)])
        model = build(spec, dataset)
        options = ("epochs", "seed", "lr", "batch_size", "weight_decay", "schedule", "augment")
        start = time.perf_counter()
        history = training.fit(model, dataset, device=device, **{name: spec[name] for name in options if name in spec})
        seconds = time.perf_counter() - start
    test = training.evaluate(model, dataset.test, dataset, device=device)
    row = {f"test_{name}": value for name, value in test.items()}
    row |= {f"curve_{name}": [epoch[name] for epoch in history] for name in (history[0] if history else ())}
    if history:
        row["made_images_per_second"] = len(history) * len(dataset.train) / seconds
    models.save(model, weights)
    return row


def measure_costs(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the study of costs; it is timed, so it must run alone.

    Args:
        spec: `dataset`, `network`, and optionally `form`, `shortcut`, `width`.

    Returns: parameters, MACs of one image, and the median milliseconds of a forward pass of 1 and of 128 images.
    """
    entry, model = DATASETS[spec["dataset"]], untrained(spec)
    shape = (entry["channels"], entry["size"], entry["size"])
    row = {"parameters": models.count_parameters(model), "macs": models.count_macs(model, (1, *shape))}
    return row | {f"made_latency_{n}_ms": training.latency_ms(model, (n, *shape), device) for n in (1, 128)}


def show_data(spec: dict, device: str, weights: Path) -> dict:
    """The trial that shows a data set, so that its picture can be remade where the data are not.

    Args:
        spec: `dataset`, and optionally `limit` (training images).

    Returns: for each split the number of images and the fewest and most of a class; `classes`; `pictures`, flat, and
    their `shape` (4, k, channels, size, size): one training image of each of k classes, then three augmentations.
    """
    dataset = data.load(spec["dataset"], limit=spec.get("limit"))
    row = {"classes": dataset.classes}
    for part in ("train", "validation", "test"):
        counts = getattr(dataset, part).labels.bincount()
        row |= {
            f"{part}_images": int(counts.sum()),
            f"{part}_fewest": int(counts.min()),
            f"{part}_most": int(counts.max()),
        }
    first = [int((dataset.train.labels == label).nonzero()[0, 0]) for label in range(min(dataset.classes, 10))]
    shown, noise = dataset.train.images[first], generator(0, "shown")
    draws = [data.augment(shown, noise, dataset.padding, dataset.flip) for _ in range(3)]
    pictures = torch.stack([shown, *draws])
    return row | {"pictures": pictures.flatten(), "shape": list(pictures.shape)}


def baseline_specs(parameters: dict) -> list[dict]:
    """The trials of `00_baselines` as its parameters name them; other notebooks pick theirs by `find_baseline`.

    Args:
        parameters: of `00_baselines` in some profile (`batch.profile_parameters`).
    """
    shared = ("dataset", "epochs", "batch_size", "lr", "schedule", "augment")
    common = {name: parameters[name] for name in shared} | {"source": "trained", "limit": parameters["limit"] or None}
    # A weak yardstick would flatter the networks: a linear classifier wants unshifted images and a rate of its own.
    linear = {"augment": False, "lr": parameters["linear_lr"]}
    trained = [
        common | {"network": network, "seed": seed} | (linear if network == "linear" else {})
        for network in parameters["networks"]
        for seed in range(parameters["seeds"])
    ]
    if twice := sorted({*parameters["elsewhere"]} & {*parameters["public"]}):
        raise CompanionError(f"{twice[0]} is in both public and elsewhere: other notebooks could not tell them apart.")
    pairs = (name.split("/") for name in parameters["elsewhere"])
    trained += [
        common | {"network": network, "seed": seed, "dataset": dataset}
        for network, dataset in pairs
        for seed in range(parameters["seeds"])
    ]
    null = [
        common | {"network": parameters["null_network"], "seed": seed, "labels": "shuffled"}
        for seed in range(parameters["null_seeds"])
    ]
    pairs = (name.split("/") for name in parameters["public"])
    public = [{"source": "public", "network": network, "dataset": dataset} for network, dataset in pairs]
    return trained + null + public


def profile_baselines(profile: str) -> list[dict]:
    """Specs of the dense networks that `00_baselines` trains in a profile, for the notebooks that start from them."""
    return baseline_specs(profile_parameters(profile, "00_baselines"))


def find_baseline(name: str, known: Sequence[dict], seed: int = 0) -> dict:
    """The spec of a dense network by its name in a notebook's lists.

    Args:
        name: "network" for one that is trained on the profile's own data set; "network/dataset" for one that is trained
            `elsewhere`, and if there is none, for its authors' checkpoint, which has no seed.
        known: `baseline_specs` of the profile.

    Raises: CompanionError if nobody trains it with this seed.
    """
    network, slash, dataset = name.partition("/")
    trained = [spec for spec in known if spec["source"] == "trained" and "labels" not in spec]
    own = trained[0]["dataset"]
    alike = [s for s in trained if s["network"] == network and s["dataset"] == (dataset or own)]
    if slash and (dataset == own or not alike):
        return {"source": "public", "network": network, "dataset": dataset}
    for spec in alike:
        if spec["seed"] == seed:
            return spec
    sentence = f"{name} is trained {len(alike)} times by this profile's 00_baselines, and {seed + 1} times are needed"
    raise CompanionError(f"{sentence}: add it to networks there, or raise seeds.")


def trained_like(network: str, dataset: str, known: Sequence[dict]) -> dict:
    """The spec of any network, trained with the settings of the first one among `baseline_specs` that is not linear."""
    own = next(spec for spec in known if spec["source"] == "trained" and spec["network"] != "linear")
    return own | {"network": network, "dataset": dataset}


def cost_specs(specs: list[dict]) -> list[dict]:
    """The trials of the study of costs: each architecture among some baselines once."""
    architectures = [{"dataset": spec["dataset"], "network": spec["network"]} | _options(spec) for spec in specs]
    return [one for place, one in enumerate(architectures) if one not in architectures[:place]]


def untrained(spec: dict) -> nn.Module:
    """The architecture of a baseline's spec with arbitrary weights; needs neither its data nor its checkpoint."""
    shape = {name: DATASETS[spec["dataset"]][name] for name in ("classes", "channels", "size")}
    return models.build(models.architecture(spec["network"]), **_options(spec), **shape)


def _options(spec: dict) -> dict:
    options = {name: spec[name] for name in ("form", "shortcut", "width") if name in spec}
    if spec.get("source") == "public" and models.AUTHORS[spec["dataset"]][0] == "B":
        options["shortcut"] = "B"
    return options


def build(spec: dict, dataset: Data) -> nn.Module:
    """The untrained network of a baseline's spec, shaped for a data set."""
    shape = {"classes": dataset.classes, "channels": dataset.channels, "size": dataset.size}
    return models.build(spec["network"], **_options(spec), **shape, seed=seed_from(spec["seed"], "initialisation"))


def dense_spec(spec: dict) -> dict:
    """The part of a trial's spec that names the dense network that it starts from."""
    return {name: spec[name] for name in DENSE if name in spec}


def baselines(folder: Path) -> Study:
    """The study of dense networks of a profile; `folder` is `runs/<profile>`."""
    return Study("00_baselines.networks", train_baseline, version=1, folder=folder)


def samples(folder: Path) -> Study:
    """The study that shows a profile's data sets."""
    return Study("00_baselines.samples", show_data, version=1, folder=folder)


def costs(folder: Path) -> Study:
    """The study of parameters, MACs and latencies of dense networks of a profile."""
    return Study("00_baselines.costs", measure_costs, version=1, folder=folder)


def baseline(spec: dict, folder: Path, device: str = "cpu") -> tuple[nn.Module, Data]:
    """A dense network with its weights, in evaluation mode, and its data set; trained only if nobody has yet.

    Args:
        spec: as `train_baseline` takes it; the same spec gives every notebook the same network.
        folder: `runs/<profile>`.
    """
    spec = canonical(spec)
    dataset = data.load(spec["dataset"], device=device, seed=spec.get("seed", 0), limit=spec.get("limit"))
    if spec["source"] == "public":
        model, (mean, std) = models.public(spec["network"], spec["dataset"])
        return model.to(device).eval(), replace(dataset, mean=mean, std=std)
    model = build(spec | {"network": models.architecture(spec["network"])}, dataset)
    models.load(model, baselines(folder).weights(spec, device))
    return model.to(device).eval(), dataset


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
