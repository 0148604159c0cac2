import itertools
import math

import numpy as np
import pytest
import torch

from lib.truncation.measures import (
    CUTS,
    MODES,
    CutSVD,
    applicable_cuts,
    checked_rank,
    cut_svd,
    entropy,
    fold,
    gaussian_like,
    matrix_shape,
    norm_loss,
    perturbed,
    profile_like,
    projected_at_random,
    pruned,
    relative_error,
    shrunk,
    smallest_kept,
    spectrum,
    truncate,
    unfold,
    weights,
)

SHAPE = (20, 12, 3, 5)

SHAPES = ((20, 12, 3, 5), (7, 11, 5, 3), (24, 16, 3, 3), (6, 4, 1, 1), (16, 1, 3, 3))


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


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
def test_errors_of_all_ranks_are_those_of_the_truncated_kernels_and_at_most_those_of_a_flat_spectrum(cut):
    kernel = gaussian((7, 11, 5, 3))
    svd = cut_svd(kernel, cut)
    errors, count = svd.errors(), len(svd.values)
    for rank in range(1, count + 1):
        error = ((kernel - svd.kernel(rank)).norm() / kernel.norm()).item()
        assert errors[rank - 1].item() == pytest.approx(error, abs=1e-12)
        assert error <= math.sqrt(1 - rank / count) + 1e-12


def test_rank_at_an_error_is_the_smallest_that_keeps_it():
    svd = cut_svd(gaussian((20, 12, 3, 5)), "OUT.KH")
    errors = svd.errors()
    for error in (0.0, 0.05, 0.3, 0.7, 0.999):
        rank = svd.rank_at(error)
        assert errors[rank - 1] <= error
        assert rank == 1 or errors[rank - 2] > error
    assert svd.rank_at(errors[4].item()) == 5


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


@pytest.mark.parametrize("error", (0.0, 0.1, 0.5, 0.9))
def test_controls_are_matched_on_the_relative_error_and_part_ways_in_norm_loss(error):
    kernel = gaussian((32, 32, 3, 3))
    noisy, shrunken, thinned = perturbed(kernel, error, seeded(1)), shrunk(kernel, error), pruned(kernel, error)
    assert relative_error(kernel, noisy) == pytest.approx(error, abs=1e-12)
    assert relative_error(kernel, shrunken) == pytest.approx(error, abs=1e-12)
    assert error - 1e-3 <= relative_error(kernel, thinned) <= error + 1e-12
    assert norm_loss(kernel, shrunken) == pytest.approx(error, abs=1e-12)
    assert norm_loss(kernel, thinned) == pytest.approx(1 - math.sqrt(1 - relative_error(kernel, thinned) ** 2))
    # noise is orthogonal to the kernel on average: four standard errors of the cosine, 1 / sqrt(9216)
    assert norm_loss(kernel, noisy) == pytest.approx(1 - math.sqrt(1 + error**2), abs=4 * error / 96)


def test_pruning_removes_as_many_of_the_lowest_magnitudes_as_the_error_allows():
    kernel = gaussian(SHAPE)
    thinned = pruned(kernel, 0.3)
    gone = thinned == 0
    assert torch.equal(thinned[~gone], kernel[~gone])
    assert kernel[gone].abs().max() < kernel[~gone].abs().min()
    one_more = kernel[gone].square().sum() + kernel[~gone].abs().min() ** 2
    assert one_more > 0.3**2 * kernel.square().sum()


@pytest.mark.parametrize("side", ("short", "long"))
@pytest.mark.parametrize("cut", CUTS)
def test_random_subspaces_have_their_rank_and_lose_what_their_side_says(cut, side):
    kernel, rank = gaussian(SHAPE), 2
    length = (min if side == "short" else max)(matrix_shape(SHAPE, cut))
    squared = []
    for seed in range(40):
        projected = projected_at_random(kernel, cut, rank, seeded(seed), side)
        assert torch.linalg.matrix_rank(unfold(projected, cut), rtol=1e-10) == rank
        squared.append(relative_error(kernel, projected) ** 2)
        assert norm_loss(kernel, projected) == pytest.approx(1 - math.sqrt(1 - squared[-1]))
    squared = torch.tensor(squared)
    assert squared.mean().item() == pytest.approx(1 - rank / length, abs=4 * squared.std().item() / math.sqrt(40))


def test_random_subspaces_of_a_64_channel_kernel_lose_the_printed_errors():
    kernel = gaussian((64, 64, 3, 3))
    short = relative_error(kernel, projected_at_random(kernel, "OUT", 32, seeded()))
    long = relative_error(kernel, projected_at_random(kernel, "OUT", 32, seeded(), "long"))
    assert short == pytest.approx(0.708, abs=0.01) and long == pytest.approx(0.971, abs=0.002)


@pytest.mark.parametrize("cut", CUTS)
def test_smallest_and_largest_singular_values_share_the_kernel(cut):
    kernel = gaussian(SHAPE)
    count = len(spectrum(kernel, cut))
    parts = smallest_kept(kernel, cut, 1) + truncate(kernel, cut, count - 1)
    assert torch.allclose(parts, kernel, atol=1e-12)
    assert torch.allclose(smallest_kept(kernel, cut, count), kernel, atol=1e-12)
    assert relative_error(kernel, smallest_kept(kernel, cut, 1)) > relative_error(kernel, truncate(kernel, cut, 1))


