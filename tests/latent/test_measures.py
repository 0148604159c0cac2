import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, optimize, special, stats
from torch.nn.utils import prune

from lib import latent
from lib.latent import measures, trials
from lib.masks import METHODS, magnitude_mask
from lib.provenance import data_dir

FRACTIONS = (0.1, 0.3, 0.5, 0.8)
PUBLIC_HEADS = {
    "CIFAR-10": ("akamaster/resnet20-12fca82f.th", "module.linear.weight"),
    "CIFAR-100": ("chenyaofo/cifar100_resnet20.pth", "fc.weight"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, generator):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def public_head(dataset):
    name, key = PUBLIC_HEADS[dataset]
    path = data_dir() / name
    if not path.is_file():
        pytest.skip(f"the public ResNet-20 checkpoint {name} is not in the data folder")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint.get("state_dict", checkpoint)[key]


def squared_group_distance(weight, pruned, groups=100):
    return latent.group_means(weight - pruned, groups).square().sum().item()


# AP2 and grouping


def test_ap2_is_zero_only_for_equal_weights_and_the_removed_squares_at_prune_time():
    weight = torch.randn(10, 64, generator=seeded())
    assert latent.ap2(weight, weight) == 0 and latent.ap2(weight, weight + 1e-3) > 0
    for method in METHODS:
        mask = magnitude_mask(weight, 0.3, method, seeded())
        assert latent.ap2(weight, weight * mask) == pytest.approx(sum(w**2 for w in weight[~mask].tolist()))


def test_ap2_of_lowest_is_at_most_any_mask_is_at_most_highest():
    weight = torch.randn(20, 30, generator=seeded())
    for fraction in FRACTIONS:
        low, high = (latent.ap2(weight, weight * magnitude_mask(weight, fraction, m)) for m in ("lowest", "highest"))
        for seed in range(20):
            assert low <= latent.ap2(weight, weight * magnitude_mask(weight, fraction, "random", seeded(seed))) <= high


@pytest.mark.parametrize(
    ("length", "size", "groups", "last"),
    (
        (20_480, 204, 101, 80),  # ResNet-50, 10 classes
        (40_960, 409, 101, 60),  # VGG-16 or AlexNet
        (7_680, 76, 102, 4),  # ViT
        (204_800, 2048, 100, 2048),  # 100 classes
        (409_600, 4096, 100, 4096),
        (76_800, 768, 100, 768),
        (819_200, 8192, 100, 8192),  # 200 classes
        (153_600, 1536, 100, 1536),
        (640, 6, 107, 4),  # ResNet-20, 10 classes
        (6_400, 64, 100, 64),  # ResNet-20, 100 classes
        (99, 1, 99, 1),
        (7, 1, 7, 1),
    ),
)
def test_groups_have_the_sizes_and_counts_of_the_released_code(length, size, groups, last):
    vector = torch.arange(length, dtype=torch.float64)
    means = latent.group_means(vector)
    assert len(means) == groups
    assert means[0].item() == (size - 1) / 2
    assert means[-1].item() == length - 1 - (last - 1) / 2
    expected = [vector[start : start + size].mean() for start in range(0, length, size)]
    assert torch.allclose(means, torch.stack(expected), rtol=1e-14, atol=0)


def test_groups_of_a_hundred_class_head_are_its_rows():
    weight = torch.randn(100, 64, generator=seeded())
    assert torch.allclose(latent.group_means(weight), weight.double().mean(1))


def test_squared_group_distance_is_bounded_by_ap2_of_each_group_over_its_size():
    generator = seeded(2)
    for length in (7_680, 640, 6_400, 50):
        size = max(length // 100, 1)
        for _ in range(5):
            delta = normal(length, generator=generator) + 0.3
            bound = sum(part.square().sum().item() / len(part) for part in delta.split(size))
            assert squared_group_distance(delta, torch.zeros_like(delta)) <= bound * (1 + 1e-12)
    delta = torch.zeros(7_680)
    delta[-4:] = 1
    assert squared_group_distance(delta, torch.zeros_like(delta)) == 1 > latent.ap2(delta, torch.zeros_like(delta)) / 76


def test_group_means_of_unrelated_weights_cancel():
    for length, low, high in ((204_800, 1e-8, 2e-5), (20_480, 1e-7, 2e-4)):
        weight = 0.02 * normal(length, generator=seeded(3))
        for method in METHODS:
            for fraction in FRACTIONS:
                pruned = weight * magnitude_mask(weight, fraction, method, seeded(4))
                squared = squared_group_distance(weight, pruned)
                assert 0.6 * low < squared < 1.4 * high  # the range is of means; one draw scatters by 14 %
                assert squared == pytest.approx(latent.ap2(weight, pruned) / (length // 100) ** 2, rel=0.6)


# AP3


@pytest.mark.parametrize("block", (1, 3, 7, 100, 640))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_large_tensor_is_measured_part_by_part_without_changing_the_result_or_the_weights(block, dtype, monkeypatch):
    weight = torch.randn(10, 64, generator=seeded()).to(dtype)
    pruned = weight * magnitude_mask(weight, 0.5, "lowest")
    before, distance, means = weight.clone(), (weight - pruned).double().square().sum().item(), 107
    projected = latent.kl_student_t(math.sqrt(squared_group_distance(weight, pruned)), means, 4).item()
    monkeypatch.setattr(measures, "BLOCK", block)
    assert latent.ap2(torch.nn.Parameter(weight), pruned) == pytest.approx(distance, rel=1e-12)
    assert latent.t_ap3(torch.nn.Parameter(weight), pruned) == pytest.approx(projected, rel=1e-12)
    assert torch.equal(weight, before)
    weight[-1, -1] = math.inf
    for measure in (latent.ap2, latent.t_ap3):
        with pytest.raises(ValueError, match="finite"):
            measure(weight, pruned)


@pytest.mark.parametrize("shape", ((100, 4096), (2048, 512)))
def test_a_head_that_is_being_trained_is_measured_above_the_size_of_a_part_too(shape):
    weight = torch.nn.Parameter(torch.randn(shape, generator=seeded()))
    assert weight.numel() > measures.BLOCK
    plain = weight.detach().numpy().astype(np.float64)
    for pruned in (weight * 0, weight.detach() * 0):
        assert latent.ap2(weight, pruned) == pytest.approx((plain**2).sum(), rel=1e-12)
        size = plain.size // 100
        means = np.add.reduceat(plain.ravel(), np.arange(0, plain.size, size))
        means /= np.diff([*range(0, plain.size, size), plain.size])
        expected = latent.kl_student_t(np.linalg.norm(means), len(means), 4).item()
        assert latent.t_ap3(weight, pruned) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.int8))
def test_weights_of_low_precision_are_summed_in_float64(dtype):
    weight = (torch.randn(2048, 512, generator=seeded()) * (20 if dtype == torch.int8 else 1)).to(dtype)
    zero, plain = torch.zeros_like(weight), weight.float().numpy().astype(np.float64)
    own = (weight - zero).square().sum().item()
    assert not math.isfinite(own) or own != (plain**2).sum()  # what the type itself can do
    assert latent.ap2(weight, zero) == pytest.approx((plain**2).sum(), rel=1e-12)
    assert latent.kl_gaussian(weight[0], 1.0, zero[0], 1.0) == pytest.approx((plain[0] ** 2).sum() / 2, rel=1e-12)
    assert latent.wasserstein_gaussian(weight[0], 1.0, zero[0], 1.0) == pytest.approx(np.linalg.norm(plain[0]))
    assert latent.group_means(weight)[0].item() == pytest.approx(plain.ravel()[: plain.size // 100].mean(), rel=1e-9)
    assert latent.entry_divergences(weight, weight // 2)["wasserstein"] == pytest.approx(
        stats.wasserstein_distance(plain.ravel(), (weight // 2).double().ravel())
    )
    assert latent.effective_number(weight) == pytest.approx(np.abs(plain).sum() ** 2 / (plain**2).sum(), rel=1e-12)


def test_t_ap3_depends_on_the_grouped_distance_alone_and_counts_actual_groups():
    weight, pruned = torch.randn(10, 64, generator=seeded()), torch.zeros(10, 64)
    r = math.sqrt(squared_group_distance(weight, pruned))
    assert latent.t_ap3(weight, pruned) == pytest.approx(latent.kl_student_t(r, 107, 4).item())
    assert latent.t_ap3(weight, pruned) == pytest.approx(latent.t_ap3(pruned, weight))
    within_groups = torch.randn(1, 64, generator=seeded(1)).expand(10, 64) * 0
    within_groups[:, 0], within_groups[:, 1] = 1, -1  # cancels in each of the 10 groups of one row
    assert latent.ap2(within_groups, pruned) == 20 and latent.t_ap3(within_groups, pruned, groups=10) == 0


@pytest.mark.parametrize(
    ("fraction", "squared", "expected"), ((0.3, 4.43596, 2.1206), (0.5, 4.68607, 2.2368), (0.8, 4.59060, 2.1925))
)
def test_public_cifar10_head_passes_two_when_its_highest_weights_go(fraction, squared, expected):
    weight = public_head("CIFAR-10")
    pruned = weight * magnitude_mask(weight, fraction, "highest")
    assert len(latent.group_means(weight)) == 107
    assert squared_group_distance(weight, pruned) == pytest.approx(squared, abs=5.1e-6)
    assert latent.t_ap3(weight, pruned) == pytest.approx(expected, abs=5.1e-5)


def test_public_cifar10_head_at_eighty_percent_puts_random_between_lowest_and_highest():
    weight = public_head("CIFAR-10")
    lowest = weight * magnitude_mask(weight, 0.8, "lowest")
    assert squared_group_distance(weight, lowest) == pytest.approx(2.36381, abs=5.1e-6)
    assert latent.t_ap3(weight, lowest) == pytest.approx(1.1441, abs=5.1e-5)
    random = [latent.t_ap3(weight, weight * magnitude_mask(weight, 0.8, "random", seeded(s))) for s in range(40)]
    assert np.mean(random) == pytest.approx(1.82, abs=0.1)  # single masks scatter by 0.15


def test_public_cifar100_head_orders_t_ap3_in_reverse_of_ap2():
    weight = public_head("CIFAR-100")

    def measures(method, fraction, generator=None):
        pruned = weight * magnitude_mask(weight, fraction, method, generator)
        squared = squared_group_distance(weight, pruned)
        return (
            squared,
            latent.t_ap3(weight, pruned),
            squared / (latent.ap2(weight, pruned) / 64**2),
            latent.ap2(weight, pruned),
        )

    highest, lowest = measures("highest", 0.8), measures("lowest", 0.8)
    random = [measures("random", 0.8, seeded(s)) for s in range(10)]
    assert highest[:2] == pytest.approx((0.00890, 0.0044), abs=5.1e-5)
    assert lowest[:2] == pytest.approx((0.20088, 0.0984), abs=5.1e-5)
    assert np.mean([r[1] for r in random]) == pytest.approx(0.011, abs=1e-3)
    for r in random:
        assert highest[1] < r[1] < lowest[1] and highest[3] > r[3] > lowest[3]
    assert lowest[2] == pytest.approx(7.5, abs=0.05)
    assert measures("highest", 0.1)[2] == pytest.approx(3.9, abs=0.05)


def test_code_style_nondiagonal_precision_is_a_multiple_of_the_identity():
    precision = latent.nondiagonal_precision_code(400, seeded())
    off_diagonal = precision - precision.diagonal().diag()
    assert precision.diagonal().tolist() == pytest.approx([5.0e-5] * 400, rel=1e-5)
    assert 0 < off_diagonal.abs().max() < 1e-10
    weight, pruned = (torch.randn(400, generator=seeded(s)) for s in (1, 2))
    delta = weight - pruned
    assert math.sqrt(delta @ precision @ delta) == pytest.approx(math.sqrt(5e-5 * latent.ap2(weight, pruned)), rel=1e-4)


# Performance bounds


def random_quadratics(count, generator, dim=4):
    """(weight, pruned, covariance, Hessian eigenvectors, Hessian eigenvalues >= 0) many times."""
    for _ in range(count):
        root = normal(dim, dim, generator=generator)
        covariance = root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64)
        vectors = torch.linalg.qr(normal(dim, dim, generator=generator)).Q
        values = torch.rand(dim, dtype=torch.float64, generator=generator) * 2
        yield normal(dim, generator=generator), normal(dim, generator=generator), covariance, vectors, values


def quadratic_gap(hessian, centre, weight, pruned):
    loss = [0.5 * (w - centre) @ hessian @ (w - centre) for w in (weight, pruned)]
    return abs(loss[0] - loss[1]).item()


def test_quadratic_loss_gap_never_exceeds_the_bounds_when_its_minimum_is_at_either_weight():
    finite = 0
    for weight, pruned, covariance, vectors, values in random_quadratics(1000, seeded(6)):
        hessian = vectors @ values.diag() @ vectors.T
        top, kl = values.max().item(), latent.kl_gaussian(weight, covariance, pruned, covariance)
        trace = covariance.trace().item()
        taylor = top / 2 * latent.ap2(weight, pruned)
        corollary = latent.gaussian_performance_bound(kl, top, latent.precision_range(covariance)[0]).item()
        lemma = latent.performance_bound(kl, top, trace, trace).item()
        finite += math.isfinite(lemma)
        for centre in (weight, pruned):
            assert quadratic_gap(hessian, centre, weight, pruned) <= taylor * (1 + 1e-9)
        assert taylor <= corollary * (1 + 1e-9)
        assert taylor <= lemma
    assert 50 < finite < 1000  # kl < 2 in some and not in others: both branches were met


def test_quadratic_loss_gap_exceeds_the_bound_for_a_generic_centre_or_an_indefinite_hessian():
    generic = indefinite = 0
    generator = seeded(7)
    for weight, pruned, covariance, vectors, values in random_quadratics(1000, generator):
        bound = partial(latent.gaussian_performance_bound, latent.kl_gaussian(weight, covariance, pruned, covariance))
        smallest = latent.precision_range(covariance)[0]
        centre = 3 * normal(4, generator=generator)
        gap = quadratic_gap(vectors @ values.diag() @ vectors.T, centre, weight, pruned)
        generic += gap > bound(values.max().item(), smallest).item()
        shifted = values - 1.5  # the largest eigenvalue is positive in most
        if shifted.max() > 0:
            gap = quadratic_gap(vectors @ shifted.diag() @ vectors.T, weight, weight, pruned)
            indefinite += gap > bound(shifted.max().item(), smallest).item()
    assert generic > 0 and indefinite > 0


def test_printed_corollary_two_fails_exactly_when_twice_the_kl_exceeds_the_precision():
    delta = 2.0
    kl = latent.kl_gaussian(torch.tensor([delta]), 1.0, torch.zeros(1), 1.0)
    assert kl == 2 and 0.5 * delta**2 == 2  # H = covariance = 1: the loss gap is 2
    assert latent.gaussian_performance_bound(kl, 1.0, 1.0, printed=True).item() == 1
    assert latent.gaussian_performance_bound(kl, 1.0, 1.0).item() == 2
    kl = torch.linspace(0.01, 3, 300, dtype=torch.float64)
    for precision in (0.5, 1.0, 2.0):
        printed, derived = (
            latent.gaussian_performance_bound(kl, 1.3, precision, printed=printed) for printed in (True, False)
        )
        assert torch.equal(printed < derived, 2 * kl > precision)


def test_performance_bound_is_lemma_two_with_its_constant_and_grows_to_infinity_at_two():
    kl = torch.linspace(0, 1.99, 100, dtype=torch.float64)
    t, constant = (kl / 2).sqrt(), 2 * (3.0 + 5.0)
    assert torch.allclose(latent.performance_bound(kl, 0.7, 3.0, 5.0), 0.7 * t * constant / (2 * (1 - t)))
    assert (latent.performance_bound(kl, 0.7, 3.0, 5.0).diff() > 0).all()
    assert latent.performance_bound(2.0, 0.7, 3.0, 5.0).isinf()


# The released code's pruning


def test_highest_code_reproduces_the_released_steps_and_keeps_no_original_weight():
    weight = torch.randn(10, 64, generator=seeded())
    for fraction in FRACTIONS:
        layer = torch.nn.Linear(64, 10)
        magnitude = weight.abs()
        layer.weight.data = magnitude - torch.full_like(magnitude, magnitude.max().item())
        prune.l1_unstructured(layer, "weight", fraction)
        pruned, mask = latent.prune_highest_code(weight, fraction)
        assert torch.equal(pruned, layer.weight.detach())
        assert torch.equal(mask, magnitude_mask(weight, fraction, "highest"))
        assert not (pruned[mask] == weight[mask]).any() and (pruned <= 0).all()
        assert latent.ap2(weight, pruned) > latent.ap2(weight, weight * mask)


def test_highest_code_inflates_ap2_and_shifts_the_group_means():
    for seed in range(3):
        weight = 0.02 * torch.randn(204_800, generator=seeded(seed))
        pruned, mask = latent.prune_highest_code(weight, 0.1)
        assert latent.ap2(weight, weight * mask) == pytest.approx(36, abs=0.5)
        assert 1000 < latent.ap2(weight, pruned) < 1700  # 1105 to 1501 over 40 other seeds
        assert 0.4 < squared_group_distance(weight, pruned) < 0.7
        assert squared_group_distance(weight, weight * mask) < 2e-5


def test_random_mask_code_is_numpy_seed_42_for_every_trial_and_nested():
    # the first four of NumPy's legacy permutation of 12 with seed 42
    assert (~latent.random_mask_code((3, 4), 0.3)).flatten().nonzero().flatten().tolist() == [0, 8, 9, 10]
    removed = [~latent.random_mask_code((10, 64), fraction) for fraction in FRACTIONS]
    assert [r.sum().item() for r in removed] == [64, 192, 320, 512]
    for smaller, larger in zip(removed, removed[1:], strict=False):
        assert (larger | ~smaller).all()


# Controls of equal AP2


def test_controls_keep_ap2_and_change_the_weights():
    weight = torch.randn(10, 64, generator=seeded()).double()
    mask = magnitude_mask(weight, 0.3, "lowest")
    delta = weight - weight * mask
    controls = {
        "direction": latent.random_direction(delta, seeded(1)),
        "signs": latent.sign_flips(delta, seeded(1)),
        "places": latent.permute_pruned(delta, mask, seeded(1)),
    }
    for control in controls.values():
        assert latent.ap2(weight, weight - control) == pytest.approx(latent.ap2(weight, weight * mask), rel=1e-12)
        assert not torch.equal(control, delta)
    assert torch.equal(controls["signs"].abs(), delta.abs())
    assert (controls["places"][mask] == 0).all()
    assert torch.equal(controls["places"][~mask].sort().values, delta[~mask].sort().values)
    assert torch.equal(controls["direction"], latent.random_direction(delta, seeded(1)))


def test_permutation_leaves_fine_tuned_weights_where_they_are():
    delta = torch.arange(12.0).view(3, 4)
    mask = torch.rand(3, 4, generator=seeded()) < 0.5
    assert torch.equal(latent.permute_pruned(delta, mask, seeded(2))[mask], delta[mask])
    assert not torch.equal(latent.permute_pruned(delta, mask, seeded(2)), delta)


def test_controls_refuse_what_they_cannot_use_and_never_draw_from_the_global_stream():
    delta, stream, mask = torch.arange(12.0).view(3, 4), seeded(), torch.ones(3, 4, dtype=torch.bool)
    before = torch.get_rng_state()
    for call in (
        lambda: latent.sign_flips(delta, None),
        lambda: latent.random_direction(delta, None),
        lambda: latent.permute_pruned(delta, mask, None),
        lambda: latent.nondiagonal_precision_code(3, None),
    ):
        with pytest.raises(ValueError, match=r"^generator must be [^\n]+\.$"):
            call()
    assert torch.equal(torch.get_rng_state(), before)
    for wrong in (mask.float(), mask.int(), mask[:2], None):  # an int mask would index rows, without a word
        with pytest.raises(ValueError, match=r"^mask must be [^\n]+\.$"):
            latent.permute_pruned(delta, wrong, stream)


def test_no_gradient_goes_through_controls_and_projections():
    weight, mask = torch.nn.Parameter(torch.randn(10, 64, generator=seeded())), torch.rand(10, 64) > 0.5
    results = (
        latent.random_direction(weight, seeded()),
        latent.sign_flips(weight, seeded()),
        latent.permute_pruned(weight, mask, seeded()),
        latent.group_means(weight),
        latent.prune_highest_code(weight, 0.5)[0],
        latent.fisher_covariance(weight**2),
        latent.kl_student_t(weight.norm(), 100, 4),
    )
    assert not any(result.requires_grad for result in results)
    estimate = latent.kl_student_t_monte_carlo(weight[0], torch.nn.Parameter(weight[1] * 1), 4, draws=10, seed=0)
    assert all(map(math.isfinite, estimate))


# For each measure, its arguments with a call that puts something bad there: into one entry of a vector or a matrix.
VECTOR, EYE = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64)


def spoiled(good, bad, *place):
    result = good.clone()
    result[place] = bad
    return result


def gaussian_calls(measure):
    v = VECTOR
    return [
        ("mean_p", lambda bad: measure(spoiled(v, bad, 1), 1.0, v, 1.0)),
        ("mean_q", lambda bad: measure(v, 1.0, spoiled(v, bad, 1), 1.0)),
        ("covariance_p", lambda bad: measure(v, bad, v, 1.0)),
        ("covariance_p", lambda bad: measure(v, spoiled(v, bad, 2), v, EYE)),
        ("covariance_q", lambda bad: measure(v, EYE, v, spoiled(v, bad, 2))),
        *(
            (name, lambda bad, place=place, build=build: measure(*build(spoiled(EYE, bad, *place))))
            for place in ((0, 0), (0, 2), (2, 0))  # a factorisation reads one triangle only
            for name, build in (("covariance_p", lambda m: (v, m, v, 1.0)), ("covariance_q", lambda m: (v, 1.0, v, m)))
        ),
    ]


BAD_VALUES = {
    "ap2": [
        ("weight", lambda bad: latent.ap2(spoiled(VECTOR, bad, 0), VECTOR)),
        ("pruned", lambda bad: latent.ap2(VECTOR, spoiled(VECTOR, bad, 0))),
        ("weight", lambda bad: latent.ap2(spoiled(VECTOR, bad, 0), spoiled(VECTOR, bad, 0))),
    ],
    "t_ap3": [
        ("weight", lambda bad: latent.t_ap3(spoiled(VECTOR, bad, 0), VECTOR)),
        ("pruned", lambda bad: latent.t_ap3(VECTOR, spoiled(VECTOR, bad, 0))),
        ("groups", lambda bad: latent.t_ap3(VECTOR, VECTOR, bad)),
        ("df", lambda bad: latent.t_ap3(VECTOR, VECTOR, 100, bad)),
    ],
    "group_means": [
        ("vector", lambda bad: latent.group_means(spoiled(VECTOR, bad, 0))),
        ("groups", lambda bad: latent.group_means(VECTOR, bad)),
    ],
    **{
        name: gaussian_calls(getattr(latent, name))
        for name in ("kl_gaussian", "kl_gaussian_printed", "wasserstein_gaussian")
    },
    "mahalanobis": [
        ("mean_p", lambda bad: latent.mahalanobis(spoiled(VECTOR, bad, 0), VECTOR, 1.0)),
        ("mean_q", lambda bad: latent.mahalanobis(VECTOR, spoiled(VECTOR, bad, 0), 1.0)),
        ("covariance", lambda bad: latent.mahalanobis(VECTOR, VECTOR, spoiled(EYE, bad, 0, 2))),
        ("covariance", lambda bad: latent.mahalanobis(VECTOR, VECTOR, bad)),
    ],
    "precision_range": [
        ("covariance", lambda bad: latent.precision_range(spoiled(EYE, bad, 0, 2))),
        ("covariance", lambda bad: latent.precision_range(spoiled(VECTOR, bad, 0))),
    ],
    "entry_divergences": [
        ("weight", lambda bad: latent.entry_divergences(spoiled(VECTOR, bad, 0), VECTOR)),
        ("pruned", lambda bad: latent.entry_divergences(VECTOR, spoiled(VECTOR, bad, 0))),
    ],
    "effective_number": [("scores", lambda bad: latent.effective_number(spoiled(VECTOR, bad, 0)))],
    "effective_sparsity": [("weight", lambda bad: latent.effective_sparsity(spoiled(VECTOR, bad, 0)))],
    "equal_covariance_divergences": [("distance", lambda bad: latent.equal_covariance_divergences([1.0, bad]))],
    "kl_student_t": [
        ("distance", lambda bad: latent.kl_student_t([1.0, bad], 1, 4)),
        ("dim", lambda bad: latent.kl_student_t(1.0, bad, 4)),
        ("df", lambda bad: latent.kl_student_t(1.0, 1, bad)),
    ],
    "kl_student_t_monte_carlo": [
        ("mean_p", lambda bad: latent.kl_student_t_monte_carlo(spoiled(VECTOR, bad, 0), VECTOR, 4, draws=9, seed=0)),
        ("mean_q", lambda bad: latent.kl_student_t_monte_carlo(VECTOR, spoiled(VECTOR, bad, 0), 4, draws=9, seed=0)),
        ("df", lambda bad: latent.kl_student_t_monte_carlo(VECTOR, VECTOR, bad, draws=9, seed=0)),
    ],
    "total_variation_lower_bound": [
        ("squared_distance", lambda bad: latent.total_variation_lower_bound([1.0, bad], 1.0, 1.0)),
        ("trace_p", lambda bad: latent.total_variation_lower_bound(1.0, bad, 1.0)),
        ("trace_q", lambda bad: latent.total_variation_lower_bound(1.0, 1.0, bad)),
    ],
    "recovered_squared_distance": [
        ("kl", lambda bad: latent.recovered_squared_distance([1.0, bad], 1.0, 1.0)),
        ("trace_p", lambda bad: latent.recovered_squared_distance(1.0, bad, 1.0)),
        ("trace_q", lambda bad: latent.recovered_squared_distance(1.0, 1.0, bad)),
    ],
    "performance_bound": [
        ("kl", lambda bad: latent.performance_bound([1.0, bad], 1.0, 1.0, 1.0)),
        ("hessian_max", lambda bad: latent.performance_bound(1.0, bad, 1.0, 1.0)),
        ("trace_p", lambda bad: latent.performance_bound(1.0, 1.0, bad, 1.0)),
        ("trace_q", lambda bad: latent.performance_bound(1.0, 1.0, 1.0, bad)),
    ],
    "gaussian_performance_bound": [
        ("kl", lambda bad: latent.gaussian_performance_bound([1.0, bad], 1.0, 1.0)),
        ("hessian_max", lambda bad: latent.gaussian_performance_bound(1.0, bad, 1.0)),
        ("precision_min", lambda bad: latent.gaussian_performance_bound(1.0, 1.0, bad)),
    ],
    "fisher_covariance": [
        ("diagonal", lambda bad: latent.fisher_covariance(spoiled(VECTOR, bad, 0))),
        ("damping", lambda bad: latent.fisher_covariance(VECTOR, bad)),
    ],
    "prune_highest_code": [("weight", lambda bad: latent.prune_highest_code(spoiled(VECTOR, bad, 0), 0.5))],
    "random_mask_code": [("fraction", lambda bad: latent.random_mask_code((3,), bad))],
    "random_direction": [("delta", lambda bad: latent.random_direction(spoiled(VECTOR, bad, 0), seeded()))],
    "sign_flips": [("delta", lambda bad: latent.sign_flips(spoiled(VECTOR, bad, 0), seeded()))],
    "permute_pruned": [("delta", lambda bad: latent.permute_pruned(spoiled(VECTOR, bad, 0), VECTOR > 1, seeded()))],
}


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("measure", sorted(BAD_VALUES))
def test_what_is_not_finite_is_refused_in_one_sentence_that_names_the_argument(measure, bad):
    for name, call in BAD_VALUES[measure]:
        with pytest.raises(ValueError, match=rf"^{name} must be [^\n]+\.$"):
            call(bad)


def test_no_measure_is_left_out_of_the_rule_for_values_that_are_not_finite():
    assert set(BAD_VALUES) == set(latent.MEASURES.split()) - {"nondiagonal_precision_code"}  # it takes no values


@pytest.mark.parametrize(
    "call",
    (
        lambda w: latent.ap2(w, w[0]),
        lambda w: latent.ap2(w, w * math.nan),
        lambda w: latent.group_means(w * math.inf),
        lambda w: latent.group_means(w, 0),
        lambda w: latent.group_means(w[:0]),
        lambda w: latent.ap2(w[:0], w[:0]),
        lambda w: latent.ap2(w * 1j, w),
        lambda w: latent.random_mask_code((3,), -0.1),
        lambda w: latent.random_mask_code((3,), 1.0),
        lambda w: latent.effective_number(w * 0),
        lambda w: latent.effective_sparsity(w * 0),
        lambda w: latent.total_variation_lower_bound(1.0, -1.0, 3.0),
        lambda w: latent.kl_student_t_monte_carlo(w[0], w[1], 4, draws=1, seed=0),
        lambda w: latent.kl_student_t_monte_carlo(w[0], w[1][:2], 4, draws=9, seed=0),
        lambda w: latent.performance_bound(-1.0, 1.0, 1.0, 1.0),
        lambda w: latent.performance_bound(1.0, -1.0, 1.0, 1.0),
        lambda w: latent.gaussian_performance_bound(math.nan, 1.0, 1.0),
        lambda w: latent.gaussian_performance_bound(1.0, 1.0, 0.0),
        lambda w: latent.prune_highest_code(w, 1.0),
        lambda w: latent.fisher_covariance(w.abs(), damping=0),
        lambda w: latent.fisher_covariance(w * 0),
    ),
)
def test_bad_weights_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(normal(3, 5, generator=seeded()))


def test_a_layer_in_place_of_its_weight_is_refused_with_the_remedy():
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"^[^\n]+pass layer\.weight\.$"):
        latent.ap2(layer, layer)


# Divergences


@pytest.mark.parametrize("form", (lambda c: c, lambda c: torch.tensor([[c]])))
def test_kl_of_nearly_equal_covariances_is_not_negative(form):
    mean = torch.zeros(1, dtype=torch.float64)
    assert 0 <= latent.kl_gaussian(mean, form(1.5), mean, form(1.5 * (1 + 1e-10))) < 1e-15


# KL of two Student-t distributions (spec table): (d, df) -> values at r = 0.1, 1, 2, 3, 10, as printed.
STUDENT_T_TABLE = {
    (1, 4): ("0.003569536", "0.3392991", "1.18499", "2.220869", "7.400100"),
    (100, 4): ("0.004905332", "0.4873197", "1.911975", "4.173025", "32.19923"),
    (101, 4): ("0.004906217", "0.4874357", "1.912746", "4.175738", "32.29030"),
    (100, 1e6): ("0.00499999", "0.4999988", "1.999992", "4.499971", "49.9974"),
}


def random_covariance(d, generator):
    root = normal(d, d, generator=generator)
    return root @ root.T + 0.1 * torch.eye(d, dtype=torch.float64)


def torch_kl(mean_p, covariance_p, mean_q, covariance_q):
    def matrix(c):
        c = torch.as_tensor(c, dtype=torch.float64)
        return c if c.dim() == 2 else torch.diag(c.expand(len(mean_p)))

    distribution = torch.distributions.MultivariateNormal
    return torch.distributions.kl_divergence(
        distribution(mean_p, matrix(covariance_p)), distribution(mean_q, matrix(covariance_q))
    ).item()


def student_t_kl_by_gauss_quadrature(r, d, df, nodes=100, angles=50):
    """E log(1 + rho^2 B - 2 rho sqrt(B (1 - B)) c) over B ~ Beta(df / 2, d / 2) and the angle's cosine c."""
    x, weight_x = special.roots_jacobi(nodes, d / 2 - 1, df / 2 - 1)
    if d == 1:
        c, weight_c = np.array([-1.0, 1.0]), np.array([1.0, 1.0])
    else:
        c, weight_c = special.roots_gegenbauer(angles, d / 2 - 1)
    b = (1 + x[:, None]) / 2
    rho = r / math.sqrt(df)
    values = np.log1p(rho**2 * b - 2 * rho * np.sqrt(b * (1 - b)) * c)
    return (df + d) / 2 * (weight_x @ values @ weight_c) / (weight_x.sum() * weight_c.sum())


def definition_integral(function, m):
    """Integral of function(p, q) over the line for the densities of N(0, 1) and N(m, 1)."""
    return integrate.quad(
        lambda x: function(stats.norm.pdf(x), stats.norm.pdf(x - m)), -10, m + 10, points=[m / 2], epsabs=1e-13
    )[0]


@pytest.mark.parametrize("form_p", ("scalar", "vector", "matrix"))
@pytest.mark.parametrize("form_q", ("scalar", "vector", "matrix"))
def test_gaussian_kl_equals_torch_distributions_for_every_form_of_covariance(form_p, form_q):
    generator = seeded()
    for d in (1, 2, 7):
        forms = {"scalar": 0.7, "vector": torch.rand(d, generator=generator).double() + 0.1}
        p = forms.get(form_p, random_covariance(d, generator))
        q = forms.get(form_q, random_covariance(d, generator))
        mean_p, mean_q = normal(d, generator=generator), normal(d, generator=generator)
        assert latent.kl_gaussian(mean_p, p, mean_q, q) == pytest.approx(
            torch_kl(mean_p, p, mean_q, q), rel=1e-10, abs=1e-12
        )
        assert latent.kl_gaussian(mean_p, p, mean_p, p) == pytest.approx(0, abs=1e-12)


def test_printed_closed_form_is_the_reverse_kl():
    generator = seeded(1)
    for _ in range(20):
        p, q = random_covariance(4, generator), random_covariance(4, generator)
        mean_p, mean_q = normal(4, generator=generator), normal(4, generator=generator)
        delta = mean_p - mean_q
        inverse = torch.linalg.inv(p)
        printed = (torch.logdet(p) - torch.logdet(q) + (inverse @ q).trace() + delta @ inverse @ delta - 4).item() / 2
        assert latent.kl_gaussian_printed(mean_p, p, mean_q, q) == pytest.approx(printed, rel=1e-9)
        assert printed == pytest.approx(torch_kl(mean_q, q, mean_p, p), rel=1e-9)
        assert abs(printed - latent.kl_gaussian(mean_p, p, mean_q, q)) > 1e-3
        assert latent.kl_gaussian_printed(mean_p, p, mean_q, p) == pytest.approx(
            latent.kl_gaussian(mean_p, p, mean_q, p)
        )


def test_isotropic_kl_is_ap2_over_twice_the_variance():
    generator = seeded(2)
    mean_p, mean_q = normal(20_480, generator=generator), normal(20_480, generator=generator)
    for c in (1e-3, 1.0, 4.0):
        assert latent.kl_gaussian(mean_p, c, mean_q, c) == pytest.approx(
            (mean_p - mean_q).square().sum().item() / (2 * c)
        )


@pytest.mark.parametrize(
    ("dim", "scale_p", "scale_q", "expected", "digits"),
    (
        (20_480, 1, 1.01, 2.01, 2),
        (409_600, 1, 1.01, 40.3, 1),
        (20_480, 1.01, 1, 2.041, 3),
        (409_600, 1.01, 1, 40.82, 2),
        (20_480, 1, 0.99, 2.083, 3),
        (409_600, 1, 0.99, 41.65, 2),
    ),
)
def test_one_percent_of_scale_mismatch_alone_passes_the_limit_of_two(dim, scale_p, scale_q, expected, digits):
    zero = torch.zeros(dim)
    value = latent.kl_gaussian(zero, scale_p**2, zero, scale_q**2)
    assert round(value, digits) == expected and value > 2
    ratio = scale_q**2 / scale_p**2
    assert value == pytest.approx(dim / 2 * (math.log(ratio) + 1 / ratio - 1), rel=1e-9)


def test_kl_of_equal_covariances_lies_between_its_bounds_and_reaches_them_along_the_extreme_eigenvectors():
    generator, zero = seeded(3), torch.zeros(5)
    for _ in range(200):
        covariance, delta = random_covariance(5, generator), normal(5, generator=generator)
        smallest, largest = latent.precision_range(covariance)
        kl, squared = latent.kl_gaussian(delta, covariance, zero, covariance), delta.square().sum().item()
        assert smallest * squared / 2 * (1 - 1e-12) <= kl <= largest * squared / 2 * (1 + 1e-12)
    values, vectors = torch.linalg.eigh(covariance)
    assert (smallest, largest) == pytest.approx((1 / values[-1].item(), 1 / values[0].item()))
    for eigenvector, extreme in ((vectors[:, -1], smallest), (vectors[:, 0], largest)):
        assert latent.kl_gaussian(eigenvector, covariance, zero, covariance) == pytest.approx(extreme / 2)


def test_ap3_implies_ap2_by_the_corrected_bound_and_not_by_the_printed_condition():
    assert (
        latent.mahalanobis(torch.tensor([1.0, 0.0]), torch.zeros(2), 4.0) ** 2 == 0.25
    )  # printed: >= 1, the squared norm
    generator = seeded(4)
    printed_violations = corrected_violations = 0
    for _ in range(300):
        covariance = random_covariance(3, generator) + torch.eye(3)  # all eigenvalues above 1, as the print asks
        delta = normal(3, generator=generator)
        squared, twice_kl = delta.square().sum().item(), latent.mahalanobis(delta, torch.zeros(3), covariance) ** 2
        printed_violations += squared > twice_kl
        corrected_violations += squared > twice_kl / latent.precision_range(covariance)[0] * (1 + 1e-12)
    assert printed_violations == 300 and corrected_violations == 0


@pytest.mark.parametrize("m", (0.1, 1.0, 2.0, 4.0, 7.0))
def test_equal_covariance_divergences_equal_their_definitions(m):
    values = {name: value.item() for name, value in latent.equal_covariance_divergences(m).items()}
    affinity = definition_integral(lambda p, q: math.sqrt(p * q), m)
    assert values["kl"] == latent.kl_gaussian(torch.tensor([m], dtype=torch.float64), 1.0, torch.zeros(1), 1.0)
    assert values["jeffreys"] == pytest.approx(2 * values["kl"])
    assert values["bhattacharyya"] == pytest.approx(-math.log(affinity), rel=1e-7)
    assert values["squared_hellinger"] == pytest.approx(1 - affinity, rel=1e-7)
    assert values["total_variation"] == pytest.approx(definition_integral(lambda p, q: abs(p - q) / 2, m), rel=1e-9)
    assert values["total_variation"] == pytest.approx(2 * stats.norm.cdf(m / 2) - 1)
    renyi = math.log(affinity) / (0.5 - 1)
    assert values["renyi"] == pytest.approx(renyi, rel=1e-7)
    half = lambda p, q: special.rel_entr(p, (p + q) / 2) / 2  # noqa: E731
    jensen_shannon = definition_integral(lambda p, q: half(p, q) + half(q, p), m)
    assert values["jensen_shannon"] == pytest.approx(jensen_shannon, rel=1e-9)


def test_jensen_shannon_reproduces_the_table_and_its_limits():
    table = {0.1: 0.00124844, 1: 0.11142148, 2: 0.33683082, 4: 0.63272019}
    values = latent.equal_covariance_divergences(list(table))["jensen_shannon"]
    assert values.tolist() == pytest.approx(list(table.values()), abs=5.1e-9)
    tiny, huge = latent.equal_covariance_divergences([1e-6, 1e3])["jensen_shannon"].tolist()
    assert tiny == pytest.approx(1e-12 / 8, rel=1e-9)
    assert huge == pytest.approx(math.log(2), rel=1e-12)


def test_divergences_increase_with_the_distance_until_they_saturate():
    m = torch.linspace(0, 8, 400, dtype=torch.float64)
    for name, value in latent.equal_covariance_divergences(m).items():
        assert (value.diff() > 0).all(), name
    assert latent.equal_covariance_divergences(17.0)["total_variation"].item() == 1


def test_pinsker_holds_at_unit_distance_with_the_printed_numbers():
    values = latent.equal_covariance_divergences(1.0)
    assert values["total_variation"].item() == pytest.approx(0.382925, abs=5e-7)
    assert 2 * values["total_variation"].item() ** 2 == pytest.approx(0.2933, abs=5e-5)
    assert values["kl"].item() == 0.5 > 0.2933


def test_wasserstein_and_kl_order_alike_only_for_isotropic_covariance():
    covariance, zero = torch.tensor([1.0, 100.0]), torch.zeros(2)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert [latent.mahalanobis(delta, zero, covariance) for delta in (first, second)] == pytest.approx([1, 0.2])
    distances = [latent.wasserstein_gaussian(delta, covariance, zero, covariance) for delta in (first, second)]
    assert distances == pytest.approx([1, 2])
    generator = seeded(5)
    deltas = normal(50, 2, generator=generator)
    for sigma, agree in ((3.0, True), (covariance, False)):
        by_kl = np.argsort([latent.kl_gaussian(delta, sigma, zero, sigma) for delta in deltas])
        by_wasserstein = np.argsort([latent.wasserstein_gaussian(delta, sigma, zero, sigma) for delta in deltas])
        assert np.array_equal(by_kl, by_wasserstein) == agree


def test_squared_wasserstein_is_ap2_for_equal_and_gains_the_bures_term_for_other_covariances():
    generator = seeded(6)
    p, q = random_covariance(5, generator), random_covariance(5, generator)
    mean_p, mean_q = normal(5, generator=generator), normal(5, generator=generator)
    squared = (mean_p - mean_q).square().sum().item()
    assert latent.wasserstein_gaussian(mean_p, p, mean_q, p) ** 2 == pytest.approx(squared)
    root = linalg.sqrtm(p.numpy())
    bures = np.trace(p.numpy() + q.numpy() - 2 * linalg.sqrtm(root @ q.numpy() @ root).real)
    assert latent.wasserstein_gaussian(mean_p, p, mean_q, q) ** 2 == pytest.approx(squared + bures)
    variances = torch.tensor([1.0, 4.0])
    assert latent.wasserstein_gaussian(torch.zeros(2), variances, torch.zeros(2), 9.0) == pytest.approx(
        math.sqrt(4 + 1)
    )
    assert latent.wasserstein_gaussian(torch.zeros(2), torch.diag(variances), torch.zeros(2), 9.0) == pytest.approx(
        5**0.5
    )


@pytest.mark.parametrize(("dim", "df"), STUDENT_T_TABLE)
def test_student_t_kl_reproduces_the_table_to_its_printed_digits(dim, df):
    values = latent.kl_student_t([0.1, 1, 2, 3, 10], dim, df).tolist()
    for value, printed in zip(values, STUDENT_T_TABLE[dim, df], strict=True):
        last_digit = 10.0 ** -len(printed.split(".")[1])
        assert value == pytest.approx(float(printed), abs=0.51 * last_digit)


@pytest.mark.parametrize("dim", (1, 2, 3, 10, 100, 107))
@pytest.mark.parametrize("df", (1, 2, 4, 10))
def test_student_t_kl_equals_gauss_jacobi_times_gegenbauer(dim, df):
    for r in (0.01, 0.1, 1.0, 3.0):
        expected = student_t_kl_by_gauss_quadrature(r, dim, df, nodes=200, angles=100)
        assert latent.kl_student_t(r, dim, df).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_student_t_kl_is_exact_where_the_oracle_is():
    for r in (0.1, 1.0, 3.0, 10.0):
        assert latent.kl_student_t(r, 100, 4).item() == pytest.approx(
            student_t_kl_by_gauss_quadrature(r, 100, 4), rel=1e-10
        )


def test_student_t_kl_equals_the_closed_form_of_two_cauchy_distributions():
    r = torch.logspace(-8, 3, 300, dtype=torch.float64)
    assert torch.allclose(latent.kl_student_t(r, 1, 1), torch.log1p(r**2 / 4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("df", (1, 4, 30))
def test_student_t_kl_in_one_dimension_equals_direct_integration(df):
    for r in (0.1, 1.0, 3.0, 10.0):
        p, q = stats.t(df), stats.t(df, loc=r)
        integrand = lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x))  # noqa: E731
        pieces = ((-np.inf, 0), (0, r), (r, np.inf))
        direct = sum(integrate.quad(integrand, *piece, epsabs=1e-12, limit=400)[0] for piece in pieces)
        assert latent.kl_student_t(r, 1, df).item() == pytest.approx(direct, rel=1e-7)


@pytest.mark.parametrize("dim", (1, 100, 100_000))
@pytest.mark.parametrize("df", (1, 4, 1e6))
def test_student_t_kl_has_its_limits_for_small_and_large_distances(dim, df):
    r = 1e-6
    assert latent.kl_student_t(r, dim, df).item() == pytest.approx((df + dim) / (df + dim + 2) * r**2 / 2, rel=1e-9)
    if df < 1e6:  # the far limit needs r^2 well above df + d; it is approached as r^-df, slowest for df = 1
        r, a = 1e3 * math.sqrt(dim), (df + dim) / 2
        far = a * (math.log(r**2 / df) - special.digamma(a) + special.digamma(df / 2))
        assert latent.kl_student_t(r, dim, df).item() == pytest.approx(far, rel=3e-4)


def test_student_t_kl_at_thousand_is_near_its_far_limit_and_at_huge_df_is_gaussian():
    assert latent.kl_student_t(1000.0, 100, 4).item() == pytest.approx(463.351, abs=5e-4)
    assert latent.kl_student_t(1000.0, 100, 4).item() == pytest.approx(463.34, abs=0.02)
    assert latent.kl_student_t(2.04674, 100, 4).item() == pytest.approx(2, abs=1e-5)
    assert latent.kl_student_t([0.1, 1, 3], 10, 1e6).tolist() == pytest.approx([0.005, 0.5, 4.5], rel=1e-5)


def test_student_t_kl_strictly_increases_and_keeps_shape():
    for dim, df in ((1, 1), (100, 4), (100_000, 1e6)):
        values = latent.kl_student_t(torch.logspace(-8, 3, 2000, dtype=torch.float64), dim, df)
        assert values.isfinite().all() and (values.diff() > 0).all()
    r = torch.rand(70, 90, generator=seeded())
    assert latent.kl_student_t(r, 100, 4).shape == r.shape
    assert latent.kl_student_t(r, 100, 4)[3, 5].item() == pytest.approx(
        latent.kl_student_t(r[3, 5], 100, 4).item(), rel=1e-12
    )
    assert latent.kl_student_t(0.0, 100, 4).item() == 0
    assert latent.kl_student_t([], 100, 4).shape == (0,)


@pytest.mark.parametrize(("dim", "df", "r"), ((1, 4, 2.0), (10, 4, 1.0), (100, 4, 0.5), (10, 1, 1.0), (5, 2.5, 3.0)))
def test_monte_carlo_agrees_within_four_standard_errors_for_any_direction_and_order(dim, df, r):
    generator = seeded(8)
    exact = latent.kl_student_t(r, dim, df).item()
    zero = torch.zeros(dim, dtype=torch.float64)
    axis = zero.clone()
    axis[0] = r
    rotated = normal(dim, generator=generator)
    rotated *= r / rotated.norm()
    for seed, (p, q) in enumerate(((zero, axis), (axis, zero), (rotated, zero), (axis + 5, rotated + axis + 5))):
        estimate, error = latent.kl_student_t_monte_carlo(p, q, df, draws=10_000, seed=seed)
        assert abs(estimate - exact) < 4 * error < exact


def test_monte_carlo_noise_is_the_root_of_twice_the_kl_and_repeats_with_the_seed():
    p, q = torch.zeros(100), torch.full((100,), 0.01)
    estimate, error = latent.kl_student_t_monte_carlo(p, q, 4, draws=20_000, seed=9)
    assert error * math.sqrt(20_000) == pytest.approx(math.sqrt(2 * latent.kl_student_t(0.1, 100, 4).item()), rel=0.05)
    assert (estimate, error) == latent.kl_student_t_monte_carlo(p, q, 4, draws=20_000, seed=9)


def test_lower_bounds_on_total_variation_and_kl_hold_for_gaussians():
    generator = seeded(10)
    for d in (1, 3, 30):
        for _ in range(50):
            covariance = random_covariance(d, generator)
            delta = normal(d, generator=generator) * 3
            m = latent.mahalanobis(delta, torch.zeros(d), covariance)
            values = latent.equal_covariance_divergences(m)
            bound_arguments = delta.square().sum(), covariance.trace(), covariance.trace()
            assert latent.total_variation_lower_bound(*bound_arguments) <= values["total_variation"]
            assert 2 * values["total_variation"] ** 2 <= values["kl"]


def test_the_bounds_allow_one_of_the_distributions_to_be_a_point():
    # P is 0 or 2 with equal chance (mean and trace 1), Q the point 0: their total variation is 1/2
    assert latent.total_variation_lower_bound(1.0, 1.0, 0.0).item() == pytest.approx(1 / 3)
    assert latent.recovered_squared_distance(2 / 9, 1.0, 0.0).item() == pytest.approx(1.0)


def test_recovered_distance_inverts_the_bound_and_exceeds_the_true_distance():
    squared = torch.tensor([1e-4, 0.3, 7.0, 100.0], dtype=torch.float64)
    kl = 2 * latent.total_variation_lower_bound(squared, 4.0, 6.0) ** 2
    assert torch.allclose(latent.recovered_squared_distance(kl, 4.0, 6.0), squared)
    epsilon = torch.linspace(0.01, 1.99, 100)
    for d in (1, 10, 20_480):
        assert (
            latent.recovered_squared_distance(epsilon, d, d) >= 2 * epsilon
        ).all()  # unit Gaussians: exactly 2 epsilon
    assert latent.recovered_squared_distance([2.0, 3.0], 1, 1).isinf().all()
    t = math.sqrt(0.25)
    assert latent.recovered_squared_distance(0.5, 20_480, 20_480).item() == pytest.approx(4 * 20_480 * t / (1 - t))


@pytest.mark.parametrize(
    "call",
    (
        lambda v: latent.kl_gaussian(v, 0.0, v, 1.0),
        lambda v: latent.kl_gaussian(v, 1.0, v, torch.tensor([1.0, -1.0, 1.0])),
        lambda v: latent.kl_gaussian(v, 1.0, v, torch.tensor([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]])),
        lambda v: latent.kl_gaussian(v, torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), v, 1.0),
        lambda v: latent.kl_gaussian(v, torch.ones(2), v, 1.0),
        lambda v: latent.kl_gaussian(v, torch.eye(2), v, 1.0),
        lambda v: latent.kl_gaussian(v, 1.0, v[:2], 1.0),
        lambda v: latent.kl_gaussian(v, 1.0, v * math.inf, 1.0),
        lambda v: latent.mahalanobis(v, v * math.inf, 1.0),
        lambda v: latent.wasserstein_gaussian(v, torch.eye(3), v, -torch.eye(3)),
        lambda v: latent.precision_range(math.nan),
        lambda v: latent.precision_range(torch.ones(2, 3)),
        lambda v: latent.kl_student_t(-1.0, 1, 4),
        lambda v: latent.kl_student_t(math.nan, 1, 4),
        lambda v: latent.kl_student_t(1.0, 0, 4),
        lambda v: latent.kl_student_t(1.0, 1, 0),
        lambda v: latent.equal_covariance_divergences(-1.0),
        lambda v: latent.total_variation_lower_bound(1.0, 0.0, 0.0),
        lambda v: latent.recovered_squared_distance(-1.0, 1.0, 1.0),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(torch.tensor([1.0, 2.0, 3.0]))


# Gaussians whose covariance pruning changes, too


def test_curvature_at_either_weight_gives_a_gaussian_pair_of_different_diagonal_covariances():
    generator = seeded(11)
    inputs, weight, bias = (
        torch.randn(300, 8, generator=generator),
        2 * torch.randn(5, 8, generator=generator),
        torch.zeros(5),
    )
    pruned = weight * magnitude_mask(weight, 0.5, "lowest")
    dense, sparse = (latent.fisher_covariance(trials.head_hessian_diagonal(inputs, w, bias)) for w in (weight, pruned))
    p, q = (
        torch.distributions.Independent(torch.distributions.Normal(w.flatten().double(), variances.sqrt()), 1)
        for w, variances in ((weight, dense), (pruned, sparse))
    )
    value = latent.kl_gaussian(weight.flatten(), dense, pruned.flatten(), sparse)
    assert value == pytest.approx(torch.distributions.kl_divergence(p, q).item(), rel=1e-12)
    moved = ((weight - pruned).flatten().double().square() / sparse).sum().item() / 2
    assert value > moved + 0.1  # the change of curvature has a part of its own, which equal covariances lack
    equal = latent.kl_gaussian(weight.flatten(), sparse, pruned.flatten(), sparse)
    assert equal == pytest.approx(moved, rel=1e-12)


# Weights as populations of entries

ENTRIES = normal(40, 50, generator=seeded(12))
SKEWED = 0.3 + 0.7 * torch.from_numpy(stats.gamma(3).rvs((40, 50), random_state=13))


def integrated(p, q):
    """KL of two scipy distributions as a sum over a fine grid, which becomes coarser towards the tails."""
    spread = np.sinh(np.linspace(-18, 18, 200_001))
    x = np.sort(np.concatenate([one.mean() + one.std() * spread for one in (p, q)]))
    return integrate.trapezoid(np.exp(p.logpdf(x)) * (p.logpdf(x) - q.logpdf(x)), x)


def moment_t(entries):
    values = np.asarray(entries).ravel()
    centred = values - values.mean()
    excess = (centred**4).mean() / (centred**2).mean() ** 2 - 3
    df = 4 + 6 / excess if excess > 6e-6 else 1e6
    return stats.t(df, values.mean(), math.sqrt((centred**2).mean() * (df - 2) / df))


def median_laplace(entries):
    values = np.asarray(entries).ravel()
    return stats.gennorm(1, np.median(values), np.abs(values - np.median(values)).mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fraction", (0.1, 0.5, 0.8))
@pytest.mark.parametrize("weight", (ENTRIES, SKEWED), ids=("gaussian", "skewed"))
def test_fitted_divergences_equal_the_integral_of_their_densities_with_zeros_among_the_entries(
    weight, fraction, method
):
    pruned = weight * magnitude_mask(weight, fraction, method, seeded(1))
    found = latent.entry_divergences(weight, pruned)
    gaussian = integrated(*(stats.norm(*stats.norm.fit(one.numpy().ravel())) for one in (weight, pruned)))
    assert found["kl_gaussian"] == pytest.approx(gaussian, rel=1e-5, abs=1e-9)
    laplace = integrated(median_laplace(weight), median_laplace(pruned))
    assert found["kl_laplace"] == pytest.approx(laplace, rel=1e-5, abs=1e-6)
    student = integrated(moment_t(weight), moment_t(pruned))
    assert found["kl_student_t"] == pytest.approx(student, rel=1e-5, abs=1e-6)
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(weight.ravel(), pruned.ravel()), rel=1e-9)
    assert 0 < found["jensen_shannon"] < math.log(2) and all(map(math.isfinite, found.values()))


def test_original_comes_first_and_random_zeros_cost_the_kl_of_their_variances():
    weight = torch.randn(400, 500, generator=seeded(14))
    pruned = weight * magnitude_mask(weight, 0.8, "random", seeded(15))
    forward = (math.log(0.2) + 1 / 0.2 - 1) / 2  # variance 1 against 0.2; the reverse is 0.4
    assert latent.entry_divergences(weight, pruned)["kl_gaussian"] == pytest.approx(forward, rel=0.05)


def test_a_shift_alone_costs_what_families_of_equal_shape_cost():
    heavy = torch.from_numpy(stats.t(6).rvs(5000, random_state=16))
    shift, fit = 0.37, moment_t(heavy)
    assert 4 < fit.args[0] < 10
    found = latent.entry_divergences(heavy, heavy + shift)
    assert found["kl_gaussian"] == pytest.approx(shift**2 / heavy.numpy().var() / 2, rel=1e-9)
    assert found["kl_student_t"] == pytest.approx(
        latent.kl_student_t(shift / fit.args[2], 1, fit.args[0]).item(), rel=1e-7
    )
    ratio = shift / (heavy - np.median(heavy.numpy())).abs().mean().item()
    assert found["kl_laplace"] == pytest.approx(ratio + math.exp(-ratio) - 1, rel=1e-9)
    assert found["wasserstein"] == pytest.approx(shift, rel=1e-9)


def test_histograms_of_few_entries_are_counted_by_hand():
    found = latent.entry_divergences(torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 0, 0, 1]))
    smoothed = 2.5 / 54 * (math.log(2.5 / 3.5) + math.log(2.5 / 1.5))  # 4 entries and 100 halves
    assert found["kl_histogram"] == pytest.approx(smoothed, rel=1e-12)
    halves = 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    others = 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)
    assert found["jensen_shannon"] == pytest.approx((halves + others) / 2, rel=1e-12)
    apart = latent.entry_divergences(torch.tensor([0.0, 0.1]), torch.tensor([0.9, 1.0]))
    assert apart["jensen_shannon"] == pytest.approx(math.log(2), rel=1e-12)


