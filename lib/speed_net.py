"""A small network that learns CIFAR-10 to 94 % in seconds (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds")."""

import torch
from torch import Tensor, nn

WIDTHS = (64, 256, 256)  # of the three groups
PATCH = 2  # side of the patches that are whitened (pixels)
LOGITS = 1 / 9  # scale of the outputs


class SpeedNet(nn.Module):
    """Whitening, three groups of two convolutions, a linear layer; GELU, BatchNorm without scales.

    `first` whitens patches of 2 x 2 pixels: with both signs of each direction, 24 filters for 3 channels. Its filters
    are directions of data (`whiten`), or orthogonal ones at first, and are not trained; its bias is.
    Source: Jordan 2024, section 3; written for this companion from the description.
    """

    def __init__(self, classes: int, channels: int = 3, width: float = 1.0):
        super().__init__()
        widths, dim = [max(1, round(width * one)) for one in WIDTHS], channels * PATCH**2
        self.first = nn.Conv2d(channels, 2 * dim, PATCH)
        self.first.weight.requires_grad_(False)
        self.activation = nn.GELU()
        inputs = [2 * dim, *widths]
        self.groups = nn.Sequential(*(Group(a, b) for a, b in zip(inputs[:-1], inputs[1:], strict=True)))
        self.pool, self.flatten = nn.AdaptiveMaxPool2d(1), nn.Flatten()
        self.fc = nn.Linear(widths[-1], classes, bias=False)
        directions = torch.linalg.qr(torch.randn(dim, dim))[0] if self.first.weight.device.type != "meta" else None
        if directions is not None:
            self.set_directions(directions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.activation(self.first(x)))
        return self.fc(self.flatten(self.pool(x))) * LOGITS

    @torch.no_grad()
    def set_directions(self, directions: Tensor) -> None:
        """The rows of a square matrix, and their negatives, as the filters of the first layer; its bias becomes 0."""
        both = torch.cat([directions, -directions]).view_as(self.first.weight)
        self.first.weight.copy_(both)
        self.first.bias.zero_()

    @torch.no_grad()
    def whiten(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Filters whose outputs are uncorrelated and of variance 1 on the patches of normalised images."""
        patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        values, vectors = torch.linalg.eigh(patches.double().T @ patches.double() / len(patches))
        self.set_directions((vectors / (values + epsilon).sqrt()).T.flip(0).to(self.first.weight))


class Group(nn.Module):
    """conv, 2 x 2 max-pooling, BN, GELU, conv, BN, GELU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = _conv(inputs, outputs), _conv(outputs, outputs)
        self.pool, self.activation = nn.MaxPool2d(2), nn.GELU()
        self.bn1, self.bn2 = _norm(outputs), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.pool(self.conv1(x))))
        return self.activation(self.bn2(self.conv2(x)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose first filters pass their channel on unchanged."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


def _norm(outputs: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
