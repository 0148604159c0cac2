"""Option-A shortcuts in the form that follows pruned streams."""

import torch

from lib import channels, models
from lib import channels as channels_graph
from lib.study import generator


def test_the_traceable_network_is_the_same_function():
    model = models.build("resnet20").eval()
    images = torch.randn(4, 3, 32, 32, generator=generator(0))
    with torch.no_grad():
        before = model(images)
        assert torch.equal(channels_graph.traceable(model)(images), before)


def test_a_shortcut_continues_the_channels_that_survive_on_both_sides():
    model = models.build("resnet20")
    pruned = channels.keep(model, {"conv1": [0, 3, 9], "layer2.0.conv2": [0, 8, 11, 12, 17, 31]})
    source = pruned.layer2[0].downsample.source.tolist()
    # channel c of the first stream continues as c + 8 in the second; 0, 3 and 9 are now 0, 1 and 2
    assert source == [-1, 0, 1, -1, 2, -1]


def test_output_pixels_are_those_of_each_layers_map():
    model = channels_graph.traceable(models.build("resnet20"))
    _, areas = channels_graph.build(model, 32)
    names = {module: name for name, module in model.named_modules()}
    by_name = {names[module]: area for module, area in areas.items()}
    assert (by_name["conv1"], by_name["layer2.0.conv1"], by_name["layer3.2.conv2"], by_name["fc"]) == (1024, 256, 64, 1)
