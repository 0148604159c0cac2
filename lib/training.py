"""Fit, evaluate, schedules; the dense baselines that every notebook starts from."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR
from tqdm.auto import tqdm

from lib import data, models
from lib import weights as weights_io
from lib.data import Data, Split
from lib.provenance import unknown
from lib.store import canonical
from lib.study import Study, generator, quiet, seed_from

SCHEDULES = ("cosine", "one-cycle", "step", "constant")
DENSE = (
    "dataset network source seed epochs batch_size lr schedule augment weight_decay limit labels form shortcut width"
).split()


class Diverged(ArithmeticError):
    """The training loss became infinite or NaN."""


def scheduler(name: str, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """A schedule over steps: cosine to 0, one-cycle (peak at 30 %), step (x 0.1 at 50 % and 75 %) or constant."""
    peak = optimizer.param_groups[0]["lr"]
    if name == "cosine":
        return CosineAnnealingLR(optimizer, max(steps, 1))
    if name == "one-cycle":
        return OneCycleLR(optimizer, peak, total_steps=max(steps, 2))
    if name in ("step", "constant"):
        return MultiStepLR(optimizer, [steps // 2, steps * 3 // 4] if name == "step" else [])
    raise unknown("schedule", name, SCHEDULES)


def _placed(model: nn.Module, device: str) -> nn.Module:
    layout = torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format
    return model.to(device, memory_format=layout)


def _autocast(device: str) -> torch.autocast:
    return torch.autocast("cuda", torch.bfloat16, enabled=torch.device(device).type == "cuda")


def fit(
    model: nn.Module,
    dataset: Data,
    *,
    epochs: int,
    seed: int,
    lr: float = 0.1,
    batch_size: int = 128,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    augment: bool = True,
    device: str = "cpu",
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> list[dict]:
    """Train in place with SGD and Nesterov momentum; the last epoch counts, never the best one.

    On CUDA in bfloat16 and channels-last, on the CPU in float32. Data stay on the device.

    Args:
        dataset: its training split is fitted, its validation split measured after each epoch.
        seed: of the streams "order", "augmentation" and "dropout".
        after_epoch: called with the number of epochs done and the model.

    Returns: one dictionary an epoch: `train_loss`, `validation_accuracy`, `validation_loss`.

    Raises: Diverged, with the epoch; CompanionError for an unknown schedule.
    """
    model = _placed(model, device)
    steps_per_epoch = -(-len(dataset.train) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)
    rate = scheduler(schedule, optimizer, epochs * steps_per_epoch)
    order, noise = generator(seed, "order", device=device), generator(seed, "augmentation", device=device)
    history = []
    with torch.random.fork_rng(enabled=True):
        torch.manual_seed(seed_from(seed, "dropout"))
        for epoch in tqdm(range(1, epochs + 1), desc="epochs", delay=60, leave=False, disable=quiet()):
            model.train()
            total = torch.zeros((), device=device)
            for images, labels in data.batches(dataset.train, batch_size, order):
                if augment:
                    images = data.augment(images, noise, padding=dataset.padding, flip=dataset.flip)
                with _autocast(device):
                    loss = F.cross_entropy(model(data.normalise(images, dataset.mean, dataset.std)), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                rate.step()
                total += loss.detach().float() * len(labels)
            train_loss = total.item() / len(dataset.train)
            if not torch.isfinite(total):
                raise Diverged(f"the training loss became {train_loss} in epoch {epoch}; lower lr")
            measured = evaluate(model, dataset.validation, dataset, device=device)
            history.append({"train_loss": train_loss} | {f"validation_{k}": measured[k] for k in ("accuracy", "loss")})
            if after_epoch:
                after_epoch(epoch, model)
    return history


@torch.inference_mode()
def logits(
    model: nn.Module, split: Split, dataset: Data, batch_size: int = 500, device: str = "cpu"
) -> Iterator[torch.Tensor]:
    """The outputs (batch, classes) in float32 of a model in evaluation mode, batch by batch."""
    model = _placed(model, device).eval()
    for images, _ in data.batches(split, batch_size):
        with _autocast(device):
            yield model(data.normalise(images, dataset.mean, dataset.std)).float()


def evaluate(model: nn.Module, split: Split, dataset: Data, batch_size: int = 500, device: str = "cpu") -> dict:
    """Accuracy, mean cross-entropy in nats (`loss`), `n`, and the indices of the `wrong` images of one split."""
    outputs = torch.cat(list(logits(model, split, dataset, batch_size, device)))
    wrong = (outputs.argmax(1) != split.labels).nonzero().flatten()
    accuracy = 1 - len(wrong) / len(split)
    loss = F.cross_entropy(outputs, split.labels).item()
    return {"accuracy": accuracy, "loss": loss, "n": len(split), "wrong": wrong.tolist()}


@torch.inference_mode()
def latency_ms(model: nn.Module, shape: tuple[int, ...], device: str = "cpu", repeats: int = 20) -> float:
    """Median milliseconds of one forward pass on an input of this shape (batch first), after three warm-up passes."""
    model = _placed(model, device).eval()
    images = torch.zeros(shape, device=device)
    cuda = torch.device(device).type == "cuda"
    seconds = []
    for repeat in range(repeats + 3):
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        with _autocast(device):
            model(images)
        if cuda:
            torch.cuda.synchronize(device)
        if repeat >= 3:
            seconds.append(time.perf_counter() - start)
    return 1e3 * float(torch.tensor(seconds).median())


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
        history = fit(model, dataset, device=device, **{name: spec[name] for name in options if name in spec})
        seconds = time.perf_counter() - start
    test = evaluate(model, dataset.test, dataset, device=device)
    row = {f"test_{name}": value for name, value in test.items()}
    row |= {f"curve_{name}": [epoch[name] for epoch in history] for name in (history[0] if history else ())}
    if history:
        row["made_images_per_second"] = len(history) * len(dataset.train) / seconds
    weights_io.save(model, weights)
    return row


def measure_costs(spec: dict, device: str, weights: Path) -> dict:
    """The trial of the study of costs; it is timed, so it must run alone.

    Args:
        spec: `dataset`, `network`, and optionally `form`, `shortcut`, `width`.

    Returns: parameters, MACs of one image, and the median milliseconds of a forward pass of 1 and of 128 images.
    """
    entry, model = data.DATASETS[spec["dataset"]], untrained(spec)
    shape = (entry["channels"], entry["size"], entry["size"])
    row = {"parameters": models.count_parameters(model), "macs": models.count_macs(model, (1, *shape))}
    return row | {f"made_latency_{n}_ms": latency_ms(model, (n, *shape), device) for n in (1, 128)}


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
    """The trials of `00_baselines` as its parameters name them; other notebooks pick their networks from here.

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
    null = [
        common | {"network": parameters["null_network"], "seed": seed, "labels": "shuffled"}
        for seed in range(parameters["null_seeds"])
    ]
    pairs = (name.split("/") for name in parameters["public"])
    public = [{"source": "public", "network": network, "dataset": dataset} for network, dataset in pairs]
    return trained + null + public


def cost_specs(specs: list[dict]) -> list[dict]:
    """The trials of the study of costs: each architecture among some baselines once."""
    architectures = [{"dataset": spec["dataset"], "network": spec["network"]} | _options(spec) for spec in specs]
    return [one for place, one in enumerate(architectures) if one not in architectures[:place]]


def untrained(spec: dict) -> nn.Module:
    """The architecture of a baseline's spec with arbitrary weights; needs neither its data nor its checkpoint."""
    shape = {name: data.DATASETS[spec["dataset"]][name] for name in ("classes", "channels", "size")}
    return models.build(spec["network"], **_options(spec), **shape)


def _options(spec: dict) -> dict:
    options = {name: spec[name] for name in ("form", "shortcut", "width") if name in spec}
    if spec.get("source") == "public" and weights_io.AUTHORS[spec["dataset"]][0] == "B":
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
    model = build(spec, dataset)
    weights_io.load(model, baselines(folder).weights(spec, device))
    return model.to(device).eval(), dataset
