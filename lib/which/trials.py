"""The trials of damage: one layer of a dense network changed, measured, and evaluated before and after repair.

A spec holds that of a dense network (`baselines.baseline_specs`), `layer`, `kind`, `strength` and `trial`, the seed of
what is random. The strength is the share of the layer's weights that the change saves; of the kinds whose strength is
set by hand it is the relative error (noise, shrinking) or what goes of 8 bits (quantisation).
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import baselines, channels, data, masks, models, spaces, spline, training, truncation
from lib.data import Data
from lib.latent import head
from lib.latent.trials import head_inputs, hidden_layers
from lib.parameters import CHANGES, DATASETS
from lib.provenance import unknown
from lib.spaces import samplers
from lib.spaces import trials as pruning
from lib.spline import measures as nodes
from lib.study import Study, generator
from lib.truncation import forms
from lib.truncation import measures as kernels
from lib.truncation.sweep import kernel
from lib.truncation.trials import dense_specs, layer_moment, spectra_by_cut
from lib.which import measures
from lib.which.measures import Dense

STUDY = "05_which_one"
MASKED = ("magnitude", "random", "drawn", "filters")
FORMS = (*kernels.CUTS, "cp", "tucker2", "tt")
NODES = ("dropped", "merged")
BITS = 8  # of which quantisation at strength s keeps the share 1 - s, at least 2
CP_ITERATIONS = 60
BN_BATCH, HEAD_BATCH, HEAD_EPOCHS, HEAD_LR = 64, 64, 5, 0.01  # of both repairs
RANDOM_DRAWS = 10  # random layers beside a layer's entropy and redundancy
STAGES = ("once", "bn", "tuned")  # at once, after BatchNorm is re-estimated, after the head is fine-tuned, too


def family(network: str, dataset: str) -> str:
    """The networks of one design, author and data set, which differ in depth alone."""
    return f"{re.sub('[0-9]+', '', network, count=1).removesuffix('-pretrained')}/{dataset}"


def networks(names: Iterable[str], known: Sequence[dict], precision: str) -> list[dict]:
    """Specs of dense networks by name (`truncation.trials.dense_specs`).

    One trained here is trained in `precision`. The name "network-pretrained/dataset" stands for ImageNet weights, whose
    head alone is taught.
    """
    found = []
    for name in names:
        network, _, dataset = name.partition("/")
        if network.endswith("-pretrained"):
            found.append({"source": "public", "network": network, "dataset": dataset})
        else:
            found += dense_specs(name, known)
    return [spec | ({"precision": precision} if spec["source"] == "trained" else {}) for spec in found]


def damage_specs(
    dense: Iterable[dict], layers: int, kinds: Sequence[str], strengths: Sequence[float], **options
) -> list[dict]:
    """A spec for each network, layer, kind of change and strength that the layer allows.

    Of each network it takes a number of `layers`, evenly spaced before the head.

    Raises:
        CompanionError: for an unknown kind.
    """
    found = []
    for kind in kinds:
        if kind not in CHANGES:
            raise unknown("kind of change", kind, CHANGES)
    for spec in dense:
        model, size = baselines.untrained(spec), DATASETS[spec["dataset"]]["size"]
        readers = {own.reader for own in nodes.layers(model, size)} if set(kinds) & set(NODES) else set()
        for layer in hidden_layers(model, layers):
            for kind in kinds:
                seen = set()
                for strength in strengths:
                    rank = _what_is_left(model.get_submodule(layer), kind, strength, layer in readers)
                    if rank is not None and rank not in seen:
                        seen.add(rank)
                        found.append(spec | {"layer": layer, "kind": kind, "strength": strength, "trial": 0} | options)
    return found


def _what_is_left(layer: nn.Module, kind: str, strength: float, reads: bool) -> float | int | tuple | None:
    """A kind's rank, bits or strength in a layer, by which two strengths are told apart; none if there is none."""
    shape = kernel(layer).shape
    if kind in NODES:
        return strength if reads else None
    if kind == "quantised":
        return max(2, round(BITS * (1 - strength)))
    form = "OUT" if kind == "outputs" else kind
    if form not in FORMS:
        return strength
    grouped = isinstance(layer, nn.Linear) or layer.groups > 1
    if (kind == "outputs" and grouped) or (form in kernels.CUTS and form not in kernels.applicable_cuts(shape)):
        return None
    within = (1 - strength) * math.prod(shape)
    least = forms.ranks_at(shape, form, 0)
    return forms.ranks_within(shape, form, within) if forms.parameters(shape, form, least) <= within else None


