import math
import timeit

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, special, stats

from lib.latent.measures import (
    equal_covariance_divergences,
    kl_gaussian,
    kl_gaussian_printed,
    kl_lower_bound,
    kl_sandwich,
    kl_student_t,
    kl_student_t_monte_carlo,
    mahalanobis,
    precision_range,
    recovered_squared_distance,
    student_t_variance,
    total_variation_lower_bound,
    vacuous_factor,
    wasserstein_gaussian,
)

# KL of two Student-t distributions (spec table): (d, df) -> values at r = 0.1, 1, 2, 3, 10, as printed.
STUDENT_T_TABLE = {
    (1, 4): ("0.003569536", "0.3392991", "1.18499", "2.220869", "7.400100"),
    (100, 4): ("0.004905332", "0.4873197", "1.911975", "4.173025", "32.19923"),
    (101, 4): ("0.004906217", "0.4874357", "1.912746", "4.175738", "32.29030"),
    (100, 1e6): ("0.00499999", "0.4999988", "1.999992", "4.499971", "49.9974"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, generator):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


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
        assert kl_gaussian(mean_p, p, mean_q, q) == pytest.approx(torch_kl(mean_p, p, mean_q, q), rel=1e-10, abs=1e-12)
        assert kl_gaussian(mean_p, p, mean_p, p) == pytest.approx(0, abs=1e-12)


def test_printed_closed_form_is_the_reverse_kl():
    generator = seeded(1)
    for _ in range(20):
        p, q = random_covariance(4, generator), random_covariance(4, generator)
        mean_p, mean_q = normal(4, generator=generator), normal(4, generator=generator)
        delta = mean_p - mean_q
        inverse = torch.linalg.inv(p)
        printed = (torch.logdet(p) - torch.logdet(q) + (inverse @ q).trace() + delta @ inverse @ delta - 4).item() / 2
        assert kl_gaussian_printed(mean_p, p, mean_q, q) == pytest.approx(printed, rel=1e-9)
        assert printed == pytest.approx(torch_kl(mean_q, q, mean_p, p), rel=1e-9)
        assert abs(printed - kl_gaussian(mean_p, p, mean_q, q)) > 1e-3
        assert kl_gaussian_printed(mean_p, p, mean_q, p) == pytest.approx(kl_gaussian(mean_p, p, mean_q, p))


def test_isotropic_kl_is_ap2_over_twice_the_variance():
    generator = seeded(2)
    mean_p, mean_q = normal(20_480, generator=generator), normal(20_480, generator=generator)
    for c in (1e-3, 1.0, 4.0):
        assert kl_gaussian(mean_p, c, mean_q, c) == pytest.approx((mean_p - mean_q).square().sum().item() / (2 * c))


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
    value = kl_gaussian(zero, scale_p**2, zero, scale_q**2)
    assert round(value, digits) == expected and value > 2
    ratio = scale_q**2 / scale_p**2
    assert value == pytest.approx(dim / 2 * (math.log(ratio) + 1 / ratio - 1), rel=1e-9)


def test_sandwich_holds_and_is_reached_along_the_extreme_eigenvectors():
    generator = seeded(3)
    for _ in range(200):
        covariance = random_covariance(5, generator)
        delta = normal(5, generator=generator)
        low, high = kl_sandwich(delta.square().sum(), covariance)
        kl = kl_gaussian(delta, covariance, torch.zeros(5), covariance)
        assert low <= kl * (1 + 1e-12) and kl <= high * (1 + 1e-12)
    values, vectors = torch.linalg.eigh(covariance)
    assert precision_range(covariance) == pytest.approx((1 / values[-1].item(), 1 / values[0].item()))
    for eigenvector, bound in ((vectors[:, -1], 0), (vectors[:, 0], 1)):
        kl = kl_gaussian(eigenvector, covariance, torch.zeros(5), covariance)
        assert kl == pytest.approx(kl_sandwich(1.0, covariance)[bound].item())


def test_ap3_implies_ap2_by_the_corrected_bound_and_not_by_the_printed_condition():
    assert mahalanobis(torch.tensor([1.0, 0.0]), torch.zeros(2), 4.0) ** 2 == 0.25  # printed: >= 1, the squared norm
    generator = seeded(4)
    printed_violations = corrected_violations = 0
    for _ in range(300):
        covariance = random_covariance(3, generator) + torch.eye(3)  # all eigenvalues above 1, as the print asks
        delta = normal(3, generator=generator)
        squared, twice_kl = delta.square().sum().item(), mahalanobis(delta, torch.zeros(3), covariance) ** 2
        printed_violations += squared > twice_kl
        corrected_violations += squared > twice_kl / precision_range(covariance)[0] * (1 + 1e-12)
    assert printed_violations == 300 and corrected_violations == 0


@pytest.mark.parametrize("m", (0.1, 1.0, 2.0, 4.0, 7.0))
def test_equal_covariance_divergences_equal_their_definitions(m):
    values = {name: value.item() for name, value in equal_covariance_divergences(m, alpha=0.3).items()}
    affinity = definition_integral(lambda p, q: math.sqrt(p * q), m)
    assert values["kl"] == kl_gaussian(torch.tensor([m], dtype=torch.float64), 1.0, torch.zeros(1), 1.0)
    assert values["jeffreys"] == pytest.approx(2 * values["kl"])
    assert values["bhattacharyya"] == pytest.approx(-math.log(affinity), rel=1e-7)
    assert values["squared_hellinger"] == pytest.approx(1 - affinity, rel=1e-7)
    assert values["total_variation"] == pytest.approx(definition_integral(lambda p, q: abs(p - q) / 2, m), rel=1e-9)
    assert values["total_variation"] == pytest.approx(2 * stats.norm.cdf(m / 2) - 1)
    renyi = math.log(definition_integral(lambda p, q: p**0.3 * q**0.7, m)) / (0.3 - 1)
    assert values["renyi"] == pytest.approx(renyi, rel=1e-7)
    half = lambda p, q: special.rel_entr(p, (p + q) / 2) / 2  # noqa: E731
    jensen_shannon = definition_integral(lambda p, q: half(p, q) + half(q, p), m)
    assert values["jensen_shannon"] == pytest.approx(jensen_shannon, rel=1e-9)


def test_jensen_shannon_reproduces_the_table_and_its_limits():
    table = {0.1: 0.00124844, 1: 0.11142148, 2: 0.33683082, 4: 0.63272019}
    values = equal_covariance_divergences(list(table))["jensen_shannon"]
    assert values.tolist() == pytest.approx(list(table.values()), abs=5.1e-9)
    tiny, huge = equal_covariance_divergences([1e-6, 1e3])["jensen_shannon"].tolist()
    assert tiny == pytest.approx(1e-12 / 8, rel=1e-9)
    assert huge == pytest.approx(math.log(2), rel=1e-12)


def test_divergences_increase_with_the_distance_until_they_saturate():
    m = torch.linspace(0, 8, 400, dtype=torch.float64)
    for name, value in equal_covariance_divergences(m).items():
        assert (value.diff() > 0).all(), name
    assert equal_covariance_divergences(17.0)["total_variation"].item() == 1


def test_pinsker_holds_at_unit_distance_with_the_printed_numbers():
    values = equal_covariance_divergences(1.0)
    assert values["total_variation"].item() == pytest.approx(0.382925, abs=5e-7)
    assert 2 * values["total_variation"].item() ** 2 == pytest.approx(0.2933, abs=5e-5)
    assert values["kl"].item() == 0.5 > 0.2933


def test_wasserstein_and_kl_order_alike_only_for_isotropic_covariance():
    covariance, zero = torch.tensor([1.0, 100.0]), torch.zeros(2)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert [mahalanobis(delta, zero, covariance) for delta in (first, second)] == pytest.approx([1, 0.2])
    distances = [wasserstein_gaussian(delta, covariance, zero, covariance) for delta in (first, second)]
    assert distances == pytest.approx([1, 2])
    generator = seeded(5)
    deltas = normal(50, 2, generator=generator)
    for sigma, agree in ((3.0, True), (covariance, False)):
        by_kl = np.argsort([kl_gaussian(delta, sigma, zero, sigma) for delta in deltas])
        by_wasserstein = np.argsort([wasserstein_gaussian(delta, sigma, zero, sigma) for delta in deltas])
        assert np.array_equal(by_kl, by_wasserstein) == agree


def test_squared_wasserstein_is_ap2_for_equal_and_gains_the_bures_term_for_other_covariances():
    generator = seeded(6)
    p, q = random_covariance(5, generator), random_covariance(5, generator)
    mean_p, mean_q = normal(5, generator=generator), normal(5, generator=generator)
    squared = (mean_p - mean_q).square().sum().item()
    assert wasserstein_gaussian(mean_p, p, mean_q, p) ** 2 == pytest.approx(squared)
    root = linalg.sqrtm(p.numpy())
    bures = np.trace(p.numpy() + q.numpy() - 2 * linalg.sqrtm(root @ q.numpy() @ root).real)
    assert wasserstein_gaussian(mean_p, p, mean_q, q) ** 2 == pytest.approx(squared + bures)
    variances = torch.tensor([1.0, 4.0])
    assert wasserstein_gaussian(torch.zeros(2), variances, torch.zeros(2), 9.0) == pytest.approx(math.sqrt(4 + 1))
    assert wasserstein_gaussian(torch.zeros(2), torch.diag(variances), torch.zeros(2), 9.0) == pytest.approx(5**0.5)


@pytest.mark.parametrize(("dim", "df"), STUDENT_T_TABLE)
def test_student_t_kl_reproduces_the_table_to_its_printed_digits(dim, df):
    values = kl_student_t([0.1, 1, 2, 3, 10], dim, df).tolist()
    for value, printed in zip(values, STUDENT_T_TABLE[dim, df], strict=True):
        last_digit = 10.0 ** -len(printed.split(".")[1])
        assert value == pytest.approx(float(printed), abs=0.51 * last_digit)


@pytest.mark.parametrize("dim", (1, 2, 3, 10, 100, 107))
@pytest.mark.parametrize("df", (1, 2, 4, 10))
def test_student_t_kl_equals_gauss_jacobi_times_gegenbauer(dim, df):
    for r in (0.01, 0.1, 1.0, 3.0):
        expected = student_t_kl_by_gauss_quadrature(r, dim, df, nodes=200, angles=100)
        assert kl_student_t(r, dim, df).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_student_t_kl_is_exact_where_the_oracle_is():
    for r in (0.1, 1.0, 3.0, 10.0):
        assert kl_student_t(r, 100, 4).item() == pytest.approx(student_t_kl_by_gauss_quadrature(r, 100, 4), rel=1e-10)


def test_student_t_kl_equals_the_closed_form_of_two_cauchy_distributions():
    r = torch.logspace(-8, 3, 300, dtype=torch.float64)
    assert torch.allclose(kl_student_t(r, 1, 1), torch.log1p(r**2 / 4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("df", (1, 4, 30))
def test_student_t_kl_in_one_dimension_equals_direct_integration(df):
    for r in (0.1, 1.0, 3.0, 10.0):
        p, q = stats.t(df), stats.t(df, loc=r)
        integrand = lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x))  # noqa: E731
        pieces = ((-np.inf, 0), (0, r), (r, np.inf))
        direct = sum(integrate.quad(integrand, *piece, epsabs=1e-12, limit=400)[0] for piece in pieces)
        assert kl_student_t(r, 1, df).item() == pytest.approx(direct, rel=1e-7)


@pytest.mark.parametrize("dim", (1, 100, 100_000))
@pytest.mark.parametrize("df", (1, 4, 1e6))
def test_student_t_kl_has_its_limits_for_small_and_large_distances(dim, df):
    r = 1e-6
    assert kl_student_t(r, dim, df).item() == pytest.approx((df + dim) / (df + dim + 2) * r**2 / 2, rel=1e-9)
    if df < 1e6:  # the far limit needs r^2 well above df + d; it is approached as r^-df, slowest for df = 1
        r, a = 1e3 * math.sqrt(dim), (df + dim) / 2
        far = a * (math.log(r**2 / df) - special.digamma(a) + special.digamma(df / 2))
        assert kl_student_t(r, dim, df).item() == pytest.approx(far, rel=3e-4)


def test_student_t_kl_at_thousand_is_near_its_far_limit_and_at_huge_df_is_gaussian():
    assert kl_student_t(1000.0, 100, 4).item() == pytest.approx(463.351, abs=5e-4)
    assert kl_student_t(1000.0, 100, 4).item() == pytest.approx(463.34, abs=0.02)
    assert kl_student_t(2.04674, 100, 4).item() == pytest.approx(2, abs=1e-5)
    assert kl_student_t([0.1, 1, 3], 10, 1e6).tolist() == pytest.approx([0.005, 0.5, 4.5], rel=1e-5)


def test_student_t_kl_strictly_increases_and_keeps_shape():
    for dim, df in ((1, 1), (100, 4), (100_000, 1e6)):
        values = kl_student_t(torch.logspace(-8, 3, 2000, dtype=torch.float64), dim, df)
        assert values.isfinite().all() and (values.diff() > 0).all()
    r = torch.rand(70, 90, generator=seeded())
    assert kl_student_t(r, 100, 4).shape == r.shape
    assert kl_student_t(r, 100, 4)[3, 5].item() == pytest.approx(kl_student_t(r[3, 5], 100, 4).item(), rel=1e-12)
    assert kl_student_t(0.0, 100, 4).item() == 0
    assert kl_student_t([], 100, 4).shape == (0,)


def test_student_t_kl_of_a_thousand_distances_takes_at_most_25_milliseconds():
    r = torch.logspace(-8, 3, 1000, dtype=torch.float64)
    assert min(timeit.repeat(lambda: kl_student_t(r, 100, 4), number=1, repeat=5)) < 0.025


@pytest.mark.parametrize(("dim", "df", "r"), ((1, 4, 2.0), (10, 4, 1.0), (100, 4, 0.5), (10, 1, 1.0), (5, 2.5, 3.0)))
def test_monte_carlo_agrees_within_four_standard_errors_for_any_direction_and_order(dim, df, r):
    generator = seeded(8)
    exact = kl_student_t(r, dim, df).item()
    zero = torch.zeros(dim, dtype=torch.float64)
    axis = zero.clone()
    axis[0] = r
    rotated = normal(dim, generator=generator)
    rotated *= r / rotated.norm()
    for p, q in ((zero, axis), (axis, zero), (rotated, zero), (axis + 5, rotated + axis + 5)):
        estimate, error = kl_student_t_monte_carlo(p, q, df, draws=40_000, generator=generator)
        assert abs(estimate - exact) < 4 * error < exact


def test_monte_carlo_noise_is_the_root_of_twice_the_kl_and_repeats_with_the_seed():
    p, q = torch.zeros(100), torch.full((100,), 0.01)
    estimate, error = kl_student_t_monte_carlo(p, q, 4, draws=50_000, generator=seeded(9))
    assert error * math.sqrt(50_000) == pytest.approx(math.sqrt(2 * kl_student_t(0.1, 100, 4).item()), rel=0.05)
    assert (estimate, error) == kl_student_t_monte_carlo(p, q, 4, draws=50_000, generator=seeded(9))


def test_total_variation_and_kl_lower_bounds_hold_for_gaussians():
    generator = seeded(10)
    for d in (1, 3, 30):
        for _ in range(50):
            covariance = random_covariance(d, generator)
            delta = normal(d, generator=generator) * 3
            m = mahalanobis(delta, torch.zeros(d), covariance)
            values = equal_covariance_divergences(m)
            bound_arguments = delta.square().sum(), covariance.trace(), covariance.trace()
            assert total_variation_lower_bound(*bound_arguments) <= values["total_variation"]
            assert kl_lower_bound(*bound_arguments) <= 2 * values["total_variation"] ** 2 <= values["kl"]


def test_recovered_distance_inverts_the_bound_and_exceeds_the_true_distance():
    squared = torch.tensor([1e-4, 0.3, 7.0, 100.0], dtype=torch.float64)
    kl = kl_lower_bound(squared, 4.0, 6.0)
    assert torch.allclose(recovered_squared_distance(kl, 4.0, 6.0), squared)
    epsilon = torch.linspace(0.01, 1.99, 100)
    for d in (1, 10, 20_480):
        assert (recovered_squared_distance(epsilon, d, d) >= 2 * epsilon).all()  # unit Gaussians: exactly 2 epsilon
    assert recovered_squared_distance([2.0, 3.0], 1, 1).isinf().all()
    t = math.sqrt(0.25)
    assert recovered_squared_distance(0.5, 20_480, 20_480).item() == pytest.approx(4 * 20_480 * t / (1 - t))
    assert vacuous_factor(0.5, 20_480).item() == pytest.approx(4 * 20_480)


def test_student_t_variance_is_twice_the_scale_at_four_degrees_of_freedom():
    assert student_t_variance(4) == 2
    assert student_t_variance(7) == pytest.approx(stats.t(7).var())


@pytest.mark.parametrize(
    "call",
    (
        lambda v: kl_gaussian(v, 0.0, v, 1.0),
        lambda v: kl_gaussian(v, 1.0, v, torch.tensor([1.0, -1.0, 1.0])),
        lambda v: kl_gaussian(v, 1.0, v, torch.tensor([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]])),
        lambda v: kl_gaussian(v, torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), v, 1.0),
        lambda v: kl_gaussian(v, torch.ones(2), v, 1.0),
        lambda v: kl_gaussian(v, torch.eye(2), v, 1.0),
        lambda v: kl_gaussian(v, 1.0, v[:2], 1.0),
        lambda v: kl_gaussian(v.view(1, 3), 1.0, v.view(1, 3), 1.0),
        lambda v: wasserstein_gaussian(v, torch.eye(3), v, -torch.eye(3)),
        lambda v: precision_range(math.nan),
        lambda v: kl_student_t(-1.0, 1, 4),
        lambda v: kl_student_t(math.nan, 1, 4),
        lambda v: kl_student_t(1.0, 0, 4),
        lambda v: kl_student_t(1.0, 1, 0),
        lambda v: kl_student_t_monte_carlo(v, v, 4, draws=1, generator=seeded()),
        lambda v: student_t_variance(2),
        lambda v: equal_covariance_divergences(-1.0),
        lambda v: equal_covariance_divergences(1.0, alpha=0),
        lambda v: total_variation_lower_bound(1.0, 0.0, 0.0),
        lambda v: kl_lower_bound(-1.0, 1.0, 1.0),
        lambda v: recovered_squared_distance(-1.0, 1.0, 1.0),
        lambda v: vacuous_factor(0.0, 10),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(torch.tensor([1.0, 2.0, 3.0]))
