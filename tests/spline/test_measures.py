"""Codes, detectors, redundancy and counted operations against closed forms, direct counts and published totals."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lib import data, models
from lib.provenance import CompanionError
from lib.spline import measures
from lib.study import generator
from tests.spline.test_partition import mlp


def unit(*rows: tuple[float, float, float]) -> nn.Sequential:
    """A network of two inputs whose hidden units are w1 x + w2 y + b."""
    network = nn.Sequential(nn.Linear(2, len(rows)), nn.ReLU(), nn.Linear(len(rows), 1)).double()
    table = torch.tensor(rows, dtype=torch.float64)
    network[0].weight.data, network[0].bias.data = table[:, :2].clone(), table[:, 2].clone()
    return network


def distance(a: nn.Module, b: nn.Module, probes: torch.Tensor) -> float:
    return measures.code_distance(
        *(measures.activation_codes(model, probes, batch_size=10**6) for model in (a, b))
    ).mean()


def test_a_shifted_line_changes_the_code_in_the_strip_that_it_crosses():
    axis = torch.linspace(0, 1, 1001, dtype=torch.float64)
    probes = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    found = distance(unit((1, 0, -0.3)), unit((1, 0, -0.45)), probes)
    assert found == pytest.approx(0.15, abs=2e-4)
    assert found == pytest.approx(0.14985, abs=1e-5)


def test_a_turned_line_changes_the_share_of_its_angle():
    probes = torch.randn(500_000, 2, generator=generator(0, "cloud"), dtype=torch.float64)
    turned = unit((1, 0, 0)), unit((math.cos(0.2), math.sin(0.2), 0))
    assert distance(*turned, probes) == pytest.approx(0.2 / math.pi, abs=1e-3)  # three standard errors


def test_packed_distances_equal_a_count_of_unpacked_bits_in_every_layer():
    first, second = (models.build("digits_cnn", channels=1, size=8, seed=seed) for seed in (0, 1))
    probes = torch.randn(30, 1, 8, 8, generator=generator(0, "probes"))
    seen = []
    for model in (first, second):
        bits: list[torch.Tensor] = []
        hooks = [
            m.register_forward_hook(lambda *a, b=bits: b.append(a[2] > 0))
            for m in model.modules()
            if isinstance(m, nn.BatchNorm2d)
        ]
        with torch.no_grad():
            model.eval()(probes)
        for hook in hooks:
            hook.remove()
        seen.append(bits)
    wanted = [(a != b).double().mean().item() for a, b in zip(*seen, strict=True)]
    codes = [measures.activation_codes(model, probes, batch_size=7) for model in (first, second)]
    assert measures.code_distance(*codes) == pytest.approx(wanted, abs=0)
    assert codes[0].units == (32 * 64, 32 * 64, 64 * 16, 64 * 16)
    assert sum(words.nbytes for words in codes[0].words) == 30 * (2 * 32 * 64 + 2 * 64 * 16) / 8


def test_the_distance_is_zero_to_itself_symmetric_and_within_its_range():
    a, b = (mlp(2, 16, 16, 2, rng=np.random.default_rng(seed)) for seed in (0, 1))
    probes = torch.randn(200, 2, generator=generator(0, "probes"), dtype=torch.float64)
    assert distance(a, a, probes) == 0
    assert 0 < distance(a, b, probes) == distance(b, a, probes) < 1


def test_the_distance_ignores_rescaled_and_permuted_nodes():
    a, b = (mlp(2, 16, 16, 2, rng=np.random.default_rng(seed)) for seed in (0, 1))
    probes = torch.randn(400, 2, generator=generator(0, "probes"), dtype=torch.float64)
    before = distance(a, b, probes)
    factors = 2.0 ** torch.randint(-3, 4, (16,), generator=generator(0, "factors")).double()
    scaled = copy.deepcopy(a)
    scaled[0].weight.data *= factors[:, None]
    scaled[0].bias.data *= factors
    assert distance(scaled, a, probes) > 0.05  # outgoing weights left alone: the next layer's code changes
    scaled[2].weight.data /= factors
    assert distance(scaled, a, probes) == 0
    assert distance(scaled, b, probes) == before
    order = torch.randperm(16, generator=generator(0, "order"))
    mixed = [copy.deepcopy(model) for model in (a, b)]
    for model in mixed:
        model[0].weight.data, model[0].bias.data = model[0].weight.data[order], model[0].bias.data[order]
        model[2].weight.data = model[2].weight.data[:, order]
    assert distance(*mixed, probes) == before


def test_codes_keep_the_mode_and_refuse_what_does_not_fit():
    model = models.build("digits_cnn", channels=1, size=8).train()
    probes = torch.zeros(3, 1, 8, 8)
    codes = measures.activation_codes(model, probes)
    assert model.training
    with pytest.raises(ValueError, match=r"Probes of shape \(3, 2, 8, 8\) do not fit"):
        measures.activation_codes(model, torch.zeros(3, 2, 8, 8))
    with pytest.raises(ValueError, match="same layers and the same probes"):
        measures.code_distance(codes, measures.activation_codes(model, probes[:2]))
    model.features[0].weight.data[0] = torch.nan
    with pytest.raises(CompanionError, match="not finite on the probes"):
        measures.activation_codes(model, probes)


def test_without_batchnorm_hidden_linear_layers_are_coded_and_alexnets_wide_ones_are_not():
    assert measures.coded_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))) == ["0"]
    names = measures.coded_layers(models.build("alexnet"))
    assert len(names) == 5
    assert all(name.startswith("features") for name in names)


def test_the_canvas_is_a_square_and_no_convex_mix():
    a, b = torch.full((1, 2, 2), 2.0), torch.full((1, 2, 2), 30.0)
    probes = measures.canvas(a, b, 3)
    assert probes.shape == (9, 1, 2, 2)
    assert probes[:, 0, 0, 0].tolist() == [0, 15, 30, 1, 16, 31, 2, 17, 32]


def test_a_canvas_of_augmented_test_images_moves_the_codes_of_a_network_that_stands_still():
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "images"))
    model = models.build("resnet8")
    noise = generator(0, "noise")

    def codes(pictures):
        return measures.activation_codes(model, measures.canvas(*(pictures.float() / 255), 4))

    fixed = measures.code_distance(codes(images), codes(images)).mean()
    drawn = measures.code_distance(*(codes(data.augment(images, noise)) for _ in range(2))).mean()
    assert fixed == 0 and drawn > 0.01


def test_distances_scaled_to_the_largest_seen_do_not_tell_a_moving_network_from_one_at_rest():
    moving = chain([0.3, 0.2, 0.1, 0.05, 0.02, 0.01])
    resting = moving / 1000
    scaled = [(one - one.min()) / (one.max() - one.min()) for one in (moving, resting)]
    assert np.allclose(*scaled)
    assert measures.early_bird_epoch(moving) != measures.early_bird_epoch(resting) == 3


def test_the_matrix_holds_the_distances_of_all_pairs():
    history = [
        measures.activation_codes(
            mlp(2, 4, 12, 1, rng=np.random.default_rng(s)),
            torch.randn(50, 2, generator=generator(0, "p"), dtype=torch.float64),
        )
        for s in range(4)
    ]
    matrix = measures.distance_matrix(history)
    assert matrix.shape == (2, 4, 4)
    assert (matrix == matrix.transpose(0, 2, 1)).all()
    assert (matrix[:, 3, 1] == measures.code_distance(history[3], history[1])).all()


def chain(steps: list[float]) -> np.ndarray:
    """Distances of epochs on a line, given the steps between them."""
    place = np.concatenate([[0], np.cumsum(steps)])
    return np.abs(place[:, None] - place)


def test_the_early_bird_is_the_first_epoch_close_to_all_three_before_it():
    steps = [0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.0, 0.0]
    distances = chain(steps)
    assert measures.early_bird_epoch(distances) == 7  # the last three steps are 0.05, 0.01 and 0
    assert measures.early_bird_epoch(distances, threshold=0.17) == 6  # 0.1, 0.05 and 0.01
    assert measures.early_bird_epoch(distances, threshold=10) == 3  # the earliest there is
    assert measures.early_bird_epoch(distances, threshold=0.16, lookback=1) == 4
    assert measures.early_bird_epoch(chain([0.5] * 8)) is None
    assert measures.early_bird_epoch(chain([0.5, 0.5])) is None


def test_exactly_the_threshold_is_not_below_it():
    assert measures.early_bird_epoch(np.full((5, 5), 0.16) - 0.16 * np.eye(5)) is None
    assert measures.early_bird_epoch(np.full((5, 5), 0.1599) - 0.1599 * np.eye(5)) == 3


def test_a_frozen_network_fires_the_absolute_rule_at_once_and_leaves_the_relative_one_undefined():
    frozen = np.zeros((10, 10))
    assert measures.early_bird_epoch(frozen) == 3
    assert measures.early_bird_epoch(frozen, threshold=0.1, relative=True) is None


def test_the_relative_rule_does_not_know_the_unit_of_distance():
    distances = chain([0.5**k for k in range(10)])
    found = measures.early_bird_epoch(distances, threshold=0.1, relative=True)
    assert found == measures.early_bird_epoch(1e-3 * distances, threshold=0.1, relative=True)
    assert 3 < found < 9
    recent = measures.recent_distance(distances)
    assert np.isnan(recent[:3]).all()
    assert recent[found] < 0.1 * recent[3] <= recent[found - 1]


def test_the_mask_detector_follows_its_four_rules():
    scales = np.full((12, 10), 0.5)  # all equal: nothing is strictly larger than the threshold, so every mask is empty
    assert measures.mask_early_bird_epoch(scales, 0.5) == 4
    rng = np.random.default_rng(0)
    restless = rng.permuted(np.tile(np.arange(10.0), (12, 1)), axis=1)
    assert measures.mask_early_bird_epoch(restless, 0.5) is None
    settled = np.concatenate([restless[:5], np.tile(restless[5], (7, 1))])
    assert measures.mask_early_bird_epoch(settled, 0.5) == 9  # five equal masks, the first of epoch 5
    one_of_ten = np.tile(np.arange(20.0), (6, 1))
    one_of_ten[5, [9, 10]] = one_of_ten[5, [10, 9]]  # two of twenty entries differ: exactly the limit
    assert measures.mask_early_bird_epoch(one_of_ten[1:], 0.5) == 4
    with pytest.raises(CompanionError, match="diverged"):
        measures.mask_early_bird_epoch(np.full((6, 4), np.nan), 0.5)


def folded_bn(gamma: float) -> None:
    conv, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4).eval()
    norm.running_mean.normal_(generator=generator(0, "mean"))
    norm.running_var.uniform_(0.5, 2, generator=generator(0, "var"))
    norm.weight.data.fill_(gamma)
    norm.bias.data.normal_(generator=generator(0, "bias"))
    x = torch.randn(2, 3, 6, 6, generator=generator(0, "x"))
    weight, bias = measures.folded(conv, norm)
    folded = nn.functional.conv2d(x.double(), weight.view(4, 3, 3, 3), bias, padding=1)
    with torch.no_grad():
        assert (folded - norm(conv(x))).abs().max() < 1e-5


@pytest.mark.parametrize("gamma", [1.3, -0.7])
def test_folding_batchnorm_keeps_the_function(gamma):
    folded_bn(gamma)


PAIR = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0])


@pytest.mark.parametrize(
    ("a", "raw", "normalised", "signed"), [(1, 0, 0, 0), (2, 1.0, 0, 0), (-1, 2.0, 0, 2.4), (-0.5, 1.5, 0, 2.4)]
)
def test_scores_of_nodes_with_the_same_hyperplane(a, raw, normalised, signed):
    weights, biases = (torch.cat([part, a * part]) for part in PAIR)
    for form, wanted in (("raw", raw), ("normalised", normalised), ("signed", signed)):
        score = measures.redundancy(weights, biases, form)
        assert score[0, 1].item() == score[1, 0].item() == pytest.approx(wanted, abs=1e-12)
        assert score.diagonal() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("form", measures.FORMS)
def test_scores_equal_a_double_loop(form):
    weights, biases = torch.randn(12, 7, generator=generator(0, "w")), torch.randn(12, generator=generator(0, "b"))
    score = measures.redundancy(weights, biases, form, rho=0.3)
    for i in range(12):
        for j in range(12):
            w, v, b, e = weights[i].double(), weights[j].double(), float(biases[i]), float(biases[j])
            c = float(w @ v) / float(w.norm() * v.norm())
            b_n, e_n = b / float(w.norm()), e / float(v.norm())
            wanted = {
                "raw": 1 - abs(c) + 0.3 * abs(b - e),
                "normalised": 1 - abs(c) + 0.3 * abs(b_n - math.copysign(1, c) * e_n),
                "signed": 1 - c + 0.3 * abs(b_n - e_n),
            }[form]
            assert score[i, j].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("dim", "mean"), [(2, 0.63662), (27, 0.15498), (576, 0.033260), (4608, 0.0117546)])
def test_cosines_of_random_rows_shrink_with_their_dimension_as_the_closed_form_says(dim, mean):
    exact = math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)
    assert exact == pytest.approx(mean, rel=1e-4)
    n = 800
    rows = torch.randn(n, dim, generator=generator(0, "rows", dim))
    score = measures.redundancy(rows, torch.zeros(n), "raw")
    cosines = 1 - score[~torch.eye(n, dtype=torch.bool)]
    assert cosines.mean().item() == pytest.approx(mean, rel=0.02)


def test_reduction_keeps_lengths_and_makes_cosines_larger():
    rows = torch.randn(40, 200, generator=generator(0, "rows"), dtype=torch.float64)
    small = measures.reduced(rows, 10)
    assert small.shape == (40, 10)
    assert (small.norm(dim=1) - rows.norm(dim=1)).abs().max() < 1e-9
    zeros = torch.zeros(40)
    assert measures.redundancy(small, zeros, "raw").mean() < measures.redundancy(rows, zeros, "raw").mean()
    whole = measures.reduced(rows, 40)
    gap = measures.redundancy(whole, zeros, "raw") - measures.redundancy(rows, zeros, "raw")
    assert gap.abs().max() < 1e-9
    with pytest.raises(ValueError, match="cannot be reduced"):
        measures.reduced(rows, 41)


def test_merging_a_positive_duplicate_is_lossless_and_dropping_it_is_not():
    rng = np.random.default_rng(0)
    network = mlp(2, 6, 3, rng=rng)
    first, last = network[0], network[2]
    first.weight.data[5], first.bias.data[5] = 2.7 * first.weight.data[1], 2.7 * first.bias.data[1]
    probes = torch.randn(500, 2, generator=generator(0, "probes"), dtype=torch.float64)
    active = (first(probes)[:, 5] > 0).double().mean().item()
    assert 0.1 < active  # on a dead node the test would pass emptily
    before = network(probes).detach()
    dropped, merged = copy.deepcopy(network), copy.deepcopy(network)
    dropped[2].weight.data[:, 5] = 0
    merged[2].weight.data = measures.merge(last.weight.data, 1, 5, first.weight.data.norm(dim=1))
    assert (merged(probes) - before).abs().max() < 1e-12
    assert (dropped(probes) - before).abs().max() > 0.1
    assert merged[2].weight.data[:, 5].eq(0).all()


def test_rows_without_a_hyperplane_match_nothing_and_bad_input_is_refused():
    weights = torch.tensor([[0.0, 0], [1, 0], [1, 1]])
    score = measures.redundancy(weights, torch.zeros(3))
    assert score[0].isinf().all()
    assert score[1:, 1:].isfinite().all()
    with pytest.raises(ValueError, match="Form is 'cosine'"):
        measures.redundancy(weights, torch.zeros(3), "cosine")
    with pytest.raises(ValueError, match="do not fit"):
        measures.redundancy(weights, torch.zeros(2))
    with pytest.raises(CompanionError, match="not finite"):
        measures.redundancy(weights * torch.nan, torch.zeros(3))


def test_vgg16_on_cifar100_costs_what_the_precursor_prints_for_snip():
    forward = measures.forward_flops(models.build("vgg16", classes=100), (3, 32, 32))
    assert forward == pytest.approx(627.4e6, rel=1e-3)
    total = measures.training_flops(forward, 50_000, 160) / measures.EPOCH_UNIT
    assert total == pytest.approx(301.2, abs=0.1)
    assert total == pytest.approx(302, rel=0.01)


def test_resnet18_on_imagenet_costs_what_the_precursor_prints_unpruned():
    forward = measures.forward_flops(models.build("resnet18", classes=1000, size=224), (3, 224, 224))
    assert forward == 3_637_254_632
    assert measures.training_flops(forward, 1_281_167, 90) / 1e15 == pytest.approx(1259.13, rel=0.01)


@pytest.mark.parametrize(
    ("layer", "shape", "wanted"),
    [
        (nn.Linear(10, 4), (10,), 2 * 40 + 4),
        (nn.Conv2d(3, 5, 3, padding=1, bias=False), (3, 8, 8), 2 * 27 * 5 * 64),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (3, 8, 8), 3 * 3 * 64),
        (nn.MaxPool2d(2), (3, 8, 8), 3 * 16 * 4),
        (nn.AvgPool2d(2), (3, 8, 8), 3 * 16 * 4),
        (nn.AdaptiveAvgPool2d(1), (3, 8, 8), 3 * 64),
    ],
)
def test_layers_cost_what_the_rule_says(layer, shape, wanted):
    model = nn.Sequential(nn.Identity(), layer)
    model.register_parameter("dtype", nn.Parameter(torch.zeros(1)))
    assert measures.forward_flops(model, shape) == wanted


def test_behind_gelu_a_code_is_the_sign_of_the_layer():
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    probes = torch.randn(20, 3, generator=generator(0, "x"))
    codes = measures.activation_codes(model, probes)
    bits = np.unpackbits(codes.words[0].view(np.uint8), axis=1)[:, :5]
    assert codes.names == ("0",)
    assert (bits == (model[0](probes) > 0).numpy()).all()
