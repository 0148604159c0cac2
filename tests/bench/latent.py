"""Paper 1: exact Student-t divergences against Monte Carlo,; measures of a large network."""

import time
from collections.abc import Iterator

import torch

from lib import latent
from tests.bench import Line, best

DRAWS, REPEATS = 600_000, 100  # of the released code, for each plotted point


def student_t() -> Iterator[Line]:
    dim, df, distance = 100, 4, 1.0
    exact = best(lambda: latent.kl_student_t(distance, dim, df))
    value = latent.kl_student_t(distance, dim, df).item()
    mean = torch.zeros(dim, dtype=torch.float64)
    start = time.perf_counter()
    estimate, error = latent.kl_student_t_monte_carlo(mean, mean + distance / dim**0.5, df, draws=DRAWS // 10, seed=0)
    once = 10 * (time.perf_counter() - start)
    reference = 0.4873197  # the independent Gauss-Jacobi x Gegenbauer oracle of the tests
    yield Line("exact t-KL (100 groups, df 4, r 1)", 1e3 * exact, "ms", "<", 25)
    yield Line("its error against an independent oracle", abs(value - reference), "nats", "<", 1e-6)
    yield Line(
        f"Monte Carlo, {DRAWS // 10:,} draws, its error", abs(estimate - reference), f"nats (its own s.e. {error:.1e})"
    )
    yield Line(f"Monte Carlo of {DRAWS:,} draws x {REPEATS} (a tenth of one timed and scaled)", once * REPEATS, "s")
    yield Line("exact against Monte Carlo", once * REPEATS / exact, "x", ">", 10_000)


def large_network() -> Iterator[Line]:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    dense = torch.randn(25_000_000, generator=random)
    pruned = dense * (torch.rand(len(dense), generator=random) > 0.5)
    yield Line("AP2 of 25 million weights", 1e3 * best(lambda: latent.ap2(dense, pruned), 5), "ms", "<", 2000)
    yield Line("Student-t AP3 of them", 1e3 * best(lambda: latent.t_ap3(dense, pruned), 5), "ms", "<", 2000)


BENCHMARKS = (student_t, large_network)
