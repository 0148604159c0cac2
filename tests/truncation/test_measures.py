import itertools
import math

import pytest
import torch
from torch import nn

from lib import models
from lib.truncation import measures
from lib.truncation.measures import (
    CUTS,
    JOINT2,
    MODES,
    applicable_cuts,
    cut_svd,
    effective_norm_loss,
    effective_rank,
    entropy,
    fold,
    graded,
    norm_loss,
    output_error,
    patch_moment,
    relative_error,
    spectrum,
    tap_usage,
    truncate,
    truncate_jointly,
    truncate_outputs,
    unfold,
)

SHAPE = (20, 12, 3, 5)
# Map side, stride -> output side, taps ever used, mean usage of a tap of a 3x3 kernel with padding 1, as printed.
USAGE = {
    (1, 1): (1, 1, 0.111),
    (2, 2): (1, 4, 0.444),
    (2, 1): (2, 9, 0.444),
    (4, 1): (4, 9, 0.694),
    (8, 1): (8, 9, 0.840),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def sparse(shape, places):
    kernel = torch.zeros(shape, dtype=torch.float64)
    for place in places:
        kernel[place] = 1
    return kernel


def separating_kernel():
    return sparse((24, 16, 3, 3), [(3 * x + y, 2 * x + z, y, z) for x in range(4) for y in range(3) for z in range(2)])


def flat_three():
    """A kernel whose KH cut has three equal singular values."""
    return sparse((3, 1, 3, 1), [(k, 0, k, 0) for k in range(3)])


@pytest.mark.parametrize("cut", CUTS)
def test_truncation_error_equals_discarded_singular_values(cut):
    kernel, values = gaussian(), spectrum(gaussian(), cut)
    for rank in (1, 2, len(values)):
        discarded = values[rank:].square().sum().item()
        assert (kernel - truncate(kernel, cut, rank)).square().sum().item() == pytest.approx(discarded, abs=1e-10)


@pytest.mark.parametrize("cut", CUTS)
def test_truncating_twice_changes_nothing(cut):
    once = truncate(gaussian(), cut, 2)
    assert relative_error(once, truncate(once, cut, 2)) < 1e-13


@pytest.mark.parametrize("cut", CUTS)
def test_no_kernel_of_the_rank_is_nearer_than_the_truncated_one(cut):
    kernel, generator = gaussian(), seeded(1)
    best = relative_error(kernel, truncate(kernel, cut, 2))
    left, right = cut_svd(kernel, cut).factors(2)
    for _ in range(20):
        moved = left + 0.05 * torch.randn(left.shape, generator=generator, dtype=torch.float64)
        other = fold(moved @ right, cut, SHAPE)
        assert relative_error(kernel, other) > best


def test_truncation_keeps_dtype_and_rounds_only_once():
    for dtype in (torch.float32, torch.bfloat16):
        kernel = gaussian().to(dtype)
        truncated = truncate(kernel, "OUT", 4)
        assert truncated.dtype == dtype
        assert torch.equal(truncated, truncate(kernel.double(), "OUT", 4).to(dtype))


# Relative error and norm loss of an orthogonal truncation (paper 2's specification, printed digits).
CONVERSIONS = ((0.10, 0.005), (0.30, 0.046), (0.50, 0.134), (0.70, 0.286), (0.866, 0.500), (0.95, 0.688))


@pytest.mark.parametrize(("error", "loss"), CONVERSIONS)
def test_conversions_between_the_readings_match_the_printed_table(error, loss):
    kernel = torch.diag(torch.tensor([math.sqrt(1 - error**2)] + [error / 10] * 100).double())[:, None, :, None]
    truncated = truncate(kernel, "KH", 1)
    assert relative_error(kernel, truncated) == pytest.approx(error, abs=5.1e-4)
    assert norm_loss(kernel, truncated) == pytest.approx(loss, abs=5.1e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_norm_loss_of_an_orthogonal_truncation_follows_from_its_error(cut):
    kernel = gaussian()
    truncated = truncate(kernel, cut, 2)
    error = relative_error(kernel, truncated)
    assert norm_loss(kernel, truncated) == pytest.approx(1 - math.sqrt(1 - error**2), abs=1e-12)


def test_graded_kernels_reach_the_error_and_lose_less_norm_than_truncations_of_that_error():
    kernel = flat_three()
    truncated = truncate(kernel, "KH", 1)
    half = graded(kernel, truncated, relative_error(kernel, truncated) / 2)
    assert torch.allclose(half, (kernel + truncated) / 2)
    assert relative_error(kernel, half) == pytest.approx(0.408, abs=5e-4)
    assert norm_loss(kernel, half) == pytest.approx(0.293, abs=5e-4)
    assert math.sqrt(1 - (1 - norm_loss(kernel, half)) ** 2) == pytest.approx(0.707, abs=5e-4)
    kernel = gaussian()
    weight = relative_error(kernel, truncate(kernel, "KH", 1)) ** 2
    for t in (0.0, 0.3, 1.0):
        between = graded(kernel, truncate(kernel, "KH", 1), t * math.sqrt(weight))
        assert norm_loss(kernel, between) == pytest.approx(1 - math.sqrt(1 - weight * (2 * t - t**2)), abs=1e-12)


def test_both_readings_of_two_mode_truncation():
    assert all(len(CUTS[cut]) == 1 for pair in JOINT2 for cut in pair)
    kernel = gaussian()
    joint = truncate_jointly(kernel, {"IN": 5, "OUT": 8})
    ranks = [torch.linalg.matrix_rank(unfold(joint, cut), rtol=1e-10).item() for cut in MODES]
    assert ranks == [8, 5, 3, 5]
    assert relative_error(joint, truncate(truncate(kernel, "OUT", 8), "IN", 5)) < 1e-12  # OUT is the larger mode
    assert torch.equal(joint, truncate_jointly(kernel, {"OUT": 8, "IN": 5}))
    assert torch.equal(truncate_jointly(kernel, {"KW": 2}), truncate(kernel, "KW", 2))


def test_a_product_kernel_has_no_entropy_on_any_cut():
    kernel = torch.einsum("o,i,h,w->oihw", *[gaussian((size,), size) for size in (24, 16, 3, 3)])
    for cut in CUTS:
        assert entropy(spectrum(kernel, cut)) == pytest.approx(0, abs=1e-12)


def test_a_ghz_kernel_has_entropy_log_three_on_every_cut():
    kernel = sparse((24, 16, 3, 3), [(k, k, k, k) for k in range(3)])
    assert [entropy(spectrum(kernel, cut)) for cut in CUTS] == pytest.approx([math.log(3)] * 7, abs=1e-12)


def test_the_pair_kernel_has_its_known_entropies():
    kernel = sparse((24, 16, 3, 3), [(i, i, k, k) for i in range(8) for k in range(3)])
    ranks = {"OUT": 8, "IN": 8, "KH": 3, "KW": 3, "OUT.IN": 1, "OUT.KH": 24, "OUT.KW": 24}
    for cut, rank in ranks.items():
        assert entropy(spectrum(kernel, cut)) == pytest.approx(math.log(rank), abs=1e-12)


def test_the_separating_kernel_tells_all_seven_cuts_apart():
    ranks = {"OUT": 12, "IN": 8, "KH": 3, "KW": 2, "OUT.IN": 6, "OUT.KH": 4, "OUT.KW": 24}
    kernel = separating_kernel()
    assert {cut: effective_rank(kernel, cut) for cut in CUTS} == pytest.approx(ranks, rel=1e-12)
    assert len(set(ranks.values())) == 7


@pytest.mark.parametrize("cut", CUTS)
def test_effective_ranks_lie_between_one_and_the_number_of_singular_values(cut):
    kernel = gaussian()
    count = len(spectrum(kernel, cut))
    assert 1 <= effective_rank(kernel, cut) <= count
    assert entropy(torch.ones(count)) == pytest.approx(math.log(count))


@pytest.mark.parametrize("cut", CUTS)
def test_entropy_does_not_rise_on_the_truncated_cut(cut):
    for seed in range(5):
        svd = cut_svd(gaussian((7, 11, 5, 3), seed), cut)
        entropies = [entropy(svd.values[:rank]) for rank in range(1, len(svd.values) + 1)]
        assert all(lower <= higher + 1e-12 for lower, higher in zip(entropies, entropies[1:], strict=False))


@pytest.mark.parametrize(
    "geometry",
    (
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 1), "padding_mode": "reflect"},
    ),
)
def test_output_error_is_that_of_the_layer_without_bias(geometry):
    conv = nn.Conv2d(6, 8, (3, 2), bias=False, dtype=torch.float64, **geometry)
    conv.weight.data = gaussian((8, 6, 3, 2))
    images = gaussian((5, 6, 9, 8), seed=1).exp()
    truncated = truncate(conv.weight, "OUT.KH", 4)
    with torch.no_grad():
        before = conv(images)
        moment = patch_moment(conv, images)
        conv.weight.data, kernel = truncated, conv.weight.data
        expected = ((before - conv(images)).norm() / before.norm()).item()
    assert output_error(kernel, truncated, moment) == pytest.approx(expected, rel=1e-10)
    assert output_error(kernel, truncated, torch.eye(36, dtype=torch.float64)) == pytest.approx(
        relative_error(kernel, truncated)
    )


