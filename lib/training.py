"""Fit, evaluate, schedules, precision, BatchNorm re-estimation, latency; on CUDA a step is recorded and replayed.

Images are channels last on every device. A training is in float32 or in bfloat16 autocast, whose weights, gradients
and optimizer stay float32; the precision is part of a trial's spec. Evaluation is in float32.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR
from tqdm.auto import tqdm

from lib import data
from lib.data import Data, Split
from lib.parameters import PRECISIONS, SCHEDULES
from lib.provenance import CompanionError, default_device, unknown
from lib.study import generator, quiet, seed_from

if TYPE_CHECKING:
    import pandas as pd

WARM_UP = 3  # steps before a CUDA graph is recorded, and passes before latency is measured
PASSES = 20  # whose median is the latency


class Diverged(ArithmeticError):
    """The training loss became infinite or NaN."""


def on_cuda(device: str | torch.device) -> bool:
    """Whether a device is a GPU."""
    return torch.device(device).type == "cuda"


def autocast(device: str, precision: str) -> torch.autocast:
    """The context of a forward pass in a precision: "bfloat16" or "float32", which changes nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 by its own instructions, as torch finds them, and not by emulation."""
    if on_cuda(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions = (name for name, has in torch.cpu.get_capabilities().items() if has is True)
    return torch.backends.mkldnn.is_available() and any(name.endswith("bf16") for name in instructions)


def resolve_precision(asked: str) -> str:
    """The precision of a spec: "auto" is "bfloat16" where the default device has it and "float32" elsewhere.

    Raises:
        CompanionError: for an unknown precision.
    """
    if asked not in PRECISIONS:
        raise unknown("precision", asked, PRECISIONS)
    return asked if asked != "auto" else "bfloat16" if has_bfloat16(default_device()) else "float32"


def placed(model: nn.Module, device: str) -> nn.Module:
    """The model on its device; on a GPU its kernels are channels last in memory, as the images are.

    A model that is there already keeps its tensors, because a recorded step goes on reading them where they were.
    """
    layout = torch.channels_last if on_cuda(device) else torch.contiguous_format
    kind = torch.device(device).type
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != kind or (tensor.dim() == 4 and not tensor.is_contiguous(memory_format=layout)):
            return model.to(device, memory_format=layout)
    return model


class Backward:
    """Forward and backward pass of one batch after another: leaves gradients in the parameters, returns the loss.

    On CUDA the pass is recorded as a CUDA graph and replayed for every batch of the same shape.
    """

    def __init__(self, model: nn.Module, device: str = "cpu", precision: str = "float32"):
        self.model, self.graph, self.autocast = model, None, partial(autocast, device, precision)
        self.parameters = list(model.parameters())  # finding them takes a tenth of a small network's step
        self.records = on_cuda(device) and torch.cuda.is_available()

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy (nats) of normalised images and their labels, detached, on the device."""
        if self.records and self.graph is None:
            self._record(inputs, labels)
        if not self.records or inputs.shape != self.inputs.shape:  # the last batch of an epoch may be smaller
            return self._compute(inputs, labels)
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.graph.replay()
        if self.gradients[0][0].grad is not self.gradients[0][1]:  # the batch before was not replayed
            for parameter, gradient in self.gradients:
                parameter.grad = gradient
        return self.loss

    def _compute(self, inputs: Tensor, labels: Tensor) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        with self.autocast():
            loss = F.cross_entropy(self.model(inputs), labels)
        loss.backward()
        return loss.detach()

    def _record(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs.clone(), labels.clone()
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):  # libraries allocate and choose kernels, which a recording must not hold
                self._compute(self.inputs, self.labels)
        torch.cuda.current_stream().wait_stream(aside)
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # warming up must not count in BatchNorm's statistics
        self.model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._compute(self.inputs, self.labels)
        self.gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]


