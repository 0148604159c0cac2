"""CIFAR-10 to 94 % in seconds: the recipe of Jordan 2024 on `speed_net`, timed without its warm-up."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import data, models
from lib.data import Data, Split
from lib.seeds import generator, seed_from
from lib.study import Study
from lib.throughput import Backward, autocast, on_cuda, placed

# The published recipe. The rates are those of 1,024 images, for losses that are summed over a batch.
BATCH, RATE, MOMENTUM, DECAY = 1024, 11.5, 0.85, 0.0153
BIASES = 64.0  # factor on the rate of BatchNorm's biases
SMOOTHING = 0.2  # of the labels
START, PEAK, END = 0.2, 0.23, 0.07  # learning rate at the start, place of its peak, learning rate at the end
WHITENED = 5000  # images that the first layer is made from
FIRST_EPOCHS = 3  # epochs in which its bias is trained
SHIFT = 2  # pixels, of the augmentation
AVERAGED = 5  # steps between two updates of the slow weights


def runs(folder: Path) -> Study:
    """The study of speed runs; it is timed, so it must run alone. `folder` is `runs/<profile>`."""
    return Study("00_baselines.speed_runs", speed_run, version=1, folder=folder)


def speed_run(spec: dict, device: str, weights: Path) -> dict:
    """The trial: one training against the clock.

    Args:
        spec: `dataset`, `seed`, `epochs` (9.9 in the paper; the last may be a part), and optionally `limit`.

    Returns: `test_accuracy` with mirrored and shifted copies of each test image, `test_n`, and the seconds of training
        and evaluation together, `made_run_seconds`, without those of reading data and of a first run that warms up.
    """
    dataset = data.load(spec["dataset"], device=device, validation=0.0, limit=spec.get("limit"))
    if on_cuda(device):
        train(dataset, spec["epochs"] / 10, spec["seed"], device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model = train(dataset, spec["epochs"], spec["seed"], device)
    outputs = mirrored_and_shifted(model, dataset, device)
    accuracy = (outputs.argmax(1) == dataset.test.labels).double().mean().item()  # waits for the device
    return {"test_accuracy": accuracy, "test_n": len(dataset.test), "made_run_seconds": time.perf_counter() - start}


def train(dataset: Data, epochs: float, seed: int, device: str = "cpu") -> nn.Module:
    """A `speed_net` trained on a data set's training images, by the published recipe.

    Each image is mirrored in every second epoch, in which one is drawn; slow weights follow the fast ones and take
    their place every few steps.
    """
    shape = {"classes": dataset.classes, "channels": dataset.channels, "size": dataset.size}
    model = placed(models.build("speed_net", **shape, seed=seed_from(seed, "initialisation")), device)
    images, labels = dataset.train.images, dataset.train.labels
    model.whiten(data.normalise(images[:WHITENED], dataset.mean, dataset.std))
    order, noise = generator(seed, "order", device=device), generator(seed, "augmentation", device=device)
    turned = torch.rand(len(labels), generator=noise, device=noise.device) < 0.5
    batch = min(BATCH, len(labels))
    per_epoch = len(labels) // batch
    steps = max(2, int(epochs * per_epoch))
    optimizer = _optimizer(model, batch, on_cuda(device))
    rates = [group["lr"] for group in optimizer.param_groups]
    slow = [tensor.clone() for tensor in model.state_dict().values() if tensor.is_floating_point()]
    step, model = Backward(model.train(), "graph" if on_cuda(device) else "plain", device, SMOOTHING), model
    for done in range(steps):
        if done % per_epoch == 0:
            epoch = done // per_epoch
            shuffled = torch.randperm(len(labels), generator=order, device=order.device)
            flipped = _mirrored(images, turned ^ bool(epoch % 2)) if dataset.flip else images
            seen = data.augment(flipped, noise, padding=SHIFT, flip=False)
            model.first.bias.requires_grad_(epoch < FIRST_EPOCHS)
            if epoch == FIRST_EPOCHS:
                step.recording = None  # another set of parameters has gradients
        chosen = shuffled[done % per_epoch * batch :][:batch]
        step(data.normalise(seen[chosen], dataset.mean, dataset.std), labels[chosen])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _triangle(done / steps)
        optimizer.step()
        if (done + 1) % AVERAGED == 0 or done + 1 == steps:
            share = 1.0 if done + 1 == steps else 0.95**AVERAGED * ((done + 1) / steps) ** 3
            _average(model, slow, share)
    return model.eval()


@torch.inference_mode()
def mirrored_and_shifted(model: nn.Module, dataset: Data, device: str = "cpu", batch: int = 2000) -> Tensor:
    """Outputs (images, classes) on the test images, half as they are, half shifted by a pixel, both also mirrored."""
    kept = []
    for images, _ in data.batches(Split(dataset.test.images, dataset.test.labels), batch):
        inputs = data.normalise(images, dataset.mean, dataset.std)
        side, padded = inputs.shape[-1], F.pad(inputs, (1, 1, 1, 1), "reflect")
        shifted = [padded[:, :, at : at + side, at : at + side] for at in (0, 2)]
        copies = [(0.5, inputs), (0.25, shifted[0]), (0.25, shifted[1])]
        if dataset.flip:
            copies = [(share / 2, one) for share, own in copies for one in (own, own.flip(3))]
        with autocast(device):
            kept.append(sum(share * model(one).float() for share, one in copies))
    return torch.cat(kept)


def _optimizer(model: nn.Module, batch: int, fused: bool) -> torch.optim.SGD:
    """SGD with Nesterov momentum; `Backward` takes means over a batch, so the rates are those of a sum times it."""
    per_thousand = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / per_thousand * batch, DECAY / per_thousand * batch
    biases = [p for name, p in model.named_parameters() if "bn" in name and p.requires_grad]
    known = {id(p) for p in biases}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": biases, "lr": BIASES * rate, "weight_decay": decay / (BIASES * rate)},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]
    options = {"fused": True} if fused else {}
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True, **options)


def _triangle(place: float) -> float:
    """Factor on the learning rate at a share of all steps."""
    if place < PEAK:
        return START + (1 - START) * place / PEAK
    return 1 + (END - 1) * (place - PEAK) / (1 - PEAK)


def _mirrored(images: Tensor, which: Tensor) -> Tensor:
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


@torch.no_grad()
def _average(model: nn.Module, slow: list[Tensor], share: float) -> None:
    """Move the slow weights by 1 - share towards the fast ones, and let the fast ones start from there."""
    fast = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    for ours, theirs in zip(slow, fast, strict=True):
        ours.lerp_(theirs, 1 - share)
        theirs.copy_(ours)
