"""Every kind of trial runs on a GPU: on a pretended one everywhere, with the CPU's numbers; on a real one where it is.

The pretended device (`pretend_cuda.py`) refuses tensors of the host, so a constant or an index made on the CPU shows
here and not in the first minute of a GPU.
"""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from lib import baselines, data, models, training
from lib.data import Split
from lib.latent import trials as latent_trials
from lib.spaces import trials as spaces_trials
from lib.spaces.trials import RANKINGS
from lib.spline import measures
from lib.spline import trials as spline_trials
from lib.truncation import forms, recovery
from lib.truncation import measures as truncation
from lib.truncation import trials as truncation_trials
from tests.pretend_cuda import DeviceTensor, pretended

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DENSE = {"dataset": "digits", "network": "resnet8", "source": "trained", "seed": 0, "epochs": 1, "lr": 0.02}
DENSE |= {"limit": 64, "batch_size": 32, "augment": False}
CNN = DENSE | {"network": "digits_cnn", "width": 0.25}
TUNING = {"tuning_epochs": 2, "tuning_lr": 0.1, "tuning_batch": 32, "trial": 0}
STORED = DENSE | {"train_images": 0, "test_images": 40}
HEAD = STORED | TUNING | {"tuning_images": 0, "every_epoch": True, "fraction": 0.5}
RANDOM = HEAD | {"mode": "paper", "structure": "weights", "method": "random"}
LAYER = CNN | {"part": "selection", "images": 40, "batch": 20, "layer": "features.3"}
PLAN = {"layers": ["features.3", "features.7"], "forms": ["OUT", "OUT+IN"], "ranks": [[2], [3, 3]]}
RETRAINED = CNN | PLAN | {"part": "report", "images": 40, "retrain_epochs": 1, "retrain_images": 32}
RETRAINED |= {"retrain_lr": 0.01, "retrain_batch": 16, "retrain_seed": 0}
RECIPE = DENSE | {
    "widths": [9, 20, 32, 33, 64],
    "criterion": "l1",
    "retraining": 0,
    "retraining_epochs": 1,
    "bn_images": 32,
}
RECIPE |= {"retraining_batch": 32, "train_images": 32, "validation_images": 40, "test_images": 40}
WEIGHTS = [1000, 1000, 2000, 3000, 8000, 20000]  # of the six convolutions of ResNet-8 behind the first
SPARSE = RECIPE | {"widths": WEIGHTS, "what": "weights"}
SEARCH = {"dataset": "digits", "network": "digits_cnn", "width": 0.25, "limit": 64, "test_images": 40, "epochs": 4}
SEARCH |= {"lr": 0.05, "batch_size": 32, "weight_decay": 1e-4, "side": 3, "seed": 0}
TICKET = SEARCH | {"ratio": 0.5, "draw": 2}