def damages(folder: Path, dense_folder: Path) -> Study:
    """The study of single layers changed; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.damages", partial(change_layer, dense_folder=dense_folder), version=1, folder=folder)


def ladders(folder: Path, dense_folder: Path) -> Study:
    """The study of a ladder of pruning recipes with their AP2."""
    return Study(f"{STUDY}.ladders", partial(climb, dense_folder=dense_folder), version=1, folder=folder)


def layers(folder: Path, dense_folder: Path) -> Study:
    """The study of entropy and redundancy of each layer whose nodes can go."""
    return Study(f"{STUDY}.layers", partial(look_at_layer, dense_folder=dense_folder), version=1, folder=folder)


def change_layer(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `damages`.

    A spec also holds numbers of images: `few` that measures read, `bn_images` and `head_images` of both repairs,
    `test_images`; and `learnt_images` for a network whose head is learnt here. With `held_out`, measures read test
    images in place of training images.

    Returns:
        `family`, `shape` of the kernel; `measures.change_of_layer`; `size`, the share of the network's parameters that
        the change saves; `depth`, the layer's place among all layers, from 0 to 1; and for each of STAGES the rise of
        the loss on test images (nats), `gap_<stage>`, and the fall of accuracy (points), `drop_<stage>`, against the
        dense network after the same repair. `gap_odd` and `gap_even` are `gap_once` on either half of the test images.
    """
    dense = loaded(spec, dense_folder, device)
    layer = dense.model.get_submodule(spec["layer"])
    names = ("network", "dataset", "layer", "kind", "strength")
    stream = generator(spec["trial"], *(spec[name] for name in names))
    changed, saved = changed_kernel(dense, spec, stream)
    names = list(hidden_layers(dense.model, 10**6))
    row = {"family": family(spec["network"], spec["dataset"]), "shape": list(kernel(layer).shape)}
    row |= measures.change_of_layer(dense, spec["layer"], changed)
    row["size"] = saved * layer.weight.numel() / models.count_parameters(dense.model)
    row["depth"] = names.index(spec["layer"]) / max(len(names) - 1, 1)
    other = measures.with_kernel(dense.model, spec["layer"], changed)
    before, after = _reference_scores(_key(spec), dense_folder, device), repaired(other, dense.dataset, spec, device)
    for stage in STAGES:
        row[f"gap_{stage}"] = after[stage]["loss"] - before[stage]["loss"]
        row[f"drop_{stage}"] = 100 * (before[stage]["accuracy"] - after[stage]["accuracy"])
    row |= {f"gap_{half}": after["once"][half] - before["once"][half] for half in ("odd", "even")}
    return row | {"dense_accuracy": 100 * before["once"]["accuracy"], "dense_loss": before["once"]["loss"]}


def changed_kernel(dense: Dense, spec: dict, stream: torch.Generator) -> tuple[Tensor, float]:
    """The kernel (OUT, IN, KH, KW) of a spec's layer after its change, and the saved share of the layer's weights."""
    layer, kind, strength = dense.model.get_submodule(spec["layer"]), spec["kind"], spec["strength"]
    whole = kernel(layer)
    if kind == "drawn":  # the lower the magnitude, the more likely it goes
        flat = whole.flatten(1)
        mask = masks.drawn_mask(flat, torch.ones_like(flat[0]), strength, (-1.0, 0.0), stream).view_as(whole)
    elif kind == "filters":
        mask = masks.filter_mask(whole, strength)
    elif kind in MASKED:
        mask = masks.magnitude_mask(whole, strength, {"magnitude": "lowest"}.get(kind, kind), stream)
    if kind in MASKED:
        return whole * mask, 1 - mask.double().mean().item()
    if kind in ("noise", "shrunk"):
        return (kernels.perturbed(whole, strength, stream) if kind == "noise" else kernels.shrunk(whole, strength)), 0.0
    if kind == "quantised":
        bits = _what_is_left(layer, kind, strength, False)
        form = head.quantised(whole.flatten(1), bits)
        return form.weight(form.parts).view_as(whole), 1 - bits / 32
    if kind in NODES:
        return without_nodes(dense, spec["layer"], kind, strength)
    form = "OUT" if kind == "outputs" else kind
    ranks = forms.ranks_within(whole.shape, form, (1 - strength) * whole.numel())
    saved = 1 - forms.parameters(whole.shape, form, ranks) / whole.numel()
    if kind == "outputs":
        moment = layer_moment(dense.model, spec["layer"], dense.dataset)
        return truncation.truncate_outputs(whole, ranks, moment), saved
    options = {"generator": stream, "starts": 1, "iterations": CP_ITERATIONS} if form == "cp" else {}
    return truncation.approximate(whole, form, ranks, **options), saved