def test_entries_have_no_places_and_their_divergences_no_unit_but_the_wasserstein_distance():
    pruned = SKEWED * magnitude_mask(SKEWED, 0.5, "lowest")
    found = latent.entry_divergences(SKEWED, pruned)
    order = torch.randperm(2000, generator=seeded(17))
    assert latent.entry_divergences(SKEWED, pruned.flatten()[order].view(40, 50)) == pytest.approx(found)
    tiny = latent.entry_divergences(SKEWED / 2**20, pruned / 2**20)
    assert tiny.pop("wasserstein") * 2**20 == pytest.approx(found["wasserstein"])
    assert tiny == pytest.approx({name: value for name, value in found.items() if name != "wasserstein"}, rel=1e-6)
    same = latent.entry_divergences(SKEWED, SKEWED.flip(0))
    assert same == pytest.approx(dict.fromkeys(found, 0), abs=1e-12)


def test_only_the_smoothed_histogram_depends_on_how_often_the_entries_are_there():
    pruned = ENTRIES * magnitude_mask(ENTRIES, 0.5, "lowest")
    once, often = (latent.entry_divergences(ENTRIES.repeat(k, 1), pruned.repeat(k, 1)) for k in (5, 500))
    growth = often.pop("kl_histogram") - once.pop("kl_histogram")
    assert often == pytest.approx(once, rel=1e-6)
    limits = ENTRIES.min().item(), ENTRIES.max().item()
    before, after = (np.histogram(one.numpy(), 100, limits)[0] for one in (ENTRIES, pruned))
    emptied = before[after == 0].sum() / before.sum()
    assert 0.4 < emptied < 0.5 and growth == pytest.approx(emptied * math.log(100), rel=0.02)


