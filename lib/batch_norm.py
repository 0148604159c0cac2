"""BatchNorm statistics re-estimated on frozen weights: what alone repairs many a compressed network."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by plain means over batches of normalised images.

    Weights, momenta and dropout are left alone; the model ends in evaluation mode.
    Source: EagleEye's adaptive BatchNorm (paper 3's proxy) and paper 2's control arm.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's cumulative average
        norm.train()
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
