"""Whole networks truncated by a plan and retrained, on small networks of digits that are trained for one epoch."""

import math
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib import baselines, data, models, training
from lib.data import Split
from lib.truncation import forms, measures, recovery, sweep
from lib.truncation.measures import unfold
from lib.truncation.trials import part

DENSE = {"source": "trained", "network": "digits_cnn", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
DENSE |= {"width": 0.25, "batch_size": 64, "augment": False}
LAYERS = ["features.0", "features.3", "features.7", "features.10"]
PLAN = {"layers": LAYERS, "forms": ["OUT", "KH", "tucker2", "OUT.KW"], "ranks": [[3], [1], [6, 4], [9]]}
RETRAINING = {"retrain_epochs": 2, "retrain_images": 300, "retrain_lr": 0.05, "retrain_batch": 64, "retrain_seed": 0}
SPEC = DENSE | PLAN | RETRAINING | {"part": "report", "images": 80, "barrier": True}
# By form of the plan: the cuts whose ranks it bounds.
BOUNDED = {"OUT": ("OUT",), "KH": ("KH",), "tucker2": ("OUT", "IN"), "OUT.KW": ("OUT.KW",), "OUT+IN": ("OUT", "IN")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


@pytest.fixture(scope="module")
def rows(folder):
    """A row by arm of retraining."""
    frame = recovery.recoveries(folder, folder).run([SPEC | {"arm": arm} for arm in recovery.ARMS])
    assert set(frame["status"]) == {"done"}, frame["reason"].tolist()
    return {row["arm"]: row.dropna() for _, row in frame.iterrows()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def network(name="digits_cnn", **options):
    """A network in float64 whose statistics of BatchNorm are those of some Gaussian images."""
    options = {"channels": 1, "size": 8, "width": 0.25} | options
    model = models.build(name, **options).double().train()
    with torch.no_grad():
        for seed in range(3):
            model(gaussian(30, options["channels"], 8, 8, seed=seed))
    return model.eval()


def ranks_of(kernel, form):
    return [int(torch.linalg.matrix_rank(unfold(kernel.double(), cut), rtol=1e-6)) for cut in BOUNDED[form]]


def parameters_left(model, plan):
    shapes = {name: sweep.kernel(model.get_submodule(name)).shape for name in plan["layers"]}
    return models.count_parameters(model) - recovery.saved(shapes, plan)


def test_a_plan_gives_its_layers_their_ranks_and_leaves_everything_else_alone():
    model = network()
    plan = PLAN | {"forms": ["OUT", "KH", "OUT+IN", "OUT.KW"]}
    other = deepcopy(model)
    recovery.apply_plan(other, plan)
    for name, form, ranks in zip(plan["layers"], plan["forms"], plan["ranks"], strict=True):
        before, after = (sweep.kernel(one.get_submodule(name)) for one in (model, other))
        assert ranks_of(after, form) == ranks, name
        if form in ("OUT", "KH", "OUT.KW"):
            values = torch.linalg.svdvals(unfold(before, form))
            assert (before - after).norm().item() == pytest.approx(values[ranks[0] :].norm().item(), rel=1e-9)
    untouched = {f"{name}.weight" for name in LAYERS}
    for (name, value), changed in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, changed) == (name not in untouched), name


def test_a_linear_layer_is_truncated_as_a_matrix():
    model = models.build("mlp", channels=1, size=8).double()
    before = model[3].weight.detach().clone()
    recovery.apply_plan(model, {"layers": ["3"], "forms": ["OUT"], "ranks": [[5]]})
    left, values, right = torch.linalg.svd(before)
    assert torch.allclose(model[3].weight, (left[:, :5] * values[:5]) @ right[:5], atol=1e-12)


def test_a_factorised_plan_gives_the_outputs_of_the_truncated_network():
    model, images = network(), gaussian(4, 1, 8, 8, seed=9)
    truncated, factorised = deepcopy(model), deepcopy(model)
    recovery.apply_plan(truncated, PLAN)
    recovery.factorise_plan(factorised, PLAN)
    with torch.no_grad():
        expected, got, dense = truncated(images), factorised(images), model(images)
    assert (got - expected).norm() < 1e-10 * expected.norm()
    assert (dense - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("joint", ("tucker2", "OUT+IN"))
def test_a_factorised_plan_of_a_truncated_network_gives_its_outputs_with_strides_and_shortcuts(joint):
    model, images = network("resnet8", channels=3, shortcut="B"), gaussian(4, 3, 8, 8, seed=9)
    plan = {"layers": ["layer2.0.conv1", "layer2.0.downsample.0", "layer3.0.conv2"]}
    plan |= {"forms": ["OUT.KH", "OUT", joint], "ranks": [[5], [2], [4, 4]]}
    recovery.apply_plan(model, plan)
    factorised = deepcopy(model)
    recovery.factorise_plan(factorised, plan)
    with torch.no_grad():
        assert (factorised(images) - model(images)).norm() < 1e-10 * model(images).norm()


@pytest.mark.parametrize("form", ("OUT", "IN", "OUT.KH", "OUT+IN"))
def test_a_linear_layer_is_factorised_as_a_kernel_of_one_pixel(form):
    model, images = network("mlp"), gaussian(4, 1, 8, 8, seed=9)
    name = next(name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    plan = {"layers": [name], "forms": [form], "ranks": [[5, 5] if "+" in form else [5]]}
    recovery.apply_plan(model, plan)
    factorised = deepcopy(model)
    recovery.factorise_plan(factorised, plan)
    assert {type(layer) for layer in factorised.get_submodule(name)} == {nn.Linear}
    again = recovery.multiply_out(model, factorised, [name])
    assert type(again.get_submodule(name)) is nn.Linear
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert parameters_left(model, plan) == models.count_parameters(factorised) < models.count_parameters(model)
    with torch.no_grad():
        assert (factorised(images) - model(images)).norm() < 1e-10 * model(images).norm()


def test_a_grouped_convolution_is_factorised_and_multiplied_out_in_a_plan():
    model = nn.Sequential(nn.Conv2d(4, 12, 3, groups=2, dtype=torch.float64), nn.ReLU())
    plan = {"layers": ["0"], "forms": ["OUT.KH"], "ranks": [[3]]}
    recovery.apply_plan(model, plan)
    factorised = deepcopy(model)
    recovery.factorise_plan(factorised, plan)
    again = recovery.multiply_out(model, factorised, ["0"])
    assert again[0].weight.shape == (12, 2, 3, 3) and torch.allclose(again[0].weight, model[0].weight, atol=1e-12)


@pytest.mark.parametrize("layer", (nn.Linear(8, 6), nn.Conv2d(8, 6, 3)), ids=("linear", "convolution"))
def test_frozen_layers_of_a_plan_stay_frozen(layer):
    model = nn.Sequential(deepcopy(layer)).requires_grad_(False)
    recovery.factorise_plan(model, {"layers": ["0"], "forms": ["OUT"], "ranks": [[2]]})
    assert len(list(model.parameters())) == 3 and not any(one.requires_grad for one in model.parameters())


def test_parameters_of_a_plan_are_those_of_the_factorised_network_unless_the_dense_kernel_is_smaller():
    model = network()
    cheap = {"layers": ["features.3", "features.7"], "forms": ["OUT", "tucker2"], "ranks": [[2], [3, 2]]}
    factorised = deepcopy(model)
    recovery.factorise_plan(factorised, cheap)
    assert parameters_left(model, cheap) == models.count_parameters(factorised) < models.count_parameters(model)
    same = cheap | {"forms": ["OUT", "OUT+IN"]}
    assert parameters_left(model, same) == models.count_parameters(factorised)
    dear = {"layers": ["features.3", "features.7"], "forms": ["OUT", "OUT"], "ranks": [[2], [15]]}
    factorised = deepcopy(model)
    recovery.factorise_plan(factorised, {name: values[:1] for name, values in dear.items()})
    assert parameters_left(model, dear) == models.count_parameters(factorised)


def test_statistics_become_plain_averages_over_batches_and_nothing_else_moves():
    dataset = data.load("digits", limit=300)
    norm = nn.BatchNorm2d(1, momentum=0.3)
    norm.weight.data.fill_(2.0)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(64, 10))
    norm.running_mean.fill_(9.0)
    parameters = [parameter.detach().clone() for parameter in model.parameters()]
    images = (dataset.train.images.double() / 255 - dataset.mean[0]) / dataset.std[0]
    for batches, sizes in ((200, (128, 128, 44)), (2, (128, 128))):
        recovery.reestimate_batch_norm(model, dataset, batches=batches)
        parts = images[: sum(sizes)].split(sizes)
        assert norm.running_mean.item() == pytest.approx(np.mean([one.mean().item() for one in parts]), abs=1e-6)
        assert norm.running_var.item() == pytest.approx(np.mean([one.var().item() for one in parts]), rel=1e-5)
    assert norm.momentum == 0.3 and not model.training and not norm.training
    assert all(torch.equal(one, other) for one, other in zip(parameters, model.parameters(), strict=True))


def test_there_is_no_barrier_between_a_network_and_itself_and_one_to_its_mirror(folder):
    model, dataset = baselines.baseline(DENSE, folder)
    images = part(dataset, SPEC)
    state = deepcopy(model.state_dict())
    assert abs(recovery.loss_barrier(model, deepcopy(model), dataset, images)) < 1e-9
    mirrored = deepcopy(model)  # channels in another order: the same function at another place
    order = torch.randperm(model.features[3].out_channels, generator=seeded(0))
    with torch.no_grad():
        for values in (*mirrored.features[3].parameters(), *mirrored.features[4].parameters()):
            values.copy_(values[order])
        mirrored.features[7].weight.copy_(mirrored.features[7].weight[:, order])
    assert recovery.loss_barrier(model, mirrored, dataset, images) > 0.01
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_truncated_network_makes_the_errors_that_its_row_counts(folder):
    row = recovery.plans(folder, folder).run([SPEC]).iloc[0]
    assert row["status"] == "done", row["reason"]
    model, dataset = baselines.baseline(DENSE, folder)
    images = Split(dataset.test.images[:80], dataset.test.labels[:80])
    before = training.evaluate(model, images, dataset)
    other = deepcopy(model)
    recovery.apply_plan(other, PLAN)
    after = training.evaluate(other, images, dataset)
    assert row["lost"] - row["gained"] == row["wrong"] - row["dense_wrong"] and row["n"] == 80
    assert (row["wrong"], row["dense_wrong"]) == (len(after["wrong"]), len(before["wrong"]))
    assert row["lost"] == len(set(after["wrong"]) - set(before["wrong"]))
    assert row["loss"] == pytest.approx(after["loss"]) and row["dense_loss"] == pytest.approx(before["loss"])
    moved = [(model.get_submodule(name).weight - other.get_submodule(name).weight).norm().item() for name in LAYERS]
    whole = [model.get_submodule(name).weight.norm().item() for name in LAYERS]
    assert row["relative_error"] == pytest.approx(math.hypot(*moved) / math.hypot(*whole), rel=1e-5)
    assert row["parameters"] < row["dense_parameters"] == models.count_parameters(model)


def test_every_arm_starts_from_its_network_and_is_measured_after_every_epoch(folder, rows):
    planned = recovery.plans(folder, folder).run([SPEC]).iloc[0]
    for arm, row in rows.items():
        assert len(row["wrong"]) == len(row["loss"]) == (2 if arm == "batch norm" else 3), arm
        start = "dense_" if arm == "untruncated" else ""
        assert row["wrong"][0] == planned[f"{start}wrong"]
        assert row["loss"][0] == pytest.approx(planned[f"{start}loss"], rel=1e-4)
        assert row["dense_wrong"] == planned["dense_wrong"] and row["n"] == 80
        assert len(row["last_wrong"]) == row["wrong"][-1] and all(0 <= k < 80 for k in row["last_wrong"])


def test_projection_and_factors_keep_the_rank_and_dense_retraining_refills_it(rows):
    assert rows["projected"]["refilled"] < 1e-5 and rows["factorised"]["refilled"] < 1e-5
    assert rows["dense"]["refilled"] > 1e-3


def test_frozen_weights_stay_at_the_distance_of_the_truncation_and_only_compressed_arms_have_a_barrier(folder, rows):
    planned = recovery.plans(folder, folder).run([SPEC]).iloc[0]
    assert rows["batch norm"]["distance"] == pytest.approx(planned["relative_error"], rel=1e-6)
    assert rows["batch norm"]["loss"][1] != rows["batch norm"]["loss"][0]
    assert 0 < rows["untruncated"]["distance"] != rows["dense"]["distance"]
    for arm in ("dense", "projected", "factorised"):
        assert math.isfinite(rows[arm]["loss_barrier"]) and rows[arm]["loss_barrier"] >= -1e-9, arm
    for arm in ("batch norm", "untruncated"):
        assert not {"loss_barrier", "refilled"} & set(rows[arm].index)


def test_the_untruncated_arm_knows_nothing_of_the_plan(folder, rows):
    other = {"layers": LAYERS[1:2], "forms": ["IN"], "ranks": [[1]]}
    row = recovery.recoveries(folder, folder).run([SPEC | other | {"arm": "untruncated"}]).iloc[0]
    assert np.array_equal(row["wrong"], rows["untruncated"]["wrong"])
    assert np.array_equal(row["loss"], rows["untruncated"]["loss"])


def test_retraining_repeats_exactly_and_leaves_the_stored_network_alone(folder, rows, tmp_path):
    again = recovery.recoveries(tmp_path, folder).run([SPEC | {"arm": "factorised"}]).iloc[0]
    for name in ("wrong", "loss", "last_wrong"):
        assert np.array_equal(again[name], rows["factorised"][name])
    assert again["loss_barrier"] == rows["factorised"]["loss_barrier"]


def test_a_plan_without_layers_is_retrained_like_the_untruncated_network(folder, rows):
    row = recovery.recoveries(folder, folder).run([SPEC | dict.fromkeys(PLAN, []) | {"arm": "factorised"}]).iloc[0]
    assert row["status"] == "done", row["reason"]
    assert np.array_equal(row["wrong"], rows["untruncated"]["wrong"]) and row["refilled"] == 0
    unasked = recovery.recoveries(folder, folder).run([SPEC | {"arm": "projected", "barrier": False}]).iloc[0]
    assert "loss_barrier" not in unasked and unasked["loss"][-1] == rows["projected"]["loss"][-1]


def test_an_unknown_arm_is_refused_in_one_sentence(folder):
    with pytest.raises(Exception, match=r"^[^\n]+'frozen'[^\n]*\.$"):
        recovery.retrain(SPEC | {"arm": "frozen"}, "cpu", None, dense_folder=folder)


def test_epochs_show_images_that_were_not_seen_before_until_all_were():
    dataset = data.load("digits")
    spec = {"retrain_images": 300, "retrain_seed": 0}
    whole, laps = len(dataset.train), len(dataset.train) // 300
    places = {image.numpy().tobytes(): k for k, image in enumerate(dataset.train.images)}
    assert len(places) == whole
    epochs = []
    for epoch in range(laps + 1):
        split = recovery.epoch_images(dataset, spec, epoch)
        epochs.append([places[image.numpy().tobytes()] for image in split.images])
        assert torch.equal(split.labels, dataset.train.labels[epochs[-1]])
    assert len({place for one in epochs[:laps] for place in one}) == 300 * laps
    assert len(set(epochs[laps])) == 300 and epochs[laps] != epochs[0]
    again = recovery.epoch_images(dataset, spec, 1)
    assert torch.equal(again.images, dataset.train.images[epochs[1]])
    other = recovery.epoch_images(dataset, spec | {"retrain_seed": 1}, 1)
    assert not torch.equal(other.images, again.images)
    assert len(recovery.epoch_images(dataset, spec | {"retrain_images": 10**6}, 3)) == whole


def test_every_epoch_of_retraining_is_fitted_on_its_own_images(folder, monkeypatch):
    shown = []

    def fit(model, dataset, *, epochs, after_epoch, **_):
        for epoch in range(1, epochs + 1):
            shown.append(dataset.train.images.clone())
            after_epoch(epoch, model)

    monkeypatch.setattr(recovery.training, "fit", fit)
    recovery.retrain(SPEC | {"arm": "dense"}, "cpu", None, dense_folder=folder)
    dataset = baselines.baseline(DENSE, folder)[1]
    expected = [recovery.epoch_images(dataset, SPEC, epoch).images for epoch in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(shown, expected, strict=True))
    assert not torch.equal(*expected)


@pytest.fixture(scope="module")
def kernels():
    return {f"layer{k}": torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)}


@pytest.fixture
def spectra(kernels):
    rows = []
    for name, kernel in kernels.items():
        weights = {f"weights_{c}": measures.weights(measures.spectrum(kernel, c)).numpy() for c in measures.CUTS}
        rows.append({"layer": name, "shape": [8, 6, 3, 3], "cut": list(measures.CUTS)} | weights)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("form", ["OUT", "KH", "OUT.KW", "OUT+IN"])
def test_plan_at_an_error_takes_the_ranks_of_the_svd(kernels, spectra, form):
    plan = recovery.plan_at_error(spectra, form, 0.5)
    assert plan["layers"] == list(kernels) and set(plan["forms"]) == {form}
    for name, ranks in zip(plan["layers"], plan["ranks"], strict=True):
        expected = [measures.cut_svd(kernels[name], cut).rank_at(0.5) for cut in form.split("+")]
        assert ranks == expected


def test_plan_leaves_layers_dense_where_the_cut_does_not_apply(spectra):
    spectra.at[1, "cut"] = ["OUT"]
    assert recovery.plan_at_error(spectra, "KH", 0.5)["layers"] == ["layer0", "layer2"]
    assert recovery.plan_at_share(spectra, "KH", 0.9)["layers"] == ["layer0", "layer2"]


def test_plan_at_a_share_spends_the_budget_as_far_as_whole_ranks_allow(spectra):
    plan = recovery.plan_at_share(spectra, "OUT", 0.4)
    sizes = [forms.parameters((8, 6, 3, 3), "OUT", rank) for (rank,) in plan["ranks"]]
    one = forms.parameters((8, 6, 3, 3), "OUT", 1)
    budget = 0.4 * 3 * 8 * 6 * 9
    assert budget - one < sum(sizes) <= budget
    assert sorted((rank for (rank,) in plan["ranks"]), reverse=True) == [rank for (rank,) in plan["ranks"]]
    assert recovery.kept_share(spectra, plan) == pytest.approx(sum(sizes) / (3 * 8 * 6 * 9))


def test_no_rank_is_raised_beyond_what_saves_parameters(spectra):
    for (rank,) in recovery.plan_at_share(spectra, "OUT.KH", 0.99)["ranks"]:
        assert forms.parameters((8, 6, 3, 3), "OUT.KH", rank) < 8 * 6 * 9


def test_a_layer_outside_a_plan_keeps_all_its_parameters(spectra):
    plan = {"layers": ["layer1"], "forms": ["KH"], "ranks": [[1]]}
    assert recovery.kept_share(spectra, plan) == pytest.approx((2 * 432 + 3 + 8 * 6 * 3) / (3 * 432))


def test_cheapest_plan_spends_where_it_costs_least():
    entries = [("a", "OUT", 1, 9.0), ("a", "OUT", 4, 8.0), ("b", "OUT", 1, 0.1), ("b", "OUT", 4, 0.0)]
    table = pd.DataFrame(
        [{"layer": n, "shape": "8x8x3x3", "method": "cut", "cut": c, "rank": r, "rise": v} for n, c, r, v in entries]
    )
    dense = 8 * 8 * 9
    plan = recovery.cheapest_plan(table, "rise", (dense + 200) / (2 * dense))
    assert plan == {"layers": ["b"], "forms": ["OUT"], "ranks": [[1]]}
    assert recovery.cheapest_plan(table, "rise", 1) == plan | {"ranks": [[4]]}  # smaller and free


def test_cheapest_plan_spends_what_a_price_leaves_over():
    # By one price per parameter both layers move together; the budget has room for one more step of one of them.
    entries = [(n, r, v) for n in "ab" for r, v in ((1, 8.0), (3, 2.0), (5, 0.0))]
    table = pd.DataFrame([{"layer": n, "cut": "OUT", "rank": r, "rise": v} for n, r, v in entries])
    table = table.assign(shape="8x8x3x3", method="cut")
    plan = recovery.cheapest_plan(table, "rise", 80 * 8 / (2 * 8 * 8 * 9))
    assert sorted(rank for (rank,) in plan["ranks"]) == [3, 5]


@pytest.mark.parametrize("column", ["output_weights", "weights_OUT"])
def test_options_of_the_out_cut_hold_the_least_errors_of_every_rank(spectra, column):
    weights = [[0.7, 0.2, 0.1], [], [0.5, 0.5]]
    table = recovery.out_options(spectra.assign(**{column: weights}), column)
    assert table["layer"].tolist() == ["layer0"] * 3 + ["layer2"] * 2
    assert table["squared_error"].tolist() == pytest.approx([0.3, 0.1, 0, 0.5, 0])
    plan = recovery.cheapest_plan(table, "squared_error", 0.3)
    assert set(plan["forms"]) == {"OUT"} and plan["layers"] == ["layer0", "layer2"]
    first = spectra.head(1).assign(shape=[[32, 1, 3, 3]], **{column: [[1 / 9] * 9 + [1e-17] * 23]})
    assert recovery.out_options(first, column)["rank"].max() == 9  # of 32 output channels with nine inputs


def test_a_plan_by_other_prices_keeps_within_them():
    entries = [(n, c, r, v) for n in "ab" for c, r, v in (("OUT", 1, 8.0), ("OUT", 3, 2.0), ("IN", 1, 9.0))]
    table = pd.DataFrame([{"layer": n, "cut": c, "rank": r, "rise": v} for n, c, r, v in entries])
    table = table.assign(shape="8x8x3x3", method="cut")

    def prices(layer, shape, cut, rank):
        assert shape == (8, 8, 3, 3)
        return 10.0 if not cut else {"a": 1.0, "b": 5.0}[layer] * (rank + 1)

    assert recovery.cheapest_plan(table, "rise", 0.7, prices) == {"layers": ["a"], "forms": ["OUT"], "ranks": [[3]]}
    # the dense b costs nothing; a at rank 3 costs 4 of 20


def test_a_uniform_plan_by_price_has_the_largest_share_that_fits(spectra):
    def prices(layer, shape, cut, rank):
        return float(rank if cut else 8)

    plan = recovery.uniform_within(spectra, "OUT", 0.4, prices)
    total = sum(rank for (rank,) in plan["ranks"])
    assert total <= 0.4 * 3 * 8 < total + 3
    assert recovery.uniform_within(spectra, "OUT", 1.0, prices)["layers"] == []
    assert recovery.price_share(spectra, plan, prices) == total / 24
    part_of = {name: values[:1] for name, values in plan.items()}
    assert recovery.price_share(spectra, part_of, prices) == pytest.approx((part_of["ranks"][0][0] + 16) / 24)


def test_measured_prices_are_those_of_the_kernels_shape_and_lie_between_timed_ranks():
    spec = DENSE | {"layer": LAYERS[1], "shape": [8, 8, 3, 3], "map": 8, "cut": ["OUT"], "weights_OUT": [0.2] * 8}
    spectra = pd.DataFrame([spec, spec | {"layer": LAYERS[2], "shape": [16, 8, 3, 3], "map": 4}])
    twice = pd.concat([spectra, spectra.iloc[:1].assign(layer=LAYERS[0])])  # of the same shape, stride and map
    specs = recovery.timed_specs(spectra, ["OUT", "KH"], [0.5], 16)
    assert [(one["form"], one.get("rank")) for one in specs[:4]] == [
        ("dense", None),
        ("OUT", 1),
        ("OUT", 4),
        ("OUT", 8),
    ]
    assert len(specs) == len(recovery.timed_specs(twice, ["OUT"], [0.5], 16)) == 8 and specs[0]["stride"] == 1
    times = [9.0, 1.0, 4.0, 8.0, 90.0, 10.0, 40.0, 80.0]
    price = recovery.measured_prices(spectra, pd.DataFrame(specs).assign(made_latency_ms=times))
    assert price(LAYERS[1], (8, 8, 3, 3), "", 0) == 9 and price(LAYERS[2], (16, 8, 3, 3), "", 0) == 90
    assert price(LAYERS[1], (8, 8, 3, 3), "OUT", 2) == pytest.approx(2) and price(LAYERS[2], (), "OUT", 6) == 60


def test_a_weighted_plan_keeps_outputs_better_than_a_plain_one(folder):
    model, dataset = baselines.baseline(DENSE, folder)
    plan = {"layers": LAYERS[1:3], "forms": ["OUT", "OUT"], "ranks": [[3], [3]], "weighted": True}
    moments = recovery.plan_moments(model, plan, dataset)
    assert set(moments) == set(LAYERS[1:3]) and not recovery.plan_moments(model, plan | {"weighted": False}, dataset)
    plain, weighted = deepcopy(model), deepcopy(model)
    recovery.apply_plan(plain, plan)
    recovery.apply_plan(weighted, plan, moments)
    for name in plan["layers"]:
        kernel, *changed = (sweep.kernel(one.get_submodule(name)) for one in (model, plain, weighted))
        errors = [measures.output_error(kernel, one, moments[name]) for one in changed]
        assert errors[1] < errors[0] and ranks_of(changed[1], "OUT") == [3]
    row = recovery.plans(folder, folder).run([DENSE | plan | {"part": "report", "images": 80}]).iloc[0]
    assert row["status"] == "done" and row["loss"] == pytest.approx(
        training.evaluate(weighted, part(dataset, SPEC), dataset)["loss"], rel=1e-4
    )


@pytest.mark.parametrize(("form", "ranks"), (("OUT", 5), ("tucker2", (7, 6)), ("tt", (5, 9, 6)), ("cp", 20)))
def test_random_factors_give_outputs_of_the_variance_that_a_dense_layer_gives(form, ranks):
    """Statistical: mean variances over 60 layers differ by less than a quarter."""
    conv, x = nn.Conv2d(12, 16, 3, padding=1, bias=False), torch.randn(4, 12, 8, 8, generator=seeded(1))
    torch.manual_seed(0)
    variances = {"dense": [], "small": []}
    options = {"generator": seeded(2), "starts": 1, "iterations": 1} if form == "cp" else {}
    random = seeded(3)
    for _ in range(60):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        small = recovery.initialised(forms.factorise(conv, form, ranks, **options), ranks, conv.weight, random)
        with torch.no_grad():
            variances["dense"].append(conv(x).var().item())
            variances["small"].append(small(x).var().item())
    ratio = np.mean(variances["small"]) / np.mean(variances["dense"])
    assert 0.75 < ratio < 1.33
    assert sum(one.weight.numel() for one in small) == forms.parameters(conv.weight.shape, form, ranks)


TENSOR = DENSE | {"tensor_form": "tucker2", "budget": 0.4, "images": 60, "iterations": 20}
AFTER = {"retrain_epochs": 1, "retrain_lr": 0.01, "retrain_batch": 64, "retrain_precision": "float32"}


@pytest.mark.parametrize("form", ("tucker2", "tt", "cp"))
def test_tensorised_networks_keep_within_their_budget_and_are_read_on_both_parts(form, folder):
    specs = [TENSOR | {"tensor_form": form} | way for way in ({"way": "scratch"}, AFTER | {"way": "truncated"})]
    frame = recovery.tensorised(folder, folder).run(specs)
    assert frame["status"].tolist() == ["done"] * 2, frame["reason"].tolist()
    model = baselines.untrained(DENSE)
    convolutions = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)]
    whole = models.count_parameters(model)
    for row in frame.to_dict("records"):
        assert row["dense_parameters"] == whole > row["parameters"]
        fitting = [0.4 * size for size in convolutions]
        assert row["parameters"] <= whole - sum(convolutions) + sum(fitting) + convolutions[0]  # the first may not fit
        assert row["n"] == 60 and row["selection_n"] == 60 and 0 <= row["wrong"] <= 60
    dense = recovery.tensorise(DENSE | {"way": "dense", "images": 60}, "cpu", None, dense_folder=folder)
    model, dataset = baselines.baseline(DENSE, folder)
    found = training.evaluate(model, part(dataset, SPEC | {"images": 60}), dataset)
    assert dense["wrong"] == len(found["wrong"]) and dense["parameters"] == dense["dense_parameters"] == whole
    again = recovery.tensorise(specs[0], "cpu", None, dense_folder=folder)
    assert again["wrong"] == frame["wrong"].iloc[0]
    with pytest.raises(ValueError, match=r"^[^\n]+'distilled'[^\n]*\.$"):
        recovery.tensorise(specs[0] | {"way": "distilled"}, "cpu", None, dense_folder=folder)


