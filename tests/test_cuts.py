import itertools
import math

import numpy as np
import pytest
import torch

from lib.truncation.cuts import (
    CUTS,
    MODES,
    CutSVD,
    applicable_cuts,
    checked_rank,
    cut_svd,
    fold,
    matrix_shape,
    spectrum,
    unfold,
    weights,
)

SHAPES = ((20, 12, 3, 5), (7, 11, 5, 3), (24, 16, 3, 3), (6, 4, 1, 1), (16, 1, 3, 3))
# Relative error, squared norm loss, norm loss of an orthogonal truncation (paper 2's specification, printed digits).
CONVERSIONS = (
    (0.10, 0.010, 0.005),
    (0.20, 0.040, 0.020),
    (0.30, 0.090, 0.046),
    (0.40, 0.160, 0.083),
    (0.50, 0.250, 0.134),
    (0.60, 0.360, 0.200),
    (0.70, 0.490, 0.286),
    (0.80, 0.640, 0.400),
    (0.866, 0.750, 0.500),
    (0.90, 0.810, 0.564),
    (0.95, 0.902, 0.688),
)


def gaussian(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def named_matrix(kernel, cut):
    """A cut's matrix by its definition, entry by entry from the names of the modes, in numpy."""
    rows = [MODES.index(name) for name in cut.split(".")]
    columns = [mode for mode in range(4) if mode not in rows]
    sizes = [math.prod(kernel.shape[mode] for mode in side) for side in (rows, columns)]
    matrix = np.zeros(sizes)
    for index in np.ndindex(*kernel.shape):
        at = [
            np.ravel_multi_index([index[m] for m in side], [kernel.shape[m] for m in side]) for side in (rows, columns)
        ]
        matrix[*at] = kernel[index]
    return matrix


def flat_kernel(values):
    """A kernel whose KH cut has the given singular values."""
    kernel = torch.zeros(len(values), 1, len(values), 1, dtype=torch.float64)
    for k, value in enumerate(values):
        kernel[k, 0, k, 0] = value
    return kernel


def test_the_seven_cuts_are_all_bipartitions_of_four_modes():
    halves = {frozenset((frozenset(modes), frozenset(range(4)) - set(modes))) for modes in CUTS.values()}
    every = [set(side) for size in (1, 2, 3) for side in itertools.combinations(range(4), size)]
    assert len(CUTS) == len(halves) == 7
    assert halves == {frozenset((frozenset(side), frozenset(range(4)) - side)) for side in every}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_unfolding_follows_the_names_of_the_modes_on_unequal_shapes(shape, cut):
    kernel = gaussian(shape)
    assert np.array_equal(unfold(kernel, cut).numpy(), named_matrix(kernel.numpy(), cut))
    assert matrix_shape(shape, cut) == tuple(unfold(kernel, cut).shape)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fold_undoes_unfold(shape, cut):
    kernel = gaussian(shape)
    assert torch.equal(fold(unfold(kernel, cut), cut, shape), kernel)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("gram", (False, True))
def test_squared_error_of_truncation_is_the_discarded_singular_values(cut, gram):
    kernel = gaussian((20, 12, 3, 5))
    svd = cut_svd(kernel, cut, gram)
    values = np.linalg.svd(named_matrix(kernel.numpy(), cut), compute_uv=False)
    assert svd.values.numpy() == pytest.approx(values, rel=1e-12)
    for rank in {1, 2, len(values) // 2, len(values)}:
        truncated = svd.kernel(rank)
        assert (kernel - truncated).square().sum().item() == pytest.approx((values[rank:] ** 2).sum(), abs=1e-10)
        assert np.linalg.matrix_rank(named_matrix(truncated.numpy(), cut)) == rank
    assert (kernel - svd.kernel(len(values))).norm() < 1e-13 * kernel.norm()


@pytest.mark.parametrize("cut", CUTS)
def test_factors_multiply_to_the_kernel_with_equal_norms_in_each_part(cut):
    svd = cut_svd(gaussian((7, 11, 5, 3)), cut)
    left, right = svd.factors(3)
    assert torch.allclose(fold(left @ right, cut, (7, 11, 5, 3)), svd.kernel(3), atol=1e-12)
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1))
    assert left.norm(dim=0).square() == pytest.approx(svd.values[:3])


@pytest.mark.parametrize("cut", CUTS)
def test_spectra_of_a_cut_and_of_its_complement_are_equal(cut):
    kernel = gaussian((7, 11, 5, 3))
    rows, columns = CUTS[cut], [mode for mode in range(4) if mode not in CUTS[cut]]
    complement = kernel.permute(*columns, *rows).reshape(math.prod(kernel.shape[m] for m in columns), -1)
    assert torch.allclose(spectrum(kernel, cut), torch.linalg.svdvals(complement))


@pytest.mark.parametrize("cut", CUTS)
def test_losses_of_all_ranks_are_the_three_readings_of_one_discarded_weight(cut):
    kernel = gaussian((20, 12, 3, 5))
    svd = cut_svd(kernel, cut)
    losses = svd.losses()
    for rank in range(1, len(svd.values) + 1):
        error = ((kernel - svd.kernel(rank)).norm() / kernel.norm()).item()
        kept = (svd.kernel(rank).norm() / kernel.norm()).item()
        assert losses["relative_error"][rank - 1].item() == pytest.approx(error, abs=1e-12)
        assert losses["norm_loss"][rank - 1].item() == pytest.approx(1 - kept, abs=1e-12)
        assert losses["squared_norm_loss"][rank - 1].item() == pytest.approx(error**2, abs=1e-12)