def test_patch_moments_do_not_depend_on_how_the_images_are_chunked(monkeypatch):
    conv, images = nn.Conv2d(3, 4, 3, padding=1), gaussian((7, 3, 8, 8)).float()
    whole = patch_moment(conv, images)
    monkeypatch.setattr(measures, "PATCHES_AT_ONCE", 1)
    assert torch.allclose(patch_moment(conv, images), whole, rtol=1e-12)


def test_truncating_the_outputs_beats_truncating_the_norm_on_correlated_inputs():
    conv = nn.Conv2d(6, 10, 3, dtype=torch.float64)
    kernel = gaussian((10, 6, 3, 3))
    images = gaussian((20, 6, 8, 8), seed=1) * torch.tensor([5.0, 3, 1, 1, 0.3, 0.1]).view(-1, 1, 1)
    moment = patch_moment(conv, images)
    for rank in (1, 4, 9):
        weighted = truncate_outputs(kernel, rank, moment)
        assert torch.linalg.matrix_rank(unfold(weighted, "OUT"), rtol=1e-10) == rank
        assert output_error(kernel, weighted, moment) < output_error(kernel, truncate(kernel, "OUT", rank), moment)
        assert relative_error(kernel, weighted) >= relative_error(kernel, truncate(kernel, "OUT", rank))
    spread = torch.linalg.svdvals(kernel.flatten(1) @ torch.linalg.cholesky(moment))
    best = (spread[4:].norm() / spread.norm()).item()
    assert output_error(kernel, truncate_outputs(kernel, 4, moment), moment) == pytest.approx(best, rel=1e-9)


