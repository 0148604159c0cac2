"""The recipe against the clock learns, follows from its seed, and has the published rates."""

from dataclasses import replace

import pytest
import torch

from lib import speed_net, speed_run
from lib.data import DATASETS, STATISTICS, Data, Split


@pytest.fixture(scope="module")
def striped() -> Data:
    """Two classes of 32-pixel images: horizontal and vertical stripes in noise."""
    random = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        labels = torch.arange(n) % 2
        wave = 60 * torch.sin(torch.arange(32) / 2.0)
        images = torch.where(labels.view(-1, 1, 1, 1) == 0, wave.view(1, 1, 32, 1), wave.view(1, 1, 1, 32))
        pixels = 128 + images + 40 * torch.randn(n, 3, 32, 32, generator=random)
        return Split(pixels.clamp(0, 255).to(torch.uint8), labels)

    entry = DATASETS["cifar10"] | {"classes": 2}
    mean, std = STATISTICS["cifar10"]
    return Data("striped", split(128), split(2), split(64), mean=mean, std=std, **entry)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """An eighth of the width, and small batches: what is tested does not depend on them."""
    monkeypatch.setattr(speed_net, "WIDTHS", (8, 16, 16))
    monkeypatch.setattr(speed_run, "BATCH", 32)


def test_it_learns_and_follows_from_its_seed(striped):
    one, two = (speed_run.train(striped, 8, seed=0) for _ in range(2))
    outputs = speed_run.mirrored_and_shifted(one, striped)
    assert outputs.shape == (64, 2) and (outputs.argmax(1) == striped.test.labels).double().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_copies_of_an_image_count_once_in_all_and_mirroring_changes_nothing(striped):
    def means(images: torch.Tensor) -> torch.Tensor:
        left, right = images[..., 1:16].mean((1, 2, 3)), images[..., 16:31].mean((1, 2, 3))
        return torch.stack([left + right, left - right], 1)

    grey = replace(striped, test=Split(torch.full((3, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(3).long()))
    value = ((200 / 255 - torch.tensor(grey.mean)) / torch.tensor(grey.std)).mean().item()
    torch.testing.assert_close(
        speed_run.mirrored_and_shifted(means, grey), torch.tensor([[2 * value, 0.0]] * 3), atol=1e-5, rtol=1e-5
    )
    assert speed_run.mirrored_and_shifted(means, striped)[:, 1].abs().max() < 0.05  # left and right change places


def test_the_rate_rises_and_falls():
    assert [round(speed_run._triangle(place), 6) for place in (0, 0.23, 1)] == [0.2, 1.0, 0.07]


def test_rates_of_a_mean_loss_equal_the_published_ones_of_a_sum():
    model = torch.nn.Module()
    model.bn, model.fc = torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2, bias=False)
    biases, others = speed_run._optimizer(model, 1024, fused=False).param_groups
    rate = 11.5 / (1024 * (1 + 1 / 0.15))  # of one image's loss
    assert others["lr"] == pytest.approx(1024 * rate) and biases["lr"] == pytest.approx(64 * 1024 * rate)
    for group in (biases, others):  # decay of a step does not depend on the group
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.0153 / (1 + 1 / 0.15))


def test_slow_weights_take_the_place_of_fast_ones():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(4.0)
    slow = [torch.zeros(1, 1)]
    speed_run._average(model, slow, 0.75)
    assert slow[0].item() == 1.0 and model.weight.item() == 1.0


def test_a_run_is_a_trial(tmp_path, striped, monkeypatch):
    monkeypatch.setattr(speed_run.data, "load", lambda *_, **__: striped)
    rows = speed_run.runs(tmp_path).run([{"dataset": "cifar10", "seed": 0, "epochs": 1}])
    assert rows["status"].tolist() == ["done"] and rows["test_n"][0] == 64 and rows["made_run_seconds"][0] > 0