def without_nodes(dense: Dense, layer: str, kind: str, share: float) -> tuple[Tensor, float]:
    """The kernel of a layer that no longer reads a share of the nodes before it, the most redundant ones.

    "merged" folds each into its twin. What is saved, over the layer's weights, also counts the filters of these nodes.
    """
    module = dense.model.get_submodule(layer)
    own = next(one for one in dense.node_layers if one.reader == layer)
    dropped = nodes.choose([own], share, "merged" if kind == "merged" else "signed")
    weight, norms = module.weight.detach().reshape(len(module.weight), len(own), -1).clone(), own.weights.norm(dim=1)
    for _, gone, twin in dropped:
        if kind == "merged" and twin >= 0:
            weight = nodes.merge(weight, twin, gone, norms.to(weight.device))
        weight[:, gone] = 0
    filters = dense.model.get_submodule(own.name).weight.numel()
    saved = len(dropped) / len(own) * (1 + filters / module.weight.numel())
    return weight.reshape(kernel(module).shape), saved


def repaired(model: nn.Module, dataset: Data, spec: dict, device: str) -> dict[str, dict[str, float]]:
    """Accuracy and loss on test images, and loss on either half, at each of STAGES; repairs the network in place."""
    test, train = dataset.test.first(spec["test_images"]), dataset.train.first(spec["head_images"])
    last = model.get_submodule(models.head_name(model))

    def scored(inputs: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
        logits = F.linear(inputs, weight, bias)
        accuracy = (logits.argmax(1) == test.labels).double().mean().item()
        losses = F.cross_entropy(logits, test.labels, reduction="none")
        found = {"loss": losses.mean().item(), "odd": losses[::2].mean().item(), "even": losses[1::2].mean().item()}
        return found | {"accuracy": accuracy}

    own = last.weight.detach().clone(), last.bias.detach().clone()
    found = {"once": scored(head_inputs(model, test, dataset, device), *own)}
    reestimate(model, dataset, spec["bn_images"])
    inputs = head_inputs(model, test, dataset, device)
    found["bn"] = scored(inputs, *own)
    start = head.masked(own[0], torch.ones_like(own[0], dtype=torch.bool))
    options = {"epochs": HEAD_EPOCHS, "lr": HEAD_LR, "batch": HEAD_BATCH, "stream": generator(0, "head")}
    seen = head_inputs(model, train, dataset, device)
    found["tuned"] = scored(inputs, *head.finetune_head(seen, train.labels, start, own[1], **options)[-1])
    return found


def reestimate(model: nn.Module, dataset: Data, images: int) -> None:
    """`training.reestimate` on the first training images."""
    batches = data.batches(dataset.train.first(images), BN_BATCH)
    training.reestimate(model, (data.normalise(batch, dataset.mean, dataset.std) for batch, _ in batches))


def climb(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `ladders`: recipes of one regime that climb in mCB, pruned, with BatchNorm re-estimated.

    The spec holds a dense network, `kept` (share of the MACs), `rungs`, `few`, `bn_images`, `test_images`.

    Returns:
        Lists over the recipes: `mcb`, `tilt`, `kept_parameters`; `relative_ap2` of all weights together, over their
        squared norm; `loss` (nats) and `accuracy` (%) on test images. Also those of the `dense` network.
    """
    dense = loaded(spec, dense_folder, device)
    groups, dataset = pruning.prunable(baselines.dense_spec(spec)), dense.dataset
    widths = samplers.ladder(groups, spaces.Regime(spec["kept"]), spec["rungs"])
    found = spaces.coordinates(groups, widths)[["mcb", "tilt", "kept_parameters"]].to_dict("list")
    test, whole = dataset.test.first(spec["test_images"]), squared_norm(dense.model)
    scores, moved = [training.evaluate(dense.model, test, dataset, device=device)], []
    for row in widths:
        pruned = channels.prune(dense.model, dict(zip(groups.names, row, strict=True)), size=dataset.size)
        moved.append(1 - squared_norm(pruned) / whole)  # kept weights are unchanged
        reestimate(pruned, dataset, spec["bn_images"])
        scores.append(training.evaluate(pruned, test, dataset, device=device))
    row = found | {"relative_ap2": moved, "loss": [one["loss"] for one in scores[1:]]}
    row |= {"accuracy": [100 * one["accuracy"] for one in scores[1:]]}
    row |= {"family": family(spec["network"], spec["dataset"])}
    return row | {"dense_loss": scores[0]["loss"], "dense_accuracy": 100 * scores[0]["accuracy"]}


def squared_norm(model: nn.Module) -> float:
    """Of all weights of convolutions and linear layers."""
    kinds = nn.Conv2d | nn.Linear
    return sum(one.weight.detach().double().square().sum().item() for one in model.modules() if isinstance(one, kinds))


def look_at_layer(spec: dict, device: str, weights: Path, *, dense_folder: Path) -> dict:
    """The trial of `layers`: all layers of a network whose nodes can go.

    Returns:
        Lists over the layers: `layer`, `nodes`, `fan_in`; the `entropy` (nats) of its kernel across the OUT cut and the
        mean of Gaussian kernels of its shape, `random_entropy`; `redundancy`, the median over nodes of the distance
        (signed redundancy) to the nearest twin, and the mean of that median in layers of Gaussian rows of the same
        lengths and the same offsets, `random_redundancy`. Small is redundant.
    """
    dense, found = loaded(spec, dense_folder, device), []
    for own in dense.node_layers:
        stream = generator(spec.get("seed", 0), "random layers", own.name)
        whole = kernel(dense.model.get_submodule(own.name))
        by_cut = spectra_by_cut(whole, stream, RANDOM_DRAWS)
        place = by_cut["cut"].index("OUT")
        random = []
        for _ in range(RANDOM_DRAWS):
            drawn = torch.randn(own.weights.shape, generator=stream, dtype=torch.float64)
            lengths = own.weights.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
            random.append(nearest_twin(drawn * lengths, own.biases))
        found.append(
            {
                "layer": own.name,
                "nodes": len(own),
                "fan_in": own.weights.shape[1],
                "entropy": by_cut["entropy"][place],
                "random_entropy": by_cut["random_entropy"][place],
                "redundancy": nearest_twin(own.weights, own.biases),
                "random_redundancy": sum(random) / len(random),
            }
        )
    table = {name: [one[name] for one in found] for name in found[0]}
    return table | {"family": family(spec["network"], spec["dataset"])}


def has_nodes(spec: dict) -> bool:
    """Whether a dense network has layers whose nodes can go (`spline.measures.layers`)."""
    return bool(nodes.layers(baselines.untrained(spec), DATASETS[spec["dataset"]]["size"]))


def nearest_twin(weights: Tensor, biases: Tensor) -> float:
    """Median over nodes of the signed redundancy to the nearest other node; nodes without a hyperplane do not count."""
    scores = spline.redundancy(weights, biases)
    scores.fill_diagonal_(torch.inf)
    nearest = scores.min(1).values
    return nearest[nearest.isfinite()].median().item()


def loaded(spec: dict, dense_folder: Path, device: str) -> Dense:
    """The dense network of a spec with its `few` images; one process loads it once."""
    return _loaded(_key(spec), dense_folder, device)


def _key(spec: dict) -> str:
    """The dense network of a spec and the numbers of images that its measures and scores depend on."""
    counts = ("few", "bn_images", "head_images", "test_images", "learnt_images", "held_out")
    return json.dumps(baselines.dense_spec(spec) | {n: spec[n] for n in counts if n in spec}, sort_keys=True)


@lru_cache(maxsize=2)
def _loaded(text: str, dense_folder: Path, device: str) -> Dense:
    spec = json.loads(text)
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    if spec["source"] == "public" and spec["network"].endswith("-pretrained"):
        measures.learnt_head(model, dataset, spec["learnt_images"], device)
    return measures.reference(model, dataset, spec["few"], held_out=spec.get("held_out", False))


@lru_cache(maxsize=2)
def _reference_scores(text: str, dense_folder: Path, device: str) -> dict:
    dense, spec = _loaded(text, dense_folder, device), json.loads(text)
    return repaired(deepcopy(dense.model), dense.dataset, spec, device)