def test_a_student_t_has_no_most_likely_fit_to_a_pruned_tensor():
    pruned = (ENTRIES * magnitude_mask(ENTRIES, 0.5, "random", seeded())).numpy().ravel()
    below, above = ([stats.t.logpdf(pruned, df, 0, scale).mean() for scale in (1e-4, 1e-8, 1e-12)] for df in (0.5, 2))
    assert below[0] < below[1] < below[2]  # half are zeros: degrees of freedom below 0.5 / (1 - 0.5) gain without end
    assert above[0] > above[1] > above[2]
    assert stats.t.fit(pruned)[2] < 1e-9 * pruned.std()
    assert 4 < moment_t(pruned).args[0] < 8  # the kurtosis is 3 / (1 - 0.5) = 6: 4 + 6 / 3 degrees of freedom


@pytest.mark.parametrize("name", ("weight", "pruned"))
def test_one_value_alone_has_no_distribution(name):
    tensors = {"weight": ENTRIES, "pruned": ENTRIES} | {name: torch.full_like(ENTRIES, 0.1)}
    with pytest.raises(ValueError, match=rf"^{name} must have two different entries[^\n]+\.$"):
        latent.entry_divergences(**tensors)


# Effective number of components


def test_equal_scores_all_count_and_one_alone_counts_once():
    signs = torch.tensor([1.0, -1, 1, 1, -1, 1, -1, -1, 1, 1])
    for scale in (1.0, 1e-200, 1e200):
        assert latent.effective_number(scale * signs.double()) == pytest.approx(10, rel=1e-12)
        assert latent.effective_number(scale * EYE[0]) == pytest.approx(1, rel=1e-12)
    assert latent.effective_number(torch.tensor([[3.0, 1.0], [0.0, 0.0]])) == pytest.approx(16 / 10)
    assert latent.effective_sparsity(signs * (torch.arange(10) < 3)) == pytest.approx(0.7)
    assert latent.effective_sparsity(signs) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "share"), ((stats.norm, 2 / math.pi), (stats.uniform(-1, 2), 3 / 4), (stats.laplace, 1 / 2))
)
def test_the_effective_share_of_a_family_is_its_squared_mean_magnitude_over_its_mean_square(family, share):
    weight = torch.from_numpy(0.02 * family.rvs(size=1_000_000, random_state=18))
    assert 1 - latent.effective_sparsity(weight) == pytest.approx(share, abs=3e-3)
    assert latent.effective_number(weight) == pytest.approx(share * weight.numel(), rel=6e-3)


