"""The network of the speed run: its counts, its whitening, its frozen first layer."""

import torch

from lib import models
from lib.names import DATASETS, NETWORKS


def test_parameters_equal_the_layer_table():
    convolutions = 24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256
    norms = 4 * (64 + 256 + 256)  # scales, which are not trained, and offsets, two of each a group
    with torch.device("meta"):
        model = models.build("speed_net")
    assert models.count_parameters(model) == 24 * 12 + 24 + 9 * convolutions + norms + 2560
    macs = 31**2 * 288 + 9 * (31**2 * 24 * 64 + 15**2 * (64 * 64 + 64 * 256) + 7**2 * (256**2 + 256**2) + 3**2 * 256**2)
    assert models.count_macs(model, (1, 3, 32, 32)) == macs + 2560


def test_whitened_patches_have_variance_one_in_every_direction_and_no_correlation():
    random = torch.Generator().manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 34, 34, generator=random), 3, 1)  # neighbours correlate
    model = models.build("speed_net")
    model.whiten(images, epsilon=0.0)
    seen = model.first(images).transpose(0, 1).flatten(1)[:12].double()
    second = seen @ seen.T / seen.shape[1]
    torch.testing.assert_close(second, torch.eye(12, dtype=torch.float64), atol=1e-3, rtol=1e-3)
    both = model.first(images)
    torch.testing.assert_close(both[:, :12], -both[:, 12:], atol=1e-4, rtol=1e-4)


def test_the_first_filters_and_the_scales_are_not_trained():
    model = models.build("speed_net")
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == {"first.weight"} | {f"groups.{k}.bn{n}.weight" for k in range(3) for n in (1, 2)}


def test_every_convolution_passes_its_inputs_on_at_first():
    group = models.build("speed_net").groups[0]
    images = torch.rand(1, 24, 8, 8)
    torch.testing.assert_close(group.conv1(images)[:, :24], images)


def test_it_takes_grey_images_and_other_sizes():
    assert models.build("speed_net", channels=1, size=64)(torch.zeros(2, 1, 64, 64)).shape == (2, 10)
    assert DATASETS["cifar10"]["size"] >= NETWORKS["speed_net"]["cifar"]
