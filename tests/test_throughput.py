"""Strategies give the gradients of the plain step; the fastest is measured once and remembered."""

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib import models, provenance
from lib import training as throughput
from lib.provenance import CompanionError
from tests.bench import throughput as bench

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def batch(n: int = 12, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, size, size, generator=random), torch.randint(10, (n,), generator=random)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def small() -> nn.Module:
    return models.build("mlp", channels=1, size=8)


def test_the_plain_step_leaves_the_gradient_of_the_mean_loss():
    model, (inputs, labels) = small(), batch()
    loss = throughput.Backward(model)(inputs, labels)
    expected = nn.functional.cross_entropy(model(inputs), labels)
    found = torch.autograd.grad(expected, list(model.parameters()))
    assert torch.equal(loss, expected.detach()) and not loss.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(model), strict=True))


def test_micro_batches_add_up_to_the_gradient_of_the_batch_and_go_on_so(monkeypatch):
    model, (inputs, labels) = small(), batch(10)
    whole = throughput.Backward(model)
    loss = whole(inputs, labels)
    expected = gradients(model)
    forward, sizes = model.forward, []

    def scarce(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("no memory")
        return forward(images)

    monkeypatch.setattr(model, "forward", scarce)
    step = throughput.Backward(model)
    split = step(inputs, labels)
    step(inputs, labels)
    assert step.parts == 4
    assert sizes == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1]  # the second batch begins where the first one ended
    torch.testing.assert_close(split, loss)
    for a, b in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_one_image_that_does_not_fit_stops():
    def scarce(images):
        raise torch.OutOfMemoryError("no memory")

    model = small()
    model.forward = scarce
    with pytest.raises(torch.OutOfMemoryError):
        throughput.Backward(model)(*batch(4))


def test_an_unknown_strategy_is_one_sentence():
    with pytest.raises(CompanionError, match="did you mean graph"):
        throughput.Backward(small(), "graf")


def test_the_cpu_is_plain_without_measuring(monkeypatch):
    monkeypatch.setattr(throughput, "milliseconds", None)
    assert throughput.chosen(small(), *batch(), steps=10**9, device="cpu") == "plain"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU by name alone, on which each strategy takes a time that is told."""
    told = {"eager": (4.0, 1.0), "graph": (1.0, 1.0), "compile": (0.5, 60.0)}
    asked = []

    def milliseconds(model, inputs, labels, strategy, device):
        asked.append(strategy)
        return told[strategy]

    monkeypatch.setattr(throughput, "milliseconds", milliseconds)
    monkeypatch.setattr(provenance, "device_name", lambda device: "GPU")
    monkeypatch.setattr(provenance, "root", lambda: tmp_path)
    return told, asked, tmp_path / ".build" / "throughput.json"


def test_the_fastest_strategy_is_measured_once_and_stored(machine):
    told, asked, file = machine
    found = [throughput.chosen(small(), *batch(), steps=100, device="cuda") for _ in range(2)]
    assert found == ["graph", "graph"] and asked == ["eager", "graph"]
    (stored,) = json.loads(file.read_text()).values()
    assert stored == {"eager": 4.0, "graph": 1.0}
    throughput.chosen(small(), *batch(6), steps=100, device="cuda")  # another batch is another measurement
    assert len(json.loads(file.read_text())) == 2


def test_compiling_is_measured_only_for_long_trainings_and_chosen_only_if_it_saves_more_than_it_takes(machine):
    told, asked, _ = machine
    choose = lambda steps: throughput.chosen(small(), *batch(), steps=steps, device="cuda")  # noqa: E731
    assert choose(100_000) == "graph" and "compile" not in asked  # 100 s
    assert choose(121_000) == "compile"  # saves 60.5 s, takes 60 s
    assert choose(119_000) == "graph"
    assert asked.count("compile") == 1


def test_a_strategy_that_fails_counts_as_endless_and_says_so(capsys, monkeypatch):
    class Failing(nn.Module):
        def forward(self, images):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    ms, _ = throughput.milliseconds(Failing(), *batch(), "plain")
    assert math.isinf(ms)
    assert capsys.readouterr().err == (
        "Strategy plain fails for Failing: operation not permitted when stream is capturing\n"
    )


def test_measuring_leaves_the_model_alone():
    model = models.build("resnet8", channels=1, size=8)
    before = deepcopy(model.state_dict())
    ms, _ = throughput.milliseconds(model, *batch(), "plain")
    assert 0 < ms < 1e4
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_placed_model_keeps_its_tensors_when_it_is_placed_again():
    model = throughput.placed(models.build("resnet8"), "cpu")
    before = [parameter.data_ptr() for parameter in model.parameters()]
    assert throughput.placed(model, "cpu") is model
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


@pytest.mark.parametrize(("name", "rate"), [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12)])
def test_peaks_are_those_of_the_data_sheets(monkeypatch, name, rate):
    monkeypatch.setattr(provenance, "device_name", lambda device: name)
    assert throughput.peak_rate("cuda") == rate


def test_what_the_benchmark_measures_on_a_gpu_is_measured_here_on_a_small_scale(monkeypatch):
    for name, value in {
        "READERS": 0,
        "ProcessPoolExecutor": lambda processes, _: ThreadPoolExecutor(processes),
        "get_context": lambda _: SimpleNamespace(Manager=lambda: nullcontext(threading)),
        "BATCH": {"resnet20": 8}, "IMAGES": {"resnet20": 16}, "SIDE_BY_SIDE": (1,), "WARM": 1, "RUNS": 2, "EPOCHS": 1
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.speed_run, "speed_run", lambda *_: {"test_accuracy": 0.9, "made_run_seconds": 2.0})
    lines = list(bench.measured("cpu", strategies=("plain",)))
    assert [line.unit for line in lines] == ["images/s"] * 3 + [
        "%",
        "x",
        "images/s",
        "x",
        "%",
        "s (training and evaluation)",
    ]
    assert all(line.value > 0 for line in lines if line.unit in ("images/s", "x"))
    assert lines[-2].value == pytest.approx(90) and lines[-1].value == 2


@GPU
@pytest.mark.parametrize("strategy", ["graph", "compile"])
def test_a_recorded_step_leaves_the_gradients_and_statistics_of_the_eager_one(strategy):
    inputs, labels = (tensor.cuda() for tensor in batch(16, 8))
    models_ = [throughput.placed(models.build("resnet8", channels=1, size=8), "cuda") for _ in range(2)]
    steps = [throughput.Backward(m.train(), s, "cuda") for m, s in zip(models_, ("eager", strategy), strict=True)]
    for size in (16, 16, 7, 16):  # an odd batch in between is not replayed
        losses = [step(inputs[:size], labels[:size]) for step in steps]
        torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)
        for a, b in zip(*(gradients(model) for model in models_), strict=True):
            assert (a - b).norm() <= 0.05 * a.norm() + 1e-4
    for a, b in zip(*(model.buffers() for model in models_), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