# The mathematics where it is sharp: extreme distributions, equalities, printed forms that fail


def sums(points, p, q):
    """Squared distance of means, both variances, total variation and KL of laws with masses p and q at the points."""
    means = [(law * points).sum(-1, keepdims=True) for law in (p, q)]
    variances = [(law * (points - mean) ** 2).sum(-1) for law, mean in zip((p, q), means, strict=True)]
    squared = (means[0] - means[1])[..., 0] ** 2
    return *(torch.as_tensor(x) for x in (squared, *variances)), abs(p - q).sum(-1) / 2, special.rel_entr(p, q).sum(-1)


def opposite_points(share):
    """P on 0 and 1, Q on 0 and -1, both with this mass at the second point: they attain the bound."""
    p = np.array([0.0, 1 - share, share])
    return sums(np.array([-1.0, 0.0, 1.0]), p, p[::-1])


@pytest.mark.parametrize("points", (2, 3, 6))
def test_means_and_variances_bound_total_variation_and_kl_of_any_discrete_law(points):
    draws = np.random.default_rng(11)
    p, q = draws.dirichlet([0.5] * points, (2, 5000))
    squared, *variances, variation, kl = sums(draws.normal(size=(5000, points)), p, q)
    bound = latent.total_variation_lower_bound(squared, *variances).numpy()
    assert (bound <= variation * (1 + 1e-9)).all() and (2 * bound**2 <= kl * (1 + 1e-9)).all()
    below = kl < 2
    recovered = latent.recovered_squared_distance(torch.as_tensor(kl[below]), *(v[below] for v in variances))
    assert (squared[below] <= recovered * (1 + 1e-9)).all() and 500 < below.sum() < 5000
    assert (bound > 0.9 * variation).any()


