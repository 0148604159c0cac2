import itertools
import math
from copy import deepcopy

import pytest
import tensorly
import torch
from tensorly.cp_tensor import CPTensor, cp_to_tensor
from tensorly.decomposition import parafac, partial_tucker, tensor_ring, tensor_train
from torch import nn

from lib.models import count_parameters
from lib.truncation.forms import (
    CP,
    RANKS,
    SharedConv2d,
    approximate,
    break_even,
    checked_ranks,
    cp,
    cp_als,
    decompose,
    dense_kernel,
    factorise,
    layers,
    limits,
    parameters,
    ranks_at,
    ranks_within,
)
from lib.truncation.measures import CUTS, MODES, cut_svd, spectrum, unfold

ORDERS = tuple(itertools.permutations(MODES))
SHAPE = (20, 12, 3, 5)
# Ranks of the specification's reference case for the cuts, and some for the other forms.
FORMS = {
    "OUT": 7,
    "IN": 5,
    "KH": 2,
    "KW": 2,
    "OUT.IN": 4,
    "OUT.KH": 9,
    "OUT.KW": 9,
    "tucker": (8, 4, 2, 3),
    "tucker2": (8, 4),
    "cp": 6,
    "tt": (8, 10, 6),
    "ring": (2, 4, 5, 3),
}
FORM_OF = {2: "tucker2", 4: "tucker"}
GEOMETRIES = (
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": (1, 2), "stride": (2, 1)},
    {"padding": (2, 0), "dilation": (2, 1)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "valid", "stride": 3},
    {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    {"padding": 1, "padding_mode": "circular", "bias": False},
)
# Outputs, inputs, KH, KW -> break-even of OUT, IN, KH, KW, OUT.IN, OUT.KH, OUT.KW, CP, and the digits printed.
BREAK_EVEN = {
    (64, 64, 3, 3): ("57.6", "57.6", "3.0", "3.0", "8.98", "96", "96", "275"),
    (128, 128, 3, 3): ("115.2", "115.2", "3.0", "3.0", "9", "192", "192", "563"),
    (256, 256, 3, 3): ("230.4", "230.4", "3.0", "3.0", "9", "384", "384", "1139"),
    (512, 512, 3, 3): ("460.8", "460.8", "3.0", "3.0", "9", "768", "768", "2291"),
    (64, 3, 7, 7): ("44.6", "3", "6.96", "6.96", "39", "20.1", "20.1", "116"),
}


@pytest.fixture(autouse=True)
def pytorch_backend():
    with tensorly.backend_context("pytorch"):
        yield


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def convolution(shape=SHAPE, groups=1, **geometry):
    conv = nn.Conv2d(shape[1] * groups, shape[0], shape[2:], groups=groups, dtype=torch.float64, **geometry)
    conv.weight.data = gaussian(*shape)
    return conv


def decomposed(kernel, form, rank=None, order=("OUT", "KH", "KW", "IN")):
    if form == "cp":
        start = [gaussian(size, rank or FORMS["cp"], seed=mode) for mode, size in enumerate(kernel.shape)]
        return cp_als(kernel, start, 20)
    return decompose(kernel, form, rank or FORMS[form], order)


def disagreement(conv, factors, images):
    """Relative difference of the factorised layer from the layer with the truncated dense kernel."""
    dense = deepcopy(conv)
    dense.weight.data = factors.kernel().to(conv.weight)
    with torch.no_grad():
        expected, got = dense(images), layers(conv, factors)(images)
    assert got.shape == expected.shape
    return ((got - expected).norm() / expected.norm()).item()


def impulse_kernel(module, shape):
    """The kernel of a layer with padding (KH - 1, KW - 1) and stride 1, read off its answers to single pixels."""
    images = torch.eye(shape[1], dtype=torch.float64).view(shape[1], shape[1], 1, 1)
    with torch.no_grad():
        return module(images).flip(2, 3).transpose(0, 1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_factorised_layer_equals_the_convolution_with_the_truncated_kernel(form, geometry):
    conv = convolution(**geometry)
    assert disagreement(conv, decomposed(conv.weight.data, form), gaussian(2, 12, 17, 15)) < 1e-14


@pytest.mark.parametrize("stride", (1, 2, (2, 1)))
@pytest.mark.parametrize("cut", CUTS)
def test_reference_case_of_the_specification_agrees_to_its_digits(cut, stride):
    conv = convolution((20, 12, 3, 3), padding=1, stride=stride)
    assert disagreement(conv, decomposed(conv.weight.data, cut), gaussian(2, 12, 17, 15)) < 1e-14


@pytest.mark.parametrize("groups", (2, 4, 10))
@pytest.mark.parametrize("form", FORMS)
def test_every_form_applies_to_grouped_convolutions_with_no_more_parameters(form, groups):
    conv = convolution(groups=groups, padding=(1, 2), stride=(2, 1))
    factors = decomposed(conv.weight.data, form)
    assert disagreement(conv, factors, gaussian(2, 12 * groups, 9, 11)) < 1e-14
    assert count_parameters(layers(conv, factors)) - 20 == parameters(SHAPE, form, FORMS[form])


def test_a_depthwise_convolution_is_factorised():
    conv = convolution((16, 1, 3, 3), groups=16, padding=1)
    for form, rank in (("OUT", 2), ("KH", 1), ("tucker2", (4, 1)), ("cp", 3)):
        assert disagreement(conv, decomposed(conv.weight.data, form, rank), gaussian(2, 16, 6, 7)) < 1e-14


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("groups", (1, 2))
def test_trains_in_every_order_of_the_modes_become_layers(order, groups):
    conv = convolution(groups=groups, padding=1, stride=(1, 2))
    bonds = ranks_at(SHAPE, "tt", 0.5, order)
    factors = decomposed(conv.weight.data, "tt", bonds, order)
    assert disagreement(conv, factors, gaussian(2, 12 * groups, 8, 9)) < 1e-14
    assert count_parameters(layers(conv, factors)) - 20 == parameters(SHAPE, "tt", bonds, order)


@pytest.mark.parametrize("order", ORDERS)
def test_rings_become_layers_where_out_and_in_are_neighbours_and_are_refused_elsewhere(order):
    conv = convolution(padding=1, stride=(1, 2))
    most = limits(SHAPE, "ring", (2, 1, 1, 1), order)
    factors = decompose(conv.weight, "ring", (2, min(2, most[1]), 2, 2), order)
    if abs(order.index("OUT") - order.index("IN")) == 2:
        with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
            layers(conv, factors)
    else:
        assert disagreement(conv, factors, gaussian(2, 12, 8, 9)) < 1e-14


@pytest.mark.parametrize("form", FORMS)
def test_impulses_read_the_truncated_kernel_off_the_factorised_layer(form):
    conv = convolution(padding=(2, 4), bias=False)
    factors = decomposed(conv.weight.data, form)
    kernel = impulse_kernel(layers(conv, factors), SHAPE)
    assert (kernel - factors.kernel()).norm() < 1e-13 * kernel.norm()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_dense_kernel_of_a_factorised_layer_is_the_truncated_one_in_any_geometry(form, geometry):
    conv = convolution(**geometry)
    factors = decomposed(conv.weight.data, form)
    model = layers(conv, factors)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kernel = dense_kernel(model)
    assert kernel.shape == SHAPE and (kernel - factors.kernel()).norm() < 1e-13 * kernel.norm()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[-1].bias is not None or geometry.get("bias") is False


@pytest.mark.parametrize("form", FORMS)
def test_the_dense_kernel_of_a_trained_factorised_layer_gives_its_outputs(form):
    conv = convolution(padding=(1, 2), stride=(2, 1))
    model, images = layers(conv, decomposed(conv.weight.data, form)), gaussian(2, 12, 9, 11)
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter += 0.1 * gaussian(*parameter.shape, seed=k)
        conv.bias.copy_(model[-1].bias)
        conv.weight.copy_(dense_kernel(model))
        assert (conv(images) - model(images)).norm() < 1e-13 * model(images).norm()


@pytest.mark.parametrize("shape", ((8, 6, 1, 1), (8, 1, 3, 3), (8, 6, 1, 5)))
def test_the_dense_kernel_of_small_shapes_is_found(shape):
    for form in FORMS:
        factors = decomposed(gaussian(*shape), form, ranks_at(shape, form, 0.5))
        kernel = dense_kernel(layers(convolution(shape), factors))
        assert kernel.shape == shape and (kernel - factors.kernel()).norm() < 1e-13 * kernel.norm(), form


@pytest.mark.parametrize("form", FORMS)
def test_a_1x1_kernel_and_a_single_input_channel_are_factorised(form):
    for shape, size in (((8, 6, 1, 1), 5), ((8, 1, 3, 3), 7)):
        conv = convolution(shape, stride=2)
        factors = decomposed(conv.weight.data, form, ranks_at(shape, form, 0.0))
        assert disagreement(conv, factors, gaussian(3, shape[1], size, size)) < 1e-14


@pytest.mark.parametrize("form", ("KH", "OUT.IN", "tucker", "OUT"))
def test_training_a_factorised_layer_keeps_the_rank_because_copies_share_their_filters(form):
    conv = convolution(padding=(2, 4), bias=False)
    rank = {"KH": 1, "OUT.IN": 2, "tucker": (8, 4, 1, 2), "OUT": 3}[form]
    model = layers(conv, decomposed(conv.weight.data, form, rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = impulse_kernel(model, SHAPE)
    model(gaussian(4, 12, 6, 6)).square().mean().backward()
    optimizer.step()
    after = impulse_kernel(model, SHAPE)
    assert (after - before).norm() > 1e-6 * before.norm()
    for cut, kept in zip(MODES, rank, strict=True) if form == "tucker" else ((form, rank),):
        assert torch.linalg.matrix_rank(unfold(after, cut), rtol=1e-10) == kept


def test_a_factorised_layer_keeps_dtype_and_bias_and_draws_no_random_numbers():
    conv = nn.Conv2d(4, 6, 3)
    state = torch.get_rng_state()
    model = layers(conv, decomposed(conv.weight.data, "KH", 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[-1].bias, conv.bias) and model[-1].bias is not conv.bias
    assert [layer.bias is None for layer in model] == [True, False]
    again = deepcopy(model)
    again.load_state_dict(model.state_dict())
    image = torch.randn(1, 4, 6, 6, generator=seeded())
    assert torch.equal(again(image), model(image))


@pytest.mark.parametrize("form", FORMS)
def test_the_dense_kernel_of_a_grouped_layer_has_the_shape_of_its_weight(form):
    conv = convolution(groups=4, padding=1, stride=2)
    factors = decomposed(conv.weight.data, form)
    model = layers(conv, factors)
    kernel = dense_kernel(model, 4)
    assert kernel.shape == conv.weight.shape and (kernel - factors.kernel()).norm() < 1e-13 * kernel.norm()
    for groups in (3, 8, 20):
        with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
            dense_kernel(model, groups)


def test_a_frozen_convolution_stays_frozen_when_it_is_factorised():
    conv = convolution()
    conv.weight.requires_grad_(False)
    assert [p.requires_grad for p in factorise(conv, "tucker2", (8, 4)).parameters()] == [False] * 3 + [True]
    conv.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in factorise(conv, "KH", 1).parameters())


def test_fewer_starts_and_iterations_of_cp_reach_every_function_that_decomposes():
    kernel = gaussian(*SHAPE)
    quick = cp(kernel, 10, seeded(), starts=1, iterations=3).kernel()
    options = {"starts": 1, "iterations": 3}
    assert torch.equal(approximate(kernel, "cp", 10, generator=seeded(), **options), quick)
    model = factorise(convolution(), "cp", 10, generator=seeded(), **options)
    assert (dense_kernel(model) - quick).norm() < 1e-13 * quick.norm()


def test_strides_sit_where_the_specification_puts_them():
    conv = convolution(stride=(2, 3), padding=1)
    strides = {
        form: [layer.stride for layer in layers(conv, decomposed(conv.weight.data, form))]
        for form in ("OUT", "IN", "OUT.KH", "OUT.KW", "KH", "OUT.IN", "tucker2")
    }
    assert strides == {
        "OUT": [(2, 3), (1, 1)],
        "IN": [(1, 1), (2, 3)],
        "OUT.KH": [(1, 3), (2, 1)],
        "OUT.KW": [(2, 1), (1, 3)],
        "KH": [(2, 1), (1, 3)],
        "OUT.IN": [(2, 3), (1, 1)],
        "tucker2": [(1, 1), (2, 3), (1, 1)],
    }


def test_depthwise_stages_have_the_input_channel_major():
    conv = convolution((20, 12, 3, 3))
    first, last = layers(conv, decomposed(conv.weight.data, "KH"))
    assert isinstance(first, SharedConv2d) and first.weight.shape == (2, 1, 3, 1)
    assert (first.in_channels, first.out_channels, first.groups, first.kernel_size) == (12, 24, 12, (3, 1))
    assert (last.in_channels, last.kernel_size, type(last)) == (24, (1, 3), nn.Conv2d)


def test_parameter_counts_equal_the_formulas():
    o, i, h, w = shape = (64, 48, 3, 5)
    for cut in CUTS:
        m, n = unfold(torch.empty(shape), cut).shape
        assert parameters(shape, cut, 3) == 3 * (m + n)
    assert parameters(shape, "cp", 50) == 50 * (o + i + h + w)
    ro, ri, rh, rw = 20, 10, 2, 3
    tucker = ro * ri * rh * rw + o * ro + i * ri + h * rh + w * rw
    assert parameters(shape, "tucker", (ro, ri, rh, rw)) == tucker
    assert parameters(shape, "tucker2", (ro, ri)) == ro * ri * h * w + o * ro + i * ri
    a, b, c = 20, 30, 10
    assert parameters(shape, "tt", (a, b, c)) == o * a + a * h * b + b * w * c + c * i
    d, a, b = 4, 5, 15
    assert parameters(shape, "ring", (d, a, b, c)) == d * o * a + a * h * b + b * w * c + c * i * d


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", (1, 2))
def test_parameters_equal_those_of_the_built_layer(form, groups):
    conv = convolution(groups=groups, padding=1, stride=2)
    factors = decomposed(conv.weight.data, form)
    model = layers(conv, factors)
    assert parameters(SHAPE, form, FORMS[form]) == count_parameters(model) - 20


@pytest.mark.parametrize("shape", BREAK_EVEN)
def test_break_even_ranks_match_the_printed_table(shape):
    for form, printed in zip((*CUTS, "cp"), BREAK_EVEN[shape], strict=True):
        digits = len(printed.partition(".")[2])
        assert f"{break_even(shape, form):.{digits}f}" == printed, form
        top = limits(shape, form, (1,))[0]
        below, above = math.floor(break_even(shape, form)), math.floor(break_even(shape, form)) + 1
        assert parameters(shape, form, below) <= math.prod(shape)
        assert above > top or parameters(shape, form, above) > math.prod(shape)


@pytest.mark.parametrize("form", RANKS)
@pytest.mark.parametrize("shape", ((64, 48, 3, 3), (64, 3, 7, 7)))
def test_ranks_within_a_budget_fit_it_and_the_next_share_does_not(shape, form):
    for share in (0.25, 0.5, 1.0):
        budget = share * math.prod(shape)
        try:
            rank = ranks_within(shape, form, budget)
        except ValueError:
            assert parameters(shape, form, ranks_at(shape, form, 0.0)) > budget
            continue
        assert parameters(shape, form, rank) <= budget
        larger = [ranks_at(shape, form, step / 300) for step in range(301)]
        counts = {parameters(shape, form, other) for other in larger}
        assert parameters(shape, form, rank) >= max(count for count in counts if count <= budget)


def test_ranks_at_full_share_are_the_largest_and_at_none_are_one():
    assert ranks_at((64, 48, 3, 3), "OUT", 1.0) == 64
    assert ranks_at((64, 48, 3, 3), "tucker", 1.0) == (64, 48, 3, 3)
    assert ranks_at((64, 48, 3, 3), "tt", 1.0) == (64, 144, 48)
    assert ranks_at((64, 48, 3, 3), "tt", 1.0, ("KH", "OUT", "IN", "KW")) == (3, 144, 3)
    assert ranks_at((64, 48, 3, 3), "ring", 1.0) == (8, 8, 8, 8)
    assert ranks_at((64, 48, 3, 3), "tucker2", 0.0) == (1, 1)
    assert ranks_at((64, 48, 3, 3), "OUT.IN", 1 / 3) == 3


def decaying(shape=SHAPE, seed=0):
    """A random kernel with falling spectra on all cuts, as trained ones have."""
    kernel = gaussian(*shape, seed=seed)
    for mode, size in enumerate(shape):
        scale = torch.arange(1, size + 1, dtype=torch.float64) ** -0.5
        kernel = kernel * scale.view([-1 if axis == mode else 1 for axis in range(4)])
    return kernel


def squared_error(kernel, form):
    return (kernel - form.kernel()).square().sum().item()


def discarded(kernel, mode, rank):
    return spectrum(kernel, MODES[mode])[rank:].square().sum().item()


def positions(order):
    return [MODES.index(name) for name in order]


def cut_ranks(kernel):
    return {cut: int(torch.linalg.matrix_rank(unfold(kernel, cut), rtol=1e-10)) for cut in CUTS}


@pytest.mark.parametrize("ranks", ((8, 4, 2, 3), (8, 4), (20, 12, 1, 5), (5, 6, 3, 1)))
def test_tucker_has_the_ranks_of_the_single_cuts_and_an_error_between_their_largest_and_their_sum(ranks):
    for kernel in (gaussian(*SHAPE), decaying()):
        form = decompose(kernel, FORM_OF[len(ranks)], ranks)
        assert [cut_ranks(form.kernel())[mode] for mode in MODES] == [*ranks, *SHAPE[len(ranks) :]]
        assert form.core.shape == (*ranks, *SHAPE[len(ranks) :])
        for factor in form.factors[: len(ranks)]:
            assert torch.allclose(factor.mT @ factor, torch.eye(factor.shape[1], dtype=torch.float64), atol=1e-12)
        single = [spectrum(kernel, mode)[rank:].square().sum().item() for mode, rank in zip(MODES, ranks, strict=False)]
        error = squared_error(kernel, form)
        assert max(single) - 1e-9 <= error <= sum(single) + 1e-9
        kept = (form.kernel().norm() / kernel.norm()).item()
        assert kept == pytest.approx(math.sqrt(1 - error / kernel.square().sum().item()), abs=1e-12)


def test_full_tucker_ranks_lose_nothing():
    kernel = gaussian(*SHAPE)
    for form in (decompose(kernel, "tucker", SHAPE), decompose(kernel, "tucker2", SHAPE[:2])):
        assert squared_error(kernel, form) < 1e-24 * kernel.square().sum()


@pytest.mark.parametrize("ranks", ((8, 4, 2, 3), (10, 6), (3, 3, 3, 2)))
def test_tucker_is_as_good_as_that_of_tensorly(ranks):
    for kernel in (gaussian(*SHAPE), decaying()):
        ours = squared_error(kernel, decompose(kernel, FORM_OF[len(ranks)], ranks))
        modes = list(range(len(ranks)))
        (core, factors), _ = partial_tucker(kernel, list(ranks), modes=modes, tol=1e-9, n_iter_max=500)
        reference = tensorly.tenalg.multi_mode_dot(core, factors, modes=modes)
        assert ours <= 1.01 * (kernel - reference).square().sum().item()  # two local optima may differ


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_train_errs_by_the_sum_of_its_sequential_svds_and_equals_tensorly(order):
    kernel = gaussian(*SHAPE)
    moved = kernel.permute(positions(order))
    most = limits(SHAPE, "tt", (10**6,) * 3, order)
    bonds = checked_ranks(SHAPE, "tt", (min(3, most[0]), 5, min(3, most[2])), order)
    form = decompose(kernel, "tt", bonds, order)
    left, steps, bond = moved, 0.0, 1
    for k in range(3):
        u, s, v = torch.linalg.svd(left.reshape(bond * moved.shape[k], -1), full_matrices=False)
        bond = bonds[k]
        steps += s[bond:].square().sum().item()
        left = s[:bond, None] * v[:bond]
    assert squared_error(kernel, form) == pytest.approx(steps, rel=1e-10)
    reference = tensorly.tt_to_tensor(tensor_train(moved, [1, *bonds, 1]))
    assert (form.kernel().permute(positions(order)) - reference).norm() < 1e-10 * kernel.norm()


@pytest.mark.parametrize("order", ORDERS[::3])
def test_tensor_train_error_is_at_most_the_sum_over_its_three_cuts(order):
    kernel = decaying()
    first, second, third, fourth = positions(order)
    bonds = (2, 4, 2)
    form = decompose(kernel, "tt", bonds, order)
    moved = kernel.permute(first, second, third, fourth)
    bound = sum(
        torch.linalg.svdvals(moved.flatten(k).flatten(0, k - 1))[bond:].square().sum().item()
        for k, bond in zip((1, 2, 3), bonds, strict=True)
    )
    assert squared_error(kernel, form) <= bound + 1e-12


def test_bonds_of_a_train_are_ranks_of_its_two_end_cuts_and_its_middle_cut():
    kernel = decompose(gaussian(20, 12, 3, 3), "tt", (8, 10, 6), ("OUT", "KH", "KW", "IN")).kernel()
    expected = {"OUT": 8, "IN": 6, "KH": 3, "KW": 3, "OUT.IN": 9, "OUT.KH": 10, "OUT.KW": 18}
    assert cut_ranks(kernel) == expected
    other = cut_ranks(decompose(gaussian(20, 12, 3, 3), "tt", (8, 4, 2), ("OUT", "IN", "KH", "KW")).kernel())
    assert (other["OUT"], other["OUT.IN"], other["KW"]) == (8, 4, 2)


def test_full_bonds_lose_nothing():
    for order in ORDERS:
        bonds = limits(SHAPE, "tt", (10**6,) * 3, order)
        bonds = limits(SHAPE, "tt", limits(SHAPE, "tt", bonds, order), order)
        assert squared_error(gaussian(*SHAPE), decompose(gaussian(*SHAPE), "tt", bonds, order)) < 1e-20


@pytest.mark.parametrize("ranks", ((2, 4, 5, 3), (1, 4, 5, 3), (4, 4, 6, 6)))
@pytest.mark.parametrize("order", (("OUT", "KH", "KW", "IN"), ("IN", "OUT", "KW", "KH")))
def test_tensor_ring_equals_that_of_tensorly(ranks, order):
    kernel = gaussian(*SHAPE)
    ranks = ranks if math.prod(ranks[:2]) <= SHAPE[positions(order)[0]] else (2, *ranks[1:])
    moved = kernel.permute(positions(order)).contiguous()
    reference = tensorly.tr_to_tensor(tensor_ring(moved, [*ranks, ranks[0]]))
    form = decompose(kernel, "ring", ranks, order)
    assert [core.shape[0] for core in form.cores] == list(ranks)
    assert (form.kernel().permute(positions(order)) - reference).norm() < 1e-10 * kernel.norm()


def test_contiguous_cuts_of_a_ring_cross_two_bonds():
    kernel = decompose(gaussian(20, 12, 3, 3), "ring", (2, 3, 4, 4), ("OUT", "KH", "KW", "IN")).kernel()
    ranks = cut_ranks(kernel)
    assert ranks["OUT"] <= 2 * 3 and ranks["OUT.KH"] <= 2 * 4 and ranks["IN"] <= 2 * 4
    assert ranks["OUT"] == 6  # and not the bond: no single bond of a ring is a cut


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_form_is_its_svd_at_that_rank(cut):
    kernel = gaussian(*SHAPE)
    assert (decompose(kernel, cut, 2).kernel() - cut_svd(kernel, cut).kernel(2)).norm() < 1e-12


def test_every_form_is_reached_by_name():
    ranks = {"tucker": (8, 4, 2, 3), "tucker2": (8, 4), "tt": (8, 10, 6), "ring": (2, 4, 5, 3)}
    for form in RANKS:
        result = decompose(gaussian(*SHAPE), form, ranks.get(form, 2), generator=torch.Generator().manual_seed(0))
        assert result.kernel().shape == SHAPE and (form == "cp") == isinstance(result, CP)


def starts(shape, rank, generator):
    return [torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in shape]


def sum_of_terms(factors):
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


def w_state():
    """aab + aba + baa: of rank 3, but a limit of kernels of rank 2."""
    kernel = torch.zeros(2, 2, 2, 1, dtype=torch.float64)
    kernel[0, 0, 1] = kernel[0, 1, 0] = kernel[1, 0, 0] = 1
    return kernel


@pytest.mark.parametrize("rank", (1, 7, 30))
def test_every_iteration_is_that_of_tensorly_from_the_same_start(rank):
    generator = seeded()
    kernel, start = gaussian(*SHAPE), starts(SHAPE, rank, generator)
    for iterations in (1, 3, 30):
        fit = cp_als(kernel, start, iterations, 0.0)
        first = CPTensor((torch.ones(rank, dtype=torch.float64), [factor.clone() for factor in start]))
        reference = cp_to_tensor(parafac(kernel, rank, init=first, n_iter_max=iterations, tol=0))
        assert (fit.kernel() - reference).norm() < 1e-9 * kernel.norm()


def test_the_error_is_that_of_the_kernel_and_its_columns_have_norm_one():
    generator = seeded()
    kernel = gaussian(*SHAPE)
    fit = cp_als(kernel, starts(SHAPE, 9, generator), 60)
    assert fit.relative_error == pytest.approx(((kernel - fit.kernel()).norm() / kernel.norm()).item(), abs=1e-14)
    weighted = [fit.factors[0] * fit.weights, *fit.factors[1:]]
    assert torch.allclose(sum_of_terms(weighted), fit.kernel(), atol=1e-12)
    for factor in fit.factors:
        assert torch.allclose(factor.norm(dim=0), torch.ones(9, dtype=torch.float64))


def test_after_a_least_squares_update_the_norm_loss_follows_from_the_error():
    generator = seeded()
    kernel = gaussian(*SHAPE)
    fit = cp_als(kernel, starts(SHAPE, 9, generator), 20)
    kept = (fit.kernel().norm() / kernel.norm()).item()
    assert kept == pytest.approx(math.sqrt(1 - fit.relative_error**2), abs=1e-10)


def test_a_kernel_of_three_terms_is_recovered_exactly():
    generator = seeded()
    kernel = sum_of_terms(starts((16, 12, 3, 3), 3, generator))
    fit = cp(kernel, 3, generator, iterations=1000, tolerance=0.0)
    assert fit.relative_error < 1e-12


def test_error_never_rises_with_more_iterations():
    generator = seeded()
    kernel, start = gaussian(*SHAPE), starts(SHAPE, 12, generator)
    errors = [cp_als(kernel, start, iterations, 0.0).relative_error for iterations in (1, 2, 5, 20, 60, 200)]
    assert all(later <= before + 1e-12 for before, later in zip(errors, errors[1:], strict=False))


def test_a_degenerate_kernel_raises_the_alarm_falling_error_and_growing_weights():
    start = starts((2, 2, 2, 1), 2, seeded())
    fits = [cp_als(w_state(), start, iterations, 0.0) for iterations in (10, 100, 1000, 3000)]
    for before, later in zip(fits, fits[1:], strict=False):
        assert later.relative_error < before.relative_error
        assert (later.weights > before.weights).all()
    # error x norm^2 of a term tends to 1 / (4 sqrt 3)
    assert fits[-1].relative_error * fits[-1].weights[0].item() ** 2 == pytest.approx(1 / (4 * math.sqrt(3)), abs=0.005)


def test_rank_three_fits_the_degenerate_kernel_exactly():
    assert cp(w_state(), 3, seeded(), iterations=1000, tolerance=0.0).relative_error < 1e-12


def test_the_largest_rank_fits_any_kernel_in_float64():
    kernel = gaussian(16, 16, 3, 3).float()
    fit = cp(kernel, *limits(kernel.shape, "cp", (1,)), seeded(), starts=1, iterations=200, tolerance=0.0)
    assert limits(kernel.shape, "cp", (1,)) == (144,)
    assert fit.relative_error < 1e-6


def test_a_fit_says_whether_it_converged_and_the_usual_cap_is_too_early():
    kernel = gaussian(16, 16, 3, 3)
    capped = cp(kernel, 40, seeded(1), starts=2, iterations=100)
    longer = cp(kernel, 40, seeded(1), starts=2, iterations=800)
    assert not capped.converged
    assert longer.relative_error < capped.relative_error - 0.01
    easy = cp(kernel, 1, seeded(1))
    assert easy.converged


def test_more_terms_than_a_mode_is_long_leave_no_not_a_number():
    fit = cp(torch.ones(4, 4, 3, 3), 20, seeded(), starts=1, iterations=60)
    assert fit.kernel().isfinite().all() and fit.relative_error < 1e-6


def test_the_best_start_is_returned_and_repeats_with_the_generator():
    kernel = gaussian(*SHAPE)
    one, best, again = (cp(kernel, 10, seeded(3), starts=starts, iterations=100) for starts in (1, 4, 4))
    assert best.relative_error < one.relative_error
    assert torch.equal(again.kernel(), best.kernel())


def test_factorised_cp_equals_the_kernel_of_the_same_generator():
    conv = nn.Conv2d(6, 8, 3, bias=False)
    conv.weight.data = torch.einsum("o,i,h,w->oihw", *[gaussian(size, seed=size).float() for size in (8, 6, 3, 3)])
    kernel = approximate(conv.weight, "cp", 2, generator=seeded())
    got = factorise(conv, "cp", 2, generator=seeded())(gaussian(2, 6, 7, 7).float())
    assert torch.allclose(got, nn.functional.conv2d(gaussian(2, 6, 7, 7).float(), kernel), atol=1e-5)


@pytest.mark.parametrize(
    "call",
    (
        lambda: decompose(gaussian(*SHAPE), "svd", 2),
        lambda: decompose(gaussian(*SHAPE), "OUT", 0),
        lambda: decompose(gaussian(*SHAPE), "OUT", 21),
        lambda: decompose(gaussian(*SHAPE), "cp", 2),
        lambda: decompose(gaussian(*SHAPE), "tucker", (2, 2)),
        lambda: decompose(gaussian(*SHAPE), "tucker", (9, 2, 2, 2)),
        lambda: decompose(gaussian(*SHAPE), "tucker2", (4, 4.5)),
        lambda: decompose(gaussian(*SHAPE), "tt", (8, 25, 6)),
        lambda: decompose(gaussian(*SHAPE), "tt", (8, 10, 6), ("OUT", "KH", "KW", "KW")),
        lambda: decompose(gaussian(*SHAPE), "ring", (0, 5, 4, 4)),
        lambda: decompose(gaussian(*SHAPE) * math.nan, "tucker2", (4, 4)),
        lambda: decompose(gaussian(*SHAPE)[0], "tt", (4, 4, 4)),
        lambda: approximate((9 * gaussian(*SHAPE)).int(), "OUT", 2),
        lambda: approximate(gaussian(*SHAPE) * 1j, "tt", (4, 4, 4)),
        lambda: cp(gaussian(4, 4, 3, 3), 37, seeded()),
        lambda: factorise(nn.Linear(12, 20), "OUT", 2),
        lambda: factorise(nn.ConvTranspose2d(12, 20, 3), "OUT", 2),
        lambda: parameters((64, 48, 3, 3), "OUT", 0),
        lambda: parameters((64, 48, 3, 3), "OUT", 65),
        lambda: parameters((64, 48, 3, 3), "svd", 1),
        lambda: parameters((64, 48), "OUT", 1),
        lambda: break_even((64, 48, 3, 3), "tt"),
        lambda: ranks_within((64, 48, 3, 3), "OUT", 10),
        lambda: ranks_within((64, 48, 3, 3), "svd", 1000),
        lambda: ranks_at((64, 48, 3, 3), "tt", 0.5, ("OUT", "IN", "KH")),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call()
