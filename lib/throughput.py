"""How a training step runs on a device: strategies, and the stored measurements by which one of them is chosen.

On the CPU every step is plain float32. On CUDA "eager" and "graph" run the same kernels and differ in time and in the
draws of dropout; "compile" rounds otherwise. Which one made a row stands in its column `made_strategy`.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import models, provenance
from lib.locks import locked
from lib.provenance import unknown

# plain: float32. eager: bfloat16, channels last in memory. graph: the same, recorded once as a CUDA graph and replayed.
# compile: the same through torch.compile, then recorded.
STRATEGIES = ("plain", "eager", "graph", "compile")
WARM_UP, TIMED = 3, 10  # steps
COMPILING_PAYS = 120.0  # seconds of training from which on it is measured whether compiling would pay
# Dense bfloat16 rates by part of the device's name (FLOP/s), from NVIDIA's data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def on_cuda(device: str | torch.device) -> bool:
    return torch.device(device).type == "cuda"


def placed(model: nn.Module, device: str) -> nn.Module:
    """The model on its device, there with channels last in memory if the device is a GPU.

    One that is there already keeps its tensors: a recorded step goes on reading them where they were.
    """
    layout = torch.channels_last if on_cuda(device) else torch.contiguous_format
    kind = torch.device(device).type
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != kind or (tensor.dim() == 4 and not tensor.is_contiguous(memory_format=layout)):
            return model.to(device, memory_format=layout)
    return model


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """cuDNN chooses kernels that give the same numbers each time; nothing changes on the CPU."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = before or on_cuda(device)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def autocast(device: str) -> torch.autocast:
    """bfloat16 on CUDA, nothing elsewhere."""
    return torch.autocast("cuda", torch.bfloat16, enabled=on_cuda(device))


class Backward:
    """Forward and backward pass of one batch after another: leaves gradients in the parameters, returns the loss.

    A batch that does not fit in the device's memory is split into `parts` whose gradients add up, from then on.
    BatchNorm then sees the parts alone, which must not stay unsaid: `training.fit` writes it into the row.

    strategy: of STRATEGIES. smoothing: of the labels.
    """

    def __init__(self, model: nn.Module, strategy: str = "plain", device: str = "cpu", smoothing: float = 0.0):
        if strategy not in STRATEGIES:
            raise unknown("strategy", strategy, STRATEGIES)
        self.model, self.device, self.smoothing, self.parts = model, device, smoothing, 1
        self.parameters = list(model.parameters())  # finding them takes a tenth of a small network's step
        self.half = strategy != "plain"
        self.network = torch.compile(model) if strategy == "compile" else model
        self.recording, self.recorded = None, strategy in ("graph", "compile")

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy (nats) of normalised images and their labels, detached, on the device."""
        while True:
            try:
                return self._replayed(inputs, labels) if self.recorded else self.compute(inputs, labels)
            except torch.OutOfMemoryError:
                if 2 * self.parts > len(inputs):
                    raise
            self.recording, self.parts = None, 2 * self.parts
            self.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _replayed(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.recording is None:
            self.recording = Recording(self, inputs, labels)
        if inputs.shape == self.recording.inputs.shape:
            return self.recording(inputs, labels)
        return self.compute(inputs, labels)  # the last batch of an epoch may be smaller

    def compute(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One pass, not replayed."""
        for parameter in self.parameters:
            parameter.grad = None
        total = 0.0
        for some, theirs in zip(inputs.chunk(self.parts), labels.chunk(self.parts), strict=True):
            with torch.autocast("cuda", torch.bfloat16, enabled=self.half and on_cuda(self.device)):
                loss = F.cross_entropy(self.network(some), theirs, label_smoothing=self.smoothing)
            loss = loss if self.parts == 1 else loss * (len(theirs) / len(labels))
            loss.backward()
            total = total + loss.detach()
        return total


