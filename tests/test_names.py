"""A name says which network, in which form, on which data; an unknown one is a sentence with the nearest."""

import pytest

from lib import parameters as names
from lib.provenance import CompanionError


def test_a_name_is_a_network_and_a_variant_that_it_has():
    assert names.split_name("resnet50-imagenet") == ("resnet50", "imagenet") and names.split_name("mlp") == ("mlp", "")
    assert names.split_name("alexnet-ungrouped") == ("alexnet", "ungrouped")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg16-384", "Unknown variant of vgg16"),
        ("resnet20-imagenet", "Unknown form of resnet20 .*known are cifar"),
        ("vgg16-ungrouped", "Unknown form of vgg16"),
        ("vgg-224", "Unknown network 'vgg-224'.*vgg16"),
    ],
)
def test_an_unknown_network_or_variant_is_one_sentence(name, message):
    with pytest.raises(CompanionError, match=message):
        names.split_name(name)


def test_every_variant_is_of_a_form_that_some_network_has():
    forms = {form for network in names.NETWORKS.values() for form in network}
    assert set(names.VARIANTS.values()) <= forms == {"cifar", "imagenet", "ungrouped"}
