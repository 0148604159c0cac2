"""Re-estimated statistics are plain means over batches, and nothing else moves."""

import torch
from torch import nn

from lib import training as batch_norm
from lib.study import generator


def test_reestimated_batchnorm_is_the_mean_over_batches():
    model = nn.Sequential(nn.BatchNorm2d(2))
    images = torch.randn(6, 2, 4, 4, generator=generator(0))
    batch_norm.reestimate(model, images.split(2))
    expected = torch.stack([part.var((0, 2, 3)) for part in images.split(2)]).mean(0)
    assert torch.allclose(model[0].running_var, expected) and model[0].momentum == 0.1 and not model.training
    assert torch.allclose(model[0].running_mean, images.mean((0, 2, 3)), atol=1e-6)


def test_reestimating_draws_no_random_numbers():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    state = torch.get_rng_state()
    batch_norm.reestimate(model, [torch.ones(4, 1, 8, 8)])
    assert torch.equal(state, torch.get_rng_state())
