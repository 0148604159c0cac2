import math

import pytest
import torch

from lib.truncation.cuts import (
    CUTS,
    cut_svd,
    gaussian_like,
    marchenko_pastur,
    matrix_shape,
    perturbed,
    projected_at_random,
    pruned,
    shrunk,
    shuffled,
    smallest_kept,
    spectrum,
    unfold,
    zeroed,
)
from lib.truncation.measures import correlation_loss, entropy, norm_loss, relative_error, truncate

SHAPE = (20, 12, 3, 5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def discarded_error(weights, kept):
    return weights[kept:].sum().sqrt().item()


def simulated(shape, cut, draws):
    """Singular values of Gaussian kernels, (draws, N), squared and normalised."""
    generator = seeded(1)
    squares = torch.stack(
        [spectrum(torch.randn(shape, generator=generator, dtype=torch.float64), cut).square() for _ in range(draws)]
    )
    return squares / squares.sum(1, keepdim=True)


def test_the_zero_kernel_loses_all_norm():
    kernel = gaussian().float()
    assert norm_loss(kernel, zeroed(kernel)) == relative_error(kernel, zeroed(kernel)) == 1
    assert zeroed(kernel).dtype == torch.float32


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


def test_shrinking_loses_no_correlation_and_truncation_does():
    kernel = gaussian()
    for cut in CUTS:
        assert correlation_loss(kernel, shrunk(kernel, 0.6), cut) == pytest.approx(0, abs=1e-12)
        assert correlation_loss(kernel, truncate(kernel, cut, 2), cut) > 0.05


def test_pruning_removes_as_many_of_the_lowest_magnitudes_as_the_error_allows():
    kernel = gaussian()
    thinned = pruned(kernel, 0.3)
    gone = thinned == 0
    assert torch.equal(thinned[~gone], kernel[~gone])
    assert kernel[gone].abs().max() < kernel[~gone].abs().min()
    one_more = kernel[gone].square().sum() + kernel[~gone].abs().min() ** 2
    assert one_more > 0.3**2 * kernel.square().sum()


@pytest.mark.parametrize("side", ("short", "long"))
@pytest.mark.parametrize("cut", CUTS)
def test_random_subspaces_have_their_rank_and_lose_what_their_side_says(cut, side):
    kernel, rank = gaussian(), 2
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
    kernel = gaussian()
    count = len(spectrum(kernel, cut))
    parts = smallest_kept(kernel, cut, 1) + truncate(kernel, cut, count - 1)
    assert torch.allclose(parts, kernel, atol=1e-12)
    assert torch.allclose(smallest_kept(kernel, cut, count), kernel, atol=1e-12)
    assert relative_error(kernel, smallest_kept(kernel, cut, 1)) > relative_error(kernel, truncate(kernel, cut, 1))


def test_random_kernels_keep_the_norm_or_every_single_weight():
    kernel = gaussian().exp().float()
    like, moved = gaussian_like(kernel, seeded()), shuffled(kernel, seeded())
    assert like.norm().item() == pytest.approx(kernel.norm().item(), rel=1e-6)
    assert abs(like.mean()) < 4 * like.std() / math.sqrt(like.numel())
    assert torch.equal(moved.flatten().sort().values, kernel.flatten().sort().values)
    assert not torch.equal(moved, kernel)
    assert like.shape == moved.shape == kernel.shape and like.dtype == moved.dtype == torch.float32


def test_shuffling_breaks_the_correlations_of_a_product_kernel():
    kernel = torch.einsum("o,i,h,w->oihw", *[gaussian((size,), size) for size in SHAPE])
    for cut in CUTS:
        assert entropy(spectrum(kernel, cut)) < 1e-9 < 0.1 < entropy(spectrum(shuffled(kernel, seeded()), cut))


def test_random_controls_repeat_with_the_seed():
    kernel = gaussian()
    for control in (
        lambda seed: perturbed(kernel, 0.3, seeded(seed)),
        lambda seed: projected_at_random(kernel, "OUT", 3, seeded(seed)),
        lambda seed: gaussian_like(kernel, seeded(seed)),
        lambda seed: shuffled(kernel, seeded(seed)),
    ):
        assert torch.equal(control(1), control(1)) and not torch.equal(control(1), control(2))


@pytest.mark.parametrize(
    ("short", "long", "kept", "printed"),
    (
        (512, 4608, (384, 256, 128), (0.387, 0.600, 0.797)),  # OUT or IN
        (1536, 1536, (1152, 768, 384), (0.114, 0.326, 0.614)),  # OUT.KH or OUT.KW
        (9, 512**2, (7, 4, 2), (0.470, 0.744, 0.881)),  # OUT.IN
        (3, 3 * 512**2, (2, 1), (0.577, 0.816)),  # KH or KW
    ),
)
def test_marchenko_pastur_weights_lose_the_printed_errors(short, long, kept, printed):
    weights = marchenko_pastur(short, long)
    assert weights.sum().item() == pytest.approx(1) and (weights.diff() <= 0).all()
    assert [discarded_error(weights, count) for count in kept] == pytest.approx(printed, abs=5.1e-4)
    assert entropy(weights.sqrt()) == pytest.approx(math.log(short) - short / (2 * long), abs=1e-5)


def test_a_large_random_spectrum_follows_marchenko_pastur():
    weights, theory = simulated((96, 48, 3, 3), "OUT", 5).mean(0), marchenko_pastur(96, 432)
    assert (weights - theory).abs().max() < 0.02 * theory.max()
    for kept in (72, 48, 24):
        assert discarded_error(weights, kept) == pytest.approx(discarded_error(theory, kept), abs=0.005)


@pytest.mark.parametrize(
    ("shape", "cut", "kept", "printed"),
    (
        ((8, 8, 3, 3), "OUT.KH", (18, 12, 6), (0.108, 0.319, 0.608)),
        ((16, 16, 3, 3), "KH", (2, 1), (0.554, 0.800)),
    ),
)
def test_small_random_kernels_lose_the_printed_simulated_errors(shape, cut, kept, printed):
    weights = simulated(shape, cut, 400)
    for count, expected in zip(kept, printed, strict=True):
        errors = weights[:, count:].sum(1).sqrt()
        assert errors.mean().item() == pytest.approx(expected, abs=4 * errors.std().item() / 20 + 5e-4)


@pytest.mark.parametrize(
    ("shape", "cut", "sides", "bias", "scatter"),
    (
        ((8, 8, 3, 3), "OUT.KH", (24, 24), -0.014, 0.029),
        ((16, 16, 3, 3), "OUT.KH", (48, 48), -0.4 / 48, 0.015),
        ((32, 32, 3, 3), "OUT", (32, 288), -0.002, 0.0035),
    ),
)
def test_entropy_of_small_random_kernels_is_biased_and_scatters_as_printed(shape, cut, sides, bias, scatter):
    assert tuple(sorted(matrix_shape(shape, cut))) == sides
    draws = 300
    entropies = torch.special.entr(simulated(shape, cut, draws)).sum(1)
    mean, deviation = entropies.mean().item(), entropies.std().item()
    short, long = sides
    tolerance = 4 * deviation / math.sqrt(draws) + 1e-3
    assert mean - (math.log(short) - short / (2 * long)) == pytest.approx(bias, abs=tolerance)
    assert deviation == pytest.approx(scatter, rel=4 / math.sqrt(2 * draws) + 0.03)


def test_even_noise_loses_only_a_third_at_half_rank_of_a_square_cut():
    kernel = gaussian((64, 64, 3, 3))
    assert cut_svd(kernel, "OUT.KH").losses()["relative_error"][95].item() == pytest.approx(0.33, abs=0.01)


@pytest.mark.parametrize(
    "call",
    (
        lambda k: projected_at_random(k, "OUT", 0, seeded()),
        lambda k: projected_at_random(k, "OUT", 21, seeded()),
        lambda k: projected_at_random(k, "DEPTH", 1, seeded()),
        lambda k: projected_at_random(k, "OUT", 1, seeded(), "both"),
        lambda k: perturbed(k, -0.1, seeded()),
        lambda k: perturbed(k, math.nan, seeded()),
        lambda k: perturbed(k * math.nan, 0.1, seeded()),
        lambda k: shrunk(k, 1.1),
        lambda k: pruned(k, 1.0),
        lambda k: pruned(k * math.nan, 0.5),
        lambda k: smallest_kept(k, "OUT", 0),
        lambda k: smallest_kept(k, "OUT", 21),
        lambda k: gaussian_like(k * math.inf, seeded()),
        lambda k: shuffled(k[0], seeded()),
        lambda k: marchenko_pastur(5, 4),
        lambda k: marchenko_pastur(0, 4),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(gaussian())
