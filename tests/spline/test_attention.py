"""A transformer that is walked by hand is the network itself; with its smooth parts held it is a spline."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from lib.provenance import CompanionError
from lib.spline import attention, measures
from lib.store import plain

SPEC = {
    "dataset": "digits", "limit": 64, "test_images": 50, "seed": 1000, "epochs": 12, "lr": 1e-3, "batch_size": 32,
    "weight_decay": 0.05, "precision": "float32", "side": 3, "activation": "relu", "depth": 2, "token_width": 16,
}  # fmt: skip


def made(activation: str, **options) -> tuple[nn.Module, torch.Tensor]:
    plan = {"depth": 2, "width": 16, "seed": 3} | options
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return attention.network(10, 1, 8, activation, **plan).double().eval(), images


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_walk_computes_the_network(activation):
    model, images = made(activation)
    assert torch.allclose(attention.walk(model, images)[0], model(images), rtol=0, atol=1e-12)


def test_the_walk_follows_torchvisions_own_network():
    from lib import models

    model, images = models.build("vit_tiny", channels=1, size=8).double().eval(), made("gelu")[1]
    model.heads.head.reset_parameters()
    assert torch.allclose(attention.walk(model, images)[0], model(images), rtol=0, atol=1e-12)


def test_holding_what_an_image_has_changes_nothing_for_this_image():
    model, images = made("gelu")
    logits, state = attention.walk(model, images[:1])
    for hold in attention.HELD:
        assert torch.allclose(attention.walk(model, images[:1], state, hold)[0], logits, rtol=0, atol=1e-12)
        assert (attention.walk(model, images[1:2], state, hold)[0] - model(images[1:2])).abs().max() > 1e-3 or not hold


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_with_all_three_parts_held_the_network_is_affine(activation):
    model, images = made(activation)
    state, (a, b, *_) = attention.walk(model, images[:1])[1], images.split(1)
    f = [attention.walk(model, x, state, ("attention", "norms", "gates"))[0] for x in (a, b, 0.3 * a + 0.7 * b)]
    assert torch.allclose(f[2], 0.3 * f[0] + 0.7 * f[1], rtol=0, atol=1e-12)


def test_the_border_of_a_region_is_where_the_first_sign_changes():
    model, images = made("relu")
    image, way = images[:1], images[1:2] - images[:1]
    state = attention.walk(model, image)[1]
    end = attention.reach(model, image, way, state)
    codes = [attention.walk(model, image + t * end * way, state, attention.SMOOTH)[1].code() for t in (0, 0.999, 1.001)]
    assert torch.equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).sum() == 1


def test_inside_its_region_a_relu_network_is_affine_if_attention_and_norms_are_held():
    images = made("relu")[1]
    found = {name: attention.bends(made(name)[0], images[:2], images[2:]) for name in ("relu", "gelu")}
    assert found["relu"]["inside"] < 1e-12 < 1e-7 < found["relu"]["inside_free"]
    assert found["gelu"]["inside"] > 1e-7
    assert found["relu"]["border"] < -6 < found["gelu"]["border"]
    free, code, smooth, *_ = np.reshape(found["relu"]["log_bend"], (len(attention.HELD), -1))
    assert (np.diff(free) > 0).all() and (np.diff(smooth) > 0).all()
    assert (np.maximum(code, smooth) < free + 1).all()


def test_measuring_bends_leaves_the_network_as_it_was():
    model, images = made("relu")
    model.float().train()
    before = deepcopy(model.state_dict())
    attention.bends(model, images[:1], images[1:2])
    assert model.training and next(model.parameters()).dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_codes_are_the_signs_before_the_activations():
    model, images = made("relu")
    found, seen = attention.codes(model, images), []
    hooks = [block.mlp[0].register_forward_hook(lambda *a: seen.append(a[2] > 0)) for block in model.encoder.layers]
    model(images)
    assert len(hooks) == len(seen) == len(found.names) == 2
    for words, units, bits in zip(found.words, found.units, seen, strict=True):
        unpacked = np.unpackbits(words.view(np.uint8), axis=1)[:, :units]
        assert (unpacked == bits.flatten(1).numpy()).all()
    other = attention.codes(made("relu", seed=4)[0], images)
    assert (measures.code_distance(found, found) == 0).all() and (measures.code_distance(found, other) > 0.1).all()


def test_other_activations_are_refused():
    with pytest.raises(CompanionError, match="activation 'tanh'.*relu"):
        attention.network(10, 1, 8, "tanh", depth=1, width=8)


def test_a_trial_learns_and_keeps_distances_of_every_epoch():
    rows = [attention.trial(SPEC | extra, "cpu", None) for extra in ({}, {"labels": "shuffled"})]
    json.dumps({name: plain(value) for name, value in rows[0].items()}, allow_nan=False)
    for row in rows:
        assert row["loss"][-1] < row["loss"][0]
        for probes in ("canvas", "images"):
            matrix = np.reshape(row[f"distance_{probes}"], (12, 12))
            assert (matrix == matrix.T).all() and (np.diag(matrix) == 0).all() and 0 < matrix.max() < 1
    assert rows[0]["log_bend_untrained"] == rows[1]["log_bend_untrained"]
    assert rows[0]["log_bend"] != rows[1]["log_bend"]
