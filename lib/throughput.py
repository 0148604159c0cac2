"""How a training step runs on a device: plain float32 on the CPU; on CUDA bfloat16, channels last, as a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WARM_UP = 3  # steps before a CUDA graph is recorded


def on_cuda(device: str | torch.device) -> bool:
    return torch.device(device).type == "cuda"


def placed(model: nn.Module, device: str) -> nn.Module:
    """The model on its device, with channels last in memory if the device is a GPU.

    A model that is there already keeps its tensors: a recorded step goes on reading them where they were.
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

    On CUDA the pass is recorded once and replayed for every batch of the same size.
    """

    def __init__(self, model: nn.Module, device: str = "cpu"):
        self.model, self.device, self.recording = model, device, None
        self.parameters = list(model.parameters())  # finding them takes a tenth of a small network's step
        self.records = on_cuda(device) and torch.cuda.is_available()

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy (nats) of normalised images and their labels, detached, on the device."""
        if not self.records:
            return self.compute(inputs, labels)
        if self.recording is None:
            self.recording = Recording(self, inputs, labels)
        if inputs.shape == self.recording.inputs.shape:
            return self.recording(inputs, labels)
        return self.compute(inputs, labels)  # the last batch of an epoch may be smaller

    def compute(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One pass, not replayed."""
        for parameter in self.parameters:
            parameter.grad = None
        with autocast(self.device):
            loss = F.cross_entropy(self.model(inputs), labels)
        loss.backward()
        return loss.detach()


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
