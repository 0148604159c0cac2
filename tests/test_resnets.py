"""Residual networks: their shortcuts and initialisation."""

import torch
from torch import nn

from lib import models
from lib import models as resnets


def test_batchnorm_scale_starts_at_a_half_in_vgg16_and_preresnet101_only():
    for name, scale in (("vgg16", 0.5), ("preresnet101", 0.5), ("alexnet", 1.0), ("resnet20", 1.0)):
        for module in models.build(name, width=1.0 if name == "alexnet" else 0.25).modules():
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == scale).all() and (module.bias == 0).all()


def test_option_a_subsamples_and_pads_with_zero_channels():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    y = resnets.PadShortcut(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(y[:, 2:6, row, column], x[:, :, 2 * row, 2 * column])
    assert not y[:, :2].any() and not y[:, 6:].any()
    assert not any("downsample" in name for name in models.build("resnet8").state_dict())
