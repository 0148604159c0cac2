"""Paper 1: the exact Student-t divergence against Monte Carlo; measures of a large network against reading it."""

import math
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import scipy
import torch
from torch import Tensor

from lib import latent
from tests.bench import Growth, Line, absent, alternated, best

DIM, DF, DISTANCE = 100, 4, 1.0  # the default of the released code: 100 group means, 4 degrees of freedom
REFERENCE = 0.4873197  # nats, of the independent Gauss-Jacobi x Gegenbauer oracle of the tests
RELEASED = 600_000 * 100  # draws of the released code for each plotted point
DRAWN = 20_000  # of them here: all take minutes to hours, and gigabytes
SIZES = (250_000, 2_500_000, 25_000_000)


def estimated(log_ratios: Callable[[], Tensor]) -> tuple[float, float]:
    """CPU seconds and standard error of one Monte Carlo estimate from DRAWN logarithms of ratios."""
    log_ratios()  # warms up
    start = time.process_time()
    found = log_ratios()
    seconds = time.process_time() - start
    error = found.std().item() / math.sqrt(len(found))
    assert abs(found.mean().item() - REFERENCE) < 5 * error, "the peer estimates something else"
    return seconds, error


def student_t() -> Iterator[Line]:
    """The Student-t AP3 of paper 1 by quadrature, and by Monte Carlo as the released code takes it."""
    torch.set_num_threads(1)
    exact = best(lambda: latent.kl_student_t(DISTANCE, DIM, DF))
    error = abs(latent.kl_student_t(DISTANCE, DIM, DF).item() - REFERENCE)
    yield Line(f"exact t-KL ({DIM} groups, {DF} degrees of freedom, distance 1)", 1e3 * exact, "ms", "<", 1)
    yield Line("its difference from an independent oracle", error, "nats", "<", 1e-6)
    mean = torch.zeros(DIM, dtype=torch.float64)
    shifted = mean + DISTANCE / math.sqrt(DIM)

    def with_scipy() -> Tensor:
        p, q = (scipy.stats.multivariate_t(one.numpy(), torch.eye(DIM).numpy(), DF) for one in (mean, shifted))
        draws = q.rvs(DRAWN, random_state=0)
        return torch.from_numpy(q.logpdf(draws) - p.logpdf(draws))

    yield from monte_carlo(f"scipy {scipy.__version__}: multivariate_t", exact, with_scipy)
    try:
        from pyro.distributions import MultivariateStudentT
    except ImportError:
        yield absent("pyro-ppl, which the released code uses,", "pip install pyro-ppl")
        return

    def with_pyro() -> Tensor:
        torch.manual_seed(0)
        p, q = (MultivariateStudentT(loc=one.float(), scale_tril=torch.eye(DIM), df=DF) for one in (mean, shifted))
        draws = q.sample((DRAWN,))
        return q.log_prob(draws) - p.log_prob(draws)

    name = f"pyro {version('pyro-ppl')}: MultivariateStudentT, as the released code"
    yield from monte_carlo(name, exact, with_pyro)


def monte_carlo(peer: str, exact: float, log_ratios: Callable[[], Tensor]) -> Iterator[Line]:
    """What the draws of the released code cost and err, scaled from DRAWN; and the error at the exact form's cost."""
    seconds, error = estimated(log_ratios)
    scale = RELEASED / DRAWN
    yield Line(f"Monte Carlo, {RELEASED:,} draws (scaled from {DRAWN:,})", seconds * scale, "s", peer=peer)
    yield Line("   its standard error", error / math.sqrt(scale), "nats")
    yield Line("   the exact form against it", seconds * scale / exact, "x", ">", 1_000_000, peer)
    yield Line("   its standard error at the exact form's cost", error * math.sqrt(seconds / exact), "nats")


def large_network() -> Iterator[Line | Growth]:
    """Distances of 25 million weights, in float64, against one pass over the same memory in float32.

    Float64 needs five passes over numbers in cache (two casts, difference, square, sum), so the bound is 3.5 and not 3.
    """
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(max(SIZES), generator=random)
    pruned = dense * (torch.rand(len(dense), generator=random) > 0.5)
    measures = {"AP2": latent.ap2, "Student-t AP3": latent.t_ap3}
    calls = [lambda measure=measure: measure(dense, pruned) for measure in measures.values()]
    read, *seconds, plain = alternated(
        lambda: (dense.sum(), pruned.sum()), *calls, lambda: (dense - pruned).square().sum(), repeats=7
    )
    for name, cost in zip(measures, seconds, strict=True):
        yield Line(f"{name} of {len(dense):,} weights", 1e3 * cost, "ms")
        yield Line("   against reading them once", cost / read, "x", "<", 3.5, "torch: the sums of both tensors")
    peer = "torch: (a - b).square().sum() in float32"
    yield Line("AP2 against one expression over whole tensors", plain / seconds[0], "x", ">", 1, peer)
    for name, measure in measures.items():
        costs = [best(lambda n=n, measure=measure: measure(dense[:n], pruned[:n]), 5) for n in SIZES]
        yield Growth(f"{name} by the number of weights", "s", list(SIZES), costs, 1.15)


BENCHMARKS = (student_t, large_network)
