"""Heads of paper 1 alone: curvature, compression, fine-tuning, on a small softmax head."""

import numpy as np
import pytest
import torch
from scipy import special

from lib import latent
from lib.latent import head as heads
from lib.masks import METHODS, magnitude_mask
from lib.study import generator


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, generator):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def tuned(features, labels, weight, bias, mask, epochs, lr, batch, trial=0):
    options = {"epochs": epochs, "lr": lr, "batch": batch, "stream": generator(trial, "order")}
    return heads.finetune_head(features, labels, heads.masked(weight, mask), bias, **options)


@pytest.fixture(scope="module")
def head():
    """A small trained softmax head: (features, labels, weight, bias), float64, classes overlapping."""
    generator = seeded(1)
    centres, labels = normal(3, 5, generator=generator), torch.randint(3, (300,), generator=generator)
    features = (centres[labels] + normal(300, 5, generator=generator)).relu()
    features[:, 4] = 0  # a dead feature
    start = normal(3, 5, generator=generator) * 0.1, torch.zeros(3, dtype=torch.float64)
    all_kept = torch.ones(3, 5, dtype=torch.bool)
    record = tuned(features, labels, *start, all_kept, 5, 0.1, 32)
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
    probabilities = (features @ weight.T + bias).softmax(1)
    for seed in range(3):
        vector = normal(*weight.shape, generator=seeded(seed))
        product = heads.head_hessian_product(features, probabilities, vector)
        assert torch.allclose(product.flatten(), hessian @ vector.flatten(), rtol=1e-10, atol=1e-12)


def test_power_iteration_finds_the_largest_eigenvalue_of_the_explicit_hessian(head):
    features, labels, weight, bias = head
    largest = torch.linalg.eigvalsh(explicit_hessian(features, labels, weight, bias))[-1].item()
    assert heads.head_hessian_max(features, weight, bias, tolerance=1e-6) == pytest.approx(largest, rel=1e-6)
    single = heads.head_hessian_max(features.float(), weight.float(), bias.float(), tolerance=1e-4)
    assert single == pytest.approx(largest, rel=1e-4)


def test_power_iteration_that_does_not_converge_is_an_error(head):
    features, _, weight, bias = head
    with pytest.raises(RuntimeError, match="raise iterations"):
        heads.head_hessian_max(features, weight, bias, tolerance=1e-12, iterations=2)


def test_hessian_diagonal_is_the_model_fisher_and_not_the_empirical_one(head):
    features, labels, weight, bias = head
    diagonal = heads.head_hessian_diagonal(features, weight, bias)
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
    measured = heads.head_empirical_fisher_diagonal(features, labels, weight, bias)
    assert torch.allclose(measured, empirical, rtol=1e-10, atol=1e-14)
    alive = diagonal > 0
    assert ((measured - diagonal)[alive] / diagonal[alive]).abs().max() > 0.1


def test_curvature_projection_is_the_optimal_brain_damage_saliency_up_to_the_damping(head):
    features, _, weight, bias = head
    diagonal = heads.head_hessian_diagonal(features, weight, bias)
    assert (diagonal[:, 4] == 0).all()  # the dead feature, which the damping makes finite
    pruned = weight * magnitude_mask(weight, 0.5, "lowest")
    saliency = 0.5 * (diagonal * (weight - pruned) ** 2).sum().item()
    for damping in (1e-9, 1e-3):
        covariance = latent.fisher_covariance(diagonal, damping)
        kl = latent.kl_gaussian(weight.flatten(), covariance, pruned.flatten(), covariance)
        damped = 0.5 * damping * diagonal.mean().item() * latent.ap2(weight, pruned)
        assert kl == pytest.approx(saliency + damped, rel=1e-9)


def test_curvature_projection_separates_masks_of_equal_ap2(head):
    features, _, weight, bias = head
    covariance = latent.fisher_covariance(heads.head_hessian_diagonal(features, weight, bias))
    delta = torch.zeros_like(weight)
    delta[0, 0] = 0.1
    dead = torch.zeros_like(weight)
    dead[0, 4] = 0.1
    alive_kl, dead_kl = (
        latent.kl_gaussian(weight.flatten(), covariance, (weight - d).flatten(), covariance) for d in (delta, dead)
    )
    assert latent.ap2(delta, 0 * delta) == latent.ap2(dead, 0 * dead) and alive_kl > 100 * dead_kl


# Fine-tuning