def studies(folder) -> dict[str, tuple]:
    """Each kind of trial: its study and its specs."""
    both, recover = (folder, folder), recovery.recoveries(folder, folder)
    heads = [RANDOM, RANDOM | {"mode": "code"}, RANDOM | {"structure": "n:m"}, RANDOM | {"structure": "inputs"}]
    heads += [HEAD | {"exponents": [1.0, -1.0]}, HEAD | {"exponents": [1.0], "target": 0.5}]
    heads += [HEAD | {"rank": 2}, HEAD | {"bits": 4}, RANDOM | {"method": "lowest", "steps_of_pruning": 2}]
    layer = DENSE | {"structure": "filters", "method": "random", "fraction": 0.5, "layer": "layer2.0.conv1", "trial": 0}
    layer |= {"steps": 2, "rate": 0.01, "tuning_batch": 32, "test_images": 40}
    network = {name: value for name, value in layer.items() if name != "layer"} | {"structure": "weights"}
    arms = ("dense", "projected", "factorised", "batch norm")
    return {
        "baseline": (baselines.baselines(folder), [DENSE, CNN, CNN | {"labels": "shuffled"}]),
        "features": (latent_trials.features(*both), [STORED, STORED | {"seen": "digits16"}]),
        "heads": (latent_trials.heads(*both), heads),
        "projections": (latent_trials.projections(*both), [RANDOM | {"groups": [10, 30], "draws": 1}]),
        "tasks": (latent_trials.tasks(*both), [STORED | {"seen": "digits16"}]),
        "layers": (latent_trials.layers(*both), [layer, network | {"scope": "network"}]),
        "spectra": (truncation_trials.spectra(*both), [CNN | {"layer": "features.3"}]),
        "truncations": (truncation_trials.truncations(*both), [LAYER | {"shares": [0.5], "joint_errors": [0.5]}]),
        "controls": (truncation_trials.controlled(*both), [LAYER | {"errors": [0.5]}]),
        "forms": (truncation_trials.formed(*both), [LAYER | {"budgets": [0.5], "starts": 1, "iterations": 5}]),
        "plans": (recovery.plans(*both), [CNN | PLAN | {"part": "report", "images": 40}]),
        "recoveries": (recover, [RETRAINED | {"arm": arm} for arm in arms]),
        "recipes": (spaces_trials.recipes(*both), [RECIPE | {"mode": mode} for mode in ("finetune", "scratch")]),
        "weights": (spaces_trials.recipes(*both), [SPARSE | {"mode": mode} for mode in ("finetune", "scratch")]),
        "priors": (spaces_trials.priors(*both), [DENSE | {"kept": 0.5, "ranking": one} for one in RANKINGS]),
        "searches": (spline_trials.study("searches", folder), [SEARCH, SEARCH | {"penalty": 1e-3}]),
        "oneshots": (
            spline_trials.study("oneshots", folder),
            [SEARCH | {"epoch": 4, "ratios": [0.5], "share_ratio": 0.5}],
        ),
        "slices": (spline_trials.study("slices", folder), [SEARCH | {"epoch": 4, "half": 0.01}]),
        "surroundings": (
            spline_trials.study("surroundings", folder),
            [SEARCH | {"at": [4], "images": 3, "radii": [0.05]}],
        ),
        "tickets": (
            spline_trials.study("tickets", folder),
            [TICKET | {"arm": "ticket", "method": "merged"}]
            + [TICKET | {"arm": arm, "method": "magnitude"} for arm in ("snip", "layerwise")],
        ),
    }