@pytest.mark.parametrize(("error", "squared", "loss"), CONVERSIONS)
def test_conversions_between_the_readings_match_the_printed_table(error, squared, loss):
    svd = cut_svd(flat_kernel([math.sqrt(1 - error**2)] + [error / 10] * 100), "KH")
    readings = {name: losses[0].item() for name, losses in svd.losses().items()}
    expected = {"relative_error": error, "squared_norm_loss": squared, "norm_loss": loss}
    assert readings == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize(
    ("count", "rank", "error", "loss"), ((3, 1, 0.816, 0.423), (3, 2, 0.577, 0.184), (9, 1, 0.943, 0.667))
)
def test_flat_spectra_lose_the_printed_most(count, rank, error, loss):
    losses = cut_svd(flat_kernel([1.0] * count), "KH").losses()
    assert losses["relative_error"][rank - 1].item() == pytest.approx(error, abs=5e-4)
    assert losses["norm_loss"][rank - 1].item() == pytest.approx(loss, abs=5e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_no_spectrum_loses_more_than_a_flat_one(cut):
    for seed in range(5):
        errors = cut_svd(gaussian((7, 11, 5, 3), seed), cut).losses()["relative_error"]
        count = len(errors)
        bounds = (1 - torch.arange(1, count + 1, dtype=torch.float64) / count).sqrt()
        assert (errors <= bounds + 1e-12).all()


@pytest.mark.parametrize("reading", ("norm_loss", "relative_error", "squared_norm_loss"))
def test_rank_at_a_loss_is_the_smallest_that_keeps_it(reading):
    svd = cut_svd(gaussian((20, 12, 3, 5)), "OUT.KH")
    losses = svd.losses()[reading]
    for loss in (0.0, 0.05, 0.3, 0.7, 0.999):
        rank = svd.rank_at(loss, reading)
        assert losses[rank - 1] <= loss
        assert rank == 1 or losses[rank - 2] > loss
    assert svd.rank_at(losses[4].item(), reading) == 5


@pytest.mark.parametrize(
    ("shape", "cuts"),
    (
        ((64, 64, 3, 3), tuple(CUTS)),
        ((64, 32, 1, 1), ("OUT",)),
        ((16, 1, 3, 3), ("OUT", "KH", "KW")),
        ((1, 16, 3, 3), ("IN", "KH", "KW")),
        ((8, 8, 3, 1), ("OUT", "IN", "KH")),
        ((1, 1, 1, 1), ()),
    ),
)
def test_cuts_that_cannot_lose_or_repeat_another_are_not_applicable(shape, cuts):
    assert applicable_cuts(shape) == cuts
    distinct = {tuple(spectrum(gaussian(shape), cut).numpy().round(9)) for cut in CUTS}
    assert len([values for values in distinct if len(values) > 1]) == len(cuts)


def test_gram_route_loses_digits_with_the_square_of_the_spread():
    for decades, tolerance in ((0, 1e-14), (3, 1e-9), (5, 1e-5)):
        left, right = (torch.linalg.qr(gaussian((n, 9), n)).Q for n in (9, 400))
        values = torch.logspace(0, -decades, 9, dtype=torch.float64)
        kernel = fold((right * values) @ left.mT, "OUT.IN", (20, 20, 3, 3))
        got = cut_svd(kernel, "OUT.IN", gram=True).values
        assert ((got - values) / values).abs().max() < tolerance


def test_rank_of_a_float32_kernel_is_lost_in_float64_with_the_default_tolerance():
    kernel = gaussian((256, 64)).float() @ gaussian((64, 2304)).float()
    assert torch.linalg.matrix_rank(kernel) == 64
    assert torch.linalg.matrix_rank(kernel.double()) == 256
    values = spectrum(kernel.reshape(256, 256, 3, 3), "OUT")
    assert 1e-9 < values[64] / values[0] < 1e-6


def test_weights_sum_to_one_and_the_zero_kernel_has_none():
    assert weights(torch.tensor([3.0, 4.0])).tolist() == [9 / 25, 16 / 25]
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        weights(torch.zeros(3))


def test_a_parameter_is_cut_without_its_gradient_history():
    kernel = torch.nn.Parameter(torch.ones(2, 3, 3, 3))
    svd = cut_svd(kernel, "OUT")
    assert isinstance(svd, CutSVD) and not svd.left.requires_grad and svd.left.dtype == torch.float64


@pytest.mark.parametrize(
    "call",
    (
        lambda k: unfold(k, "DEPTH"),
        lambda k: unfold(k[0], "OUT"),
        lambda k: fold(k.flatten(1).mT, "OUT", k.shape),
        lambda k: cut_svd(k, "IN.OUT"),
        lambda k: cut_svd(k[0], "OUT"),
        lambda k: cut_svd(k * math.nan, "OUT"),
        lambda k: cut_svd(k[:0], "OUT"),
        lambda k: spectrum(k * math.inf, "OUT"),
        lambda k: cut_svd(k, "OUT").kernel(0),
        lambda k: cut_svd(k, "OUT").kernel(5),
        lambda k: cut_svd(k, "OUT").kernel(1.5),
        lambda k: cut_svd(k, "OUT").rank_at(0.5, "norm"),
        lambda k: cut_svd(k, "OUT").rank_at(1.0),
        lambda k: cut_svd(k, "OUT").rank_at(-0.1),
        lambda k: cut_svd(0 * k, "OUT").losses(),
        lambda k: checked_rank(-1, 3, "A test"),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(torch.ones(4, 3, 3, 3))
