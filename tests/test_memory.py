"""What a training needs is known before it starts; what does not fit is done in halves."""

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from lib import memory, models, throughput


def measured_mb(name: str, batch: int) -> float:
    """Peak memory of one step of SGD on the CPU, by torch's own tracker of every allocation."""
    model = models.build(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    images, labels = torch.zeros(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.long)
    step = throughput.Backward(model)
    step(images, labels)
    optimizer.step()
    tracker = MemTracker()
    tracker.track_external(model, optimizer, images)
    with tracker:
        step(images, labels)
        optimizer.step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] / 2**20


@pytest.mark.parametrize(("name", "batch"), [("mlp", 8), ("resnet20", 8), ("vgg16", 2), ("vanilla_cnn", 16)])
def test_the_estimate_is_near_the_measured_peak(name, batch):
    model = models.build(name)
    estimate = memory.training_mb(model, (batch, 3, 32, 32))
    assert estimate == pytest.approx(measured_mb(name, batch), rel=0.35)


def test_the_estimate_of_a_linear_classifier_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
    batch = 7
    kept = [4 * batch * 12, 4 * batch * 5, 8 * batch]  # inputs, log-probabilities, labels
    kept.append(4)  # the weight that the mean of the losses is divided by
    expected = 12 * 60 + sum(kept) + 2 * max(kept)
    assert memory.training_mb(model, (batch, 3, 2, 2)) * 2**20 == pytest.approx(expected, abs=8)


def test_activations_grow_with_the_batch_and_halve_in_sixteen_bits():
    with torch.device("meta"):
        model = models.build("resnet20")
    # The statistics of BatchNorm, which do not grow with the batch, make a difference of a few KiB.
    one, two, four = (memory.training_mb(model, (n, 3, 32, 32)) for n in (64, 128, 256))
    assert four - two == pytest.approx(2 * (two - one), rel=1e-6)
    fixed = 2 * one - two
    half = memory.training_mb(model, (256, 3, 32, 32), half=True)
    weights = models.count_parameters(model) * 2 / 2**20
    assert half == pytest.approx(fixed + weights + (four - fixed) / 2, rel=1e-4)


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_changes_nothing():
    sizes = []

    def forward(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("no memory")
        return 2 * images

    inputs = torch.arange(10.0)
    assert torch.equal(memory.halving(forward, inputs), 2 * inputs)
    assert sizes == [10, 5, 3, 2, 5, 3, 2]


def test_a_single_image_that_does_not_fit_is_an_error():
    def forward(images):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        memory.halving(forward, torch.zeros(4, 1))
