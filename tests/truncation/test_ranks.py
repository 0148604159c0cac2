import itertools
import math

import pytest
import torch

from lib.truncation import best_ranks
from lib.truncation.forms import RANKS, approximate, decompose, limits, parameters, ranks_within
from lib.truncation.measures import CUTS, MODES, relative_error

ORDERS = tuple(itertools.permutations(MODES))
SEVERAL = tuple(form for form in RANKS if RANKS[form] > 1)


def kernel_of(*shape, seed=0, decay=0.7):
    """A Gaussian kernel whose slices fall as a power of their place, differently on each mode."""
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for mode, size in enumerate(shape):
        scale = torch.arange(1, size + 1, dtype=torch.float64) ** (-decay * (1 + mode) / 2)
        kernel = kernel * scale.view([-1 if axis == mode else 1 for axis in range(4)])
    return kernel


def error(kernel, form, ranks, order=("OUT", "KH", "KW", "IN")):
    return relative_error(kernel, approximate(kernel, form, ranks, order=order))


def every_rank(shape, form, order, budget):
    """All ranks of a form that are useful and fit, by brute force."""
    most = {"tucker": shape, "tucker2": shape[:2]}.get(form, (math.prod(shape) // max(shape),) * RANKS[form])
    for ranks in itertools.product(*[range(1, top + 1) for top in most]):
        if all(rank <= top for rank, top in zip(ranks, limits(shape, form, ranks, order), strict=True)):
            if parameters(shape, form, ranks, order) <= budget:
                yield ranks


@pytest.mark.parametrize("share", (0.3, 0.6))
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ("tucker", "tucker2"))
def test_best_tucker_ranks_err_as_little_as_any_that_fit(form, seed, share):
    kernel = kernel_of(9, 7, 3, 2, seed=seed, decay=seed / 2)
    budget = share * kernel.numel()
    least = min(error(kernel, form, ranks) for ranks in every_rank(kernel.shape, form, MODES, budget))
    assert error(kernel, form, best_ranks(kernel, form, budget)) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", (0.3, 0.6))
def test_best_bonds_of_a_train_err_as_little_as_any_that_fit(order, share):
    kernel = kernel_of(9, 7, 3, 2, seed=ORDERS.index(order))
    budget = share * kernel.numel()
    least = min(error(kernel, "tt", bonds, order) for bonds in every_rank(kernel.shape, "tt", order, budget))
    assert error(kernel, "tt", best_ranks(kernel, "tt", budget, order), order) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS[::3])
def test_best_bonds_of_a_ring_err_as_little_as_any_that_fit(order):
    kernel = kernel_of(4, 5, 2, 2, seed=ORDERS.index(order))
    budget = 0.7 * kernel.numel()
    least = min(error(kernel, "ring", bonds, order) for bonds in every_rank(kernel.shape, "ring", order, budget))
    assert error(kernel, "ring", best_ranks(kernel, "ring", budget, order), order) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("form", SEVERAL)
@pytest.mark.parametrize("shape", ((32, 24, 3, 3), (16, 3, 7, 7), (12, 20, 1, 1)))
def test_best_ranks_fit_the_budget_and_err_no_more_than_equal_shares(form, shape):
    kernel = kernel_of(*shape)
    for share in (0.25, 0.5):
        best, equal = (
            best_ranks(kernel, form, share * kernel.numel()),
            ranks_within(shape, form, share * kernel.numel()),
        )
        assert parameters(shape, form, best) <= share * kernel.numel()
        assert error(kernel, form, best) <= error(kernel, form, equal)


def test_equal_shares_waste_the_budget_of_a_train_on_its_middle_bond():
    kernel = kernel_of(32, 32, 3, 3)
    equal, best = (
        ranks(kernel, "tt", kernel.numel() / 2) for ranks in (lambda k, *a: ranks_within(k.shape, *a), best_ranks)
    )
    assert equal[1] > best[1] and error(kernel, "tt", best) < 0.8 * error(kernel, "tt", equal)


@pytest.mark.parametrize("order", ORDERS[::5])
def test_a_ring_errs_no_more_than_the_train_in_its_order(order):
    kernel = kernel_of(16, 12, 3, 3)
    for share in (0.25, 0.5):
        train, ring = (
            error(kernel, form, best_ranks(kernel, form, share * kernel.numel(), order), order)
            for form in ("tt", "ring")
        )
        assert ring <= train * (1 + 1e-9)


@pytest.mark.parametrize(("form", "ranks"), (("tt", (3, 5, 4)), ("tucker", (4, 3, 2, 2)), ("tucker2", (4, 3))))
def test_a_kernel_of_low_ranks_keeps_all_its_norm_at_their_budget(form, ranks):
    kernel = decompose(kernel_of(16, 12, 3, 3, decay=0), form, ranks).kernel()
    found = best_ranks(kernel, form, parameters(kernel.shape, form, ranks))
    assert error(kernel, form, found) < 1e-7


@pytest.mark.parametrize("form", (*CUTS, "cp"))
def test_a_form_with_one_rank_has_the_largest_that_fits(form):
    kernel = kernel_of(16, 12, 3, 3)
    assert best_ranks(kernel, form, kernel.numel() / 2) == ranks_within(kernel.shape, form, kernel.numel() / 2)


@pytest.mark.parametrize("form", SEVERAL)
def test_the_scale_and_precision_of_a_kernel_do_not_change_its_best_ranks(form):
    kernel = kernel_of(16, 12, 3, 3)
    best = best_ranks(kernel, form, kernel.numel() / 2)
    assert best == best_ranks(1000 * kernel, form, kernel.numel() / 2)
    assert best == best_ranks(kernel.float().requires_grad_(), form, kernel.numel() / 2)


@pytest.mark.parametrize(
    "call",
    (
        lambda k: best_ranks(k, "svd", 100),
        lambda k: best_ranks(k, "tt", 10),
        lambda k: best_ranks(k, "tt", 200, ("OUT", "IN", "KH", "KH")),
        lambda k: best_ranks(0 * k, "tucker", 200),
        lambda k: best_ranks(0 * k, "ring", 200),
        lambda k: best_ranks(k[0], "tt", 200),
        lambda k: best_ranks(k.to(torch.complex64), "tt", 200),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(kernel_of(9, 7, 3, 3))
