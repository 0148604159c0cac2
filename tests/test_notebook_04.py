"""Each network that paper 4 names goes through the functions of 04_spline_early_bird, on a few inputs."""

import numpy as np
import pytest
import torch

from lib import models
from lib.spline import measures as spline
from lib.spline import selection
from lib.study import generator

NAMED = {
    "vgg16": ({"width": 0.125}, 13, 12 + 1),
    "preresnet101": ({"width": 0.25}, 11 * 3 * 3 + 1, 11 * 3 * 2),
    "resnet18": ({}, 20, 8),
    "alexnet-ungrouped": ({}, 5, 5 + 2),
    "resnet20": ({"width": 0.5}, 19, 9),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_network_is_coded_compared_and_pruned_by_the_spline_score(name):
    options, coded, prunable = NAMED[name]
    model, other = (models.build(name, **options, seed=seed).eval() for seed in (0, 1))
    probes = torch.randn(2, 3, 32, 32, generator=generator(0, "probes"))
    codes = [spline.activation_codes(network, probes) for network in (model, other)]
    assert len(codes[0].names) == coded
    distance = spline.code_distance(*codes)
    assert ((0 < distance) & (distance < 1)).all()
    found = selection.layers(model)
    assert len(found) == prunable
    small = selection.remove(model, 0.5, "signed").eval()
    modules = dict(small.named_modules())
    assert [len(modules[own.name].weight) for own in found] == [len(own) - len(own) // 2 for own in found]
    with torch.no_grad():
        assert np.isfinite(small(probes).numpy()).all()
    assert models.count_parameters(small) < 0.8 * models.count_parameters(model)


def test_alexnet_is_coded_in_its_five_convolutions_and_its_groups_are_refused():
    model = models.build("alexnet").eval()
    codes = spline.activation_codes(model, torch.randn(1, 3, 32, 32, generator=generator(0, "probes")))
    assert len(codes.names) == 5
    with pytest.raises(ValueError, match="ungrouped and depthwise"):
        selection.layers(model)
