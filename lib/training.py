"""Fit, evaluate, schedules, latency."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR
from tqdm.auto import tqdm

from lib import data
from lib.data import Data, Split
from lib.names import SCHEDULES
from lib.progress import quiet
from lib.provenance import unknown
from lib.seeds import generator, seed_from
from lib.throughput import Backward, autocast, on_cuda, placed, repeatable


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

    On the CPU in float32; on CUDA in bfloat16, with kernels that give the same numbers each time. Data stay on the
    device, and the host waits for it once an epoch.

    Args:
        dataset: its training split is fitted, its validation split measured after each epoch.
        seed: of the streams "order", "augmentation" and "dropout".
        after_epoch: called with the number of epochs done and the model.

    Returns: one dictionary an epoch: `train_loss`, `validation_accuracy`, `validation_loss`.

    Raises: Diverged, with the epoch; CompanionError for an unknown schedule.
    """
    model, cuda = placed(model, device), on_cuda(device)
    steps = epochs * -(-len(dataset.train) // batch_size)
    options = {"weight_decay": weight_decay, "nesterov": momentum > 0} | ({"fused": True} if cuda else {})
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum, **options)
    rate = scheduler(schedule, optimizer, steps)
    order, noise = generator(seed, "order", device=device), generator(seed, "augmentation", device=device)
    history = []
    with torch.random.fork_rng(enabled=True), repeatable(device):
        step = Backward(model, device)
        torch.manual_seed(seed_from(seed, "dropout"))
        for epoch in tqdm(range(1, epochs + 1), desc="epochs", delay=60, leave=False, disable=quiet()):
            model.train()
            total = torch.zeros((), device=device)
            for images, labels in data.batches(dataset.train, batch_size, order):
                if augment:
                    images = data.augment(images, noise, padding=dataset.padding, flip=dataset.flip)
                loss = step(data.normalise(images, dataset.mean, dataset.std), labels)
                optimizer.step()
                rate.step()
                total += loss.float() * len(labels)
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
    model = placed(model, device).eval()
    for images, _ in data.batches(split, batch_size):
        with autocast(device):
            outputs = model(data.normalise(images, dataset.mean, dataset.std))
        yield outputs.float()


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
    model = placed(model, device).eval()
    images = torch.zeros(shape, device=device)
    cuda = on_cuda(device)
    seconds = []
    for repeat in range(repeats + 3):
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        with autocast(device):
            model(images)
        if cuda:
            torch.cuda.synchronize(device)
        if repeat >= 3:
            seconds.append(time.perf_counter() - start)
    return 1e3 * float(torch.tensor(seconds).median())