def scheduler(name: str, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """A schedule over steps: cosine to 0, one-cycle (peak at 30 %), step (x 0.1 at 50 % and 75 %) or constant."""
    if name == "cosine":
        return CosineAnnealingLR(optimizer, max(steps, 1))
    if name == "one-cycle":
        return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=max(steps, 2))
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
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    augment: bool = True,
    precision: str = "float32",
    epoch_images: int = 0,
    device: str = "cpu",
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> list[dict]:
    """Train in place with SGD and Nesterov momentum 0.9; the last epoch counts, never the best one.

    The training split is fitted in a `precision`, and the validation split measured after each epoch; then
    `after_epoch` is called with the number of epochs done and the model. An epoch is a pass over the training split,
    or over `epoch_images` of its images, drawn anew for each epoch, where that is above 0. The random streams "order",
    "augmentation" and "dropout" follow from `seed`. Data stay on the device, and the host waits for it once an epoch.

    Returns:
        One dictionary for each epoch: `train_loss`, `validation_accuracy`, `validation_loss`.

    Raises:
        Diverged: with the epoch.
        CompanionError: for an unknown schedule or precision, or for bfloat16 on a device that lacks it.
    """
    if precision not in PRECISIONS[1:]:
        raise unknown("precision", precision, PRECISIONS[1:])
    if precision == "bfloat16" and not has_bfloat16(device):
        raise CompanionError(f"{device} has no bfloat16 instructions: set precision to float32, or to auto.")
    model = placed(model, device)
    seen = min(epoch_images or len(dataset.train), len(dataset.train))
    steps = epochs * -(-seen // batch_size)
    options = {"weight_decay": weight_decay, "momentum": 0.9, "nesterov": True, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), lr, **options)
    rate = scheduler(schedule, optimizer, steps)
    order, noise = generator(seed, "order", device=device), generator(seed, "augmentation", device=device)
    history = []
    # The same numbers each time, and float32 without TensorFloat-32.
    repeatable = torch.backends.cudnn.flags(enabled=True, deterministic=on_cuda(device), allow_tf32=False)
    with torch.random.fork_rng(enabled=True), repeatable:
        step = Backward(model, device, precision)
        torch.manual_seed(seed_from(seed, "dropout"))
        for epoch in tqdm(range(1, epochs + 1), desc="epochs", delay=60, leave=False, disable=quiet()):
            model.train()
            total = torch.zeros((), device=device)
            for images, labels in data.batches(dataset.train, batch_size, order, seen):
                if augment:
                    images = data.augment(images, noise, padding=dataset.padding, flip=dataset.flip)
                loss = step(data.normalise(images, dataset.mean, dataset.std), labels)
                optimizer.step()
                rate.step()
                total += loss.float() * len(labels)
            train_loss = total.item() / seen
            if not torch.isfinite(total):
                raise Diverged(f"the training loss became {train_loss} in epoch {epoch}; lower lr")
            measured = evaluate(model, dataset.validation, dataset, device=device)
            history.append({"train_loss": train_loss} | {f"validation_{k}": measured[k] for k in ("accuracy", "loss")})
            if after_epoch:
                after_epoch(epoch, model)
    return history


@torch.inference_mode()
def logits(
    model: nn.Module, split: Split, dataset: Data, batch_size: int = 100, device: str = "cpu"
) -> Iterator[Tensor]:
    """The outputs (batch, classes) of a model in evaluation mode, computed in float32, batch by batch."""
    model = placed(model, device).eval()
    for images, _ in data.batches(split, batch_size):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            outputs = model(data.normalise(images, dataset.mean, dataset.std))
        yield outputs


def evaluate(model: nn.Module, split: Split, dataset: Data, device: str = "cpu") -> dict:
    """Accuracy, mean cross-entropy in nats (`loss`), `n`, and the indices of the `wrong` images of one split."""
    outputs = torch.cat(list(logits(model, split, dataset, device=device)))
    wrong = (outputs.argmax(1) != split.labels).nonzero().flatten()
    accuracy = 1 - len(wrong) / len(split)
    loss = F.cross_entropy(outputs, split.labels).item()
    return {"accuracy": accuracy, "loss": loss, "n": len(split), "wrong": wrong.tolist()}


@torch.inference_mode()
def scores(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 100) -> dict[str, float]:
    """Accuracy (%) and mean cross-entropy (`loss`, nats) on normalised images (n, ...), in evaluation mode, and `n`.

    Every module gets its own mode back.
    """
    modes = {module: module.training for module in model.modules()}
    place = next(model.parameters())
    try:
        model.eval()
        parts = [model(part.to(place)).float() for part in images.split(batch_size)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    outputs, labels = torch.cat(parts), labels.to(place.device)
    accuracy = 100 * (outputs.argmax(1) == labels).double().mean().item()
    return {"accuracy": accuracy, "loss": F.cross_entropy(outputs, labels).item(), "n": len(labels)}


def tolerated(table: "pd.DataFrame", dense: float, allowed: float) -> "pd.DataFrame":
    """Adds the `drop` from a dense accuracy (points), and whether no drop up to a row exceeds what is `allowed`."""
    drop = dense - table["accuracy"]
    return table.assign(drop=drop, tolerated=(drop <= allowed).cummin())


def layer_of(model: nn.Module, name: str, kinds: tuple[type, ...]) -> nn.Module:
    """The layer of this name; ValueError, which names those of these kinds, if there is none."""
    known = {path: module for path, module in model.named_modules() if isinstance(module, kinds)}
    if name not in known:
        raise ValueError(str(unknown("layer", name, known)))
    return known[name]


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by plain means over batches of normalised images.

    Nothing else changes, and the model ends in evaluation mode. If a batch fails, the old statistics return.

    Raises:
        ValueError: if there is no batch.

    Source: EagleEye's adaptive BatchNorm (paper 3's proxy) and paper 2's control arm.
    """
    model.eval()
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [norm for norm in model.modules() if isinstance(norm, kinds) and norm.running_mean is not None]
    before = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's cumulative average
            norm.train()
        seen = 0
        for images in batches:
            model(images)
            seen += len(images)
        if not seen:
            raise ValueError("BatchNorm statistics need at least one batch of images: the batches are exhausted.")
    except BaseException:
        for norm, _, buffers in before:
            for buffer, old in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(old)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
        model.eval()


@torch.inference_mode()
def latency_ms(model: nn.Module, shape: tuple[int, ...], device: str = "cpu") -> float:
    """Median milliseconds of one forward pass on an input of this shape (batch first), after some to warm up."""
    model, images, seconds = placed(model, device).eval(), torch.zeros(shape, device=device), []
    synchronize = torch.cuda.synchronize if on_cuda(device) else lambda: None
    for _ in range(WARM_UP + PASSES):
        synchronize()
        start = time.perf_counter()
        with autocast(device, "bfloat16" if on_cuda(device) else "float32"):
            model(images)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds[WARM_UP:])
