"""The softmax head on cached features."""

import numpy as np
import pytest
import torch
from scipy import special

from lib.latent.measures import ap2, epoch_series, fisher_covariance, kl_gaussian
from lib.latent.trials import (
    evaluate_head,
    finetune_head,
    head_empirical_fisher_diagonal,
    head_hessian_diagonal,
    head_hessian_max,
    head_hessian_product,
)
from lib.masks import METHODS, magnitude_mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, generator):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def head():
    """A small trained softmax head: (features, labels, weight, bias), float64, classes overlapping."""
    generator = seeded(1)
    centres, labels = normal(3, 5, generator=generator), torch.randint(3, (300,), generator=generator)
    features = (centres[labels] + normal(300, 5, generator=generator)).relu()
    features[:, 4] = 0  # a dead feature
    start = normal(3, 5, generator=generator) * 0.1, torch.zeros(3, dtype=torch.float64)
    all_kept = torch.ones(3, 5, dtype=torch.bool)
    record = finetune_head(features, labels, *start, all_kept, epochs=5, lr=0.1, batch=32, generator=generator)
    return features, labels, *record[-1]


# Curvature of the softmax head


def explicit_hessian(features, labels, weight, bias):
    def loss(flat):
        return torch.nn.functional.cross_entropy(features @ flat.view(weight.shape).T + bias, labels)

    return torch.autograd.functional.hessian(loss, weight.flatten())


def test_hessian_product_equals_automatic_differentiation_for_any_labels(head):
    features, labels, weight, bias = head
    hessian = explicit_hessian(features, labels, weight, bias)
    assert torch.allclose(hessian, explicit_hessian(features, labels.roll(1), weight, bias))
    for seed in range(3):
        vector = normal(*weight.shape, generator=seeded(seed))
        product = head_hessian_product(features, weight, bias, vector)
        assert torch.allclose(product.flatten(), hessian @ vector.flatten(), rtol=1e-10, atol=1e-12)


def test_power_iteration_finds_the_largest_eigenvalue_of_the_explicit_hessian(head):
    features, labels, weight, bias = head
    largest = torch.linalg.eigvalsh(explicit_hessian(features, labels, weight, bias))[-1].item()
    for seed in range(3):
        found = head_hessian_max(features, weight, bias, generator=seeded(seed), tolerance=1e-6)
        assert found == pytest.approx(largest, rel=1e-6)
    single = head_hessian_max(features.float(), weight.float(), bias.float(), generator=seeded())
    assert single == pytest.approx(largest, rel=1e-4)


def test_power_iteration_that_does_not_converge_is_an_error(head):
    features, _, weight, bias = head
    with pytest.raises(RuntimeError, match="raise iterations"):
        head_hessian_max(features, weight, bias, generator=seeded(), tolerance=1e-12, iterations=2)


def test_hessian_diagonal_is_the_model_fisher_and_not_the_empirical_one(head):
    features, labels, weight, bias = head
    diagonal = head_hessian_diagonal(features, weight, bias)
    hessian = explicit_hessian(features, labels, weight, bias)
    assert torch.allclose(diagonal.flatten(), hessian.diagonal(), rtol=1e-10, atol=1e-14)
    probabilities = (features @ weight.T + bias).softmax(1)
    model_fisher, empirical = torch.zeros_like(weight), torch.zeros_like(weight)
    for x, p, label in zip(features, probabilities, labels, strict=True):
        for y in range(3):
            gradient = torch.outer(p - torch.eye(3, dtype=torch.float64)[y], x)
            model_fisher += p[y] * gradient**2 / len(features)
            empirical += (y == label) * gradient**2 / len(features)
    assert torch.allclose(diagonal, model_fisher, rtol=1e-10, atol=1e-14)
    measured = head_empirical_fisher_diagonal(features, labels, weight, bias)
    assert torch.allclose(measured, empirical, rtol=1e-10, atol=1e-14)
    alive = diagonal > 0
    assert ((measured - diagonal)[alive] / diagonal[alive]).abs().max() > 0.1


def test_curvature_projection_is_the_optimal_brain_damage_saliency_up_to_the_damping(head):
    features, _, weight, bias = head
    diagonal = head_hessian_diagonal(features, weight, bias)
    assert (diagonal[:, 4] == 0).all()  # the dead feature, which the damping makes finite
    pruned = weight * magnitude_mask(weight, 0.5, "lowest")
    saliency = 0.5 * (diagonal * (weight - pruned) ** 2).sum().item()
    for damping in (1e-9, 1e-3):
        covariance = fisher_covariance(diagonal, damping)
        kl = kl_gaussian(weight.flatten(), covariance, pruned.flatten(), covariance)
        damped = 0.5 * damping * diagonal.mean().item() * ap2(weight, pruned)
        assert kl == pytest.approx(saliency + damped, rel=1e-9)


def test_curvature_projection_separates_masks_of_equal_ap2(head):
    features, _, weight, bias = head
    covariance = fisher_covariance(head_hessian_diagonal(features, weight, bias))
    delta = torch.zeros_like(weight)
    delta[0, 0] = 0.1
    dead = torch.zeros_like(weight)
    dead[0, 4] = 0.1
    alive_kl, dead_kl = (
        kl_gaussian(weight.flatten(), covariance, (weight - d).flatten(), covariance) for d in (delta, dead)
    )
    assert ap2(delta, 0 * delta) == ap2(dead, 0 * dead) and alive_kl > 100 * dead_kl