@pytest.mark.parametrize("share", (0.01, 0.3, 0.5, 0.9))
def test_opposite_points_attain_the_bound_on_total_variation_so_that_no_factor_above_one_is_true(share):
    squared, *variances, variation, _ = opposite_points(share)
    assert variation == pytest.approx(share)
    assert latent.total_variation_lower_bound(squared, *variances).item() == pytest.approx(share)
    assert 1.01 * latent.total_variation_lower_bound(squared, *variances) > variation
    assert squared / (sum(variances) + squared) > 1.01 * variation  # without the 2 before the traces it is wrong


def test_on_two_points_the_bound_on_the_kl_reaches_no_more_than_its_known_share():
    def share(logits):
        q = special.expit(logits)
        squared, *variances, _, kl = sums(np.array([0.0, 1.0]), *np.array([1 - q, q]).T)
        return -(2 * latent.total_variation_lower_bound(squared, *variances) ** 2 / kl).item()

    options = {"maxiter": 5000, "xatol": 1e-9, "fatol": 1e-12}
    found = optimize.minimize(share, [-3.0, 1.0], method="Nelder-Mead", options=options)
    assert special.expit(found.x) == pytest.approx([0.00016, 0.8866], abs=1e-4)  # nearly a point against two
    assert -found.fun == pytest.approx(0.582625, abs=1e-6)
    draws = np.random.default_rng(12).uniform(size=(20_000, 2))
    squared, *variances, _, kl = sums(np.array([0.0, 1.0]), *(np.stack([1 - q, q], 1) for q in draws.T))
    assert (2 * latent.total_variation_lower_bound(squared, *variances).numpy() ** 2 / kl).max() < -found.fun


