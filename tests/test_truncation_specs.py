"""Names in a profile's parameters become the specs of its networks and layers."""

import pandas as pd

from lib.truncation import trials as specs

COMMON = {"dataset": "digits", "epochs": 3, "source": "trained"}
KNOWN = [COMMON | {"network": name, "seed": seed} for name in ("digits_cnn", "resnet8") for seed in range(3)]
KNOWN += [KNOWN[0] | {"labels": "shuffled"}, {"source": "public", "network": "resnet20", "dataset": "cifar10"}]


def test_a_checkpoint_is_one_network_and_a_trained_one_as_many_as_seeds():
    found = specs.dense_specs(["resnet20/cifar10", "resnet8"], KNOWN, seeds=2)
    assert found[0] == {"source": "public", "network": "resnet20", "dataset": "cifar10"}
    assert found[1:] == [COMMON | {"network": "resnet8", "seed": seed} for seed in (0, 1)]


def test_enlarged_networks_are_trained_like_the_others_on_larger_digits():
    (found,) = specs.dense_specs(["vanilla_cnn"], KNOWN, ["vanilla_cnn"])
    assert found == COMMON | {"network": "vanilla_cnn", "seed": 0, "dataset": "digits16", "width": 0.25}


def test_layers_are_taken_in_steps_with_their_options():
    dense = specs.dense_specs(["resnet8"], KNOWN)
    every, third = specs.layer_specs(dense, images=5), specs.layer_specs(dense, 3)
    assert [one["layer"] for one in every][::3] == [one["layer"] for one in third]
    assert every[0]["layer"] == "conv1" and every[0]["images"] == 5 and every[0]["network"] == "resnet8"


def test_chosen_ranks_are_read_for_their_own_network_only():
    keys = [("resnet8", 0, "conv1", "OUT", 3), ("resnet8", 0, "conv1", "IN", 2), ("resnet8", 1, "conv1", "OUT", 5)]
    chosen = pd.DataFrame(keys, columns=["network", "seed", "layer", "cut", "rank"]).assign(dataset="digits")
    first, second = specs.report_specs(specs.dense_specs(["resnet8"], KNOWN, seeds=2), chosen, part="report")
    assert (first["cuts"], first["ranks"], first["part"]) == (["OUT", "IN"], [3, 2], "report")
    assert (second["seed"], second["cuts"], second["ranks"]) == (1, ["OUT"], [5])
    public = pd.DataFrame({"network": ["resnet20"], "dataset": ["cifar10"], "seed": [0]})
    assert len(specs.of_network(public, {"network": "resnet20", "dataset": "cifar10"})) == 1
