"""The measures of one changed layer, on small networks of digits, against other ways to compute them."""

import itertools

import pytest
import torch

from lib import baselines, compare, data, masks, models
from lib.which import measures

SHAPE = {"classes": 10, "channels": 1, "size": 8}


@pytest.fixture(scope="module")
def dense():
    return measures.reference(models.build("resnet8", seed=1, **SHAPE), data.load("digits"), 24)


def pruned(dense, layer, fraction=0.5):
    weight = dense.model.get_submodule(layer).weight.detach()
    return weight * masks.magnitude_mask(weight, fraction, "lowest")


def test_measures_of_one_layer_are_those_that_compare_takes_of_whole_networks(dense):
    layer = "layer2.0.conv1"
    row = measures.change_of_layer(dense, layer, pruned(dense, layer))
    table = compare.measure(dense.model, measures.with_kernel(dense.model, layer, pruned(dense, layer)), dense.images)
    table = table.set_index("layer")
    for name in ("ap2", "relative_error", "norm_loss", "t_ap3", "curvature_ap3"):
        assert row[name] == pytest.approx(table.loc[layer, name], rel=1e-3), name
    assert row["kl"] == pytest.approx(table.loc["total", "kl"], rel=1e-3)
    entropy = table.loc[layer, "entropy_OUT_before"] - table.loc[layer, "entropy_OUT_after"]
    assert row["entropy_change"] == pytest.approx(entropy, abs=1e-6)


def test_codes_before_a_change_do_not_count(dense):
    modules = dict(dense.model.named_modules())
    last = [name for name, module in modules.items() if isinstance(module, torch.nn.Conv2d)][-1]
    row = measures.change_of_layer(dense, last, pruned(dense, last))
    behind = [name for name in dense.codes.names if list(modules).index(name) > list(modules).index(last)]
    assert 0 < row["last_code_change"] and row["code_change"] == row["last_code_change"] / len(behind)


def test_nothing_is_measured_where_nothing_changes(dense):
    layer = "layer1.0.conv2"
    row = measures.change_of_layer(dense, layer, dense.model.get_submodule(layer).weight.detach().clone())
    assert {name for name in measures.MEASURES if abs(row[name]) > 1e-6} == set()
    assert row["gap_few"] == pytest.approx(0, abs=1e-6)


def test_a_zero_kernel_has_no_entropy_and_a_relative_error_of_one(dense):
    layer = "layer1.0.conv2"
    row = measures.change_of_layer(dense, layer, torch.zeros_like(dense.model.get_submodule(layer).weight))
    assert row["entropy_change"] != row["entropy_change"]
    assert row["relative_error"] == row["output_error"] == row["norm_loss"] == 1


def test_the_curvature_of_a_change_is_its_quadratic_form_in_the_gauss_newton_matrix(dense):
    layer = dense.model.fc
    delta = 0.1 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), models.inputs_of(layer) as seen:
        p = dense.model(dense.images).softmax(1).double()
    moved = seen[0].double() @ delta.double().T
    by_image = [m @ (torch.diag(q) - torch.outer(q, q)) @ m for q, m in zip(p, moved, strict=True)]
    expected = 0.5 * torch.stack(by_image).mean().item()
    assert measures.half_curvature(dense, "fc", delta) == pytest.approx(expected, rel=1e-4)


def test_the_mean_square_along_all_sign_directions_is_that_of_the_whole_map():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    image = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(model, image).square().sum()
    signs = [torch.tensor([s], dtype=torch.float32) for s in itertools.product((-1.0, 1.0), repeat=3)]
    along = [measures.slopes(model, image, one)[1].square().sum() for one in signs]
    assert torch.stack(along).mean().item() == pytest.approx(jacobian.item(), rel=1e-5)


def test_a_gradient_predicts_the_loss_of_a_small_change(dense):
    layer = "layer3.0.conv1"
    weight = dense.model.get_submodule(layer).weight.detach()
    small = weight + 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    row = measures.change_of_layer(dense, layer, small)
    assert row["gap_few"] == pytest.approx(row["taylor_2"], abs=2e-4)


def test_every_measure_belongs_to_one_view_and_the_dense_network_stays_as_it_is(dense):
    named = [name for view in measures.VIEWS.values() for name in view]
    assert len(named) == len(set(named)) and set(measures.MEASURES) < set(named)
    before = {name: value.clone() for name, value in dense.model.state_dict().items()}
    measures.change_of_layer(dense, "layer1.0.conv1", pruned(dense, "layer1.0.conv1", 0.9))
    assert all(torch.equal(value, before[name]) for name, value in dense.model.state_dict().items())


def test_a_head_is_learnt_where_the_checkpoint_has_none():
    dataset, spec = data.load("digits"), {"network": "digits_cnn", "dataset": "digits"}
    model = baselines.untrained(spec)
    measures.learnt_head(model.eval(), dataset, 400)
    dense = measures.reference(model, dataset, 400)
    assert dense.loss < 2.25  # that of a guess is 2.30; the features are random