@pytest.mark.parametrize(
    "law", (stats.laplace, stats.t(2.5), stats.t(4), stats.norm), ids=("laplace", "t2.5", "t4", "n")
)
@pytest.mark.parametrize(("place", "scale"), ((0.5, 1.0), (2.0, 0.5), (2.0, 3.0), (8.0, 1.0)))
def test_the_bounds_hold_for_densities_of_different_scale(law, place, scale):
    p, q = law.pdf, lambda x: law.pdf((x - place) / scale) / scale
    log_ratio = lambda x: law.logpdf(x) - law.logpdf((x - place) / scale) + math.log(scale)  # noqa: E731
    whole = {"limit": 500, "points": [0, place], "epsabs": 1e-10}
    variation = integrate.quad(lambda x: abs(p(x) - q(x)) / 2, -200, 200, **whole)[0]
    kl = integrate.quad(lambda x: p(x) * log_ratio(x), -25, 25, **whole)[0]
    bound = latent.total_variation_lower_bound(place**2, law.var(), scale**2 * law.var()).item()
    assert 0 < bound < variation and 2 * bound**2 < kl
    assert latent.recovered_squared_distance(kl, law.var(), scale**2 * law.var()) > place**2


def test_the_bound_on_the_kl_holds_for_gaussians_of_different_covariance():
    generator, closest = seeded(12), 0
    for draw in range(500):
        d = 1 + draw % 6
        p, q = random_covariance(d, generator), random_covariance(d, generator)
        delta, zero = normal(d, generator=generator) * (1 + draw % 4), torch.zeros(d)
        kl, traces = latent.kl_gaussian(delta, p, zero, q), (p.trace(), q.trace())
        bound = 2 * latent.total_variation_lower_bound(delta.square().sum(), *traces).item() ** 2
        closest = max(closest, bound / kl)
        assert bound < kl and delta.square().sum() < latent.recovered_squared_distance(kl, *traces)
    assert closest > 0.2


