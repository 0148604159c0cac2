import itertools
import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from lib.models import count_macs, count_parameters
from lib.truncation.cuts import CUTS, MODES, unfold
from lib.truncation.forms import (
    RANKS,
    SharedConv2d,
    break_even,
    cp_als,
    decompose,
    dense_kernel,
    layers,
    limits,
    macs,
    parameters,
    ranks_at,
    ranks_within,
    tensor_ring,
)

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
    factors = tensor_ring(conv.weight, (2, min(2, most[1]), 2, 2), order)
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
def test_counts_equal_what_the_built_layer_holds_and_does(form, groups):
    conv = convolution(groups=groups, padding=1, stride=2)
    factors = decomposed(conv.weight.data, form)
    model = layers(conv, factors)
    assert parameters(SHAPE, form, FORMS[form]) == count_parameters(model) - 20
    assert macs(conv, (17, 15), form, FORMS[form]) == count_macs(model, (1, 12 * groups, 17, 15))


def test_macs_equal_the_formulas_for_stride_two():
    conv = nn.Conv2d(48, 64, 3, padding=1, stride=2)  # 16 x 12 -> 8 x 6
    expected = {
        ("OUT", 10): 8 * 6 * (10 * 48 * 9 + 64 * 10),
        ("IN", 10): 16 * 12 * 48 * 10 + 8 * 6 * 64 * 10 * 9,
        ("KH", 2): 8 * 12 * 48 * 2 * 3 + 8 * 6 * 64 * 48 * 2 * 3,
        ("OUT.IN", 4): 8 * 6 * (48 * 4 * 9 + 64 * 48 * 4),
        ("OUT.KH", 20): 16 * 6 * 20 * 48 * 3 + 8 * 6 * 64 * 20 * 3,
        ("cp", 30): 16 * 12 * 48 * 30 + 8 * 12 * 30 * 3 + 8 * 6 * (30 * 3 + 64 * 30),
        ("tucker2", (20, 10)): 16 * 12 * 48 * 10 + 8 * 6 * (20 * 10 * 9 + 64 * 20),
    }
    for (form, rank), count in expected.items():
        assert macs(conv, (16, 12), form, rank) == count, form


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


@pytest.mark.parametrize(
    "call",
    (
        lambda: parameters((64, 48, 3, 3), "OUT", 0),
        lambda: parameters((64, 48, 3, 3), "OUT", 65),
        lambda: parameters((64, 48, 3, 3), "svd", 1),
        lambda: parameters((64, 48), "OUT", 1),
        lambda: macs(nn.Conv2d(4, 4, 3), (8, 8), "tt", (4, 4)),
        lambda: break_even((64, 48, 3, 3), "tt"),
        lambda: break_even((64, 48, 3, 3), "svd"),
        lambda: ranks_within((64, 48, 3, 3), "OUT", 10),
        lambda: ranks_within((64, 48, 3, 3), "svd", 1000),
        lambda: ranks_at((64, 48, 3, 3), "OUT", 1.1),
        lambda: ranks_at((64, 48, 3, 3), "tt", 0.5, ("OUT", "IN", "KH")),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call()
