"""The trials of paper 1, on a small network of digits that is trained for one epoch, and on networks by name."""

import math

import numpy as np
import pytest
import torch

from lib import baselines, data, latent, models, training
from lib.latent import head as heads
from lib.latent import trials
from lib.masks import magnitude_mask
from lib.study import generator

DENSE = {"source": "trained", "network": "digits_cnn", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
DENSE |= {"width": 0.25, "batch_size": 64, "augment": False}
FEATURES = DENSE | {"train_images": 0, "test_images": 0}
TUNING = {"tuning_epochs": 3, "tuning_lr": 0.1, "tuning_batch": 64, "tuning_images": 0, "every_epoch": True, "trial": 0}
LOWEST = {"method": "lowest", "fraction": 0.5, "structure": "weights", "mode": "paper"}
LAYER = DENSE | {"trial": 0, "steps": 2, "rate": 0.05, "tuning_batch": 64, "test_images": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


def head_row(folder, **changes):
    return trials.heads(folder, folder).run([FEATURES | TUNING | LOWEST | changes]).iloc[0]


def changed_row(folder, **change):
    """As `head_row`, without the fields of a method."""
    return trials.heads(folder, folder).run([FEATURES | TUNING | change]).iloc[0]


def halves(split):
    return (data.Split(split.images[start::2], split.labels[start::2]) for start in (0, 1))


def test_stored_inputs_give_the_accuracies_of_the_whole_network(folder):
    row = trials.features(folder, folder).run([FEATURES]).iloc[0]
    model, dataset = baselines.baseline(DENSE, folder)
    for part, split in zip(("train", "select", "test"), (dataset.train, *halves(dataset.test)), strict=True):
        found = training.evaluate(model, split, dataset)
        assert row[f"dense_{part}_accuracy"] == pytest.approx(100 * found["accuracy"])
        assert row[f"dense_{part}_loss"] == pytest.approx(found["loss"], rel=1e-5)
        assert row[f"{part}_n"] == len(split)
    assert row["hessian_max"] > 0 and row["gradient_norm"] > 0 and row["learning_lr"] == 0
    weight = model.get_submodule(models.head_name(model)).weight
    assert row["effective_number"] == pytest.approx(latent.effective_number(weight)) and row["inputs"] == 16


def test_the_first_images_of_a_split_are_stored(folder):
    study, spec = trials.features(folder, folder), DENSE | {"train_images": 60, "test_images": 31}
    row = study.run([spec]).iloc[0]
    assert (row["train_n"], row["select_n"], row["test_n"]) == (60, 16, 15)
    few, all_images = (trials._loaded(study.weights(one), "cpu") for one in (spec, FEATURES))
    assert torch.allclose(few["train_inputs"], all_images["train_inputs"][:60], atol=1e-6)
    assert torch.equal(few["test_labels"], all_images["test_labels"][:15])


def test_a_head_is_learnt_where_the_network_sees_another_data_set(folder):
    study = trials.features(folder, folder)
    row = study.run([FEATURES | {"seen": "digits16"}]).iloc[0]
    assert row["learning_lr"] in heads.LEARNING_LRS and row["classes"] == 10
    cached = trials._loaded(study.weights(FEATURES | {"seen": "digits16"}), "cpu")
    losses = {}
    for rate in heads.LEARNING_LRS:
        learnt = heads.learn_head(cached["train_inputs"], cached["train_labels"], 10, rate)
        losses[rate] = heads.evaluate_head(cached["select_inputs"], cached["select_labels"], *learnt)[1]
    assert row["learning_lr"] == min(losses, key=losses.get)
    assert row["dense_select_loss"] == pytest.approx(min(losses.values()))
    model, own = baselines.baseline(DENSE, folder)
    seen = data.load("digits16")
    inputs = trials.head_inputs(
        model, seen.train.first(20), own
    )  # the statistics are those of the network's own images
    assert torch.allclose(cached["train_inputs"][:20], inputs, atol=1e-6)
    pruned = head_row(folder, seen="digits16")
    assert pruned["dense_test_loss"] == pytest.approx(row["dense_test_loss"])


def test_images_of_other_channels_are_refused(folder):
    with pytest.raises(ValueError, match="takes images of 1 channels, and cifar10 has 3: let it see another"):
        trials.cache_features(FEATURES | {"seen": "cifar10"}, "cpu", folder / "x", dense_folder=folder)


def test_epoch_zero_is_the_pruned_network_and_ap2_never_falls_below_it(folder):
    row = head_row(folder)
    model, dataset = baselines.baseline(DENSE, folder)
    head = model.get_submodule(models.head_name(model))
    with torch.no_grad():
        magnitude = head.weight.abs().flatten().sort().values
        head.weight[head.weight.abs() <= magnitude[row["removed"] - 1]] = 0
    assert row["removed"] == row["weights"] // 2 and len(row["ap2"]) == 4
    assert row["ap2"][0] == pytest.approx(magnitude[: row["removed"]].double().square().sum().item(), rel=1e-5)
    for part, half in zip(("select", "test"), halves(dataset.test), strict=True):
        assert row[f"{part}_accuracy"][0] == pytest.approx(100 * training.evaluate(model, half, dataset)["accuracy"])
    assert row["epoch"].tolist() == [0, 1, 2, 3]
    assert min(row["ap2"]) == row["ap2"][0] and row["ap2_to_last"][-1] == 0


def test_the_dense_control_removes_nothing_and_still_moves(folder):
    row = head_row(folder, method="none", fraction=0.0)
    assert row["removed"] == 0 and row["ap2"][0] == 0 < row["ap2"][-1]
    assert row["test_accuracy"][0] == row["dense_test_accuracy"]


def test_the_first_and_the_last_epoch_alone_are_those_of_the_whole_record(folder):
    short, whole = head_row(folder, every_epoch=False), head_row(folder)
    assert short["epoch"].tolist() == [0, 3]
    for name in ("ap2", "ap2_to_last", "t_ap3", "ggn_ap3", "kfac_ap3", "outputs_moved", "test_loss", "select_loss"):
        assert np.allclose(short[name], whole[name][[0, -1]], rtol=1e-12)


def test_measures_at_prune_time_equal_automatic_differentiation(folder):
    row, study = head_row(folder), trials.features(folder, folder)
    cached = {name: value.double() for name, value in trials._loaded(study.weights(FEATURES), "cpu").items()}
    inputs, weight, bias = (cached[name] for name in ("train_inputs", "weight", "bias"))
    delta = weight * ~magnitude_mask(weight, 0.5, "lowest")

    def loss(flat):
        return torch.nn.functional.cross_entropy(inputs @ flat.view_as(weight).T + bias, cached["train_labels"].long())

    flat = delta.flatten()
    _, product = torch.autograd.functional.hvp(loss, weight.flatten(), flat)
    assert row["ggn_ap3"][0] == pytest.approx(0.5 * (flat @ product).item(), rel=1e-4)
    p = (inputs @ weight.T + bias).softmax(1)
    outputs = torch.stack([one.diag() - torch.outer(one, one) for one in p]).mean(0)
    factored = torch.kron(outputs, inputs.T @ inputs / len(inputs))
    assert row["kfac_ap3"][0] == pytest.approx(0.5 * (flat @ factored @ flat).item(), rel=1e-4)
    assert row["input_ap3"][0] == pytest.approx(0.5 * (inputs.square().mean(0) * delta**2).sum().item(), rel=1e-4)
    logits, change = inputs @ weight.T + bias, inputs @ delta.T
    assert row["outputs_moved"][0] == pytest.approx((change.square().sum() / logits.square().sum()).item(), rel=1e-4)
    for name, value in latent.entry_divergences(weight, weight - delta).items():
        assert row[f"entry_{name}"] == pytest.approx(value, rel=1e-4)


def test_drawn_masks_depend_on_the_trial_and_on_the_inputs(folder):
    rows = [
        changed_row(folder, fraction=0.5, exponents=exponents, trial=trial)
        for exponents, trial in (([1.0, 0.0], 0), ([1.0, 0.0], 1), ([1.0, -3.0], 0), ([-4.0, 0.0], 0))
    ]
    assert {row["removed"] for row in rows} == {80} and len({row["ap2"][0] for row in rows}) == 4
    assert rows[3]["ap2"][0] < rows[0]["ap2"][0] and rows[2]["outputs_moved"][0] < rows[0]["outputs_moved"][0]


def test_matched_masks_have_equal_ap2_and_differ_in_what_they_cost(folder):
    target = changed_row(folder, fraction=0.5, exponents=[0.0, 0.0])["ap2"][0]
    model, _ = baselines.baseline(DENSE, folder)
    target = round(float(target / latent.ap2(weight := model.get_submodule("classifier").weight, 0 * weight)), 3)
    rows = [changed_row(folder, fraction=0.5, exponents=[delta], target=target) for delta in (-2.0, 2.0)]
    for row in rows:
        assert row["removed"] == 80
        assert row["ap2"][0] == pytest.approx(target * latent.ap2(weight, 0 * weight), rel=1.1e-3)
    assert rows[0]["outputs_moved"][0] < rows[1]["outputs_moved"][0] and rows[0]["gamma"] != rows[1]["gamma"]


def test_low_rank_and_quantised_heads_are_measured_as_pruned_ones(folder):
    weight = baselines.baseline(DENSE, folder)[0].get_submodule("classifier").weight.detach()
    rank, bits = changed_row(folder, rank=3), changed_row(folder, bits=4)
    lost = torch.linalg.svdvals(weight.double())[3:].square().sum().item()
    assert rank["ap2"][0] == pytest.approx(lost, rel=1e-4)
    form = heads.quantised(weight, 4)
    assert bits["ap2"][0] == pytest.approx(latent.ap2(weight, form.weight(form.parts)))
    assert "removed" not in rank and len(bits["ggn_ap3"]) == 4


def test_pruning_in_steps_ends_with_as_many_weights_as_in_one_shot(folder):
    steps, shot = head_row(folder, steps_of_pruning=3), head_row(folder)
    assert steps["removed"] == shot["removed"] == 80 and steps["epoch"].tolist() == shot["epoch"].tolist()
    assert steps["ap2"][0] < shot["ap2"][0] and steps["ap2"][-1] != shot["ap2"][-1]


def test_a_trial_repeats(folder, tmp_path):
    for change in (LOWEST | {"method": "random"}, {"fraction": 0.5, "exponents": [1.0, 1.0]}, {"bits": 2}):
        again = changed_row(tmp_path / "smoke", **change)
        for name in ("ap2", "test_loss", "kfac_ap3"):
            assert again[name].tolist() == changed_row(folder, **change)[name].tolist()


def test_random_masks_differ_by_trial_and_are_nested_in_the_fraction(folder):
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    spec = {"method": "random", "mode": "paper", "structure": "weights"}
    masks = {
        (trial, fraction): heads.pruned_head(weight, torch.ones(16), spec | {"trial": trial, "fraction": fraction})[1]
        for trial in (0, 1)
        for fraction in (0.3, 0.8)
    }
    assert not torch.equal(masks[0, 0.3], masks[1, 0.3])
    assert (masks[0, 0.3] | ~masks[0, 0.8]).all()


def test_mode_code_moves_the_survivors_and_repeats_the_last_epoch(folder):
    plain, code = (head_row(folder, method="highest", mode=mode) for mode in ("paper", "code"))
    assert code["ap2"][0] > 1.5 * plain["ap2"][0] and code["removed"] == plain["removed"]
    aliased = head_row(folder, method="random", mode="code")
    assert len(set(aliased["ap2"])) == 1 and len(set(aliased["test_loss"])) > 1


@pytest.mark.parametrize(("structure", "shape"), (("inputs", (1, 16)), ("classes", (10, 1)), ("n:m", None)))
def test_structures_remove_whole_columns_rows_or_a_share_of_each_group(structure, shape):
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    for method in ("lowest", "highest", "random"):
        spec = {"fraction": 0.5, "method": method, "structure": structure, "trial": 0}
        mask = heads.structured_mask(weight, spec, generator(0, "mask"))
        assert (~mask).sum() == 80
        if shape:
            assert (mask == mask.any(0 if shape[0] == 1 else 1, keepdim=True)).all()
        else:
            assert (mask.view(10, 2, 8).sum(-1) == 4).all()


def test_controls_have_equal_ap2_and_the_pruning_is_the_first(folder):
    spec = FEATURES | {"method": "highest", "fraction": 0.3, "trial": 0, "groups": [10, 100, 10**6], "draws": 2}
    row = trials.projections(folder, folder).run([spec]).iloc[0]
    assert row["control"][0] == "pruning" and len(row["control"]) == 7
    assert np.allclose(row["control_ap2"], row["ap2"], rtol=1e-5)
    assert len(set(row["control_test_loss"])) == 7
    assert row["contiguous_r2"][-1] == pytest.approx(row["ap2"], rel=1e-6)  # groups of one weight average nothing
    assert row["shuffled_r2"][-1] == pytest.approx(row["ap2"], rel=1e-6)
    one = head_row(folder, method="highest", fraction=0.3)
    assert one["test_loss"][0] == pytest.approx(row["control_test_loss"][0], rel=1e-5)
    for name in ("fisher_ap3", "kfac_ap3", "ggn_ap3"):
        assert one[name][0] == pytest.approx(row[f"control_{name}"][0], rel=1e-5)
        assert len(set(row[f"control_{name}"])) == (5 if name == "fisher_ap3" else 7)  # which signs do not change


def layer_row(folder, **changes):
    return trials.layers(folder, folder).run([LAYER | LOWEST | changes]).iloc[0]


@pytest.mark.parametrize("structure", ("weights", "filters"))
def test_pruning_a_hidden_layer_leaves_the_others_and_the_stored_network_alone(folder, structure):
    model, dataset = baselines.baseline(DENSE, folder)
    layer = trials.hidden_layers(model, 2)[1]
    row = layer_row(folder, layer=layer, structure=structure, method="highest")
    weight = model.get_submodule(layer).weight
    assert 0.5 < row["relative_ap2"] < 1 and row["inputs_moved"] > 0 and row["fisher_ap2"] > 0
    assert row["ap2"] == pytest.approx(row["relative_ap2"] * latent.ap2(weight, 0 * weight), rel=1e-6)
    few = dataset.test.first(100)
    before = trials.head_inputs(model, few, dataset)
    mask = heads.structured_mask(weight.detach(), LOWEST | {"method": "highest", "structure": structure}, None)
    with torch.no_grad():
        weight.mul_(mask)
    after = trials.head_inputs(model, few, dataset)
    moved = ((after - before).square().sum() / before.square().sum()).item()
    assert row["inputs_moved"] == pytest.approx(moved, rel=1e-4)
    for name, net in {"dense": baselines.baseline(DENSE, folder)[0], "pruned": model}.items():
        for part, half in zip(("select", "test"), halves(few), strict=True):
            found = training.evaluate(net, half, dataset)
            assert row[f"{name}_{part}_accuracy"] == pytest.approx(100 * found["accuracy"])
            assert row[f"{name}_{part}_loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_fine_tuning_keeps_the_mask_of_a_hidden_layer_and_moves_all_later_layers(folder):
    model, _ = baselines.baseline(DENSE, folder)
    names = trials.layer_names(model)
    row = layer_row(folder, layer=names[1])
    assert row["later_layers"].tolist() == names[2:] and names[-1] == "classifier"
    assert row["tuned_ap2"] > row["ap2"]  # the removed squares stay, and the others are added
    assert (row["later_relative_ap2"] > 0).all() and (row["later_t_ap3"] > 0).all()
    assert row["tuned_test_loss"] != row["pruned_test_loss"]


def test_fine_tuning_a_pruned_network_is_that_of_torch_with_the_weights_set_to_zero(folder):
    row = layer_row(folder, layer="features.3", steps=1)
    model, dataset = baselines.baseline(DENSE, folder)
    layer = model.get_submodule("features.3").weight
    mask = magnitude_mask(layer.detach(), 0.5, "lowest")
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    with torch.no_grad():
        layer.mul_(mask)
    model.train()
    noise, order = generator(0, "augmentation"), generator(0, "order")
    images, labels = next(iter(data.batches(dataset.train.first(64), 64, order)))
    images = data.augment(images, noise, dataset.padding, dataset.flip)
    loss = torch.nn.functional.cross_entropy(model(data.normalise(images, dataset.mean, dataset.std)), labels)
    loss.backward()
    layer.grad.mul_(mask)
    torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True).step()
    head, dense = model.get_submodule("classifier").weight, before["classifier.weight"]
    expected = latent.ap2(dense, head) / latent.ap2(dense, 0 * dense)
    assert row["later_relative_ap2"][-1] == pytest.approx(expected, rel=1e-3)
    assert row["tuned_ap2"] == pytest.approx(latent.ap2(before["features.3.weight"], layer), rel=1e-4)


def test_the_dense_control_is_fine_tuned_alike_and_measured_in_all_layers(folder):
    row = layer_row(folder, method="none", fraction=0.0)
    names = trials.layer_names(baselines.baseline(DENSE, folder)[0])
    assert row["later_layers"].tolist() == names and row["ap2"] == row["outputs_moved"] == row["inputs_moved"] == 0
    assert row["pruned_test_loss"] == row["dense_test_loss"] and 0 < row["tuned_ap2"] and 0 < row["tuned_inputs_moved"]


def test_one_threshold_and_one_fraction_remove_equally_many_weights_of_the_network(folder):
    model, _ = baselines.baseline(DENSE, folder)
    weights = {name: model.get_submodule(name).weight.detach() for name in trials.layer_names(model)}
    sizes = sum(weight.numel() for weight in weights.values())
    spec = LOWEST | {"trial": 0}
    everywhere, uniform = (trials.layer_masks(model, spec | {"scope": scope}) for scope in trials.SCOPES)
    removed = torch.cat([weight[~everywhere[name]].abs() for name, weight in weights.items()])
    kept = torch.cat([weight[everywhere[name]].abs() for name, weight in weights.items()])
    assert removed.max() <= kept.min() and len(removed) == round(0.5 * sizes)
    for name, weight in weights.items():
        assert torch.equal(uniform[name], magnitude_mask(weight, 0.5, "lowest"))
    rows = [layer_row(folder, scope=scope) for scope in trials.SCOPES]
    assert rows[0]["ap2"] < rows[1]["ap2"] and rows[0]["later_layers"].tolist() == [*weights]
    squares = sum(latent.ap2(weight, weight * everywhere[name]) for name, weight in weights.items())
    assert rows[0]["ap2"] == pytest.approx(squares)
    random = trials.layer_masks(model, spec | {"scope": "uniform", "method": "random"})
    assert not torch.equal(random["features.7"].flatten()[:144], random["features.10"].flatten()[:144])


def test_layer_trials_that_cannot_be_made_are_refused_in_a_sentence(folder):
    for change, sentence in (
        ({"scope": "all"}, "scope must be one of network, uniform and structure"),
        ({"scope": "uniform", "structure": "filters"}, 'structure "weights", not uniform and filters'),
        ({"source": "public", "network": "resnet50-pretrained"}, "head of resnet50-pretrained is untrained"),
        ({"layer": "features.3", "steps": 99}, "99 steps of 64 images exceed the 1347 training images: lower steps"),
    ):
        with pytest.raises(ValueError, match=sentence):
            trials.prune_layer(LAYER | LOWEST | change, "cpu", folder / "x", dense_folder=folder)


def test_the_fisher_diagonal_of_layers_is_that_of_drawn_labels(folder, monkeypatch):
    monkeypatch.setattr(trials, "FISHER_IMAGES", 40)
    trials._fisher.cache_clear()
    found = trials._fisher(trials.json.dumps(DENSE), folder, "cpu")
    trials._fisher.cache_clear()
    model, dataset = baselines.baseline(DENSE, folder)
    inputs = trials.head_inputs(model, dataset.train.first(40), dataset)
    head = model.get_submodule("classifier")
    probabilities = heads.head_probabilities(inputs, head.weight.detach(), head.bias.detach())
    labels, stream = [], generator(0, "labels of the Fisher information")
    for one in probabilities:
        labels.append(torch.multinomial(one[None], 1, generator=stream).item())
    by_hand = heads.head_empirical_fisher_diagonal(
        inputs, torch.tensor(labels), head.weight.detach(), head.bias.detach()
    )
    assert torch.allclose(found["classifier"], by_hand, rtol=1e-3, atol=1e-8)
    assert [*found] == trials.layer_names(model) and all((one >= 0).all() for one in found.values())


# Tasks


def stored_tasks(classes=30, images=40):
    """Stored inputs of overlapping classes, of which the second task has those of the first one."""
    stream = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(classes, 16, generator=stream)
    centres[10:20] = centres[torch.randperm(10, generator=stream)]
    stored = {"weight": torch.zeros(classes, 16)}
    for part in ("train", "select", "test"):
        labels = torch.arange(classes).repeat_interleave(images)
        noise = torch.randn(len(labels), 16, generator=stream)
        stored |= {f"{part}_inputs": (centres[labels] + noise).relu(), f"{part}_labels": labels}
    return stored


def test_heads_of_equal_tasks_are_matched_and_need_no_steps(monkeypatch, folder):
    monkeypatch.setattr(trials, "_cached", lambda *_: stored_tasks())
    monkeypatch.setattr(heads, "LEARNING_LRS", (0.03,))
    row = trials.transfer_heads({}, "cpu", folder / "x", folder=folder, dense_folder=folder)
    pairs = list(zip(row["from_task"], row["to_task"], strict=True))
    assert sorted(pairs) == [(i, j) for i in range(3) for j in range(3) if i != j]
    equal, other = pairs.index((0, 1)), pairs.index((2, 1))
    assert row["ap2"][equal] < 0.5 * row["ap2"][other] and row["ap2"][equal] < row["ap2_from_zero"][equal]
    assert row["accuracy"][equal] > row["to_accuracy"][equal] - 3 > row["accuracy"][other]
    assert abs(row["loss_gap"][equal]) < row["loss_gap"][other]
    assert row["steps"][equal] <= row["steps"][other] and 0 < row["steps_from_zero"][equal] < trials.TRANSFER_STEPS
    assert all(len(values) == 6 for values in row.values())
    assert row == trials.transfer_heads({}, "cpu", folder / "x", folder=folder, dense_folder=folder)


def test_steps_are_counted_until_the_accuracy_is_first_reached(monkeypatch):
    stored = trials._task(stored_tasks(), 2)
    assert stored["train_labels"].unique().tolist() == list(range(10)) and len(stored["test_labels"]) == 400
    zero = torch.zeros(10, 16), torch.zeros(10)
    assert trials.steps_to(stored, zero, 0.03, 10.0) == 0
    few, more = (trials.steps_to(stored, zero, 0.03, accuracy) for accuracy in (40.0, 80.0))
    assert 0 < few < more < trials.TRANSFER_STEPS
    monkeypatch.setattr(trials, "TRANSFER_STEPS", 5)
    assert trials.steps_to(stored, zero, 0.03, 101.0) == 5


def test_too_few_classes_make_no_transfer(folder):
    with pytest.raises(ValueError, match="10 classes make 1 tasks of 10, and a transfer needs two: .* cifar100"):
        trials.transfer_heads(FEATURES, "cpu", folder / "x", folder=folder, dense_folder=folder)


def test_layers_are_spread_from_the_first_to_the_last_and_leave_out_the_head():
    model = models.build("resnet20")
    names = trials.hidden_layers(model, 4)
    assert names[0] == "conv1" and names[-1] == "layer3.2.conv2" and len(set(names)) == 4 and "fc" not in names
    assert trials.hidden_layers(models.build("digits_cnn", channels=1, size=8), 99)[-1] != "classifier"


# The networks that paper 1 names, one step at reduced resolution

NAMED = (("alexnet", 64, 40960), ("vgg16", 32, 40960), ("resnet50", 32, 20480), ("vit_b_16", 32, 7680))


@pytest.mark.parametrize(("name", "size", "weights"), NAMED)
def test_a_named_network_is_pruned_measured_and_tuned_for_one_step(name, size, weights):
    model = models.build(name, form="imagenet", size=size).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, size, size), generator=generator, dtype=torch.uint8)
    split = data.Split(images, torch.arange(8) % 10)
    dataset = data.Data(name, split, split, split, 10, 3, size, (0.5,) * 3, (0.25,) * 3, 4, True)
    inputs = trials.head_inputs(model, split, dataset)
    head = model.get_submodule(models.head_name(model))
    torch.nn.init.normal_(head.weight, std=0.02, generator=generator)  # that of a new ViT is zero
    weight, bias = head.weight.detach(), head.bias.detach()
    assert weight.numel() == weights and inputs.shape == (8, weight.shape[1])
    with torch.no_grad():
        logits = model(data.normalise(images, dataset.mean, dataset.std))
    assert torch.allclose(inputs @ weight.T + bias, logits, atol=1e-4)

    spec = {"method": "random", "fraction": 0.8, "mode": "paper", "structure": "weights", "trial": 0}
    start, mask, _ = heads.pruned_head(weight, torch.ones(weight.shape[1]), spec)
    options = {"epochs": 1, "lr": 0.01, "batch": 8, "stream": generator}
    record = heads.finetune_head(inputs, split.labels, heads.masked(start, mask), bias, **options)
    assert (record[-1][0][~mask] == 0).all() and not torch.equal(record[0][0], record[-1][0])
    assert 0 < latent.ap2(weight, start) <= latent.ap2(weight, record[-1][0])
    groups = len(latent.group_means(weight))
    assert groups == math.ceil(weights / (weights // 100)) and latent.t_ap3(weight, start) > 0
    covariance = latent.fisher_covariance(heads.head_hessian_diagonal(inputs, weight, bias))
    assert latent.kl_gaussian(weight.flatten(), covariance, start.flatten(), covariance) > 0
    assert 0 <= heads.evaluate_head(inputs, split.labels, *record[-1])[0] <= 100

    layer = trials.hidden_layers(model, 3)[1]
    hidden = model.get_submodule(layer).weight
    filters = heads.structured_mask(hidden, spec | {"fraction": 0.5, "structure": "filters"}, generator)
    assert (~filters).sum() == filters.numel() // 2