def test_a_truncated_network_is_retrained_from_the_dense_one(folder, monkeypatch):
    seen = {}

    def fit(model, dataset, **options):
        seen["model"], seen["options"] = deepcopy(model), options

    monkeypatch.setattr(recovery.training, "fit", fit)
    recovery.tensorise(TENSOR | AFTER | {"way": "truncated"}, "cpu", None, dense_folder=folder)
    model, _ = baselines.baseline(DENSE, folder)
    kernel = sweep.kernel(model.get_submodule(LAYERS[2]))
    ranks = forms.best_ranks(kernel, "tucker2", 0.4 * kernel.numel())
    expected = forms.approximate(kernel, "tucker2", ranks)
    assert torch.allclose(forms.dense_kernel(seen["model"].get_submodule(LAYERS[2])), expected, atol=1e-5)
    assert (seen["options"]["epochs"], seen["options"]["lr"]) == (1, 0.01)
    recovery.tensorise(TENSOR | {"way": "scratch"}, "cpu", None, dense_folder=folder)
    assert (seen["options"]["epochs"], seen["options"]["lr"]) == (1, 0.1)  # of the dense recipe


def test_spectra_are_watched_from_the_initial_weights_to_the_last_epoch(folder):
    rows = recovery.watched(folder).run([DENSE | {"epochs": 2, "labels": label} for label in ("true", "shuffled")])
    assert rows["status"].tolist() == ["done"] * 2, rows["reason"].tolist()
    first, second = rows.to_dict("records")
    names = sweep.layer_names(baselines.untrained(DENSE))
    assert sorted(set(first["epoch"])) == [0, 1, 2] and set(first["layer"]) == set(names)
    start = [k for k, epoch in enumerate(first["epoch"]) if epoch == 0]
    assert [first["entropy"][k] for k in start] == [second["entropy"][k] for k in start]
    end = [k for k, epoch in enumerate(first["epoch"]) if epoch == 2]
    assert [first["entropy"][k] for k in end] != [second["entropy"][k] for k in end]
    model, _ = baselines.baseline(DENSE | {"epochs": 2}, folder)
    for k in end:
        expected = measures.entropy(
            measures.spectrum(sweep.kernel(model.get_submodule(first["layer"][k])), first["cut"][k])
        )
        assert first["entropy"][k] == pytest.approx(expected, rel=1e-6)
    assert first["train_loss"][1] < second["train_loss"][1]
