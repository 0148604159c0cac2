import itertools
import math

import pytest
import torch
from scipy.stats import norm
from torch.nn.utils import parametrizations, parametrize, prune

from lib.masks import MATCHED, METHODS, drawn_mask, filter_mask, magnitude_mask, matched_mask, nm_mask, permanent

FRACTIONS = (0.1, 0.3, 0.5, 0.8)
# Share of the squared norm that each method removes (spec table): fraction -> lowest, random, highest.
GAUSSIAN_SHARES = {
    0.1: (0.000525, 0.1, 0.439286),
    0.3: (0.014555, 0.3, 0.783307),
    0.5: (0.071326, 0.5, 0.928674),
    0.8: (0.350180, 0.8, 0.995758),
}
UNIFORM_SHARES = {
    0.1: (0.001, 0.1, 0.271),
    0.3: (0.027, 0.3, 0.657),
    0.5: (0.125, 0.5, 0.875),
    0.8: (0.512, 0.8, 0.992),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def removed_share(weight, mask):
    return (weight[~mask].square().sum() / weight.square().sum()).item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", (1, 5, 25, 45, 640, 1001))
def test_number_of_zeros_is_what_torch_pruning_removes(method, size):
    weight = torch.randn(size, generator=seeded())
    for fraction in (0.0, 0.1, 0.3, 0.5, 0.8, 0.9):
        mask = magnitude_mask(weight, fraction, method, seeded())
        reference = prune.l1_unstructured(torch.nn.ParameterList([weight]), "0", fraction).get_buffer("0_mask")
        assert mask.dtype == torch.bool
        assert (~mask).sum().item() == round(fraction * size) == (reference == 0).sum().item()


def test_lowest_mask_equals_torch_pruning_where_no_magnitudes_tie():
    weight = torch.randn(10, 64, generator=seeded())
    for fraction in FRACTIONS:
        layer = torch.nn.Linear(64, 10)
        layer.weight.data = weight
        prune.l1_unstructured(layer, "weight", fraction)
        assert torch.equal(magnitude_mask(weight, fraction, "lowest"), layer.weight_mask.bool())


def test_lowest_removes_below_and_highest_above_every_survivor():
    weight = torch.randn(30, 40, generator=seeded())
    for fraction in FRACTIONS:
        lowest, highest = (magnitude_mask(weight, fraction, method) for method in ("lowest", "highest"))
        assert weight[~lowest].abs().max() < weight[lowest].abs().min()
        assert weight[~highest].abs().min() > weight[highest].abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_removed_sets_of_growing_fractions_are_nested(method):
    weight = torch.randn(20, 20, generator=seeded()).round(decimals=1)  # many ties
    removed = [~magnitude_mask(weight, fraction, method, seeded(7)) for fraction in FRACTIONS]
    for smaller, larger in zip(removed, removed[1:], strict=False):
        assert (larger | ~smaller).all()


def test_ties_are_broken_by_storage_order():
    weight = torch.ones(2, 5)
    for method in ("lowest", "highest"):
        assert magnitude_mask(weight, 0.3, method).tolist() == [[False] * 3 + [True] * 2, [True] * 5]


def test_random_masks_repeat_with_the_seed_and_ignore_the_weights():
    a, b = torch.randn(500, generator=seeded(1)), torch.randn(500, generator=seeded(2))
    assert torch.equal(magnitude_mask(a, 0.5, "random", seeded(3)), magnitude_mask(b, 0.5, "random", seeded(3)))
    assert not torch.equal(magnitude_mask(a, 0.5, "random", seeded(3)), magnitude_mask(a, 0.5, "random", seeded(4)))


def test_closed_forms_reproduce_the_table_of_removed_shares():
    for p, (lowest, _, highest) in GAUSSIAN_SHARES.items():
        t, u = norm.ppf((1 + p) / 2), norm.ppf(1 - p / 2)
        assert p - 2 * t * norm.pdf(t) == pytest.approx(lowest, abs=5.1e-7)
        assert p + 2 * u * norm.pdf(u) == pytest.approx(highest, abs=5.1e-7)
    for p, (lowest, _, highest) in UNIFORM_SHARES.items():
        assert (p**3, 1 - (1 - p) ** 3) == pytest.approx((lowest, highest), abs=1e-12)


@pytest.mark.parametrize("shares", (GAUSSIAN_SHARES, UNIFORM_SHARES), ids=("gaussian", "uniform"))
def test_removed_shares_of_large_samples_match_the_table(shares):
    n = 2**19
    draw = (
        torch.randn
        if shares is GAUSSIAN_SHARES
        else lambda *size, generator: torch.rand(*size, generator=generator) - 0.5
    )
    weight = draw(n, generator=seeded()).double()
    for fraction, expected in shares.items():
        for method, share in zip(("lowest", "random", "highest"), expected, strict=True):
            measured = removed_share(weight, magnitude_mask(weight, fraction, method, seeded(1)))
            # the lowest share goes with the cube of a quantile, whose relative standard error is sqrt((1 - p) / (p n))
            tolerance = 4 * 3 * math.sqrt((1 - fraction) / (fraction * n)) if method == "lowest" else 0.01
            assert measured == pytest.approx(share, rel=tolerance), (fraction, method)


def test_squared_norm_removed_is_ordered_lowest_any_highest():
    weight = torch.randn(13, 17, generator=seeded()).double()
    for fraction in (0.05, *FRACTIONS, 0.95):
        lowest, highest = (removed_share(weight, magnitude_mask(weight, fraction, m)) for m in ("lowest", "highest"))
        for seed in range(20):
            assert lowest <= removed_share(weight, magnitude_mask(weight, fraction, "random", seeded(seed))) <= highest


@pytest.mark.parametrize("order", (1, 2))
@pytest.mark.parametrize("shape", ((10, 64), (16, 3, 3, 3)))
def test_filter_mask_equals_torch_structured_pruning(order, shape):
    weight = torch.randn(shape, generator=seeded())
    for fraction in FRACTIONS:
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight.clone())
        prune.ln_structured(module, "weight", fraction, n=order, dim=0)
        mask = filter_mask(weight, fraction, order=order)
        assert torch.equal(mask, module.weight_mask.bool())
        assert mask.flatten(1).all(1).sum() == shape[0] - round(fraction * shape[0])