def test_the_border_of_two_is_pinskers_and_goes_with_another_inequality():
    draws = np.random.default_rng(13)
    p, q = draws.dirichlet([0.2] * 2, (2, 5000))
    squared, *variances, variation, kl = sums(np.array([0.0, 1.0]), p, q)
    tau = np.sqrt(-np.expm1(-kl))  # Bretagnolle and Huber
    assert (variation <= tau * (1 + 1e-9)).all()
    large = (kl > 2) & (kl < 30)
    allowed = (2 * sum(variances).numpy() * tau / (1 - tau))[large]
    assert large.sum() > 500 and np.isfinite(allowed).all() and (squared.numpy()[large] <= allowed).all()
    unbounded = latent.recovered_squared_distance(torch.as_tensor(kl[large]), *(v[large] for v in variances))
    assert unbounded.isinf().all()


def test_lemma_two_exceeds_the_quadratic_term_four_d_times_or_more_and_exactly_so_at_one_half():
    kl = torch.linspace(0.01, 1.99, 199, dtype=torch.float64)
    for d in (1, 640, 20_480):
        for c in (0.01, 1.0, 7.0):
            half_top_times_ap2 = 1.3 * kl * c  # AP2 = 2 c KL
            factor = latent.performance_bound(kl, 1.3, d * c, d * c) / half_top_times_ap2
            assert factor.min().item() == pytest.approx(4 * d) and kl[factor.argmin()].item() == pytest.approx(0.5)
    # one dimension, loss w^2 / 2 at 0 and 1, variance 1: the gap 1/2 refutes a constant below a quarter of C
    assert latent.performance_bound(0.5, 1.0, 1.0, 1.0).item() / 4.04 < 0.5


