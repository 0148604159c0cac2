import math

import pytest
import tensorly
import torch
from tensorly.cp_tensor import CPTensor, cp_to_tensor
from tensorly.decomposition import parafac

from lib.truncation.forms import cp, cp_als, largest_rank

SHAPE = (20, 12, 3, 5)


@pytest.fixture(autouse=True)
def pytorch_backend():
    with tensorly.backend_context("pytorch"):
        yield


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def starts(shape, rank, generator):
    return [gaussian((size, rank), generator) for size in shape]


def sum_of_terms(factors):
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


def w_state():
    """aab + aba + baa: of rank 3, but a limit of kernels of rank 2."""
    kernel = torch.zeros(2, 2, 2, 1, dtype=torch.float64)
    kernel[0, 0, 1] = kernel[0, 1, 0] = kernel[1, 0, 0] = 1
    return kernel


@pytest.mark.parametrize("rank", (1, 7, 30))
def test_every_iteration_is_that_of_tensorly_from_the_same_start(rank):
    generator = seeded()
    kernel, start = gaussian(SHAPE, generator), starts(SHAPE, rank, generator)
    for iterations in (1, 3, 30):
        fit = cp_als(kernel, start, iterations, 0.0)
        first = CPTensor((torch.ones(rank, dtype=torch.float64), [factor.clone() for factor in start]))
        reference = cp_to_tensor(parafac(kernel, rank, init=first, n_iter_max=iterations, tol=0))
        assert fit.iterations == iterations
        assert (fit.kernel() - reference).norm() < 1e-9 * kernel.norm()


def test_the_error_is_that_of_the_kernel_and_its_columns_have_norm_one():
    generator = seeded()
    kernel = gaussian(SHAPE, generator)
    fit = cp_als(kernel, starts(SHAPE, 9, generator), 60)
    assert fit.relative_error == pytest.approx(((kernel - fit.kernel()).norm() / kernel.norm()).item(), abs=1e-14)
    weighted = [fit.factors[0] * fit.weights, *fit.factors[1:]]
    assert torch.allclose(sum_of_terms(weighted), fit.kernel(), atol=1e-12)
    for factor in fit.factors:
        assert torch.allclose(factor.norm(dim=0), torch.ones(9, dtype=torch.float64))


def test_after_a_least_squares_update_the_norm_loss_follows_from_the_error():
    generator = seeded()
    kernel = gaussian(SHAPE, generator)
    fit = cp_als(kernel, starts(SHAPE, 9, generator), 20)
    kept = (fit.kernel().norm() / kernel.norm()).item()
    assert kept == pytest.approx(math.sqrt(1 - fit.relative_error**2), abs=1e-10)


def test_a_kernel_of_three_terms_is_recovered_exactly():
    generator = seeded()
    kernel = sum_of_terms(starts((16, 12, 3, 3), 3, generator))
    fit = cp(kernel, 3, generator, iterations=1000, tolerance=0.0)
    assert fit.relative_error < 1e-12


def test_error_never_rises_with_more_iterations():
    generator = seeded()
    kernel, start = gaussian(SHAPE, generator), starts(SHAPE, 12, generator)
    errors = [cp_als(kernel, start, iterations, 0.0).relative_error for iterations in (1, 2, 5, 20, 60, 200)]
    assert all(later <= before + 1e-12 for before, later in zip(errors, errors[1:], strict=False))


def test_a_degenerate_kernel_raises_the_alarm_falling_error_and_growing_weights():
    start = starts((2, 2, 2, 1), 2, seeded())
    fits = [cp_als(w_state(), start, iterations, 0.0) for iterations in (10, 100, 1000, 3000)]
    for before, later in zip(fits, fits[1:], strict=False):
        assert later.relative_error < before.relative_error
        assert (later.weights > before.weights).all()
    # error x norm^2 of a term tends to 1 / (4 sqrt 3)
    assert fits[-1].relative_error * fits[-1].weights[0].item() ** 2 == pytest.approx(1 / (4 * math.sqrt(3)), abs=0.005)


def test_errors_of_the_degenerate_kernel_match_the_printed_run_of_tensorly():
    for iterations, printed in ((10, 0.0151), (100, 0.0068), (1000, 0.0048)):
        run = parafac(w_state(), 2, init="random", random_state=1, tol=0, n_iter_max=iterations)
        first = parafac(w_state(), 2, init="random", random_state=1, tol=0, n_iter_max=1)
        ours = cp_als(w_state(), first.factors, iterations - 1, 0.0)
        for kernel in (cp_to_tensor(run), ours.kernel()):
            error = (w_state() - kernel).norm() / w_state().norm()
            assert error.item() == pytest.approx(printed, abs=5.1e-5)


def test_rank_three_fits_the_degenerate_kernel_exactly():
    assert cp(w_state(), 3, seeded(), iterations=1000, tolerance=0.0).relative_error < 1e-12


def test_the_largest_rank_fits_any_kernel_in_float64():
    kernel = gaussian((16, 16, 3, 3), seeded()).float()
    fit = cp(kernel, largest_rank(kernel.shape), seeded(), starts=1, iterations=200, tolerance=0.0)
    assert largest_rank(kernel.shape) == 144
    assert fit.relative_error < 1e-6


def test_a_fit_says_whether_it_converged_and_the_usual_cap_is_too_early():
    kernel = gaussian((16, 16, 3, 3), seeded())
    capped = cp(kernel, 40, seeded(1), starts=2, iterations=100)
    longer = cp(kernel, 40, seeded(1), starts=2, iterations=800)
    assert not capped.converged and capped.iterations == 100
    assert longer.relative_error < capped.relative_error - 0.01
    easy = cp(kernel, 1, seeded(1))
    assert easy.converged and easy.iterations < 5000 and easy.iterations % 50 == 0


def test_the_best_start_is_returned_with_the_errors_of_all():
    kernel = gaussian(SHAPE, seeded())
    fit = cp(kernel, 10, seeded(3), starts=4, iterations=100)
    assert len(fit.errors) == 4 and len(set(fit.errors)) > 1
    assert fit.relative_error == min(fit.errors)
    again = cp(kernel, 10, seeded(3), starts=4, iterations=100)
    assert again.errors == fit.errors and torch.equal(again.kernel(), fit.kernel())


def test_more_terms_than_a_mode_is_long_leave_no_not_a_number():
    fit = cp(torch.ones(4, 4, 3, 3), 20, seeded(), starts=1, iterations=60)
    assert fit.kernel().isfinite().all() and fit.relative_error < 1e-6


@pytest.mark.parametrize(
    "call",
    (
        lambda k: cp(k, 0, seeded()),
        lambda k: cp(k, 37, seeded()),
        lambda k: cp(k, 2, None),
        lambda k: cp(k, 2, seeded(), starts=0),
        lambda k: cp(k, 2, seeded(), iterations=0),
        lambda k: cp(k * math.nan, 2, seeded()),
        lambda k: cp(0 * k, 2, seeded()),
        lambda k: cp(k[0], 2, seeded()),
        lambda k: cp_als(k, starts((4, 4, 3), 2, seeded())),
        lambda k: cp_als(k, starts((4, 5, 3, 3), 2, seeded())),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(torch.ones(4, 4, 3, 3))