def test_a_moment_in_float32_gives_what_it_gives_in_float64():
    kernel, half = gaussian((10, 6, 3, 3)), gaussian((54, 54), seed=1).float()
    moment = half @ half.mT
    truncated = truncate_outputs(kernel, 4, moment)
    assert torch.equal(truncated, truncate_outputs(kernel, 4, moment.double()))
    assert output_error(kernel, truncated, moment) == output_error(kernel, truncated, moment.double())


@pytest.mark.parametrize(("size", "stride"), USAGE)
def test_tap_usage_matches_the_printed_table(size, stride):
    output, taps, mean = USAGE[size, stride]
    conv = nn.Conv2d(1, 1, 3, stride=stride, padding=1)
    usage = tap_usage(conv, (size, size))
    assert conv(torch.zeros(1, 1, size, size)).shape[-1] == output
    assert (usage > 0).sum() == taps and usage.mean().item() == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize(
    "geometry",
    (
        {"padding": (1, 3), "stride": (2, 1), "dilation": (1, 2)},
        {"padding": "same", "dilation": 3},
        {"padding": "valid"},
        {"padding": 2, "stride": 3},
    ),
)
def test_tap_usage_counts_the_pixels_that_each_tap_reads(geometry):
    conv = nn.Conv2d(1, 1, (3, 5), bias=False, **geometry)
    usage = torch.zeros(3, 5)
    for row, column in itertools.product(range(3), range(5)):
        conv.weight.data.zero_()
        conv.weight.data[0, 0, row, column] = 1
        usage[row, column] = conv(torch.ones(1, 1, 7, 11)).mean().detach()
    assert torch.allclose(tap_usage(conv, (7, 11)).float(), usage)


def test_reflected_padding_uses_every_tap():
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    assert (tap_usage(conv, (2, 2)) == 1).all()


