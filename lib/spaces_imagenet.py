"""Paper 3's own setting: recipes of ResNet-50 on ImageNet, read from files as they are needed."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lib import batch_norm, channels, models, spaces, streams, training
from lib.seeds import generator, seed_from
from lib.spaces_trials import MODES, reinitialise
from lib.study import Study


def streamed(folder: Path) -> Study:
    """The study of recipes that are retrained from files."""
    return Study("03_pruning_spaces.streamed", retrain_streamed, version=1, folder=folder)


def groups(network: str = "resnet50", classes: int = 1000, size: int = 224) -> channels.Groups:
    """All channel groups of an ImageNet-shaped network, stem and residual streams included."""
    return channels.find(models.build(network, form="imagenet", classes=classes, size=size), size)


def retrain_streamed(spec: dict, device: str, weights: Path) -> dict:
    """The trial of `streamed`: prune, re-estimate BatchNorm on training batches, retrain to the last epoch, measure.

    Args:
        spec: `network`, `classes`, `size` (pixels), `pretrained` (torchvision's weights), `widths` of all groups,
            `criterion`, `mode` (of `spaces_trials.MODES`), `retraining` (seed), `retraining_epochs`, `batch_size`,
            `weight_decay`, `bn_batches`, `readers` (processes that decode files; 0 decodes in this one).
            EagleEye's schedule for ResNet-50 is 120 epochs, batch 128, cosine from 0.01, weight decay 1e-4.

    Returns: coordinates of the recipe; top-1 accuracy (%) and n: `proxy_*` on held-out training images before
        retraining, `validation_*` on them afterwards, `test_*` on the official validation folder.
    """
    shape = {"classes": spec["classes"], "size": spec["size"]}
    seed = seed_from(spec["retraining"], "initialisation")
    model = models.build(spec["network"], form="imagenet", pretrained=spec["pretrained"], seed=seed, **shape)
    found = channels.find(model, spec["size"])
    row = spaces.coordinates(found, np.array([spec["widths"]])).iloc[0].to_dict()
    asked = dict(zip(found.names, spec["widths"], strict=True))
    filters = generator(spec["retraining"], "filters")
    pruned = channels.prune(model, asked, spec["criterion"], size=spec["size"], generator=filters).to(device)
    options = {name: spec[name] for name in ("batch_size", "size")} | {"workers": spec["readers"]}
    options["seed"] = spec["retraining"]
    read = {part: streams.stream("imagenet", part, **options) for part in ("train", "validation", "test")}
    some = islice(read["train"], spec["bn_batches"])
    batch_norm.reestimate(pruned, (images.to(device) for images, _ in some))
    row |= _measured_on_imagenet(pruned, "proxy", read["validation"], device)
    if spec["mode"] == "scratch":
        reinitialise(pruned, seed)
    if spec["mode"] != "none":
        fit_streamed(
            pruned, read["train"], spec["retraining_epochs"], MODES[spec["mode"]], spec["weight_decay"], device
        )
    for part in ("validation", "test"):
        row |= _measured_on_imagenet(pruned, part, read[part], device)
    return {name: float(value) for name, value in row.items()}


def fit_streamed(
    model: nn.Module, batches: DataLoader, epochs: int, lr: float, weight_decay: float, device: str = "cpu"
) -> None:
    """Train in place with SGD, Nesterov momentum 0.9 and a cosine over all steps; in bfloat16 on CUDA.

    Raises: training.Diverged, with the epoch.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay, nesterov=True)
    rate = training.scheduler("cosine", optimizer, epochs * len(batches))
    for epoch in range(1, epochs + 1):
        model.train()
        for images, labels in batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
                loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
        if not torch.isfinite(loss):
            raise training.Diverged(f"the training loss became {loss.item()} in epoch {epoch}; lower lr")


@torch.inference_mode()
def _measured_on_imagenet(model: nn.Module, part: str, batches: DataLoader, device: str) -> dict[str, float]:
    model.eval()
    right = n = 0
    for images, labels in batches:
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            outputs = model(images.to(device))
        right, n = right + int((outputs.argmax(1).cpu() == labels).sum()), n + len(labels)
    return {f"{part}_accuracy": 100 * right / n, f"{part}_n": n}
