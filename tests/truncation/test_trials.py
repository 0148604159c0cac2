"""The trials of paper 2 on single layers, on small networks of digits that are trained for one epoch."""

import itertools
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib import baselines, models, training
from lib.data import Data, Split
from lib.provenance import CompanionError
from lib.truncation import forms, measures, sweep, trials
from lib.truncation.measures import CUTS, MODES, applicable_cuts, entropy, relative_error, spectrum, truncate, unfold

CNN = {"source": "trained", "network": "digits_cnn", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
CNN |= {"width": 0.25, "batch_size": 64, "augment": False}
RESNET = CNN | {"network": "resnet8"}
PARTS = {"part": "report", "images": 60, "batch": 25}
GRID = {"shares": [0.25, 0.5], "joint_errors": [0.3]}
CONTROLS = {"errors": [0.1, 0.4], "subspaces": True}
FORMS = {"budgets": [0.5], "starts": 2, "iterations": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


def fake_data(test=11, validation=7):
    def numbered(n, first):
        images = torch.arange(first, first + n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 8, 8)
        return Split(images.contiguous(), torch.arange(n))

    statistics = {"mean": (0.5,), "std": (0.5,), "padding": 1, "flip": False}
    splits = numbered(30, 0), numbered(validation, 100), numbered(test, 200)
    return Data("digits", *splits, classes=10, channels=1, size=8, **statistics)


def seen(split):
    return split.images[:, 0, 0, 0].tolist()


def test_of_a_public_network_selection_and_report_share_no_image_and_are_the_test_images():
    spec = {"source": "public", "images": 99}
    halves = [seen(trials.part(fake_data(), spec | {"part": part})) for part in ("selection", "report")]
    assert sorted(halves[0] + halves[1]) == list(range(200, 211)) and abs(len(halves[0]) - len(halves[1])) == 1


def test_of_a_trained_network_selection_is_the_validation_split_and_report_the_test_split():
    spec = {"source": "trained", "images": 5}
    parts = [trials.part(fake_data(), spec | {"part": part}) for part in ("selection", "report")]
    assert [seen(split) for split in parts] == [list(range(100, 105)), list(range(200, 205))]
    assert all(split.labels.tolist() == [0, 1, 2, 3, 4] for split in parts)


def test_an_unknown_part_is_refused_in_one_sentence():
    with pytest.raises((ValueError, CompanionError), match=r"^[^\n]+'test'[^\n]+\.$"):
        trials.part(fake_data(), {"source": "trained", "images": 5, "part": "test"})


def run(study, folder, **changes):
    frame = study(folder, folder).run([CNN | PARTS | GRID | CONTROLS | FORMS | changes])
    assert frame["status"].tolist() == ["done"], frame["reason"].tolist()
    return frame.iloc[0]


LISTS = """
    method cut rank target draw relative_error norm_loss effective_norm_loss n wrong lost gained lost_even gained_even
    lost_first gained_first rise kl
"""


@pytest.mark.parametrize(
    ("study", "dense", "layer"),
    (
        (trials.truncations, CNN, "features.3"),
        (trials.truncations, RESNET, "layer2.0.conv1"),
        (trials.controlled, RESNET, "layer1.0.conv2"),
        (trials.formed, CNN, "features.7"),
    ),
)
def test_a_row_begins_with_the_dense_kernel_and_its_numbers_agree(folder, study, dense, layer):
    row = run(study, folder, **dense, layer=layer)
    assert len({len(row[name]) for name in LISTS.split()}) == 1 and set(row["n"]) == {60}
    assert row["method"][0] == "dense" and list(row["method"]).count("dense") == 1
    assert all(row[name][0] == 0 for name in "relative_error norm_loss effective_norm_loss kl rise lost gained".split())
    assert np.array_equal(np.subtract(row["lost"], row["gained"]), row["wrong"] - row["wrong"][0])
    for name in ("lost", "gained"):
        assert all(0 <= even <= whole for even, whole in zip(row[f"{name}_even"], row[name], strict=True))
        assert list(row[f"{name}_first"]) == list(row[name])  # all images are the first ones
    assert min(row["kl"]) >= 0 and max(row["kl"]) > 1e-3 and 0 < max(row["relative_error"])
    model, dataset = baselines.baseline(dense, folder)
    assert list(row["shape"]) == list(model.get_submodule(layer).weight.shape)
    plain = training.evaluate(model, Split(dataset.test.images[:60], dataset.test.labels[:60]), dataset)
    assert row["wrong"][0] == len(plain["wrong"]) and row["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_a_truncated_layer_makes_the_errors_of_the_network_with_the_truncated_kernel(folder):
    row = run(trials.truncations, folder, layer="features.3", part="selection", images=50)
    model, dataset = baselines.baseline(CNN, folder)
    some = Split(dataset.validation.images[:50], dataset.validation.labels[:50])
    before = set(training.evaluate(model, some, dataset)["wrong"])
    weight = model.get_submodule("features.3").weight
    dense = weight.detach().clone()
    for cut in ("OUT", "KW", "OUT.KH"):
        place = next(k for k, found in enumerate(row["cut"]) if found == cut)
        with torch.no_grad():
            weight.copy_(truncate(dense, cut, int(row["rank"][place])))
        after = training.evaluate(model, some, dataset)
        wrong = set(after["wrong"])
        numbers = (row["wrong"][place], row["lost"][place], row["gained"][place])
        assert numbers == (len(wrong), len(wrong - before), len(before - wrong)), cut
        assert row["loss"] + row["rise"][place] == pytest.approx(after["loss"], rel=1e-4)
        even = [sum(k % 2 == 0 for k in one) for one in (wrong - before, before - wrong)]
        assert even == [row["lost_even"][place], row["gained_even"][place]]


def test_kernels_that_are_hopeless_on_the_first_images_are_not_looked_at_again(folder, monkeypatch):
    spec = {"layer": "features.3", "part": "report", "images": 200}
    whole = run(trials.truncations, folder, **spec)
    monkeypatch.setattr(trials, "HOPELESS", (3.0, 0.1))
    row = run(trials.truncations, folder, **spec, first=50)
    assert row["loss"] == pytest.approx(whole["loss"]) and row["n_first"] == 50
    zero = list(row["method"]).index("zero")
    worst = max(3.0, 0.1 * 2 * (row["lost_first"][zero] - row["gained_first"][zero]))
    counted = ("wrong", "lost", "gained", "lost_even", "gained_even")
    for k, n in enumerate(row["n"]):
        hopeless = k != zero and 2 * (row["lost_first"][k] - row["gained_first"][k]) > worst
        assert n == (50 if hopeless else 200)
        if not hopeless:
            assert [row[name][k] for name in counted] == [whole[name][k] for name in counted]
            assert row["rise"][k] == pytest.approx(whole["rise"][k], abs=1e-5)
            assert row["kl"][k] == pytest.approx(whole["kl"][k], abs=1e-5)
        else:
            assert (row["lost"][k], row["gained"][k]) == (row["lost_first"][k], row["gained_first"][k])
    assert 50 in set(row["n"])


def test_zeroed_layers_of_a_network_are_those_that_sweeps_of_its_layers_find(folder, monkeypatch):
    spec = RESNET | PARTS | {"images": 60, "first": 40, "evaluation": "float32"}
    rows = []
    for points in (200.0, 20.0):
        monkeypatch.setattr(trials, "HOPELESS", (points, 0.1))
        rows.append(trials.zero_layers(spec, "cpu", None, dense_folder=folder))
    row, brief = rows
    alone = trials.layer_specs([RESNET], **PARTS | {"images": 60, "first": 40}, cuts=[], ranks=[])
    assert row["layer"] == [one["layer"] for one in alone] and row["n"] == [60] * len(alone)
    swept = trials.truncations(folder, folder).run(alone)
    assert [list(methods) for methods in swept["method"]] == [["dense", "zero"]] * len(alone)
    for name in ("lost", "gained", "lost_first", "gained_first"):
        assert row[name] == [one[1] for one in swept[name]]
    assert any(row["lost"])
    for k, n in enumerate(brief["n"]):
        hopeless = 100 * (row["lost_first"][k] - row["gained_first"][k]) > 20 * 40
        assert n == (40 if hopeless else 60)
        assert brief["lost"][k] == row["lost_first" if hopeless else "lost"][k]
    assert set(brief["n"]) == {40, 60}


def test_a_layer_is_read_again_with_chosen_ranks_beside_zero(folder):
    row = run(trials.truncations, folder, layer="features.3", cuts=["OUT"], ranks=[2])
    assert list(row["method"]) == ["dense", "zero", "cut"] and row["rank"][2] == 2


def test_the_zero_kernel_loses_all_norm_and_shrinking_loses_its_error(folder):
    row = run(trials.truncations, folder, layer="features.3")
    zero = list(row["method"]).index("zero")
    assert row["relative_error"][zero] == row["norm_loss"][zero] == row["effective_norm_loss"][zero] == 1
    row = run(trials.controlled, folder, **RESNET, layer="layer1.0.conv2")
    for k in range(len(row["method"])):
        if row["method"][k] == "shrunk":
            assert row["norm_loss"][k] == pytest.approx(row["target"][k], rel=1e-5)
            assert row["effective_norm_loss"][k] == pytest.approx(row["target"][k], rel=1e-5)


def test_trials_repeat_exactly_and_the_store_answers_the_second_time(folder, tmp_path):
    spec = CNN | PARTS | CONTROLS | {"layer": "features.3"}
    first, second = (trials.controlled(place, folder).run([spec]).iloc[0] for place in (tmp_path / "a", tmp_path / "b"))
    for name in LISTS.split():
        assert np.array_equal(first[name], second[name]), name
    study = trials.controlled(tmp_path / "a", folder)
    assert not study.missing([spec]) and np.array_equal(study.rows([spec]).iloc[0]["kl"], first["kl"])


def test_spectra_are_shares_and_entropies_are_those_of_the_kernel_and_of_random_kernels(folder):
    row = trials.spectra(folder, folder).run([CNN | {"layer": "features.3"}]).iloc[0]
    assert row["status"] == "done", row["reason"]
    model, _ = baselines.baseline(CNN, folder)
    kernel = sweep.kernel(model.get_submodule("features.3"))
    assert list(row["cut"]) == list(applicable_cuts(kernel.shape)) == list(CUTS)
    assert list(row["shape"]) == list(kernel.shape) and row["map"] == 8
    assert row["norm"] == pytest.approx(kernel.norm().item())
    assert row["usage"] == pytest.approx(((1 + 7 / 8 * 2) / 3) ** 2)  # three taps: 7/8, 1 and 7/8 of 8 positions
    random = torch.distributions.Normal(0.0, 1.0)
    torch.manual_seed(0)
    draws = [random.sample(kernel.shape) for _ in range(100)]
    for k, cut in enumerate(row["cut"]):
        values = row[f"weights_{cut}"]
        assert sum(values) == pytest.approx(1) and sorted(values, reverse=True) == list(values)
        assert len(values) == min(unfold(kernel, cut).shape)
        assert row["entropy"][k] == pytest.approx(entropy(spectrum(kernel, cut)), rel=1e-9)
        assert row["half_error"][k] == pytest.approx(
            relative_error(kernel, truncate(kernel, cut, len(values) // 2)), rel=1e-4
        )
        entropies = np.array([entropy(spectrum(one, cut)) for one in draws])
        close = 6 * entropies.std() * (1 / trials.RANDOM_DRAWS + 1 / 100) ** 0.5
        assert abs(row["random_entropy"][k] - entropies.mean()) < close
        assert row["random_lowest"][k] < row["random_entropy"][k]
        assert row["profile_lowest"][k] < row["profile_entropy"][k] < row["random_entropy"][k] + close
        tails = [relative_error(one, truncate(one, cut, len(values) // 2)) for one in draws[:20]]
        assert row["random_half_error"][k] == pytest.approx(np.mean(tails), rel=0.05)


def test_kernels_alone_have_entropies_and_no_lists_of_weights(folder):
    spec = CNN | {"layer": "features.3"}
    whole, alone = (trials.spectra(folder, folder).run([spec | more]).iloc[0] for more in ({}, {"kernels_alone": True}))
    assert list(alone["entropy"]) == list(whole["entropy"]) and list(alone["output_weights"]) == []
    assert "weights_OUT" in whole and "weights_OUT" not in alone


def test_output_weights_are_the_least_errors_of_the_outputs(folder):
    row = trials.spectra(folder, folder).run([CNN | {"layer": "features.3"}]).iloc[0]
    model, dataset = baselines.baseline(CNN, folder)
    kernel = sweep.kernel(model.get_submodule("features.3"))
    moment = trials.layer_moment(model, "features.3", dataset)
    for k in (1, 2, 5):
        best = measures.output_error(kernel, measures.truncate_outputs(kernel, k, moment), moment)
        assert sum(row["output_weights"][k:]) == pytest.approx(best**2, rel=1e-4)
    linear = CNN | {"network": "mlp", "layer": "1"}
    assert not len(trials.spectra(folder, folder).run([linear]).iloc[0]["output_weights"])


def test_spectra_leave_out_the_cuts_that_do_not_apply(folder):
    row = trials.spectra(folder, folder).run([CNN | {"layer": "features.0"}]).iloc[0]
    cut = list(applicable_cuts((8, 1, 3, 3)))
    assert list(row["cut"]) == cut and "IN" not in cut and "weights_IN" not in row
    assert len(row["entropy"]) == len(row["random_half_error"]) == len(cut)


@pytest.mark.parametrize("form", ("dense", "OUT", "KH", "tucker2", "tt", "cp"))
def test_latency_is_that_of_a_layer_within_its_share_of_the_macs(form, tmp_path):
    shape, side = (12, 8, 3, 3), 6
    spec = {"shape": list(shape), "map": side, "batch": 2, "form": form, "share": 0.6}
    row = trials.latencies(tmp_path).run([spec]).iloc[0]
    assert row["status"] == "done", row["reason"]
    conv = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    whole = models.count_macs(conv, (1, 8, side, side))
    if form == "dense":
        assert (row["parameters"], row["macs"], len(row["ranks"])) == (12 * 8 * 9, whole, 0)
        return
    ranks = [int(one) for one in row["ranks"]]
    ranks = ranks[0] if forms.RANKS[form] == 1 else ranks
    assert row["parameters"] == forms.parameters(shape, form, ranks)
    fit = forms.cp(conv.weight, ranks, seeded(), 1, iterations=1) if form == "cp" else None
    layer = forms.layers(conv, fit or forms.decompose(conv.weight, form, ranks))
    assert row["macs"] == models.count_macs(layer, (1, 8, side, side)) <= 0.6 * whole
    assert row["made_latency_ms"] > 0


def test_a_cut_of_a_given_rank_is_timed_with_its_stride(tmp_path):
    spec = {"shape": [12, 8, 3, 3], "map": 6, "stride": 2, "batch": 2, "form": "OUT", "rank": 4}
    row = trials.latencies(tmp_path).run([spec]).iloc[0]
    assert row["status"] == "done", row["reason"]
    assert row["parameters"] == forms.parameters((12, 8, 3, 3), "OUT", 4) and list(row["ranks"]) == [4]
    assert row["macs"] == 9 * row["parameters"] and row["made_latency_ms"] > 0  # 3 x 3 positions


def test_a_share_that_no_rank_keeps_within_gives_zeros_and_no_time(tmp_path):
    spec = {"shape": [12, 8, 3, 3], "map": 6, "batch": 2, "form": "tucker", "share": 0.01}
    row = trials.latencies(tmp_path).run([spec]).iloc[0]
    assert (row["status"], row["parameters"], row["macs"], len(row["ranks"])) == ("done", 0, 0, 0)
    assert "made_latency_ms" not in row


SHAPES = ((12, 8, 3, 3), (8, 1, 3, 3), (10, 6, 1, 1), (8, 3, 5, 3))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def rank(kernel, cut):
    return int(torch.linalg.matrix_rank(unfold(kernel.double(), cut), rtol=1e-6))


def labelled(entries, **wanted):
    return [(one, kernel) for one, kernel in entries if wanted.items() <= one.items()]


@pytest.mark.parametrize("shares", ((0.1, 0.5, 0.9), (0.001, 1.0, 0.999), ()))
def test_a_grid_of_ranks_ascends_from_one_and_stops_before_the_largest(shares):
    for largest in range(1, 40):
        grid = trials.rank_grid(largest, shares)
        assert grid == sorted(set(grid)) and all(1 <= one < largest for one in grid)
        assert (1 in grid) == (largest > 1)
        for share in shares:
            near = [one for one in grid if abs(one - share * largest) <= 0.5]
            assert near or round(share * largest) in (0, largest)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_truncated_kernels_have_the_ranks_that_they_are_labelled_with(shape):
    kernel = gaussian(*shape)
    entries = list(trials.truncated_kernels(kernel, GRID))
    assert all(one.shape == kernel.shape and one.dtype == kernel.dtype for _, one in entries)
    [(_, zero)] = labelled(entries, method="zero")
    assert not zero.any()
    singles = labelled(entries, method="cut")
    assert {one["cut"] for one, _ in singles} == set(applicable_cuts(shape))
    for one, truncated in singles:
        assert rank(truncated, one["cut"]) == one["rank"] < min(unfold(kernel, one["cut"]).shape)
        tail = torch.linalg.svdvals(unfold(kernel.double(), one["cut"]))[one["rank"] :].norm() / kernel.norm()
        assert relative_error(kernel, truncated) == pytest.approx(tail.item(), rel=1e-4)
    for cut in applicable_cuts(shape):
        largest = min(unfold(kernel, cut).shape)
        expected = {1, max(1, round(largest / 4)), max(1, round(largest / 2))} - {largest}
        assert {one["rank"] for one, _ in labelled(entries, cut=cut, method="cut")} == expected
    assert len(entries) == 1 + len(singles) + len(labelled(entries, method="joint2"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_modes_truncated_together_lose_at_most_both_errors_and_need_both_modes(shape):
    kernel = gaussian(*shape)
    joint = labelled(trials.truncated_kernels(kernel, GRID), method="joint2")
    wide = [mode for mode, size in zip(MODES, shape, strict=True) if size > 1 and shape[2:] != (1, 1)]
    expected = [pair for pair in (("OUT", "IN"), ("OUT", "KW"), ("KH", "KW")) if set(pair) <= set(wide)]
    assert [one["cut"] for one, _ in joint] == ["+".join(pair) for pair in expected]
    for one, truncated in joint:
        assert one["target"] == 0.3 and relative_error(kernel, truncated) <= 0.3 * 2**0.5 + 1e-6
        for cut in one["cut"].split("+"):
            values = torch.linalg.svdvals(unfold(kernel.double(), cut))
            allowed = sum(values[r:].norm() > 0.3 * values.norm() for r in range(len(values) + 1)) or 1
            assert rank(truncated, cut) <= allowed


def test_a_1x1_kernel_is_truncated_on_out_alone():
    entries = list(trials.truncated_kernels(gaussian(10, 6, 1, 1), GRID))
    assert {one.get("cut", "") for one, _ in entries} == {"", "OUT"}


def controls_of(kernel, **spec):
    """Controls of a kernel alone: beside a linear layer, of whose inputs no moment is taken."""
    spec = CONTROLS | {"layer": "0"} | spec
    return list(trials.control_kernels(kernel, spec, model=nn.Sequential(nn.Linear(2, 2)), dataset=None))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_controls_have_exactly_the_error_that_they_are_matched_on(shape):
    kernel = gaussian(*shape)
    entries = controls_of(kernel)
    matched = [pair for pair in entries if pair[0]["method"] not in ("pruned", "smallest")]
    assert {"noise", "shrunk", "graded"} <= {one["method"] for one, _ in matched}
    for one, changed in matched:
        assert relative_error(kernel, changed) == pytest.approx(one["target"], rel=1e-5), one
    for one, changed in labelled(entries, method="pruned"):
        assert 0 < relative_error(kernel, changed) <= one["target"]
        assert torch.equal(changed[changed != 0], kernel[changed != 0])


def test_every_cut_is_graded_at_every_error_that_it_can_reach():
    kernel = gaussian(12, 8, 3, 3)
    entries = controls_of(kernel, errors=[0.1, 0.7, 0.85])
    for cut, error in itertools.product(CUTS, (0.1, 0.7, 0.85)):
        values = torch.linalg.svdvals(unfold(kernel.double(), cut))
        graded = labelled(entries, method="graded", cut=cut, target=error)
        assert len(graded) == (values[1:].norm() / values.norm() >= error)
        for one, _ in graded:
            assert values[one["rank"] :].norm() >= error * values.norm() > values[one["rank"] + 1 :].norm()
    assert not labelled(entries, method="graded", cut="KH", target=0.85)


def test_random_subspaces_and_smallest_values_stand_beside_a_truncation_of_their_rank():
    kernel = gaussian(12, 8, 3, 3)
    entries = controls_of(kernel)
    beside = {(one["cut"], one["target"]): one["rank"] for one, _ in labelled(entries, method="graded")}
    for method in ("random short", "random long", "smallest"):
        found = labelled(entries, method=method)
        assert {one["cut"] for one, _ in found} == set(trials.SINGLE)
        assert all(one["rank"] == beside[one["cut"], one["target"]] for one, _ in found)
    for one, kept in labelled(entries, method="smallest"):
        values = torch.linalg.svdvals(unfold(kernel.double(), one["cut"]))
        assert kept.norm().item() == pytest.approx(values[-one["rank"] :].norm().item(), rel=1e-5)


def test_controls_follow_from_the_seed_and_draws_differ():
    kernel = gaussian(12, 8, 3, 3)
    first, again, other = controls_of(kernel), controls_of(kernel), controls_of(kernel, seed=1)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    draws = [one for _, one in labelled(first, method="noise", target=0.1)]
    assert len(draws) == 2 and not torch.allclose(*draws)
    assert not torch.allclose(labelled(other, method="noise")[0][1], draws[0])


def test_outputs_are_kept_best_by_the_truncation_that_looks_at_them(folder):
    model, dataset = baselines.baseline(CNN, folder)
    name = "features.3"
    kernel = sweep.kernel(conv := model.get_submodule(name))
    spec = CONTROLS | {"layer": name}
    entries = list(trials.control_kernels(kernel, spec | {"errors": [0.1, 0.5]}, model=model, dataset=dataset))
    moment = trials.layer_moment(model, name, dataset)
    graded = {(one["cut"], one["target"]): kept for one, kept in labelled(entries, method="graded")}
    noise = labelled(entries, method="noise, outputs")
    assert {(one["cut"], one["target"]) for one, _ in noise} == {key for key in graded if key[1] == 0.5}
    for one, changed in noise:
        own = measures.output_error(kernel, graded[one["cut"], 0.5], moment)
        assert measures.output_error(kernel, changed, moment) == pytest.approx(own, rel=1e-4)
    images = dataset.train.images[: trials.MOMENT_IMAGES].float() / 255
    inputs = model.features[:3]((images - dataset.mean[0]) / dataset.std[0])
    with torch.no_grad():
        outputs = [
            torch.nn.functional.conv2d(inputs, one, None, conv.stride, conv.padding)
            for one in (kernel, *[kept for one, kept in entries if one["method"] in ("plain", "outputs")])
        ]
    errors = [((one - outputs[0]).norm() / outputs[0].norm()).item() for one in outputs[1:]]
    methods = [(one["method"], one["rank"]) for one, _ in entries if one["method"] in ("plain", "outputs")]
    assert len(methods) == 6
    found = dict(zip(methods, errors, strict=True))
    for r in {r for _, r in methods}:
        assert found["outputs", r] < found["plain", r]
    for one, kept in labelled(entries, method="outputs") + labelled(entries, method="plain"):
        assert rank(kept, "OUT") == one["rank"]


def test_grouped_and_linear_layers_have_no_moment_and_a_moment_leaves_no_hook(folder):
    model, dataset = baselines.baseline(CNN, folder)
    assert trials.layer_moment(model, models.head_name(model), dataset) is None
    moment = trials.layer_moment(model, "features.0", dataset)
    assert moment.shape == (9, 9) and torch.linalg.eigvalsh(moment).min() > -1e-9
    assert not any(module._forward_pre_hooks for module in model.modules())
    grouped = deepcopy(model)
    grouped.features[3] = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    assert trials.layer_moment(grouped, "features.3", dataset) is None


@pytest.mark.parametrize("budget", (0.1, 0.25, 0.5, 1.0))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms_keep_within_the_budget_and_forms_that_cannot_are_left_out(shape, budget):
    kernel = gaussian(*shape)
    spec = FORMS | {"budgets": [budget], "layer": "layer", "iterations": 5, "starts": 1}
    entries = list(trials.form_kernels(kernel, spec))
    assert all(one["target"] == budget and kernel.shape == formed.shape for one, formed in entries)
    for one, formed in labelled(entries, method="cut"):
        assert forms.parameters(shape, one["cut"], one["rank"]) <= budget * kernel.numel()
        assert rank(formed, one["cut"]) == one["rank"]
    for one, _ in entries:
        if one["method"].startswith("cp"):
            assert one["rank"] * sum(shape) <= budget * kernel.numel()
    for one, formed in labelled(entries, method="tt"):
        modes = [MODES.index(mode) for mode in one["cut"].split()]
        sizes = [shape[mode] for mode in modes]
        bonds = [
            int(torch.linalg.matrix_rank(formed.double().permute(modes).flatten(0, k).flatten(1), rtol=1e-6))
            for k in range(3)
        ]
        edges = (1, *bonds, 1)
        assert sum(edges[k] * sizes[k] * edges[k + 1] for k in range(4)) <= budget * kernel.numel()
    for form in ("tucker2", "tucker"):
        for _, formed in labelled(entries, method=form):
            ranks = [rank(formed, mode) for mode in MODES[: 2 if form == "tucker2" else 4]]
            assert forms.parameters(shape, form, ranks) <= budget * kernel.numel()


def test_forms_come_whole_with_all_cp_starts_and_every_order_and_cuts_as_good_as_cp():
    kernel = gaussian(12, 8, 3, 3)
    entries = list(trials.form_kernels(kernel, FORMS | {"layer": "layer"}))
    orders = {tuple(one["cut"].split()) for one, _ in labelled(entries, method="tt")}
    assert len(orders) == 12 and len(orders | {order[::-1] for order in orders}) == 24
    fits = [(one, formed) for one, formed in entries if one["method"].startswith("cp")]
    assert [one["draw"] for one, _ in fits] == [0, 1]
    best = min(relative_error(kernel, formed) for _, formed in fits)
    graded = labelled(entries, method="as cp")
    assert {one["cut"] for one, _ in graded} >= {"OUT", "IN", "OUT.KH", "OUT.KW", "OUT.IN"}
    for _, formed in graded:
        assert relative_error(kernel, formed) == pytest.approx(best, rel=1e-5)


def test_forms_with_several_ranks_come_with_the_best_and_with_equal_shares():
    kernel, spec = gaussian(12, 8, 3, 3), FORMS | {"layer": "layer"}
    found = {(one["method"], one.get("cut", "")): formed for one, formed in trials.form_kernels(kernel, spec)}
    gains = {}
    for (method, cut), formed in found.items():
        if method in ("tucker2", "tucker", "tt", "ring"):
            equal = found[method + trials.EQUAL, cut]
            gains.setdefault(method, []).append(relative_error(kernel, equal) - relative_error(kernel, formed))
    assert set(gains) == {"tucker2", "tucker", "tt", "ring"} and min(map(min, gains.values())) >= 0
    assert max(gains["tt"]) > 0.01


COMMON = {"dataset": "digits", "epochs": 3, "source": "trained"}
KNOWN = [COMMON | {"network": name, "seed": seed} for name in ("digits_cnn", "resnet8") for seed in range(3)]
KNOWN += [KNOWN[0] | {"labels": "shuffled"}, {"source": "public", "network": "resnet20", "dataset": "cifar10"}]


def test_a_checkpoint_is_one_network_and_a_trained_one_as_many_as_seeds():
    public = {"source": "public", "network": "resnet20", "dataset": "cifar10"}
    assert trials.dense_specs("resnet20/cifar10", KNOWN, seeds=2) == [public]
    assert trials.dense_specs("resnet56-B/cifar10", KNOWN) == [public | {"network": "resnet56-B"}]
    assert trials.dense_specs("resnet8", KNOWN, 2) == [COMMON | {"network": "resnet8", "seed": seed} for seed in (0, 1)]


def test_other_networks_are_trained_once_like_the_others():
    (found,) = trials.dense_specs("vanilla_cnn-x0.25/digits16", KNOWN, seeds=2)
    assert found == COMMON | {"network": "vanilla_cnn-x0.25", "seed": 0, "dataset": "digits16"}


def test_layers_are_taken_in_steps_with_their_options():
    dense = trials.dense_specs("resnet8", KNOWN)
    every, third = trials.layer_specs(dense, images=5), trials.layer_specs(dense, 3)
    assert [one["layer"] for one in every][::3] == [one["layer"] for one in third]
    assert every[0]["layer"] == "conv1" and every[0]["images"] == 5 and every[0]["network"] == "resnet8"
    assert len(third) == 3 and len(trials.layer_specs(dense, 4)) == len(every) == 7


def test_chosen_ranks_are_read_for_their_own_network_only():
    keys = [("resnet8", 0, "conv1", "OUT", 3), ("resnet8", 0, "conv1", "IN", 2), ("resnet8", 1, "conv1", "OUT", 5)]
    chosen = pd.DataFrame(keys, columns=["network", "seed", "layer", "cut", "rank"]).assign(dataset="digits")
    first, second = trials.report_specs(trials.dense_specs("resnet8", KNOWN, seeds=2), chosen, part="report")
    assert (first["cuts"], first["ranks"], first["part"]) == (["IN", "OUT"], [2, 3], "report")
    assert (second["seed"], second["cuts"], second["ranks"]) == (1, ["OUT"], [5])
    # Equal ranks come in another order on another processor; the trials must be the same there.
    assert trials.report_specs(trials.dense_specs("resnet8", KNOWN, seeds=2), chosen[::-1], part="report") == [
        first,
        second,
    ]
    public = pd.DataFrame({"network": ["resnet20"], "dataset": ["cifar10"], "seed": [0]})
    assert len(trials.of_network(public, {"network": "resnet20", "dataset": "cifar10"})) == 1
