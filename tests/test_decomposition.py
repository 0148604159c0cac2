import itertools
import math

import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker, tucker
from tensorly.decomposition import tensor_ring as tensorly_ring
from tensorly.decomposition import tensor_train as tensorly_train

from lib.truncation.cuts import CUTS, MODES, cut_svd, spectrum, unfold
from lib.truncation.forms import CP, RANKS, checked_ranks, decompose, hooi, hosvd, limits, tensor_ring, tensor_train

ORDERS = tuple(itertools.permutations(MODES))
SHAPE = (20, 12, 3, 5)


@pytest.fixture(autouse=True)
def pytorch_backend():
    with tensorly.backend_context("pytorch"):
        yield


def gaussian(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(shape=SHAPE, seed=0):
    """A random kernel with falling spectra on all cuts, as trained ones have."""
    kernel = gaussian(shape, seed)
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


@pytest.mark.parametrize("order", ORDERS)
def test_sequential_hosvd_errs_by_the_sum_of_what_its_steps_discard(order):
    kernel, ranks = gaussian(), (10, 4, 2, 2)
    left, steps = kernel, 0.0
    for mode in positions(order):
        svd = cut_svd(left, MODES[mode])
        steps += svd.values[ranks[mode] :].square().sum().item()
        left = svd.kernel(ranks[mode])
    form = hosvd(kernel, ranks, order)
    assert squared_error(kernel, form) == pytest.approx(steps, rel=1e-10)
    assert (form.kernel() - left).norm() < 1e-10 * kernel.norm()


@pytest.mark.parametrize("order", (None, *ORDERS[::5]))
def test_hosvd_errors_lie_between_the_largest_and_the_sum_of_the_single_cuts(order):
    for ranks in ((10, 4, 2, 2), (5, 6, 3, 1), (20, 12, 1, 5), (7, 3)):
        for kernel in (gaussian(), decaying()):
            single = [discarded(kernel, mode, rank) for mode, rank in enumerate(ranks)]
            error = squared_error(kernel, hosvd(kernel, ranks, order))
            assert max(single) - 1e-9 <= error <= sum(single) + 1e-9


@pytest.mark.parametrize("build", (hosvd, hooi))
@pytest.mark.parametrize("ranks", ((8, 4, 2, 3), (8, 4)))
def test_tucker_ranks_are_those_of_the_single_cuts(build, ranks):
    form = build(gaussian(), ranks)
    assert [cut_ranks(form.kernel())[mode] for mode in MODES] == [*ranks, *SHAPE[len(ranks) :]]
    assert form.core.shape == (*ranks, *SHAPE[len(ranks) :])
    for factor in form.factors[: len(ranks)]:
        assert torch.allclose(factor.mT @ factor, torch.eye(factor.shape[1], dtype=torch.float64), atol=1e-12)


def test_full_tucker_ranks_lose_nothing():
    kernel = gaussian()
    for form in (hosvd(kernel, SHAPE), hosvd(kernel, SHAPE, MODES), hooi(kernel, SHAPE), hooi(kernel, (20, 12))):
        assert squared_error(kernel, form) < 1e-24 * kernel.square().sum()


@pytest.mark.parametrize("ranks", ((8, 4, 2, 3), (10, 6), (3, 3, 3, 2)))
def test_orthogonal_iteration_improves_hosvd_and_is_as_good_as_tensorly(ranks):
    for kernel in (gaussian(), decaying()):
        ours = squared_error(kernel, hooi(kernel, ranks, tolerance=1e-9))
        if len(ranks) == 4:
            reference = tensorly.tucker_to_tensor(tucker(kernel, list(ranks), tol=1e-9, n_iter_max=500))
        else:
            (core, factors), _ = partial_tucker(kernel, list(ranks), modes=[0, 1], tol=1e-9, n_iter_max=500)
            reference = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
        assert ours <= squared_error(kernel, hosvd(kernel, ranks)) + 1e-12
        assert ours <= 1.01 * (kernel - reference).square().sum().item()  # two local optima may differ


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_train_errs_by_the_sum_of_its_sequential_svds_and_equals_tensorly(order):
    kernel = gaussian()
    moved = kernel.permute(positions(order))
    most = limits(SHAPE, "tt", (10**6,) * 3, order)
    bonds = checked_ranks(SHAPE, "tt", (min(3, most[0]), 5, min(3, most[2])), order)
    form = tensor_train(kernel, bonds, order)
    left, steps, bond = moved, 0.0, 1
    for k in range(3):
        u, s, v = torch.linalg.svd(left.reshape(bond * moved.shape[k], -1), full_matrices=False)
        bond = bonds[k]
        steps += s[bond:].square().sum().item()
        left = s[:bond, None] * v[:bond]
    assert squared_error(kernel, form) == pytest.approx(steps, rel=1e-10)
    reference = tensorly.tt_to_tensor(tensorly_train(moved, [1, *bonds, 1]))
    assert (form.kernel().permute(positions(order)) - reference).norm() < 1e-10 * kernel.norm()


@pytest.mark.parametrize("order", ORDERS[::3])
def test_tensor_train_error_is_at_most_the_sum_over_its_three_cuts(order):
    kernel = decaying()
    first, second, third, fourth = positions(order)
    bonds = (2, 4, 2)
    form = tensor_train(kernel, bonds, order)
    moved = kernel.permute(first, second, third, fourth)
    bound = sum(
        torch.linalg.svdvals(moved.flatten(k).flatten(0, k - 1))[bond:].square().sum().item()
        for k, bond in zip((1, 2, 3), bonds, strict=True)
    )
    assert squared_error(kernel, form) <= bound + 1e-12


def test_bonds_of_a_train_are_ranks_of_its_two_end_cuts_and_its_middle_cut():
    kernel = tensor_train(gaussian((20, 12, 3, 3)), (8, 10, 6), ("OUT", "KH", "KW", "IN")).kernel()
    expected = {"OUT": 8, "IN": 6, "KH": 3, "KW": 3, "OUT.IN": 9, "OUT.KH": 10, "OUT.KW": 18}
    assert cut_ranks(kernel) == expected
    other = cut_ranks(tensor_train(gaussian((20, 12, 3, 3)), (8, 4, 2), ("OUT", "IN", "KH", "KW")).kernel())
    assert (other["OUT"], other["OUT.IN"], other["KW"]) == (8, 4, 2)


def test_full_bonds_lose_nothing():
    for order in ORDERS:
        bonds = limits(SHAPE, "tt", (10**6,) * 3, order)
        bonds = limits(SHAPE, "tt", limits(SHAPE, "tt", bonds, order), order)
        assert squared_error(gaussian(), tensor_train(gaussian(), bonds, order)) < 1e-20


@pytest.mark.parametrize("ranks", ((2, 4, 5, 3), (1, 4, 5, 3), (4, 4, 6, 6)))
@pytest.mark.parametrize("order", (("OUT", "KH", "KW", "IN"), ("IN", "OUT", "KW", "KH")))
def test_tensor_ring_equals_that_of_tensorly(ranks, order):
    kernel = gaussian()
    ranks = ranks if math.prod(ranks[:2]) <= SHAPE[positions(order)[0]] else (2, *ranks[1:])
    moved = kernel.permute(positions(order)).contiguous()
    reference = tensorly.tr_to_tensor(tensorly_ring(moved, [*ranks, ranks[0]]))
    form = tensor_ring(kernel, ranks, order)
    assert [core.shape[0] for core in form.cores] == list(ranks)
    assert (form.kernel().permute(positions(order)) - reference).norm() < 1e-10 * kernel.norm()


def test_contiguous_cuts_of_a_ring_cross_two_bonds():
    kernel = tensor_ring(gaussian((20, 12, 3, 3)), (2, 3, 4, 4), ("OUT", "KH", "KW", "IN")).kernel()
    ranks = cut_ranks(kernel)
    assert ranks["OUT"] <= 2 * 3 and ranks["OUT.KH"] <= 2 * 4 and ranks["IN"] <= 2 * 4
    assert ranks["OUT"] == 6  # and not the bond: no single bond of a ring is a cut


@pytest.mark.parametrize("form", ("hosvd", "sequential", "tt"))
def test_norm_loss_of_orthogonal_forms_follows_from_their_error(form):
    kernel = decaying()
    kernels = {
        "hosvd": hosvd(kernel, (8, 4, 2, 3)),
        "sequential": hosvd(kernel, (8, 4, 2, 3), MODES),
        "tt": tensor_train(kernel, (8, 10, 6)),
    }
    error = squared_error(kernel, kernels[form]) / kernel.square().sum().item()
    kept = (kernels[form].kernel().norm() / kernel.norm()).item()
    assert kept == pytest.approx(math.sqrt(1 - error), abs=1e-12)


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_form_is_its_svd_at_that_rank(cut):
    kernel = gaussian()
    assert (decompose(kernel, cut, 2).kernel() - cut_svd(kernel, cut).kernel(2)).norm() < 1e-12


def test_every_form_is_reached_by_name():
    ranks = {"tucker": (8, 4, 2, 3), "tucker2": (8, 4), "tt": (8, 10, 6), "ring": (2, 4, 5, 3)}
    for form in RANKS:
        result = decompose(gaussian(), form, ranks.get(form, 2), generator=torch.Generator().manual_seed(0))
        assert result.kernel().shape == SHAPE and (form == "cp") == isinstance(result, CP)


@pytest.mark.parametrize(
    "call",
    (
        lambda k: decompose(k, "svd", 2),
        lambda k: decompose(k, "OUT", 0),
        lambda k: decompose(k, "OUT", 21),
        lambda k: decompose(k, "cp", 2),
        lambda k: decompose(k, "tucker", (2, 2)),
        lambda k: decompose(k, "tucker", (2, 2, 4, 2)),
        lambda k: decompose(k, "tucker", (9, 2, 2, 2)),
        lambda k: decompose(k, "tucker2", 4),
        lambda k: decompose(k, "tucker2", (0, 4)),
        lambda k: decompose(k, "tt", (8, 10)),
        lambda k: decompose(k, "tt", (8, 25, 6)),
        lambda k: decompose(k, "tt", (21, 10, 6)),
        lambda k: decompose(k, "tt", (8, 10, 6), ("OUT", "KH", "KW", "KW")),
        lambda k: decompose(k, "ring", (5, 5, 4, 4)),
        lambda k: decompose(k, "ring", (0, 5, 4, 4)),
        lambda k: decompose(k, "tucker2", (4, 4.5)),
        lambda k: hosvd(k, (4, 4, 2)),
        lambda k: hosvd(k * math.nan, (4, 4)),
        lambda k: tensor_train(k * math.nan, (4, 4, 4)),
        lambda k: tensor_train(k[0], (4, 4, 4)),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(gaussian())
