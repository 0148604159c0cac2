"""The kernels that a layer is tried with have the ranks, errors and sizes that they are labelled with."""

import itertools
from copy import deepcopy

import pytest
import torch
from torch import nn

from lib import baselines as dense_networks
from lib import models
from lib.truncation import forms as factorisation
from lib.truncation import sweep
from lib.truncation import trials as truncation_kernels
from lib.truncation.cuts import CUTS, MODES, applicable_cuts, unfold
from lib.truncation.measures import relative_error
from tests.test_truncation_trials import CNN, CONTROLS, FORMS, GRID

SHAPES = ((12, 8, 3, 3), (8, 1, 3, 3), (10, 6, 1, 1), (8, 3, 5, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


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
        grid = truncation_kernels.rank_grid(largest, shares)
        assert grid == sorted(set(grid)) and all(1 <= one < largest for one in grid)
        assert (1 in grid) == (largest > 1)
        for share in shares:
            near = [one for one in grid if abs(one - share * largest) <= 0.5]
            assert near or round(share * largest) in (0, largest)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_truncated_kernels_have_the_ranks_that_they_are_labelled_with(shape):
    kernel = gaussian(*shape)
    entries = list(truncation_kernels.truncated_kernels(kernel, GRID))
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
    joint = labelled(truncation_kernels.truncated_kernels(kernel, GRID), method="joint2")
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
    entries = list(truncation_kernels.truncated_kernels(gaussian(10, 6, 1, 1), GRID))
    assert {one.get("cut", "") for one, _ in entries} == {"", "OUT"}


def controls_of(kernel, **spec):
    """Controls of a kernel alone: beside a linear layer, of whose inputs no moment is taken."""
    spec = CONTROLS | {"layer": "0"} | spec
    return list(truncation_kernels.control_kernels(kernel, spec, model=nn.Sequential(nn.Linear(2, 2)), dataset=None))


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
        assert {one["cut"] for one, _ in found} == set(truncation_kernels.SINGLE)
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
    model, dataset = dense_networks.baseline(CNN, folder)
    name = "features.3"
    kernel = sweep.kernel(conv := model.get_submodule(name))
    spec = CONTROLS | {"layer": name}
    entries = list(truncation_kernels.control_kernels(kernel, spec, model=model, dataset=dataset))
    images = dataset.train.images[: truncation_kernels.MOMENT_IMAGES].float() / 255
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
    model, dataset = dense_networks.baseline(CNN, folder)
    assert truncation_kernels.layer_moment(model, models.head_name(model), dataset) is None
    moment = truncation_kernels.layer_moment(model, "features.0", dataset)
    assert moment.shape == (9, 9) and torch.linalg.eigvalsh(moment).min() > -1e-9
    assert not any(module._forward_pre_hooks for module in model.modules())
    grouped = deepcopy(model)
    grouped.features[3] = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    assert truncation_kernels.layer_moment(grouped, "features.3", dataset) is None


@pytest.mark.parametrize("budget", (0.1, 0.25, 0.5, 1.0))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms_keep_within_the_budget_and_forms_that_cannot_are_left_out(shape, budget):
    kernel = gaussian(*shape)
    spec = FORMS | {"budgets": [budget], "layer": "layer", "iterations": 5, "starts": 1}
    entries = list(truncation_kernels.form_kernels(kernel, spec))
    assert all(one["target"] == budget and kernel.shape == formed.shape for one, formed in entries)
    for one, formed in labelled(entries, method="cut"):
        assert factorisation.parameters(shape, one["cut"], one["rank"]) <= budget * kernel.numel()
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
            assert factorisation.parameters(shape, form, ranks) <= budget * kernel.numel()


def test_forms_come_whole_with_all_cp_starts_and_every_order_and_cuts_as_good_as_cp():
    kernel = gaussian(12, 8, 3, 3)
    entries = list(truncation_kernels.form_kernels(kernel, FORMS | {"layer": "layer"}))
    assert len(labelled(entries, method="tt")) == 24
    fits = [(one, formed) for one, formed in entries if one["method"].startswith("cp")]
    assert [one["draw"] for one, _ in fits] == [0, 1]
    best = min(relative_error(kernel, formed) for _, formed in fits)
    graded = labelled(entries, method="as cp")
    assert {one["cut"] for one, _ in graded} >= {"OUT", "IN", "OUT.KH", "OUT.KW", "OUT.IN"}
    for _, formed in graded:
        assert relative_error(kernel, formed) == pytest.approx(best, rel=1e-5)