def test_corollary_two_is_attained_along_the_widest_axis_of_the_covariance():
    generator = seeded(14)
    for _ in range(50):
        covariance = random_covariance(5, generator)
        values, vectors = torch.linalg.eigh(covariance)
        weight = normal(5, generator=generator)
        pruned = weight + 1.5 * vectors[:, -1]
        kl, smallest = latent.kl_gaussian(weight, covariance, pruned, covariance), latent.precision_range(covariance)[0]
        hessian = vectors @ torch.tensor([0.1, 0.2, 0.3, 0.4, 2.0], dtype=torch.float64).diag() @ vectors.T
        gap = quadratic_gap(hessian, weight, weight, pruned)
        assert gap == pytest.approx(latent.gaussian_performance_bound(kl, 2.0, smallest).item())


def test_a_signed_label_inside_the_printed_bounds_makes_them_zero_where_the_gap_is_not():
    weight, pruned = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    labels, hessians = (1, -1), [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([2.0, 0.0], [0.0, 2.0])]
    losses = [[w @ hessian @ w / 2 for w in (weight, pruned)] for hessian in hessians]
    gap = abs(sum(y * (dense - sparse) for y, (dense, sparse) in zip(labels, losses, strict=True)).item()) / 2
    kl = latent.kl_gaussian(weight, 1.0, pruned, 1.0)
    for bound in (latent.performance_bound(kl, 2.0, 2.0, 2.0), latent.gaussian_performance_bound(kl, 2.0, 1.0)):
        assert sum(y * bound.item() for y in labels) / 2 == 0 < gap < sum(abs(y) * bound.item() for y in labels) / 2


@pytest.mark.parametrize("method", METHODS)
def test_ap2_never_falls_below_what_was_removed_while_the_removed_weights_stay_zero(method):
    weight = normal(10, 64, generator=seeded(15))
    mask = magnitude_mask(weight, 0.5, method, seeded(16))
    removed = latent.ap2(weight, weight * mask)
    for step in (-1.0, -0.1, 0.1, 1.0):
        tuned = (weight + step * normal(10, 64, generator=seeded(17))) * mask
        moved = (tuned - weight)[mask].square().sum().item()
        assert latent.ap2(weight, tuned) == pytest.approx(removed + moved) and latent.ap2(weight, tuned) > removed
    regrown = weight * mask + 0.9 * weight * ~mask  # only where removed weights come back can it fall
    assert latent.ap2(weight, regrown) == pytest.approx(0.01 * removed)


# Different isotropic covariances, fitted to the weights of both sides


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_fitted_variances_make_the_kl_of_a_mask_a_function_of_its_ap2(method, fraction):
    weight = torch.from_numpy(stats.laplace.rvs(size=(10, 64), random_state=18))
    pruned = weight * magnitude_mask(weight, fraction, method, seeded(19))
    norm, d = weight.square().sum().item(), weight.numel()
    pair = weight, norm / d, pruned, pruned.square().mean()
    u = latent.ap2(weight, pruned) / norm
    assert latent.kl_gaussian(*pair) == pytest.approx(d / 2 * (math.log1p(-u) + 2 * u / (1 - u)))
    assert latent.kl_gaussian_printed(*pair) == pytest.approx(-d / 2 * math.log1p(-u))
    assert latent.wasserstein_gaussian(*pair) ** 2 == pytest.approx(2 * norm * (1 - math.sqrt(1 - u)))
    flat, dense, sparse = weight.flatten(), *(torch.eye(d).double() * variance for variance in pair[1::2])
    p, q = (torch.distributions.MultivariateNormal(*law) for law in ((flat, dense), (pruned.flatten(), sparse)))
    assert latent.kl_gaussian(*pair) == pytest.approx(torch.distributions.kl_divergence(p, q).item())


def test_the_restored_norm_has_the_larger_ap2_and_the_smaller_kl():
    weight = normal(10, 64, generator=seeded(20))
    norm, d = weight.square().sum().item(), weight.numel()
    for fraction in np.linspace(0.02, 0.98, 25):
        pruned = weight * magnitude_mask(weight, fraction, "random", seeded(21))
        restored = pruned * (weight.norm() / pruned.norm())
        assert latent.ap2(weight, restored) > latent.ap2(weight, pruned)
        kls = [latent.kl_gaussian(weight, norm / d, one, one.square().mean()) for one in (pruned, restored)]
        assert kls[0] > kls[1] == pytest.approx(latent.ap2(weight, restored) * d / (2 * norm))


def test_the_term_of_the_variances_knows_no_places_and_grows_with_the_dimension():
    generator = seeded(22)
    weight, other = normal(640, generator=generator), normal(640, generator=generator)
    for shuffled in (other, other[torch.randperm(640, generator=generator)], other.sort().values):
        term = latent.kl_gaussian(weight, 1.0, shuffled, 0.7) - (weight - shuffled).square().sum().item() / 1.4
        assert term == pytest.approx(320 * (math.log(0.7) + 1 / 0.7 - 1))


# Two versions of one assumption, and a plot without its half


def test_definition_five_and_theorem_two_take_different_terms_and_move_in_opposite_directions():
    weight, last = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    tuned = [last + 0.5**t * torch.tensor([1.0, 0.0]) for t in range(20)]  # approaches the last epoch from outside
    limit = latent.kl_gaussian(weight, 1.0, last, 1.0)
    definition = [abs(limit - latent.kl_gaussian(weight, 1.0, one, 1.0)) for one in tuned]
    theorem = [abs(limit - latent.kl_gaussian(last, 1.0, one, 1.0)) for one in tuned]
    assert definition == pytest.approx([abs(1 - (1 + 0.5**t) ** 2) / 2 for t in range(20)], rel=1e-6)
    assert theorem == pytest.approx([abs(1 - 0.25**t) / 2 for t in range(20)], rel=1e-6)
    assert all(np.diff(definition) < 0) and definition[-1] < 1e-5
    assert all(np.diff(theorem) > 0) and theorem[-1] == pytest.approx(limit)
    turned = torch.tensor([-1.0, 0.0], dtype=torch.float64)  # as far from the original, on its other side
    assert latent.kl_gaussian(weight, 1.0, turned, 1.0) == limit and latent.kl_gaussian(last, 1.0, turned, 1.0) == 2


def test_the_released_lambda_plots_twice_the_kl_and_so_passes_the_two_it_is_meant_to_stay_below():
    weight = torch.randn(10, 64, generator=seeded(19))
    pruned = [weight * magnitude_mask(weight, f, m, seeded(20)) for f in FRACTIONS for m in METHODS]
    distances = [latent.ap2(weight, one) for one in pruned]
    scale = 2 * 1.9 / max(distances)  # as released
    plotted = [scale * distance for distance in distances]
    kls = [latent.kl_gaussian(weight.flatten(), 1 / scale, one.flatten(), 1 / scale) for one in pruned]
    assert plotted == pytest.approx([2 * kl for kl in kls], rel=1e-9)
    assert max(plotted) == pytest.approx(3.8) and max(kls) == pytest.approx(1.9) == pytest.approx(measures.KL_LIMIT)
    assert sum(value > 2 for value in plotted) > 0 == sum(kl > 2 for kl in kls)