# Fine-tuning


def torch_finetune(features, labels, weight, bias, mask, *, epochs, lr, batch, generator, weight_decay):
    """The same protocol with torch's layer, loss, optimiser and schedule; gradients masked as in the released code."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data, layer.bias.data = weight * mask, bias.clone()
    parameters = [{"params": [layer.weight], "weight_decay": weight_decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for indices in order.split(batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(features[indices]), labels[indices]).backward()
            layer.weight.grad[~mask] = 0
            optimizer.step()
        schedule.step()
    return layer.weight.detach(), layer.bias.detach()


@pytest.mark.parametrize("weight_decay", (0.0, 1e-2))
def test_fine_tuning_equals_torch_sgd_with_cosine_schedule(head, weight_decay):
    features, labels, weight, bias = head
    mask = magnitude_mask(weight, 0.3, "random", seeded())
    options = dict(epochs=6, lr=0.05, batch=64, weight_decay=weight_decay)  # 300 examples: the last batch is smaller
    record = finetune_head(features, labels, weight, bias, mask, generator=seeded(3), **options)
    reference = torch_finetune(features, labels, weight, bias, mask, generator=seeded(3), **options)
    for ours, theirs in zip(record[-1], reference, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_fine_tuning_keeps_the_mask_and_its_inputs_and_records_clones(head):
    features, labels, weight, bias = head
    inputs = [tensor.clone() for tensor in head]
    for method in METHODS:
        mask = magnitude_mask(weight, 0.5, method, seeded())
        record = finetune_head(features, labels, weight, bias, mask, epochs=4, lr=0.1, batch=32, generator=seeded(1))
        assert len(record) == 5
        assert torch.equal(record[0][0], weight * mask) and torch.equal(record[0][1], bias)
        for snapshot, _ in record:
            assert (snapshot[~mask] == 0).all()
        assert len({snapshot.data_ptr() for pair in record for snapshot in pair}) == 10
        series = epoch_series(weight, [snapshot for snapshot, _ in record], ap2)
        assert len(set(series.tolist())) == 5
        assert (series >= series[0]).all()  # the floor: fine-tuning can only add to the removed squares
    assert all(torch.equal(a, b) for a, b in zip(inputs, head, strict=True))


def test_fine_tuning_with_a_vanishing_rate_changes_nothing_and_repeats_with_the_seed(head):
    features, labels, weight, bias = head
    mask = magnitude_mask(weight, 0.5, "lowest")
    still = finetune_head(features, labels, weight, bias, mask, epochs=2, lr=1e-300, batch=50, generator=seeded())
    assert all(torch.equal(still[0][0], snapshot) for snapshot, _ in still)
    runs = [
        finetune_head(features, labels, weight, bias, mask, epochs=2, lr=0.1, batch=50, generator=seeded(s))[-1][0]
        for s in (4, 4, 5)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_fine_tuning_lowers_the_loss_and_the_performance_difference_stays_in_percent(head):
    features, labels, weight, bias = head
    dense_accuracy, dense_loss = evaluate_head(features, labels, weight, bias)
    mask = magnitude_mask(weight, 0.5, "highest")
    record = finetune_head(features, labels, weight, bias, mask, epochs=10, lr=0.05, batch=32, generator=seeded())
    scores = [evaluate_head(features, labels, *snapshot) for snapshot in record]
    assert scores[-1][1] < scores[0][1]
    assert all(0 <= abs(dense_accuracy - accuracy) <= 100 for accuracy, _ in scores)
    log_probabilities = special.log_softmax((features @ weight.T + bias).numpy(), axis=1)
    assert dense_loss == pytest.approx(-log_probabilities[np.arange(300), labels.numpy()].mean())
    assert dense_accuracy == pytest.approx(100 * (log_probabilities.argmax(1) == labels.numpy()).mean())


def test_diverged_fine_tuning_names_the_remedy(head):
    features, labels, weight, bias = head
    with pytest.raises(RuntimeError, match="lower lr"):
        finetune_head(
            features * 1e200, labels, weight, bias, weight.bool(), epochs=2, lr=1e200, batch=32, generator=seeded()
        )


@pytest.mark.parametrize(
    "call",
    (
        lambda x, y, w, b: evaluate_head(x, y[1:], w, b),
        lambda x, y, w, b: evaluate_head(x, y + 1, w, b),
        lambda x, y, w, b: head_hessian_product(x, w, b, w[0]),
        lambda x, y, w, b: head_hessian_diagonal(x[:, 1:], w, b),
        lambda x, y, w, b: finetune_head(x, y, w, b, w, epochs=1, lr=0.1, batch=1, generator=seeded()),
        lambda x, y, w, b: finetune_head(x, y, w, b, w.bool(), epochs=1, lr=0, batch=1, generator=seeded()),
    ),
)
def test_bad_arguments_are_refused_in_one_sentence(head, call):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        call(*head)