def torch_finetune(features, labels, weight, bias, mask, epochs, lr, batch, trial):
    """The same protocol with torch's layer, loss, optimiser and schedule; gradients masked as in the released code."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data, layer.bias.data = weight * mask, bias.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    stream = generator(trial, "order")
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=stream)
        for indices in order.split(batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(features[indices]), labels[indices]).backward()
            layer.weight.grad[~mask] = 0
            optimizer.step()
        schedule.step()
    return layer.weight.detach(), layer.bias.detach()


def test_fine_tuning_equals_torch_sgd_with_cosine_schedule(head):
    features, labels, weight, bias = head
    mask = magnitude_mask(weight, 0.3, "random", seeded())
    options = 6, 0.05, 64, 3  # 300 examples: the last batch is smaller
    record = tuned(features, labels, weight, bias, mask, *options)
    reference = torch_finetune(features, labels, weight, bias, mask, *options)
    for ours, theirs in zip(record[-1], reference, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_fine_tuning_keeps_the_mask_and_its_inputs_and_records_clones(head):
    features, labels, weight, bias = head
    inputs = [tensor.clone() for tensor in head]
    for method in METHODS:
        mask = magnitude_mask(weight, 0.5, method, seeded())
        record = tuned(features, labels, weight, bias, mask, 4, 0.1, 32)
        assert len(record) == 5
        assert torch.equal(record[0][0], weight * mask) and torch.equal(record[0][1], bias)
        for snapshot, _ in record:
            assert (snapshot[~mask] == 0).all()
        assert len({snapshot.data_ptr() for pair in record for snapshot in pair}) == 10
        series = [latent.ap2(weight, snapshot) for snapshot, _ in record]
        assert len(set(series)) == 5
        assert min(series) == series[0]  # the floor: fine-tuning can only add to the removed squares
    assert all(torch.equal(a, b) for a, b in zip(inputs, head, strict=True))


def test_fine_tuning_with_a_vanishing_rate_changes_nothing_and_repeats_with_the_seed(head):
    features, labels, weight, bias = head
    mask = magnitude_mask(weight, 0.5, "lowest")
    still = tuned(features, labels, weight, bias, mask, 2, 1e-300, 50)
    assert all(torch.equal(still[0][0], snapshot) for snapshot, _ in still)
    runs = [tuned(features, labels, weight, bias, mask, 2, 0.1, 50, trial)[-1][0] for trial in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_fine_tuning_lowers_the_loss_and_the_performance_difference_stays_in_percent(head):
    features, labels, weight, bias = head
    dense_accuracy, dense_loss = heads.evaluate_head(features, labels, weight, bias)
    mask = magnitude_mask(weight, 0.5, "highest")
    record = tuned(features, labels, weight, bias, mask, 10, 0.05, 32)
    scores = [heads.evaluate_head(features, labels, *snapshot) for snapshot in record]
    assert scores[-1][1] < scores[0][1]
    assert all(0 <= abs(dense_accuracy - accuracy) <= 100 for accuracy, _ in scores)
    log_probabilities = special.log_softmax((features @ weight.T + bias).numpy(), axis=1)
    assert dense_loss == pytest.approx(-log_probabilities[np.arange(300), labels.numpy()].mean())
    assert dense_accuracy == pytest.approx(100 * (log_probabilities.argmax(1) == labels.numpy()).mean())


def test_diverged_fine_tuning_names_the_remedy(head):
    features, labels, weight, bias = head
    with pytest.raises(RuntimeError, match="lower lr"):
        tuned(features * 1e200, labels, weight, bias, weight.bool(), 2, 1e200, 32)


# Compressed heads


def test_factors_begin_at_the_best_approximation_and_are_trained_as_torch_trains_them(head):
    features, labels, weight, bias = head
    form = heads.factored(weight, 2)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(form.weight(form.parts), left[:, :2] @ values[:2].diag() @ right[:2])
    assert latent.ap2(weight, form.weight(form.parts)) == pytest.approx(values[2:].square().sum().item())
    factors = [part.clone().requires_grad_() for part in (*form.parts, bias)]
    optimizer = torch.optim.SGD(factors, lr=0.05, momentum=0.9)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * epoch / 2)) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(features @ (factors[0] @ factors[1]).T + factors[2], labels).backward()
        optimizer.step()
    options = {"epochs": 2, "lr": 0.05, "batch": 300, "stream": seeded()}
    found = heads.finetune_head(features, labels, form, bias, **options)[-1]
    assert torch.allclose(found[0], (factors[0] @ factors[1]).detach()) and torch.allclose(
        found[1], factors[2].detach()
    )
    assert torch.linalg.matrix_rank(found[0]) == 2
    full = heads.factored(weight, 3)
    assert torch.allclose(full.weight(full.parts), weight)


@pytest.mark.parametrize("bits", (2, 4, 8))
def test_quantised_weights_are_the_nearest_levels_and_stay_on_them(head, bits):
    features, labels, weight, bias = head
    form, largest = heads.quantised(weight, bits), 2 ** (bits - 1) - 1
    start = form.weight(form.parts)
    for row, original in zip(start, weight, strict=True):
        levels = torch.arange(-largest, largest + 1) * original.abs().max() / largest
        nearest = levels[(original[:, None] - levels).abs().argmin(1)]
        assert torch.allclose(row, nearest)
    options = {"epochs": 3, "lr": 0.5, "batch": 64, "stream": seeded()}
    record = heads.finetune_head(features, labels, form, bias, **options)
    assert torch.equal(record[0][0], start) and torch.equal(form.parts[0], weight)
    assert not torch.equal(record[-1][0], start)
    scaled = record[-1][0] * largest / weight.abs().amax(1, keepdim=True)
    assert torch.allclose(scaled, scaled.round(), atol=1e-9) and scaled.abs().max() <= largest * (1 + 1e-9)
    error = [latent.ap2(weight, heads.quantised(weight, b).weight([weight])) for b in (2, 4, 8)]
    assert error[0] > error[1] > error[2]


def test_a_head_that_was_not_trained_is_learnt_until_its_gradient_is_small(head):
    features, labels, weight, bias = (part.float() if part.is_floating_point() else part for part in head)
    learnt = heads.learn_head(features, labels, 3, 0.1)
    assert torch.equal(learnt[0], heads.learn_head(features, labels, 3, 0.1)[0])
    loss = heads.evaluate_head(features, labels, *learnt)[1]
    assert loss < heads.evaluate_head(features, labels, weight, bias)[1] < np.log(3)
    errors = heads.head_probabilities(features, *learnt) - torch.nn.functional.one_hot(labels, 3)
    assert (errors.T @ features / 300).norm() < 0.03


SPEC = {"tuning_epochs": 4, "tuning_lr": 0.05, "tuning_batch": 64, "tuning_images": 0, "trial": 0}
SPEC |= {"method": "lowest", "fraction": 0.6, "structure": "weights", "mode": "paper"}


def test_pruning_in_one_step_is_pruning_in_one_shot(head):
    features, labels, weight, bias = head
    record, found = heads.tune(features, labels, weight, bias, SPEC | {"steps_of_pruning": 1})
    mask = magnitude_mask(weight, 0.6, "lowest")
    shot = tuned(features, labels, weight, bias, mask, 4, 0.05, 64)
    assert found == {"removed": 9} and len(record) == 5
    assert all(torch.equal(a, b) for one, two in zip(record, shot, strict=True) for a, b in zip(one, two, strict=True))


def test_pruning_in_steps_removes_one_share_of_the_weights_left_at_each_step(head):
    features, labels, weight, bias = head
    record, found = heads.tune(features, labels, weight, bias, SPEC | {"steps_of_pruning": 2})
    zeros = [(snapshot == 0).sum().item() for snapshot, _ in record]
    first = round((1 - 0.4**0.5) * 15)
    assert zeros == [first] * 3 + [9] * 2 and found == {"removed": 9}
    half = heads.tune(features, labels, weight, bias, SPEC | {"tuning_epochs": 2, "fraction": first / 15})[0]
    assert all(torch.equal(one, two) for (one, _), (two, _) in zip(record, half, strict=False))
    lost = (record[-1][0] == 0) & (half[-1][0] != 0)
    kept = record[-1][0] != 0
    assert half[-1][0][lost].abs().max() <= half[-1][0][kept].abs().min()  # the smallest after tuning, not before


@pytest.mark.parametrize(
    ("change", "sentence"),
    (
        ({"steps_of_pruning": 3}, "3 steps of pruning need .* a multiple of epochs"),
        ({"steps_of_pruning": 2, "method": "highest"}, 'need method "lowest"'),
        ({"rank": 4}, "rank must be from 1 to 3, not 4"),
        ({"bits": 1}, "bits must be from 2 to 16, not 1"),
        ({"exponents": [0.0], "target": 0.999}, "out of reach"),
        ({"exponents": [0.0, 1.0], "target": 0.3}, "must hold delta alone, since gamma is found, not"),
        ({"exponents": [0.0]}, "must hold gamma and delta, not"),
    ),
)
def test_a_change_that_cannot_be_made_is_refused_in_a_sentence(head, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        heads.tune(*head, SPEC | change)


def test_fine_tuning_on_few_images_sees_no_others(head):
    features, labels, weight, bias = head
    few = heads.tune(features, labels, weight, bias, SPEC | {"tuning_images": 50})[0]
    assert torch.equal(few[-1][0], heads.tune(features[:50], labels[:50], weight, bias, SPEC)[0][-1][0])


def test_kronecker_factors_are_means_over_images_and_exact_for_one_image(head):
    features, labels, weight, bias = head
    outputs, inputs = heads.head_kronecker_factors(features, weight, bias)
    p = heads.head_probabilities(features, weight, bias)
    explicit = torch.stack([one.diag() - torch.outer(one, one) for one in p]).mean(0)
    assert torch.allclose(outputs, explicit) and torch.allclose(inputs, features.T @ features / 300)
    one = features[:1], labels[:1], weight, bias
    outputs, inputs = heads.head_kronecker_factors(one[0], weight, bias)
    assert torch.allclose(torch.kron(outputs, inputs), explicit_hessian(*one), atol=1e-12)
