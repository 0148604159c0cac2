import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from lib.latent import measures as latent
from lib.latent.measures import (
    ap2,
    approximate_ap3_gaps,
    epoch_series,
    fisher_covariance,
    gaussian_ap3_code,
    gaussian_performance_bound,
    gaussian_performance_bound_printed,
    group_means,
    kl_gaussian,
    kl_student_t,
    lambda_factor,
    nondiagonal_precision_code,
    performance_bound,
    permute_pruned,
    precision_range,
    prune_highest_code,
    random_direction,
    random_mask_code,
    scale_ap2,
    sign_flips,
    t_ap3,
)
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
    return group_means(weight - pruned, groups).square().sum().item()


# AP2 and grouping


def test_ap2_is_zero_only_for_equal_weights_and_the_removed_squares_at_prune_time():
    weight = torch.randn(10, 64, generator=seeded())
    assert ap2(weight, weight) == 0 and ap2(weight, weight + 1e-3) > 0
    for method in METHODS:
        mask = magnitude_mask(weight, 0.3, method, seeded())
        assert ap2(weight, weight * mask) == pytest.approx(sum(w**2 for w in weight[~mask].tolist()))


def test_ap2_of_lowest_is_at_most_any_mask_is_at_most_highest():
    weight = torch.randn(20, 30, generator=seeded())
    for fraction in FRACTIONS:
        low, high = (ap2(weight, weight * magnitude_mask(weight, fraction, m)) for m in ("lowest", "highest"))
        for seed in range(20):
            assert low <= ap2(weight, weight * magnitude_mask(weight, fraction, "random", seeded(seed))) <= high


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
    means = group_means(vector)
    assert len(means) == groups
    assert means[0].item() == (size - 1) / 2
    assert means[-1].item() == length - 1 - (last - 1) / 2
    expected = [vector[start : start + size].mean() for start in range(0, length, size)]
    assert torch.allclose(means, torch.stack(expected), rtol=1e-14, atol=0)


def test_large_tensors_give_the_same_block_by_block():
    dense = torch.randn(1000, 1503, generator=seeded())
    pruned = dense * magnitude_mask(dense, 0.5, "lowest")
    delta = dense.double() - pruned.double()
    assert ap2(dense, pruned) == pytest.approx(delta.square().sum().item(), rel=1e-6)
    means = group_means(delta)
    expected = kl_student_t(means.norm(), len(means), 4).item()
    assert len(means) == 100 and dense.numel() > latent.BLOCK
    assert t_ap3(dense, pruned) == pytest.approx(expected, rel=1e-3)
    assert t_ap3(dense, pruned, groups=10) > 0
    with pytest.raises(ValueError, match="one shape"):
        ap2(dense, pruned.T)


def test_groups_of_a_hundred_class_head_are_its_rows():
    weight = torch.randn(100, 64, generator=seeded())
    assert torch.allclose(group_means(weight), weight.double().mean(1))


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
    assert squared_group_distance(delta, torch.zeros_like(delta)) == 1 > ap2(delta, torch.zeros_like(delta)) / 76


