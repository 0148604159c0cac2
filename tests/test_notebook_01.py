"""Each network that paper 1 names goes through the functions of 01_latent_kl, one step at reduced resolution."""

import math

import pytest
import torch

from lib import data, models
from lib.latent import measures as latent
from lib.latent import trials as latent_trials
from lib.latent.measures import kl_gaussian
from lib.latent.trials import evaluate_head, finetune_head, head_hessian_diagonal

NAMED = (("alexnet", 64, 40960), ("vgg16", 32, 40960), ("resnet50", 32, 20480), ("vit_b_16", 32, 7680))


@pytest.mark.parametrize(("name", "size", "weights"), NAMED)
@pytest.mark.parametrize("method", ("lowest", "random"))
def test_a_named_network_is_pruned_measured_and_tuned_for_one_step(name, size, weights, method):
    model = models.build(name, form="imagenet", size=size).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, size, size), generator=generator, dtype=torch.uint8)
    split = data.Split(images, torch.arange(8) % 10)
    dataset = data.Data(name, split, split, split, 10, 3, size, (0.5,) * 3, (0.25,) * 3, 4, True)
    inputs = latent_trials.head_inputs(model, split, dataset)
    head = model.get_submodule(models.head_name(model))
    torch.nn.init.normal_(head.weight, std=0.02, generator=generator)  # that of a new ViT is zero
    weight, bias = head.weight.detach(), head.bias.detach()
    assert weight.numel() == weights and inputs.shape == (8, weight.shape[1])
    with torch.no_grad():
        logits = model(data.normalise(images, dataset.mean, dataset.std))
    assert torch.allclose(inputs @ weight.T + bias, logits, atol=1e-4)

    spec = {"method": method, "fraction": 0.8, "mode": "paper", "structure": "weights", "trial": 0}
    start, mask = latent_trials.pruned_head(weight, spec)
    record = finetune_head(inputs, split.labels, start, bias, mask, epochs=1, lr=0.01, batch=8, generator=generator)
    assert (record[-1][0][~mask] == 0).all() and not torch.equal(record[0][0], record[-1][0])
    assert 0 < latent.ap2(weight, start) <= latent.ap2(weight, record[-1][0])
    groups = len(latent.group_means(weight))
    assert groups == math.ceil(weights / (weights // 100)) and latent.t_ap3(weight, start) > 0
    covariance = latent.fisher_covariance(head_hessian_diagonal(inputs, weight, bias))
    assert kl_gaussian(weight.flatten(), covariance, start.flatten(), covariance) > 0
    assert 0 <= evaluate_head(inputs, split.labels, *record[-1])[0] <= 100

    layer = latent_trials.hidden_layers(model, 3)[1]
    hidden = model.get_submodule(layer).weight
    filters = latent_trials.structured_mask(hidden, 0.5, method, "filters", 0)
    assert (~filters).sum() == filters.numel() // 2