def test_random_controls_repeat_with_the_seed():
    kernel = gaussian(SHAPE)
    for control in (
        lambda seed: perturbed(kernel, 0.3, seeded(seed)),
        lambda seed: projected_at_random(kernel, "OUT", 3, seeded(seed)),
        lambda seed: gaussian_like(kernel, seeded(seed)),
    ):
        assert torch.equal(control(1), control(1)) and not torch.equal(control(1), control(2))


def test_even_noise_loses_only_a_third_at_half_rank_of_a_square_cut():
    kernel = gaussian((64, 64, 3, 3))
    assert cut_svd(kernel, "OUT.KH").errors()[95].item() == pytest.approx(0.33, abs=0.01)


def test_shrinking_loses_no_correlation_and_truncation_does():
    kernel = gaussian(SHAPE)
    for cut in CUTS:
        before = entropy(spectrum(kernel, cut))
        assert entropy(spectrum(shrunk(kernel, 0.6), cut)) == pytest.approx(before, abs=1e-12)
        assert entropy(spectrum(truncate(kernel, cut, 2), cut)) < 0.95 * before


def test_a_random_kernel_keeps_the_norm_and_has_the_entropy_of_marchenko_pastur():
    kernel = gaussian((48, 96, 3, 3)).exp().float()
    like = gaussian_like(kernel, seeded())
    assert like.norm().item() == pytest.approx(kernel.norm().item(), rel=1e-6)
    assert abs(like.mean()) < 4 * like.std() / math.sqrt(like.numel())
    assert like.shape == kernel.shape and like.dtype == torch.float32
    for cut in ("OUT", "IN", "OUT.KH"):
        short, long = sorted(matrix_shape(kernel.shape, cut))
        assert entropy(spectrum(like, cut)) == pytest.approx(math.log(short) - short / (2 * long), abs=0.02)


@pytest.mark.parametrize(
    "call",
    (
        lambda k: unfold(k, "DEPTH"),
        lambda k: cut_svd(k, "IN.OUT"),
        lambda k: cut_svd(torch.nn.Conv2d(3, 4, 3), "OUT"),
        lambda k: cut_svd(k[0], "OUT"),
        lambda k: cut_svd(k * math.nan, "OUT"),
        lambda k: cut_svd(k[:0], "OUT"),
        lambda k: spectrum(k * math.inf, "OUT"),
        lambda k: cut_svd(k, "OUT").kernel(0),
        lambda k: cut_svd(k, "OUT").kernel(5),
        lambda k: cut_svd(k, "OUT").kernel(1.5),
        lambda k: cut_svd(0 * k, "OUT").errors(),
        lambda k: projected_at_random(k, "OUT", 5, seeded()),
        lambda k: perturbed(k * math.nan, 0.1, seeded()),
        lambda k: pruned(k[0], 0.5),
        lambda k: smallest_kept(k, "OUT", 0),
        lambda k: checked_rank(-1, (4, 3, 3, 3), "OUT"),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(torch.ones(4, 3, 3, 3))


def test_the_complement_of_a_cut_is_refused_with_the_name_that_it_has():
    with pytest.raises(ValueError, match=r"'IN\.KW': use OUT\.KH, the same cut\.$"):
        unfold(torch.ones(4, 3, 3, 3), "IN.KW")


@pytest.mark.parametrize("shape", ((12, 10, 3, 3), (16, 1, 3, 3), (8, 6, 1, 1)))
def test_a_profile_kernel_has_the_mean_squares_along_every_mode_and_no_more(shape):
    random = torch.Generator().manual_seed(0)
    scales = [torch.linspace(0.2, 3, size, dtype=torch.float64) for size in shape]
    kernel = torch.randn(shape, generator=random, dtype=torch.float64) * torch.einsum("a,b,c,d->abcd", *scales)
    first, other = (profile_like(kernel, random) for _ in range(2))
    for drawn in (first, other):
        assert drawn.norm().item() == pytest.approx(kernel.norm().item())
        for mode in range(4):
            others = [other for other in range(4) if other != mode]
            assert torch.allclose(drawn.square().mean(others), kernel.square().mean(others), rtol=1e-3)
    assert not torch.allclose(first, other)
    assert abs((first * other).sum() / kernel.norm() ** 2) < 0.5


def test_a_gaussian_kernel_is_like_its_own_profile_null_and_a_product_of_vectors_is_not():
    """Statistical: the entropies of 40 kernels of 8 x 8 x 3 x 3 differ by less than 3 standard errors from the null."""
    random = torch.Generator().manual_seed(1)
    for cut in ("OUT", "OUT.KH"):
        apart = []
        for _ in range(40):
            kernel = torch.randn(8, 8, 3, 3, generator=random, dtype=torch.float64)
            apart.append(entropy(spectrum(profile_like(kernel, random), cut)) - entropy(spectrum(kernel, cut)))
        assert abs(np.mean(apart)) < 3 * np.std(apart) / 40**0.5
        vectors = [torch.randn(size, generator=random, dtype=torch.float64) for size in (8, 8, 3, 3)]
        product = torch.einsum("a,b,c,d->abcd", *vectors)
        assert entropy(spectrum(profile_like(product, random), cut)) > 0.3
