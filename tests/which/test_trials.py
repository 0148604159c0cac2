"""The trials of damage, on small networks of digits that are trained for one epoch."""

from collections import Counter

import pytest
import torch

from lib import data, models
from lib.parameters import CHANGES
from lib.provenance import CompanionError
from lib.study import generator
from lib.truncation.sweep import kernel
from lib.which import measures, trials

SPEC = {"source": "trained", "network": "resnet8", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
SPEC |= {"batch_size": 64, "augment": False}
COUNTS = {"few": 16, "bn_images": 64, "head_images": 64, "test_images": 60}
CHANGE = SPEC | COUNTS | {"layer": "layer2.0.conv2", "kind": "magnitude", "strength": 0.5, "trial": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


@pytest.fixture(scope="module")
def dense():
    return measures.reference(models.build("resnet8", channels=1, size=8, seed=1), data.load("digits"), 16)


def change(folder, **fields):
    return trials.change_layer(CHANGE | fields, "cpu", folder / "x", dense_folder=folder)


def test_every_kind_is_tried_where_a_layer_allows_it_and_no_strength_twice():
    specs = trials.damage_specs([SPEC], 10, CHANGES, [0.3, 0.5, 0.8])
    kinds = Counter((spec["layer"], spec["kind"]) for spec in specs)
    assert {kind for _, kind in kinds} == set(CHANGES)
    assert all(count <= 3 for count in kinds.values())
    assert kinds["layer1.0.conv1", "KH"] == 2  # rank 1 or 2, of 3
    reading = {layer for layer, kind in kinds if kind == "merged"}
    assert reading == {f"layer{stage}.0.conv2" for stage in (1, 2, 3)}  # only they read nodes of one layer
    with pytest.raises(CompanionError, match=r"Unknown kind of change 'magnitud'.*magnitude"):
        trials.damage_specs([SPEC], 2, ["magnitud"], [0.5])


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_saves_about_its_strength_and_keeps_the_shape(dense, kind):
    spec = CHANGE | {"kind": kind, "strength": 0.6}
    whole = kernel(dense.model.get_submodule(spec["layer"]))
    changed, saved = trials.changed_kernel(dense, spec, generator(0, kind))
    assert changed.shape == whole.shape and not torch.equal(changed, whole)
    if kind in ("noise", "shrunk"):
        assert saved == 0 and (changed - whole).norm() / whole.norm() == pytest.approx(0.6, rel=1e-4)
    elif kind == "quantised":
        assert saved == 1 - 3 / 32
    elif kind in ("dropped", "merged"):
        assert saved == pytest.approx(0.6 * 1.5, rel=0.1)  # also the filters of the nodes, half as many weights
    else:
        assert 0.6 - 0.02 <= saved <= 0.6 + 0.25


def test_merging_copies_of_a_node_changes_no_output():
    model = models.build("digits_cnn", channels=1, size=8, seed=0).eval()
    first, norm, second = model.features[0], model.features[1], model.features[3]
    with torch.no_grad():
        first.weight[1::2] = first.weight[::2]
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[1::2] = tensor[::2]
    dense = measures.reference(model, data.load("digits"), 16)
    merged, _ = trials.without_nodes(dense, "features.3", "merged", 0.5)
    other = measures.with_kernel(dense.model, "features.3", merged)
    assert not torch.equal(second.weight, other.features[3].weight)
    assert torch.allclose(other(dense.images), dense.logits, atol=1e-4)


def test_a_trial_says_the_same_twice_and_leaves_the_dense_network_alone(folder):
    first = change(folder, kind="random")
    change(folder, kind="filters", strength=0.9)
    second = change(folder, kind="random")
    assert {k: v for k, v in first.items() if not k.startswith("made_")} == {
        k: v for k, v in second.items() if not k.startswith("made_")
    }
    assert (first["gap_odd"] + first["gap_even"]) / 2 == pytest.approx(first["gap_once"], abs=1e-6)
    assert first["family"] == "resnet/digits" and 0 < first["depth"] < 1 and 0 < first["size"] < 1


def test_what_measures_read_changes_measures_and_no_damage(folder):
    fitted, unseen = (change(folder, held_out=held_out) for held_out in (False, True))
    assert fitted["gap_once"] == unseen["gap_once"] and fitted["ap2"] == unseen["ap2"]
    assert fitted["output_error"] != unseen["output_error"] and fitted["gap_few"] != unseen["gap_few"]


def test_shrinking_before_a_batch_norm_costs_nothing_once_it_is_repaired(folder):
    row = change(folder, kind="shrunk", strength=0.8)
    assert abs(row["gap_once"]) > 10 * abs(row["gap_bn"])
    assert abs(row["gap_bn"]) < 0.01


def test_a_family_holds_networks_that_differ_in_depth_alone():
    assert trials.family("resnet20-B", "cifar10") == trials.family("resnet56-B", "cifar10") == "resnet-B/cifar10"
    names = [("resnet20", "cifar10"), ("resnet20-B", "cifar10"), ("resnet20", "cifar100"), ("vanilla_cnn", "cifar10")]
    assert len({trials.family(*name) for name in names}) == 4


def test_a_ladder_moves_fewer_weights_the_more_parameters_it_keeps(folder):
    spec = SPEC | COUNTS | {"kept": 0.6, "rungs": 5}
    row = trials.climb(spec, "cpu", folder / "x", dense_folder=folder)
    assert row["mcb"] == sorted(row["mcb"]) and len(row["loss"]) == 5
    assert all(0 < one < 1 for one in row["relative_ap2"])


def test_random_layers_are_neither_of_low_entropy_nor_redundant(folder):
    row = trials.look_at_layer(SPEC | COUNTS, "cpu", folder / "x", dense_folder=folder)
    assert row["layer"] == [f"layer{stage}.0.conv1" for stage in (1, 2, 3)]
    ratios = [own / random for own, random in zip(row["entropy"], row["random_entropy"], strict=True)]
    assert all(0.7 < ratio < 1.02 for ratio in ratios)  # an epoch moves little from the random start
    drawn = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twins = torch.cat([drawn, 2 * drawn])
    assert trials.nearest_twin(twins, torch.zeros(80)) == pytest.approx(0, abs=1e-9)
    assert trials.nearest_twin(drawn, torch.zeros(40)) > 0.3
