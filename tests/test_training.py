"""Training is reproducible from its seed, and stops when it diverges; BatchNorm statistics are means over batches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import data, models, stats, training
from lib.provenance import CompanionError
from lib.study import generator

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=300)


def fitted(digits, **options):
    model = models.build("mlp", channels=1, size=8)
    history = training.fit(model, digits, **({"epochs": 2, "seed": 0, "batch_size": 50} | options))
    return model, history


def test_the_same_seed_gives_equal_weights_and_another_one_others(digits):
    (one, first), (two, second), (other, _) = (fitted(digits, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_training_leaves_the_global_random_state_alone(digits):
    before = torch.get_rng_state()
    fitted(digits)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_follows_from_the_seed_too(digits):
    def train() -> torch.Tensor:
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        nn.init.zeros_(model[2].weight), nn.init.zeros_(model[2].bias)
        training.fit(model, digits, epochs=1, seed=3)
        return model[2].weight

    assert torch.equal(train(), train())


def test_one_step_equals_sgd_with_nesterov_momentum_written_out():
    digits = data.load("digits", limit=64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in model[1].parameters())
    options = {"lr": 0.3, "weight_decay": 0.01, "schedule": "constant", "augment": False}
    training.fit(model, digits, epochs=1, seed=0, batch_size=64, **options)
    inputs = data.normalise(digits.train.images, digits.mean, digits.std).flatten(1)
    nn.functional.cross_entropy(inputs @ weight.T + bias, digits.train.labels).backward()
    for trained, parameter in zip(model[1].parameters(), (weight, bias), strict=True):
        gradient = parameter.grad + 0.01 * parameter
        expected = parameter - 0.3 * (gradient + 0.9 * gradient)
        torch.testing.assert_close(trained, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("constant", {0: 1.0, 99: 1.0}),
        ("step", {0: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01}),
        ("cosine", {0: 1.0, 50: 0.5, 100: 0.0}),
        ("one-cycle", {0: 0.04, 29: 1.0, 99: 4e-6}),
    ],
)
def test_schedules_have_their_known_rates(name, at):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule, rates = training.scheduler(name, optimizer, 100), []
    for step in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if name != "one-cycle" or step < 99:
            schedule.step()
    assert {step: rates[step] for step in at} == pytest.approx(at, abs=1e-5)


def test_an_unknown_schedule_is_one_sentence(digits):
    with pytest.raises(CompanionError, match="known are cosine"):
        fitted(digits, schedule="linear")


def has_instructions(monkeypatch, **instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "bf16", "avx2": True} | instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_is_bfloat16_where_the_processor_has_its_instructions(monkeypatch):
    for instructions, precision in (({"avx512_bf16": True}, "bfloat16"), ({"avx512_bf16": False}, "float32")):
        has_instructions(monkeypatch, **instructions)
        assert training.resolve_precision("auto") == precision
        assert [training.resolve_precision(name) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_a_precision_that_is_unknown_or_not_there_is_one_sentence(digits, monkeypatch):
    for precision in ("float16", "auto"):  # what "auto" means is decided before a spec is made
        with pytest.raises(CompanionError, match=r"^Unknown precision .*known are float32, bfloat16\.[^\n]*$"):
            fitted(digits, precision=precision)
    with pytest.raises(CompanionError, match="known are auto, float32, bfloat16"):
        training.resolve_precision("half")
    has_instructions(monkeypatch)
    with pytest.raises(
        CompanionError, match=r"^cpu has no bfloat16 instructions: set precision to float32, or to auto\.$"
    ):
        fitted(digits, precision="bfloat16")


@pytest.mark.skipif(not training.has_bfloat16("cpu"), reason="needs a processor with bfloat16 instructions")
def test_five_trainings_in_bfloat16_are_as_accurate_as_five_in_float32():
    """Half of the digits validate, so that an image is an eighth of a point."""
    gaps = []
    for seed in range(5):
        half, ends = data.load("digits", validation=0.5, seed=seed), {}
        for precision in ("bfloat16", "float32"):
            model = models.build("digits_cnn", channels=1, size=8, width=0.5, seed=seed)
            options = {"epochs": 10, "batch_size": 64, "schedule": "one-cycle", "augment": False}
            ends[precision] = training.fit(model, half, seed=seed, precision=precision, **options)[-1]
            assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert ends["bfloat16"] != ends["float32"] and ends["float32"]["validation_accuracy"] > 0.95
        gaps.append(100 * (ends["bfloat16"]["validation_accuracy"] - ends["float32"]["validation_accuracy"]))
    low, high = stats.mean_interval(gaps)
    assert -1 < low < high < 1


def test_images_are_channels_last_from_the_first_layer_to_the_last():
    seen = []
    model = models.build("digits_cnn", width=0.25).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, output: seen.extend(
                    tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (inputs[0], output)
                )
            )
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    model(data.normalise(images, (0.5,) * 3, (0.25,) * 3))
    assert len(seen) == 16 and all(seen)


def test_a_diverged_training_names_its_epoch(digits):
    with pytest.raises(training.Diverged, match=r"in epoch \d; lower lr"):
        fitted(digits, lr=1e6)


def test_evaluation_counts_the_wrong_images(digits):
    class Constant(nn.Module):
        def forward(self, images):
            return torch.eye(10)[torch.full((len(images),), 3)]

    measured = training.evaluate(Constant(), digits.test, digits)
    wrong = (digits.test.labels != 3).nonzero().flatten().tolist()
    assert measured["wrong"] == wrong and measured["n"] == 300
    assert measured["accuracy"] == 1 - len(wrong) / 300
    one = torch.tensor(1.0)
    expected = torch.where(digits.test.labels == 3, -one, one - one).mean() + torch.log(one.exp() + 9)
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_outputs_do_not_depend_on_the_size_of_a_batch(digits):
    model, _ = fitted(digits, epochs=1)
    whole, parts = (torch.cat(list(training.logits(model, digits.test, digits, size))) for size in (300, 70))
    torch.testing.assert_close(whole, parts)


def test_the_statistics_of_a_public_checkpoint_are_its_own(digits):
    model, _ = fitted(digits)
    one, other = (training.evaluate(model, digits.test, d) for d in (digits, replace(digits, mean=(0.0,), std=(1.0,))))
    assert one["loss"] != other["loss"]


def batch(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 8, 8, generator=random), torch.randint(10, (n,), generator=random)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_a_step_leaves_the_gradient_of_the_mean_loss():
    model, (inputs, labels) = models.build("mlp", channels=1, size=8), batch()
    loss = training.Backward(model)(inputs, labels)
    expected = nn.functional.cross_entropy(model(inputs), labels)
    found = torch.autograd.grad(expected, list(model.parameters()))
    assert torch.equal(loss, expected.detach()) and not loss.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(model), strict=True))


def test_a_placed_model_keeps_its_tensors_when_it_is_placed_again():
    model = training.placed(models.build("resnet8"), "cpu")
    before = [parameter.data_ptr() for parameter in model.parameters()]
    assert training.placed(model, "cpu") is model
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


@GPU
def test_a_recorded_step_leaves_the_gradients_and_statistics_of_one_that_is_not_recorded():
    inputs, labels = (tensor.cuda() for tensor in batch(16))
    pair = [training.placed(models.build("resnet8", channels=1, size=8), "cuda").train() for _ in range(2)]
    steps = [training.Backward(model, "cuda") for model in pair]
    steps[0].records = False
    for size in (16, 16, 7, 16):  # an odd batch in between is not replayed
        losses = [step(inputs[:size], labels[:size]) for step in steps]
        torch.testing.assert_close(*losses, rtol=2e-2, atol=2e-2)
        for a, b in zip(*(gradients(model) for model in pair), strict=True):
            assert (a - b).norm() <= 0.05 * a.norm() + 1e-4
    for a, b in zip(*(model.buffers() for model in pair), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, ()), (nn.BatchNorm2d, (4, 4)), (nn.BatchNorm3d, (2, 4, 4))]
)
def test_reestimated_statistics_are_means_over_batches(kind, shape):
    model = nn.Sequential(kind(2))
    images = torch.randn(6, 2, *shape, generator=generator(0))
    training.reestimate(model, images.split(2))
    over = [0, *range(2, images.dim())]
    expected = torch.stack([part.var(over) for part in images.split(2)]).mean(0)
    assert torch.allclose(model[0].running_var, expected) and model[0].momentum == 0.1 and not model.training
    assert torch.allclose(model[0].running_mean, images.mean(over), atol=1e-6)


def test_reestimating_draws_no_random_numbers():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    state = torch.get_rng_state()
    training.reestimate(model, [torch.ones(4, 1, 8, 8)])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        ([torch.ones(4, 2, 3, 3), torch.ones(4, 5, 3, 3)], RuntimeError, None),  # the second has too many channels
    ],
)
def test_a_failed_reestimation_changes_nothing(batches, error, message):
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3)).train()
    model(torch.randn(5, 2, 3, 3, generator=generator(0)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        training.reestimate(model, (images for images in batches))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.3 and not model.training and not model[0].training


def test_latency_is_measured_in_milliseconds():
    assert 0 < training.latency_ms(models.build("mlp", channels=1, size=8), (1, 1, 8, 8)) < 1e3
