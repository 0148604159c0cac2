"""The trials of paper 2 on single layers, on small networks of digits that are trained for one epoch."""

import numpy as np
import pytest
import torch
from torch import nn

from lib import baselines as dense_networks
from lib import models, training
from lib.data import Data, Split
from lib.provenance import CompanionError
from lib.truncation import forms as factorisation
from lib.truncation import measures as truncation
from lib.truncation import sweep
from lib.truncation import trials as truncation_trials
from lib.truncation.cuts import CUTS, applicable_cuts, unfold
from lib.truncation.measures import relative_error

CNN = {"source": "trained", "network": "digits_cnn", "dataset": "digits", "seed": 0, "epochs": 1, "lr": 0.1}
CNN |= {"width": 0.25, "batch_size": 64, "augment": False}
RESNET = CNN | {"network": "resnet8"}
PARTS = {"part": "report", "images": 60, "batch": 25}
GRID = {"shares": [0.25, 0.5], "joint_errors": [0.3]}
CONTROLS = {"errors": [0.1, 0.4]}
FORMS = {"budgets": [0.5], "starts": 2, "iterations": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "smoke"


def fake_data(test=11, validation=7):
    def numbered(n, first):
        images = torch.arange(first, first + n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 8, 8)
        return Split(images.contiguous(), torch.arange(n))

    statistics = {"mean": (0.5,), "std": (0.5,), "padding": 1, "flip": False}
    splits = numbered(30, 0), numbered(validation, 100), numbered(test, 200)
    return Data("digits", *splits, classes=10, channels=1, size=8, **statistics)


def seen(split):
    return split.images[:, 0, 0, 0].tolist()


def test_of_a_public_network_selection_and_report_share_no_image_and_are_the_test_images():
    spec = {"source": "public", "images": 99}
    halves = [seen(truncation_trials.part(fake_data(), spec | {"part": part})) for part in ("selection", "report")]
    assert sorted(halves[0] + halves[1]) == list(range(200, 211)) and abs(len(halves[0]) - len(halves[1])) == 1


def test_of_a_trained_network_selection_is_the_validation_split_and_report_the_test_split():
    spec = {"source": "trained", "images": 5}
    parts = [truncation_trials.part(fake_data(), spec | {"part": part}) for part in ("selection", "report")]
    assert [seen(split) for split in parts] == [list(range(100, 105)), list(range(200, 205))]
    assert all(split.labels.tolist() == [0, 1, 2, 3, 4] for split in parts)


def test_an_unknown_part_is_refused_in_one_sentence():
    with pytest.raises((ValueError, CompanionError), match=r"^[^\n]+'test'[^\n]+\.$"):
        truncation_trials.part(fake_data(), {"source": "trained", "images": 5, "part": "test"})


def run(study, folder, **changes):
    frame = study(folder, folder).run([CNN | PARTS | GRID | CONTROLS | FORMS | changes])
    assert frame["status"].tolist() == ["done"], frame["reason"].tolist()
    return frame.iloc[0]


LISTS = "method cut rank target draw relative_error norm_loss effective_norm_loss wrong wrong_even lost gained loss kl"


@pytest.mark.parametrize(
    ("study", "dense", "layer"),
    (
        (truncation_trials.truncations, CNN, "features.3"),
        (truncation_trials.truncations, RESNET, "layer2.0.conv1"),
        (truncation_trials.controlled, RESNET, "layer1.0.conv2"),
        (truncation_trials.forms, CNN, "features.7"),
    ),
)
def test_a_row_begins_with_the_dense_kernel_and_its_numbers_agree(folder, study, dense, layer):
    row = run(study, folder, **dense, layer=layer)
    assert len({len(row[name]) for name in LISTS.split()}) == 1 and row["n"] == 60
    assert row["method"][0] == "dense" and list(row["method"]).count("dense") == 1
    assert all(row[name][0] == 0 for name in "relative_error norm_loss effective_norm_loss kl lost gained".split())
    assert np.array_equal(np.subtract(row["lost"], row["gained"]), row["wrong"] - row["wrong"][0])
    assert all(0 <= even <= wrong for even, wrong in zip(row["wrong_even"], row["wrong"], strict=True))
    assert min(row["kl"]) >= 0 and max(row["kl"]) > 1e-3 and 0 < max(row["relative_error"])
    model, dataset = dense_networks.baseline(dense, folder)
    assert list(row["shape"]) == list(model.get_submodule(layer).weight.shape)
    plain = training.evaluate(model, Split(dataset.test.images[:60], dataset.test.labels[:60]), dataset)
    assert row["wrong"][0] == len(plain["wrong"]) and row["loss"][0] == pytest.approx(plain["loss"], rel=1e-5)
    assert row["wrong_even"][0] == sum(place % 2 == 0 for place in plain["wrong"])


def test_a_truncated_layer_makes_the_errors_of_the_network_with_the_truncated_kernel(folder):
    row = run(truncation_trials.truncations, folder, layer="features.3", part="selection", images=50)
    model, dataset = dense_networks.baseline(CNN, folder)
    some = Split(dataset.validation.images[:50], dataset.validation.labels[:50])
    before = set(training.evaluate(model, some, dataset)["wrong"])
    weight = model.get_submodule("features.3").weight
    dense = weight.detach().clone()
    for cut in ("OUT", "KW", "OUT.KH"):
        place = next(k for k, found in enumerate(row["cut"]) if found == cut)
        with torch.no_grad():
            weight.copy_(truncation.truncate(dense, cut, int(row["rank"][place])))
        after = training.evaluate(model, some, dataset)
        wrong = set(after["wrong"])
        numbers = (row["wrong"][place], row["lost"][place], row["gained"][place])
        assert numbers == (len(wrong), len(wrong - before), len(before - wrong)), cut
        assert row["loss"][place] == pytest.approx(after["loss"], rel=1e-4)


def test_the_zero_kernel_loses_all_norm_and_shrinking_loses_its_error(folder):
    row = run(truncation_trials.truncations, folder, layer="features.3")
    zero = list(row["method"]).index("zero")
    assert row["relative_error"][zero] == row["norm_loss"][zero] == row["effective_norm_loss"][zero] == 1
    row = run(truncation_trials.controlled, folder, **RESNET, layer="layer1.0.conv2")
    for k in range(len(row["method"])):
        if row["method"][k] == "shrunk":
            assert row["norm_loss"][k] == pytest.approx(row["target"][k], rel=1e-5)
            assert row["effective_norm_loss"][k] == pytest.approx(row["target"][k], rel=1e-5)


def test_trials_repeat_exactly_and_the_store_answers_the_second_time(folder, tmp_path):
    spec = CNN | PARTS | CONTROLS | {"layer": "features.3"}
    first, second = (
        truncation_trials.controlled(place, folder).run([spec]).iloc[0] for place in (tmp_path / "a", tmp_path / "b")
    )
    for name in LISTS.split():
        assert np.array_equal(first[name], second[name]), name
    study = truncation_trials.controlled(tmp_path / "a", folder)
    assert not study.missing([spec]) and np.array_equal(study.rows([spec]).iloc[0]["kl"], first["kl"])


def test_spectra_are_shares_and_entropies_are_those_of_the_kernel_and_of_random_kernels(folder):
    row = truncation_trials.spectra(folder, folder).run([CNN | {"layer": "features.3"}]).iloc[0]
    assert row["status"] == "done", row["reason"]
    model, _ = dense_networks.baseline(CNN, folder)
    kernel = sweep.kernel(model.get_submodule("features.3"))
    assert list(row["cut"]) == list(applicable_cuts(kernel.shape)) == list(CUTS)
    assert list(row["shape"]) == list(kernel.shape) and row["map"] == 8
    assert row["norm"] == pytest.approx(kernel.norm().item())
    assert row["usage"] == pytest.approx(((1 + 7 / 8 * 2) / 3) ** 2)  # three taps: 7/8, 1 and 7/8 of 8 positions
    random = torch.distributions.Normal(0.0, 1.0)
    torch.manual_seed(0)
    draws = [random.sample(kernel.shape) for _ in range(100)]
    for k, cut in enumerate(row["cut"]):
        for name in ("weights", "random"):
            values = row[f"{name}_{cut}"]
            assert sum(values) == pytest.approx(1) and sorted(values, reverse=True) == list(values)
            assert len(values) == min(unfold(kernel, cut).shape)
        assert row["entropy"][k] == pytest.approx(truncation.entanglement_entropy(kernel, cut), rel=1e-9)
        assert row["half_error"][k] == pytest.approx(
            relative_error(kernel, truncation.truncate(kernel, cut, len(values) // 2)), rel=1e-4
        )
        entropies = np.array([truncation.entanglement_entropy(one, cut) for one in draws])
        close = 6 * entropies.std() * (1 / truncation_trials.RANDOM_DRAWS + 1 / 100) ** 0.5
        assert abs(row["random_entropy"][k] - entropies.mean()) < close
        assert row["random_entropy_lowest"][k] < row["random_entropy"][k]
        assert 0.3 < row["random_entropy_sd"][k] / entropies.std() < 2
        tails = [relative_error(one, truncation.truncate(one, cut, len(values) // 2)) for one in draws[:20]]
        assert row["random_half_error"][k] == pytest.approx(np.mean(tails), rel=0.05)


def test_spectra_leave_out_the_cuts_that_do_not_apply(folder):
    row = truncation_trials.spectra(folder, folder).run([CNN | {"layer": "features.0"}]).iloc[0]
    cut = list(applicable_cuts((8, 1, 3, 3)))
    assert list(row["cut"]) == cut and "IN" not in cut and "weights_IN" not in row
    assert len(row["entropy"]) == len(row["random_half_error"]) == len(cut)


@pytest.mark.parametrize("form", ("dense", "OUT", "KH", "tucker2", "tt", "cp"))
def test_latency_is_that_of_a_layer_within_its_share_of_the_macs(form, tmp_path):
    shape, side = (12, 8, 3, 3), 6
    spec = {"shape": list(shape), "map": side, "batch": 2, "form": form, "share": 0.6}
    row = truncation_trials.latencies(tmp_path).run([spec]).iloc[0]
    assert row["status"] == "done", row["reason"]
    conv = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    whole = models.count_macs(conv, (1, 8, side, side))
    if form == "dense":
        assert (row["parameters"], row["macs"], len(row["ranks"])) == (12 * 8 * 9, whole, 0)
        return
    ranks = [int(one) for one in row["ranks"]]
    ranks = ranks[0] if factorisation.RANKS[form] == 1 else ranks
    assert row["parameters"] == factorisation.parameters(shape, form, ranks)
    assert row["macs"] == factorisation.macs(conv, (side, side), form, ranks) <= 0.6 * whole
    assert row["made_latency_ms"] > 0


def test_a_share_that_no_rank_keeps_within_gives_zeros_and_no_time(tmp_path):
    spec = {"shape": [12, 8, 3, 3], "map": 6, "batch": 2, "form": "tucker", "share": 0.01}
    row = truncation_trials.latencies(tmp_path).run([spec]).iloc[0]
    assert (row["status"], row["parameters"], row["macs"], len(row["ranks"])) == ("done", 0, 0, 0)
    assert "made_latency_ms" not in row