def test_filter_norm_order_decides_between_a_spiky_and_a_flat_filter():
    weight = torch.tensor([[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])  # L1 norms 3 and 4, L2 norms 3 and 2
    assert filter_mask(weight, 0.5, order=1)[:, 0].tolist() == [False, True]
    assert filter_mask(weight, 0.5, order=2)[:, 0].tolist() == [True, False]
    assert filter_mask(weight, 0.5, "highest", order=2)[:, 0].tolist() == [False, True]


@pytest.mark.parametrize("method", METHODS)
def test_nm_mask_keeps_n_of_every_m_inputs(method):
    for shape in ((10, 64), (8, 16, 3, 3)):
        weight = torch.randn(shape, generator=seeded())
        for kept, group in ((2, 4), (1, 4), (4, 4), (4, 8)):
            mask = nm_mask(weight, kept, group, method, seeded())
            assert mask.shape == weight.shape
            counts = mask.movedim(1, -1).unflatten(-1, (-1, group)).sum(-1)
            assert (counts == kept).all()


def test_nm_mask_keeps_the_largest_or_the_smallest_magnitudes():
    weight = torch.tensor([[1.0, -4.0, 3.0, -2.0, 8.0, 5.0, -6.0, 7.0]])
    assert nm_mask(weight, 2, 4).int().tolist() == [[0, 1, 1, 0, 1, 0, 0, 1]]
    assert nm_mask(weight, 2, 4, "highest").int().tolist() == [[1, 0, 0, 1, 0, 1, 1, 0]]


def test_drawn_masks_remove_sets_as_often_as_drawing_one_after_another_does():
    weight, rms, exponents = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([1.0, 2.0]), (1.0, -1.0)
    chances = (weight.abs() / rms).flatten().tolist()

    def probability(order):
        left, product = sum(chances), 1.0
        for one in order:
            product, left = product * chances[one] / left, left - chances[one]
        return product

    draws, stream, counts = 4000, seeded(3), {}
    for _ in range(draws):
        removed = (~drawn_mask(weight, rms, 0.5, exponents, stream)).flatten().nonzero().flatten()
        counts[tuple(removed.tolist())] = counts.get(tuple(removed.tolist()), 0) + 1
    for pair in itertools.combinations(range(4), 2):
        expected = sum(map(probability, itertools.permutations(pair)))
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(counts.get(pair, 0) / draws - expected) < 4.5 * error


def test_drawn_masks_go_from_lowest_over_random_to_highest():
    weight, rms = torch.randn(10, 64, generator=seeded()), torch.rand(64, generator=seeded(1))
    for fraction in FRACTIONS:
        for gamma, method in ((-1e6, "lowest"), (1e6, "highest")):
            mask = drawn_mask(weight, rms, fraction, (gamma, 0.0), seeded(2))
            assert torch.equal(mask, magnitude_mask(weight, fraction, method))
        masks = [drawn_mask(weight, rms, fraction, (gamma, 0.5), seeded(2)) for gamma in (-4.0, -1.0, 0.0, 1.0, 4.0)]
        assert all((~mask).sum() == round(fraction * 640) for mask in masks)
        shares = [removed_share(weight, mask) for mask in masks]
        assert shares == sorted(shares)  # one draw: a larger exponent removes larger weights
    dead = torch.where(torch.arange(64) < 8, 0.0, rms)
    columns = (~drawn_mask(weight, dead, 0.1, (0.0, -1e6), seeded())).nonzero()[:, 1]
    smallest = dead.where(dead > 0, 9.0).argmin()
    assert all(column < 8 or column == smallest for column in columns)


@pytest.mark.parametrize("shape", ((4, 16), (10, 64), (100, 64)))
def test_matched_masks_have_one_count_and_one_squared_norm_in_other_places(shape):
    weight, rms = torch.randn(shape, generator=seeded()), torch.rand(shape[1], generator=seeded(1))
    for fraction, target in ((0.3, 0.3), (0.5, 0.2), (0.8, 0.6), (0.8, 0.95)):
        masks = []
        for delta, seed in ((0.0, 0), (0.0, 1), (2.0, 0), (-2.0, 0)):
            mask, gamma = matched_mask(weight, rms, fraction, delta, target, seeded(seed))
            again, same = matched_mask(weight, rms, fraction, delta, target, seeded(seed))
            assert torch.equal(mask, again) and gamma == same
            assert (~mask).sum() == round(fraction * weight.numel())
            assert removed_share(weight, mask) == pytest.approx(target, rel=1.01 * MATCHED)
            plain = drawn_mask(weight, rms, fraction, (gamma, delta), seeded(seed))
            assert (mask != plain).sum() <= 4  # exchanged weights, two places each
            masks.append(mask)
        assert all((one != other).any() for one, other in itertools.combinations(masks, 2))
        removed = [(~mask).double().sum(0) @ rms.double() for mask in masks[2:]]
        assert removed[0] > removed[1]  # delta moves the places to larger inputs


def test_a_squared_norm_out_of_reach_is_refused_with_the_reach():
    weight, rms = torch.arange(1.0, 9.0).view(2, 4), torch.ones(4)
    low, high = (1 + 4) / 204, (49 + 64) / 204
    for target in (0.9 * low, 1.1 * high):
        with pytest.raises(ValueError, match=rf"out of reach, since 2 of 8 weights hold from {low:.4g} to {high:.4g}"):
            matched_mask(weight, rms, 0.25, 0.0, target, seeded())
    for target in (low, high):
        assert removed_share(weight, matched_mask(weight, rms, 0.25, 0.0, target, seeded())[0]) == pytest.approx(target)
    with pytest.raises(ValueError, match="choose another target"):
        matched_mask(weight, rms, 0.125, 0.0, 20 / 204, seeded())  # between the squares 16 and 25


@pytest.mark.parametrize(
    "call",
    (
        lambda w: drawn_mask(w, torch.ones(8), 1.0, (0.0, 0.0), seeded()),
        lambda w: drawn_mask(w, torch.ones(8), 0.5, (0.0, 0.0), None),
        lambda w: drawn_mask(w, torch.ones(4), 0.5, (0.0, 0.0), seeded()),
        lambda w: drawn_mask(w, torch.zeros(8), 0.5, (0.0, 0.0), seeded()),
        lambda w: drawn_mask(w * math.nan, torch.ones(8), 0.5, (0.0, 0.0), seeded()),
        lambda w: matched_mask(w, torch.ones(8), 0.5, 0.0, math.nan, seeded()),
        lambda w: magnitude_mask(w, 1.0, "lowest"),
        lambda w: magnitude_mask(w, -0.1, "lowest"),
        lambda w: magnitude_mask(w, math.nan, "lowest"),
        lambda w: magnitude_mask(w, 0.5, "smallest"),
        lambda w: magnitude_mask(w, 0.5, "random"),
        lambda w: magnitude_mask(w * math.nan, 0.5, "lowest"),
        lambda w: filter_mask(w, 1.0),
        lambda w: filter_mask(w, 0.5, order=3),
        lambda w: filter_mask(w[0], 0.5),
        lambda w: nm_mask(w, 0, 4),
        lambda w: nm_mask(w, 5, 4),
        lambda w: nm_mask(w, 2, 3),
        lambda w: nm_mask(w, 2, 4, "smallest"),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(torch.randn(4, 8, generator=seeded()))


def test_a_permanent_copy_leaves_a_parametrized_network_as_it_was():
    layer = parametrizations.weight_norm(torch.nn.Linear(3, 2))
    inputs = torch.ones(1, 3)
    expected = layer(inputs)
    copy = permanent(layer)
    assert not parametrize.is_parametrized(copy) and torch.allclose(copy(inputs), expected)
    assert parametrize.is_parametrized(layer) and torch.equal(layer(inputs), expected)