class Recording:
    """One `Backward.compute`, recorded as a CUDA graph; calling it copies a batch of the same shape in and replays."""

    def __init__(self, step: Backward, inputs: Tensor, labels: Tensor):
        self.inputs, self.labels = inputs.clone(), labels.clone()
        buffers = [buffer.clone() for buffer in step.model.buffers()]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):  # libraries allocate and choose kernels, which a recording must not hold
                step.compute(self.inputs, self.labels)
        torch.cuda.current_stream().wait_stream(aside)
        for buffer, before in zip(step.model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # warming up must not count in BatchNorm's statistics
        step.model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = step.compute(self.inputs, self.labels)
        self.gradients = [(p, p.grad) for p in step.model.parameters() if p.grad is not None]

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.graph.replay()
        if self.gradients[0][0].grad is not self.gradients[0][1]:  # a batch in between was not replayed
            for parameter, gradient in self.gradients:
                parameter.grad = gradient
        return self.loss


def chosen(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, device: str) -> str:
    """The fastest strategy for so many steps of a network on batches like this one, on this device.

    Measured once for a device, a version of torch, a kind of network (its class, and the powers of 2 that its
    parameters and MACs are nearest to) and a batch, and kept in `.build/throughput.json`. Compiling must save more
    time than it takes.
    """
    if not on_cuda(device):
        return "plain"
    key = kind(model, inputs, device)
    file = provenance.root() / ".build" / "throughput.json"
    with locked(file.with_suffix(".lock")):
        known = json.loads(file.read_text()) if file.exists() else {}
        found = known.setdefault(key, {})
        for strategy in ("eager", "graph"):
            if strategy not in found:
                found[strategy] = milliseconds(model, inputs, labels, strategy, device)[0]
        best = min(("eager", "graph"), key=found.get)
        if steps * found[best] > 1e3 * COMPILING_PAYS and "compile" not in found:
            found["compile"], found["compiling"] = milliseconds(model, inputs, labels, "compile", device)
        provenance.write_atomically(file, json.dumps(known, indent=1).encode())
    saved = steps * (found[best] - found.get("compile", math.inf)) / 1e3
    return "compile" if saved > found.get("compiling", math.inf) else best


def kind(model: nn.Module, inputs: Tensor, device: str) -> str:
    """What a measurement holds for, in words."""
    sizes = (models.count_parameters(model), models.count_macs(model, (1, *inputs.shape[1:])))
    rounded = "2^{:.0f} parameters, 2^{:.0f} MACs".format(*(math.log2(max(size, 1)) for size in sizes))
    who = f"{provenance.device_name(device)}, torch {torch.__version__}, {type(model).__name__}"
    return f"{who}, {rounded}, batch {'x'.join(map(str, inputs.shape))}"


def milliseconds(
    model: nn.Module, inputs: Tensor, labels: Tensor, strategy: str, device: str = "cpu"
) -> tuple[float, float]:
    """Milliseconds of one forward and backward pass, and seconds until the first ones were done; the model stays.

    Infinite, with a line on stderr, for a strategy that fails on this network.
    """
    start = time.perf_counter()
    try:
        step = Backward(deepcopy(model).train(), strategy, device)
        for _ in range(WARM_UP):
            step(inputs, labels)
        _wait(device)
        begin = time.perf_counter()
        for _ in range(TIMED):
            step(inputs, labels)
        _wait(device)
    except RuntimeError as error:
        print(f"Strategy {strategy} fails for {type(model).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return math.inf, math.inf
    if step.parts > 1:  # it has not timed what it was asked to
        return math.inf, math.inf
    return 1e3 * (time.perf_counter() - begin) / TIMED, begin - start


def peak_rate(device: str) -> float:
    """The device's dense bfloat16 rate by its data sheet (FLOP/s), NaN if its name is not among PEAKS."""
    name = provenance.device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), math.nan)


def _wait(device: str) -> None:
    if on_cuda(device):
        torch.cuda.synchronize(device)