def test_group_means_of_unrelated_weights_cancel():
    for length, low, high in ((204_800, 1e-8, 2e-5), (20_480, 1e-7, 2e-4)):
        weight = 0.02 * normal(length, generator=seeded(3))
        for method in METHODS:
            for fraction in FRACTIONS:
                pruned = weight * magnitude_mask(weight, fraction, method, seeded(4))
                squared = squared_group_distance(weight, pruned)
                assert 0.6 * low < squared < 1.4 * high  # the range is of means; one draw scatters by 14 %
                assert squared == pytest.approx(ap2(weight, pruned) / (length // 100) ** 2, rel=0.6)


# AP3


def test_t_ap3_depends_on_the_grouped_distance_alone_and_counts_actual_groups():
    weight, pruned = torch.randn(10, 64, generator=seeded()), torch.zeros(10, 64)
    r = math.sqrt(squared_group_distance(weight, pruned))
    assert t_ap3(weight, pruned) == pytest.approx(kl_student_t(r, 107, 4).item())
    assert t_ap3(weight, pruned) == pytest.approx(t_ap3(pruned, weight))
    assert t_ap3(weight, pruned, scale=0.25) == pytest.approx(kl_student_t(2 * r, 107, 4).item())
    within_groups = torch.randn(1, 64, generator=seeded(1)).expand(10, 64) * 0
    within_groups[:, 0], within_groups[:, 1] = 1, -1  # cancels in each of the 10 groups of one row
    assert ap2(within_groups, pruned) == 20 and t_ap3(within_groups, pruned, groups=10) == 0


@pytest.mark.parametrize(
    ("fraction", "squared", "expected"), ((0.3, 4.43596, 2.1206), (0.5, 4.68607, 2.2368), (0.8, 4.59060, 2.1925))
)
def test_public_cifar10_head_passes_two_when_its_highest_weights_go(fraction, squared, expected):
    weight = public_head("CIFAR-10")
    pruned = weight * magnitude_mask(weight, fraction, "highest")
    assert len(group_means(weight)) == 107
    assert squared_group_distance(weight, pruned) == pytest.approx(squared, abs=5.1e-6)
    assert t_ap3(weight, pruned) == pytest.approx(expected, abs=5.1e-5)


def test_public_cifar10_head_at_eighty_percent_puts_random_between_lowest_and_highest():
    weight = public_head("CIFAR-10")
    lowest = weight * magnitude_mask(weight, 0.8, "lowest")
    assert squared_group_distance(weight, lowest) == pytest.approx(2.36381, abs=5.1e-6)
    assert t_ap3(weight, lowest) == pytest.approx(1.1441, abs=5.1e-5)
    random = [t_ap3(weight, weight * magnitude_mask(weight, 0.8, "random", seeded(s))) for s in range(40)]
    assert np.mean(random) == pytest.approx(1.82, abs=0.1)  # single masks scatter by 0.15


def test_public_cifar100_head_orders_t_ap3_in_reverse_of_ap2():
    weight = public_head("CIFAR-100")

    def measures(method, fraction, generator=None):
        pruned = weight * magnitude_mask(weight, fraction, method, generator)
        squared = squared_group_distance(weight, pruned)
        return squared, t_ap3(weight, pruned), squared / (ap2(weight, pruned) / 64**2), ap2(weight, pruned)

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
    precision = nondiagonal_precision_code(400, seeded())
    off_diagonal = precision - precision.diagonal().diag()
    assert precision.diagonal().tolist() == pytest.approx([5.0e-5] * 400, rel=1e-5)
    assert 0 < off_diagonal.abs().max() < 1e-10
    weight, pruned = (torch.randn(400, generator=seeded(s)) for s in (1, 2))
    delta = weight - pruned
    assert gaussian_ap3_code(weight, pruned) == pytest.approx(math.sqrt(delta @ precision @ delta), rel=1e-4)


# The lambda rule


def test_lambda_rule_makes_the_largest_kl_nineteen_tenths_and_the_plotted_value_twice_that():
    table = torch.rand(12, 20, generator=seeded()).double() * 30
    factor = lambda_factor(table)
    assert scale_ap2(table, "kl").max().item() == pytest.approx(1.9, rel=1e-12)
    assert scale_ap2(table, "code").max().item() == pytest.approx(3.8, rel=1e-12)
    assert torch.allclose(scale_ap2(table, "code"), 2 * scale_ap2(table, "kl"))
    delta = torch.full((4,), math.sqrt(table[0, 0].item() / 4))
    assert kl_gaussian(delta, 1 / factor, torch.zeros(4), 1 / factor) == pytest.approx(scale_ap2(table)[0, 0].item())


# Records of fine-tuning


def test_definition_five_gap_closes_by_construction_while_that_of_theorem_two_grows():
    generator = seeded(5)
    dense, best = normal(40, generator=generator), normal(40, generator=generator)
    start = normal(40, generator=generator)
    snapshots = [best + (start - best) * share for share in (1.0, 0.5, 0.2, 0.0)]
    five = approximate_ap3_gaps(dense, snapshots, ap2)
    two = approximate_ap3_gaps(dense, snapshots, ap2, version="theorem 2")
    assert five[-1] == 0
    assert two[-1].item() == pytest.approx(ap2(dense, best))
    near_the_end = approximate_ap3_gaps(dense, snapshots[2:], ap2, version="theorem 2")
    assert near_the_end[1] > near_the_end[0]
    assert five.tolist() == pytest.approx([abs(ap2(dense, best) - ap2(dense, s)) for s in snapshots])


def test_aliased_record_is_what_views_of_a_live_weight_leave():
    weight = torch.nn.Parameter(torch.randn(3, 4, generator=seeded()))
    dense = weight.detach().clone()
    views, clones = [], []
    for _ in range(4):
        with torch.no_grad():
            weight.mul_(0.9)
        views.append(weight.flatten().detach())
        clones.append(weight.flatten().detach().clone())
    recorded = epoch_series(dense.flatten(), views, ap2)
    assert torch.equal(recorded, epoch_series(dense.flatten(), clones, ap2, aliased=True))
    assert len(set(recorded.tolist())) == 1
    assert len(set(epoch_series(dense.flatten(), clones, ap2).tolist())) == 4


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
        top, kl = values.max().item(), kl_gaussian(weight, covariance, pruned, covariance)
        trace = covariance.trace().item()
        taylor = top / 2 * ap2(weight, pruned)
        corollary = gaussian_performance_bound(kl, top, precision_range(covariance)[0]).item()
        lemma = performance_bound(kl, top, trace, trace).item()
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
        bound = partial(gaussian_performance_bound, kl_gaussian(weight, covariance, pruned, covariance))
        smallest = precision_range(covariance)[0]
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
    kl = kl_gaussian(torch.tensor([delta]), 1.0, torch.zeros(1), 1.0)
    assert kl == 2 and 0.5 * delta**2 == 2  # H = covariance = 1: the loss gap is 2
    assert gaussian_performance_bound_printed(kl, 1.0, 1.0).item() == 1
    assert gaussian_performance_bound(kl, 1.0, 1.0).item() == 2
    kl = torch.linspace(0.01, 3, 300, dtype=torch.float64)
    for precision in (0.5, 1.0, 2.0):
        below = gaussian_performance_bound_printed(kl, 1.3, precision) < gaussian_performance_bound(kl, 1.3, precision)
        assert torch.equal(below, 2 * kl > precision)


def test_performance_bound_is_lemma_two_with_its_constant_and_grows_to_infinity_at_two():
    kl = torch.linspace(0, 1.99, 100, dtype=torch.float64)
    t, constant = (kl / 2).sqrt(), 2 * (3.0 + 5.0)
    assert torch.allclose(performance_bound(kl, 0.7, 3.0, 5.0), 0.7 * t * constant / (2 * (1 - t)))
    assert (performance_bound(kl, 0.7, 3.0, 5.0).diff() > 0).all()
    assert performance_bound(2.0, 0.7, 3.0, 5.0).isinf()


# The released code's pruning


def test_highest_code_reproduces_the_released_steps_and_keeps_no_original_weight():
    weight = torch.randn(10, 64, generator=seeded())
    for fraction in FRACTIONS:
        layer = torch.nn.Linear(64, 10)
        magnitude = weight.abs()
        layer.weight.data = magnitude - torch.full_like(magnitude, magnitude.max().item())
        prune.l1_unstructured(layer, "weight", fraction)
        pruned, mask = prune_highest_code(weight, fraction)
        assert torch.equal(pruned, layer.weight.detach())
        assert torch.equal(mask, magnitude_mask(weight, fraction, "highest"))
        assert not (pruned[mask] == weight[mask]).any() and (pruned <= 0).all()
        assert ap2(weight, pruned) > ap2(weight, weight * mask)


def test_highest_code_inflates_ap2_and_shifts_the_group_means():
    for seed in range(3):
        weight = 0.02 * torch.randn(204_800, generator=seeded(seed))
        pruned, mask = prune_highest_code(weight, 0.1)
        assert ap2(weight, weight * mask) == pytest.approx(36, abs=0.5)
        assert 1000 < ap2(weight, pruned) < 1700  # 1105 to 1501 over 40 other seeds
        assert 0.4 < squared_group_distance(weight, pruned) < 0.7
        assert squared_group_distance(weight, weight * mask) < 2e-5


def test_random_mask_code_is_numpy_seed_42_for_every_trial_and_nested():
    # the first four of NumPy's legacy permutation of 12 with seed 42
    assert (~random_mask_code((3, 4), 0.3)).flatten().nonzero().flatten().tolist() == [0, 8, 9, 10]
    removed = [~random_mask_code((10, 64), fraction) for fraction in FRACTIONS]
    assert [r.sum().item() for r in removed] == [64, 192, 320, 512]
    for smaller, larger in zip(removed, removed[1:], strict=False):
        assert (larger | ~smaller).all()


# Controls of equal AP2


def test_controls_keep_ap2_and_change_the_weights():
    weight = torch.randn(10, 64, generator=seeded()).double()
    mask = magnitude_mask(weight, 0.3, "lowest")
    delta = weight - weight * mask
    controls = {
        "direction": random_direction(delta, seeded(1)),
        "signs": sign_flips(delta, seeded(1)),
        "places": permute_pruned(delta, mask, seeded(1)),
    }
    for control in controls.values():
        assert ap2(weight, weight - control) == pytest.approx(ap2(weight, weight * mask), rel=1e-12)
        assert not torch.equal(control, delta)
    assert torch.equal(controls["signs"].abs(), delta.abs())
    assert (controls["places"][mask] == 0).all()
    assert torch.equal(controls["places"][~mask].sort().values, delta[~mask].sort().values)
    assert torch.equal(controls["direction"], random_direction(delta, seeded(1)))


def test_permutation_leaves_fine_tuned_weights_where_they_are():
    delta = torch.arange(12.0).view(3, 4)
    mask = torch.rand(3, 4, generator=seeded()) < 0.5
    assert torch.equal(permute_pruned(delta, mask, seeded(2))[mask], delta[mask])
    assert not torch.equal(permute_pruned(delta, mask, seeded(2)), delta)


@pytest.mark.parametrize(
    "call",
    (
        lambda w: ap2(w, w[0]),
        lambda w: group_means(w, 0),
        lambda w: group_means(w[:0]),
        lambda w: t_ap3(w, w, scale=0),
        lambda w: lambda_factor([]),
        lambda w: lambda_factor([0.0]),
        lambda w: lambda_factor([1.0, math.nan]),
        lambda w: scale_ap2([1.0], "paper"),
        lambda w: epoch_series(w, [], ap2),
        lambda w: approximate_ap3_gaps(w, [w], ap2, version="lemma 2"),
        lambda w: performance_bound(-1.0, 1.0, 1.0, 1.0),
        lambda w: performance_bound(1.0, -1.0, 1.0, 1.0),
        lambda w: gaussian_performance_bound(math.nan, 1.0, 1.0),
        lambda w: gaussian_performance_bound(1.0, 1.0, 0.0),
        lambda w: prune_highest_code(w, 1.0),
        lambda w: random_mask_code((3, 4), 1.0),
        lambda w: permute_pruned(w, w[0].bool(), seeded()),
        lambda w: fisher_covariance(w.abs(), damping=0),
        lambda w: fisher_covariance(w * 0),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(normal(3, 5, generator=seeded()))