SLOW = ("tasks", "oneshots", "tickets", "recoveries", "forms", "searches")
KINDS = [pytest.param(kind, marks=[pytest.mark.nightly] if kind in SLOW else []) for kind in studies(None)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {device: tmp_path_factory.mktemp(device) for device in ("cpu", "cuda")}


def flat(rows: pd.DataFrame, specs: list[dict]) -> np.ndarray:
    """All results of rows that are numbers, one after another; which images are wrong is left to their number."""
    asked = {name for spec in specs for name in spec} | {"key", "spec", "status", "reason", "test_wrong", "last_wrong"}
    values = [
        np.ravel(value)
        for name in rows
        if name not in asked and not name.startswith("made_")
        for value in rows[name]
        if not isinstance(value, str)
    ]
    return np.concatenate([value.astype(float) for value in values if value.dtype.kind in "fiub"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_on_a_device_that_refuses_tensors_of_the_host_has_the_numbers_of_the_cpu(kind, folders, monkeypatch):
    monkeypatch.setattr(latent_trials, "TASK_CLASSES", 5)  # so that digits make two tasks
    study, specs = studies(folders["cpu"])[kind]
    expected = study.run(specs)
    with pretended(monkeypatch):
        study, _ = studies(folders["cuda"])[kind]
        found = study.run(specs, device="cuda")
    assert found["status"].tolist() == ["done"] * len(specs), found["reason"].tolist()
    assert expected["status"].tolist() == ["done"] * len(specs)
    a, b = flat(expected, specs), flat(found, specs)
    assert a.shape == b.shape or kind == "slices"  # how many regions a slice has may hang on rounding
    if kind != "slices":
        # Rounding may turn one decision over, and with it one count: nearly all numbers are equal.
        assert np.isclose(a, b, rtol=1e-2, atol=1e-2, equal_nan=True).mean() > 0.9


def test_training_waits_for_the_device_once_an_epoch_and_not_once_a_step(monkeypatch):
    counts = {}
    with pretended(monkeypatch) as waits:
        digits = data.load("digits", device="cuda", limit=96)
        one = Split(digits.validation.images[:32], digits.validation.labels[:32])
        digits = data.Data(**(vars(digits) | {"validation": one}))
        for batch in (48, 12):
            model = models.build("mlp", channels=1, size=8)
            training.fit(model, digits, epochs=1, seed=0, batch_size=batch, device="cuda")
            waits.clear()
            training.fit(model, digits, epochs=2, seed=0, batch_size=batch, device="cuda")
            counts[batch] = dict(waits)
    assert counts[48] == counts[12] and sum(counts[12].values()) < 20, counts


def test_training_in_sixteen_bits_leaves_the_weights_in_thirty_two_and_learns(monkeypatch):
    with pretended(monkeypatch):
        digits = data.load("digits", device="cuda", limit=300)
        model = models.build("digits_cnn", channels=1, size=8, width=0.25)
        history = training.fit(model, digits, epochs=3, seed=0, batch_size=50, precision="bfloat16", device="cuda")
        assert all(isinstance(p, DeviceTensor) and p.dtype == torch.float32 for p in model.parameters())
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_pretended_device_refuses_what_a_gpu_would_refuse(monkeypatch):
    with pretended(monkeypatch):
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for mistake in (lambda: there + here, lambda: there @ here, lambda: torch.cat([there, here])):
            with pytest.raises(RuntimeError, match="on one device"):
                mistake()
        with pytest.raises(TypeError, match="Use Tensor.cpu"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert there.cpu().numpy().sum() == 3 and (there + 1).device.type == "cuda" and copy.deepcopy(there).is_cuda


def test_spectra_through_the_gram_matrix_equal_the_svd():
    kernel = torch.randn(20, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    for cut in truncation.CUTS:
        svd, gram = truncation.spectrum(kernel, cut), truncation.spectrum(kernel, cut, gram=True)
        torch.testing.assert_close(gram, svd, rtol=1e-9, atol=1e-9)
        at_error = []
        for gram in (False, True):
            whole = truncation.cut_svd(kernel, cut, gram=gram)
            rank = int((whole.errors() >= 0.3).sum())
            at_error.append(truncation.graded(kernel, whole.kernel(rank), 0.3) if rank else kernel)
        torch.testing.assert_close(*at_error, rtol=1e-5, atol=1e-6)


@GPU
@pytest.mark.parametrize("form", [*truncation.CUTS, "tucker2", "tucker", "tt", "cp"])
def test_a_gpu_truncates_as_the_cpu_does(form):
    kernel = torch.randn(24, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    if form == "cp":
        streams = (torch.Generator().manual_seed(0) for _ in range(2))
        pairs = zip((kernel, kernel.cuda()), streams, strict=True)
        draws = [forms.cp(one, 4, stream, 1, iterations=50).kernel() for one, stream in pairs]
        torch.testing.assert_close(draws[1].cpu(), draws[0], rtol=1e-6, atol=1e-8)
        return
    rank = {"tucker2": (8, 6), "tucker": (8, 6, 2, 2), "tt": (8, 10, 6)}.get(form, 2)
    here, there = (truncation.approximate(one, form, rank) for one in (kernel, kernel.cuda()))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)


@GPU
def test_a_gpu_computes_what_the_cpu_does():
    dataset = {device: data.load("digits", device=device, limit=300) for device in ("cpu", "cuda")}
    model = models.build("resnet8", channels=1, size=8).eval()
    outputs = {
        device: torch.cat(list(training.logits(copy.deepcopy(model), own.test, own, device=device))).cpu()
        for device, own in dataset.items()
    }
    assert (outputs["cuda"] - outputs["cpu"]).norm() < 2e-2 * outputs["cpu"].norm()  # bfloat16
    probes = data.normalise(dataset["cpu"].test.images[:50], dataset["cpu"].mean, dataset["cpu"].std)
    codes = [
        measures.activation_codes(m, p) for m, p in ((model, probes), (copy.deepcopy(model).cuda(), probes.cuda()))
    ]
    assert measures.code_distance(*codes).max() < 1e-3
