"""Training is reproducible from its seed, and says when it diverges."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import data, models, provenance, training
from lib.provenance import CompanionError


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
    options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "schedule": "constant", "augment": False}
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


def test_evaluation_counts_the_wrong_images(digits):
    class Constant(nn.Module):
        def forward(self, images):
            return torch.eye(10)[torch.full((len(images),), 3)]

    measured = training.evaluate(Constant(), digits.test, digits, batch_size=70)
    wrong = (digits.test.labels != 3).nonzero().flatten().tolist()
    assert measured["wrong"] == wrong and measured["n"] == 300
    assert measured["accuracy"] == 1 - len(wrong) / 300
    one = torch.tensor(1.0)
    expected = torch.where(digits.test.labels == 3, -one, one - one).mean() + torch.log(one.exp() + 9)
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_statistics_of_a_public_checkpoint_are_its_own(digits):
    changed = replace(digits, mean=(0.0,), std=(1.0,))
    model, _ = fitted(digits)
    assert (
        training.evaluate(model, digits.test, changed)["loss"] != training.evaluate(model, digits.test, digits)["loss"]
    )


def test_a_batch_that_does_not_fit_is_trained_on_in_parts_and_the_row_says_so(digits, monkeypatch):
    whole, expected = fitted(digits, epochs=1)

    class Scarce(type(whole)):
        def forward(self, images):
            if self.training and len(images) > 30:
                raise torch.OutOfMemoryError("no memory")
            return super().forward(images)

    model = models.build("mlp", channels=1, size=8)
    model.__class__ = Scarce
    with provenance.made() as row:
        history = training.fit(model, digits, epochs=1, seed=0, batch_size=50)
    assert row["made_micro_batches"] == 2 and "made_strategy" not in row
    assert history[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=1e-5)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_evaluation_halves_a_batch_that_does_not_fit(digits, monkeypatch):
    model, _ = fitted(digits)
    expected = training.evaluate(model, digits.test, digits)
    forward = model.forward

    def scarce(images):
        if len(images) > 40:
            raise torch.OutOfMemoryError("no memory")
        return forward(images)

    monkeypatch.setattr(model, "forward", scarce)
    found = training.evaluate(model, digits.test, digits)
    assert found["wrong"] == expected["wrong"] and found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
