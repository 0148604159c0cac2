"""The counter reproduces two published totals, and closed forms of single layers."""

import pytest
import torch
from torch import nn

from lib import models
from lib.spline import measures as spline_flops


def test_vgg16_on_cifar100_costs_what_the_precursor_prints_for_snip():
    forward = spline_flops.forward_flops(models.build("vgg16", classes=100), (3, 32, 32))
    assert forward == pytest.approx(627.4e6, rel=1e-3)
    total = spline_flops.training_flops(forward, 50_000, 160) / spline_flops.EPOCH_UNIT
    assert total == pytest.approx(301.2, abs=0.1)
    assert total == pytest.approx(302, rel=0.01)


def test_resnet18_on_imagenet_costs_what_the_precursor_prints_unpruned():
    forward = spline_flops.forward_flops(models.build("resnet18", classes=1000, size=224), (3, 224, 224))
    assert forward == 3_637_254_632
    assert spline_flops.training_flops(forward, 1_281_167, 90) / 1e15 == pytest.approx(1259.13, rel=0.01)


@pytest.mark.parametrize(
    ("layer", "shape", "wanted"),
    [
        (nn.Linear(10, 4), (10,), 2 * 40 + 4),
        (nn.Conv2d(3, 5, 3, padding=1, bias=False), (3, 8, 8), 2 * 27 * 5 * 64),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (3, 8, 8), 3 * 3 * 64),
        (nn.MaxPool2d(2), (3, 8, 8), 3 * 16 * 4),
        (nn.AvgPool2d(2), (3, 8, 8), 3 * 16 * 4),
        (nn.AdaptiveAvgPool2d(1), (3, 8, 8), 3 * 64),
    ],
)
def test_layers_cost_what_the_rule_says(layer, shape, wanted):
    model = nn.Sequential(nn.Identity(), layer)
    model.register_parameter("dtype", nn.Parameter(torch.zeros(1)))
    assert spline_flops.forward_flops(model, shape) == wanted
