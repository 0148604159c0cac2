"""Each network that paper 2 names goes through the functions of 02_tensor_truncation at reduced resolution."""

import pytest
import torch

from lib import data, models
from lib.truncation import cuts, recovery, sweep
from lib.truncation import measures as truncation

NAMED = (  # network, form, pixels, layers: a large kernel, a 3x3, a 1x1 or linear one
    ("vanilla_cnn", "cifar", 16, ("features.12", "classifier.0")),
    ("resnet50", "cifar", 16, ("conv1", "layer4.1.conv2", "layer3.2.conv3")),
    ("resnet50", "imagenet", 32, ("conv1", "layer4.1.conv2")),
    ("vit_b_16", "imagenet", 32, ("conv_proj", "encoder.layers.encoder_layer_11.mlp.0")),
)


@pytest.mark.parametrize(("name", "form", "size", "layers"), NAMED)
def test_a_named_network_is_truncated_layer_by_layer_and_as_a_whole(name, form, size, layers):
    model = models.build(name, form=form, size=size).eval()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.get_submodule(models.head_name(model)).weight, std=0.1, generator=generator)
    images = torch.randint(256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    split = data.Split(images, torch.arange(4))
    dataset = data.Data(name, split, split, split, 10, 3, size, (0.5,) * 3, (0.25,) * 3, 4, True)
    assert set(layers) <= set(sweep.layer_names(model)) <= set(sweep.input_sizes(model, (1, 3, size, size)))
    x = data.normalise(images, dataset.mean, dataset.std)
    for layer in layers:
        kernel = sweep.kernel(model.get_submodule(layer))
        assert len(cuts.applicable_cuts(kernel.shape)) == (1 if kernel.shape[2] == 1 else 7)
        low = truncation.truncate(kernel, "OUT", 2)
        with torch.no_grad():
            first, changed = sweep.LayerSweep(model, layer)(x, [kernel, low])
            assert torch.allclose(first, model(x), atol=1e-3)
            weight = model.get_submodule(layer).weight
            recovery.apply_plan(model, {"layers": [layer], "forms": ["OUT"], "ranks": [[2]]})
            assert torch.allclose(weight.view(kernel.shape), low) and torch.allclose(changed, model(x), atol=1e-3)
