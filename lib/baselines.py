"""The dense networks that every notebook starts from: their specs, their trials, and where their weights are."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lib import data, models, training
from lib.data import Data
from lib.parameters import profile_parameters
from lib.provenance import CompanionError
from lib.store import canonical
from lib.study import Study, generator, seed_from

DENSE = (
    "dataset network source seed epochs batch_size lr schedule augment weight_decay precision limit labels form "
    "shortcut width"
).split()
SHAPE = ("classes", "channels", "size")


def baselines(folder: Path) -> Study:
    """The study of dense networks of a profile; `folder` is `runs/<profile>`."""
    return Study("00_baselines.networks", train_baseline, version=1, folder=folder)


def samples(folder: Path) -> Study:
    """The study that shows a profile's data sets."""
    return Study("00_baselines.samples", show_data, version=1, folder=folder)


def costs(folder: Path) -> Study:
    """The study of parameters, MACs and latencies of dense networks; it is timed, so it must run alone."""
    return Study("00_baselines.costs", measure_costs, version=1, folder=folder)


def train_baseline(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `baselines`: one dense network, trained, or loaded from its authors' checkpoint.

    The spec holds `dataset`, `network`, `source` ("trained" or "public"); for a trained network also `seed`, `epochs`,
    `lr`, and optionally `batch_size`, `schedule`, `weight_decay`, `augment`, `precision`, `limit` (training images),
    and `labels`: "shuffled" trains on permuted labels, the null of a network that can learn nothing about the test set.

    Returns:
        Test accuracy, loss, n and the wrong images; learning curves, one value for each epoch.
    """
    model, dataset = _initial(spec, spec["network"], device)
    history, row = [], {}
    if spec["source"] == "trained":
        if spec.get("labels") == "shuffled":
            order = torch.randperm(len(dataset.train), generator=generator(spec["seed"], "shuffled labels"))
            dataset.train.labels.copy_(dataset.train.labels[order.to(device)])
        options = ("epochs", "seed", "lr", "batch_size", "weight_decay", "schedule", "augment", "precision")
        start = time.perf_counter()
        history = training.fit(model, dataset, device=device, **{name: spec[name] for name in options if name in spec})
        row["made_images_per_second"] = len(history) * len(dataset.train) / (time.perf_counter() - start)
    test = training.evaluate(model, dataset.test, dataset, device=device)
    models.save(model, weights)
    row |= {f"test_{name}": value for name, value in test.items()}
    return row | {f"curve_{name}": [epoch[name] for epoch in history] for name in (history[0] if history else ())}


def measure_costs(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `costs`. The spec holds `dataset`, `network`, and optionally `form`, `shortcut`, `width`.

    Returns:
        Parameters, MACs of one image, and the median milliseconds of a forward pass of 1 and of 128 images.
    """
    entry, model = data.entry(spec["dataset"]), untrained(spec)
    shape = (entry["channels"], entry["size"], entry["size"])
    row = {"parameters": models.count_parameters(model), "macs": models.count_macs(model, (1, *shape))}
    return row | {f"made_latency_{n}_ms": training.latency_ms(model, (n, *shape), device) for n in (1, 128)}


def show_data(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `samples`, with which the picture of a data set can be remade without the data.

    The spec holds `dataset`, and optionally `limit` (training images).

    Returns:
        For each split the number of images and the fewest and most of a class; `classes`; `pictures`, flat, and their
        `shape` (4, k, channels, size, size): one training image of each of k classes, then three augmentations.
    """
    dataset = data.load(spec["dataset"], limit=spec.get("limit"))
    row = {"classes": dataset.classes}
    for part in ("train", "validation", "test"):
        counts = getattr(dataset, part).labels.bincount()
        numbers = {"images": counts.sum(), "fewest": counts.min(), "most": counts.max()}
        row |= {f"{part}_{name}": int(number) for name, number in numbers.items()}
    first = [int((dataset.train.labels == label).nonzero()[0, 0]) for label in range(min(dataset.classes, 10))]
    shown, noise = dataset.train.images[first], generator(0, "shown")
    draws = [data.augment(shown, noise, dataset.padding, dataset.flip) for _ in range(3)]
    pictures = torch.stack([shown, *draws])
    return row | {"pictures": pictures.flatten(), "shape": list(pictures.shape)}


def baseline_specs(parameters: dict) -> list[dict]:
    """The trials that the parameters of `00_baselines` name; other notebooks pick theirs with `find_baseline`."""
    if twice := sorted({*parameters["elsewhere"]} & {*parameters["public"]}):
        raise CompanionError(f"{twice[0]} is in both public and elsewhere: other notebooks could not tell them apart.")

    def trained(network: str, seeds: int, **changes: object) -> list[dict]:
        return [_recipe(parameters) | {"network": network, "seed": seed} | changes for seed in range(seeds)]

    # A weak linear classifier would flatter the networks: it needs unshifted images and its own learning rate.
    linear, specs = {"augment": False, "lr": parameters["linear_lr"]}, []
    for network in parameters["networks"]:
        specs += trained(network, parameters["seeds"], **(linear if network == "linear" else {}))
    for network, dataset in (name.split("/", 1) for name in parameters["elsewhere"]):
        specs += trained(network, parameters["seeds"], dataset=dataset)
    specs += trained(parameters["null_network"], parameters["null_seeds"], labels="shuffled")
    for network, dataset in (name.split("/") for name in parameters["public"]):
        specs.append({"source": "public", "network": network, "dataset": dataset})
    return specs


def precision_specs(parameters: dict) -> list[dict]:
    """Pairs of trainings of the network `compared` of `00_baselines`, alike but for their precision, one pair a seed.

    There are none where the parameter `precision` stands for float32.
    """
    recipe = _recipe(parameters) | {"network": parameters["compared"]}
    pairs = ("bfloat16", "float32") if recipe["precision"] == "bfloat16" else ()
    return [recipe | {"seed": s, "precision": one} for s in range(parameters["compared_seeds"]) for one in pairs]


def profile_baselines(profile: str) -> list[dict]:
    """Specs of the dense networks that `00_baselines` trains in a profile, for the notebooks that start from them."""
    return baseline_specs(profile_parameters(profile, "00_baselines"))


def find_baseline(name: str, known: Sequence[dict], seed: int = 0) -> dict:
    """The spec of a dense network, among the `baseline_specs` of a profile, by its name in a notebook's lists.

    The name "network" stands for one that is trained on the profile's own data set; "network/dataset" for one that is
    trained `elsewhere`, and if there is none, for its authors' checkpoint, which has no seed.

    Raises:
        CompanionError: if the profile does not train it with this seed.
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
    return [one for i, one in enumerate(architectures) if one not in architectures[:i]]


def dense_spec(spec: dict) -> dict:
    """The part of a trial's spec that names the dense network that it starts from."""
    return {name: spec[name] for name in DENSE if name in spec}


def untrained(spec: dict) -> nn.Module:
    """The architecture of a baseline's spec with arbitrary weights; needs neither its data nor its checkpoint."""
    shape = {name: data.entry(spec["dataset"])[name] for name in SHAPE}
    return models.build(models.architecture(spec["network"]), **_options(spec), **shape)


def build(spec: dict, dataset: Data) -> nn.Module:
    """The network of a baseline's spec before training, shaped for a data set."""
    shape = {name: getattr(dataset, name) for name in SHAPE}
    return models.build(spec["network"], **_options(spec), **shape, seed=seed_from(spec["seed"], "initialisation"))


def baseline(spec: dict, folder: Path, device: str = "cpu") -> tuple[nn.Module, Data]:
    """A dense network with its weights, in evaluation mode, and its data set; it is trained only if it is missing.

    The same spec, as `train_baseline` takes it, gives every notebook the same network; `folder` is `runs/<profile>`.
    """
    spec = canonical(spec)
    model, dataset = _initial(spec, models.architecture(spec["network"]), device)
    if spec["source"] == "trained":
        models.load(model, baselines(folder).weights(spec, device))
    return model.to(device).eval(), dataset


def starting(
    network: str,
    dataset: str,
    *,
    weights: str = "",
    epochs: int = 0,
    lr: float = 0.1,
    precision: str = "float32",
    device: str = "cpu",
) -> tuple[nn.Module, Data]:
    """A network of a reader's own choice, in evaluation mode, and its data set; nothing of it is stored.

    Args:
        network: as `models.build` takes it.
        dataset: as `data.load` takes it.
        weights: a file with the network's parameters and buffers: safetensors, or what `torch.save` wrote of them.
        epochs: of training, by `training.fit`; 0 takes the weights, or else the public checkpoint of the two names.
        lr: peak learning rate of that training, a cosine.
        precision: of that training.
        device: torch device.

    Raises:
        CompanionError: for an unknown name, and for weights that are missing, damaged or of another network.
    """
    if not epochs and not weights:
        model, found = _initial({"source": "public", "network": network, "dataset": dataset}, network, device)
        return model.to(device).eval(), found
    model, found = _initial({"source": "trained", "network": network, "dataset": dataset, "seed": 0}, network, device)
    if epochs:
        options = {"epochs": epochs, "seed": 0, "lr": lr, "precision": precision, "augment": found.flip}
        training.fit(model, found, device=device, **options)
    elif weights.endswith(".safetensors"):
        models.load(model, weights)
    else:
        models.load_state(model, weights)
    return model.to(device).eval(), found


def _recipe(parameters: dict) -> dict:
    """What all networks that `00_baselines` trains have in common."""
    shared = ("dataset", "epochs", "batch_size", "lr", "schedule", "augment")
    recipe = {name: parameters[name] for name in shared} | {"source": "trained", "limit": parameters["limit"] or None}
    return recipe | {"precision": training.resolve_precision(parameters["precision"])}


def _initial(spec: dict, network: str, device: str) -> tuple[nn.Module, Data]:
    """The data set of a spec, and its public checkpoint, or a network of this name before training."""
    dataset = data.load(spec["dataset"], device=device, seed=spec.get("seed", 0), limit=spec.get("limit"))
    if spec["source"] == "public":
        model, (mean, std) = models.public(spec["network"], spec["dataset"])
        return model, replace(dataset, mean=mean, std=std)
    return build(spec | {"network": network}, dataset), dataset


def _options(spec: dict) -> dict:
    options = {name: spec[name] for name in ("form", "shortcut", "width") if name in spec}
    if spec.get("source") == "public" and models.public_shortcut(spec["network"], spec["dataset"]) == "B":
        options["shortcut"] = "B"
    return options
