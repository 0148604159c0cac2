import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.nn.utils import prune

from lib import latent
from lib.latent import measures
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