def test_two_kernels_of_a_resnet50_with_an_imagenet_stem_use_only_their_centre_at_32_pixels():
    counts = {}
    for form in ("imagenet", "cifar"):
        used = []
        with torch.device("meta"):
            model = models.build("resnet50", form=form)
            for module in model.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.register_forward_pre_hook(
                        lambda conv, inputs, used=used: used.append((conv, tuple(inputs[0].shape[2:])))
                    )
            model.eval()(torch.zeros(1, 3, 32, 32))
        counts[form] = [int((tap_usage(conv, size) > 0).sum()) for conv, size in used]
    assert counts["imagenet"].count(1) == 2 and counts["imagenet"][-2:] == [1, 1]
    assert set(counts["cifar"]) == {9}


def test_effective_norm_loss_ignores_taps_that_only_multiply_padding():
    conv = nn.Conv2d(12, 20, 3, padding=1)
    kernel = gaussian((20, 12, 3, 3))
    centre = torch.zeros_like(kernel)
    centre[..., 1, 1] = kernel[..., 1, 1]
    assert norm_loss(kernel, centre) > 0.5
    assert effective_norm_loss(kernel, centre, tap_usage(conv, (1, 1))) == 0
    everywhere = effective_norm_loss(kernel, centre, tap_usage(nn.Conv2d(12, 20, 3), (9, 9)))
    assert everywhere == pytest.approx(norm_loss(kernel, centre))
    usage = tap_usage(conv, (4, 4))
    squares = (kernel.square() * usage).sum(), (centre.square() * usage).sum()
    assert effective_norm_loss(kernel, centre, usage) == pytest.approx(1 - (squares[1] / squares[0]).sqrt().item())


def test_resnet50_convolutions_by_the_cuts_that_apply_to_them():
    with torch.device("meta"):
        kernels = [m.weight for m in models.build("resnet50", form="imagenet").modules() if isinstance(m, nn.Conv2d)]
    pointwise = [kernel for kernel in kernels if applicable_cuts(kernel.shape) == ("OUT",)]
    square = [kernel for kernel in kernels if kernel.shape[2:] == (3, 3)]
    assert (len(kernels), len(pointwise), len(square)) == (53, 36, 16)
    assert sum(kernel.numel() for kernel in pointwise) == 12_128_256
    assert sum(kernel.numel() for kernel in square) == 11_317_248
    passes = {"OUT": 10, "IN": 10, "OUT.KH": 10, "OUT.KW": 10, "OUT.IN": 8, "KH": 2, "KW": 2}
    assert sum(passes[cut] for kernel in square for cut in applicable_cuts(kernel.shape)) == 832


@pytest.mark.parametrize(
    "call",
    (
        lambda k: truncate(k, "DEPTH", 1),
        lambda k: truncate(k, "OUT", 0),
        lambda k: truncate(k, "KH", 4),
        lambda k: truncate(k * math.nan, "OUT", 1),
        lambda k: truncate_jointly(k, {"OUT.IN": 2}),
        lambda k: truncate_jointly(k, {"OUT": 21}),
        lambda k: norm_loss(k, k[:10]),
        lambda k: norm_loss(0 * k, k),
        lambda k: relative_error(k, k * math.inf),
        lambda k: graded(k, truncate(k, "OUT", 1), 0.999),
        lambda k: graded(k, truncate(k, "OUT", 1), -0.1),
        lambda k: effective_rank(0 * k, "OUT"),
        lambda k: patch_moment(nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 4, 5, 5)),
        lambda k: patch_moment(nn.Conv2d(12, 4, 3), torch.zeros(12, 5, 5)),
        lambda k: patch_moment(nn.Conv2d(12, 4, 3), torch.zeros(2, 5, 5, 5)),
        lambda k: patch_moment(nn.Conv2d(12, 4, 3), torch.zeros(0, 12, 5, 5)),
        lambda k: output_error(k, k, torch.zeros(180, 180, dtype=torch.float64)),
        lambda k: output_error(k, k, torch.eye(60)),
        lambda k: truncate_outputs(k, 21, torch.eye(180, dtype=torch.float64)),
        lambda k: truncate_outputs(k, 2, torch.eye(60)),
        lambda k: truncate_outputs(k, 2, torch.ones(180)),
        lambda k: truncate_outputs(k, 2, torch.eye(180) * math.nan),
        lambda k: tap_usage(nn.Conv2d(1, 1, 3), (2, 5)),
        lambda k: effective_norm_loss(k, k, torch.zeros(3, 5)),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(gaussian())
