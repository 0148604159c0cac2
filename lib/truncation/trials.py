"""The trials of paper 2 on single layers: spectra, truncations, controls, forms at equal parameters, latency.

A spec holds that of a dense network (`baselines.baseline_specs`) and its treatment. A row of a layer holds lists
with an entry for each kernel that took the layer's place; the first is the dense one. `analysis.points` makes a table
of them.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib import baselines, models, training
from lib.data import Data, Split, batches, normalise
from lib.parameters import PUBLIC
from lib.study import Study, generator
from lib.truncation import forms, measures, sweep
from lib.truncation.measures import applicable_cuts, cut_svd, graded, spectrum, truncate, weights

STUDY = "02_tensor_truncation"
RANDOM_DRAWS = 20  # random kernels of each kind behind a null spectrum
GRAM = 2**18  # weights of a kernel whose spectra go through Gram matrices: an SVD would take seconds
HOPELESS = 5, 0.2  # points, share of the cost of zeroing; after the first images, worse kernels are left alone
READ = 0.5  # the relative error at which P2.5c is read
MOMENT_IMAGES = 200  # training images behind the patches' second moment
SINGLE = ("OUT", "IN", "OUT.IN", "OUT.KH", "OUT.KW")  # cuts with enough ranks for the controls
TRAINS = [order for order in itertools.permutations(measures.MODES) if order < order[::-1]]  # each with its reverse
EQUAL = ", equal shares"  # of the largest ranks; behind the name of a form
Entry = tuple[dict, Tensor]  # labels (`method` and what else identifies the entry) and a kernel of the layer's shape


def dense_specs(name: str, known: Sequence[dict], seeds: int = 1) -> list[dict]:
    """Specs of a dense network: one of a checkpoint ("network/dataset"), `seeds` of one that is trained here.

    `known` are the baselines of the profile. A name that is in none of its lists stands for a network that is trained
    once with its settings.
    """
    network, slash, dataset = name.partition("/")
    if slash and name not in PUBLIC and not any((s["network"], s["dataset"]) == (network, dataset) for s in known):
        return [baselines.trained_like(network, dataset, known)]
    times = 1 if baselines.find_baseline(name, known)["source"] == "public" else seeds
    return [baselines.find_baseline(name, known, seed) for seed in range(times)]


def layer_specs(dense: Iterable[dict], step: int = 1, **options) -> list[dict]:
    """A spec for every `step`-th layer before the head of each dense network, with the options of a trial.

    A network of at most two steps takes all its layers: two would say little.
    """
    found = []
    for spec in dense:
        layers = sweep.layer_names(baselines.untrained(spec))
        found += [spec | {"layer": one} | options for one in layers[:: step if len(layers) > 2 * step else 1]]
    return found


def report_specs(dense: Iterable[dict], chosen: pd.DataFrame, **options) -> list[dict]:
    """A spec for each layer of each dense network that truncates it to its ranks in `analysis.lowest_ranks` alone.

    Cuts are in the order of their names: that of equal ranks would depend on the processor that sorts.
    """
    chosen = chosen.sort_values("cut", kind="stable")
    return [
        spec | {"layer": layer, "cuts": one["cut"].tolist(), "ranks": one["rank"].tolist()} | options
        for spec in dense
        for layer, one in of_network(chosen, spec).groupby("layer")
    ]


def of_network(rows: pd.DataFrame, spec: dict) -> pd.DataFrame:
    """The rows of `analysis.finished` that belong to one dense network."""
    same = (rows["network"] == spec["network"]) & (rows["dataset"] == spec["dataset"])
    return rows[same & (rows["seed"] == spec.get("seed", 0))]


def part(dataset: Data, spec: dict) -> Split:
    """The images that a spec's `part` names, at most `images` of them.

    "selection" and "report" are the validation and the test images. The authors of a public checkpoint trained on all
    training images, so there each part is every other test image, and no network has been trained on either.
    """
    if spec["part"] not in ("selection", "report"):
        raise ValueError(f"A part is selection or report, not {spec['part']!r}: choose one.")
    selection = spec["part"] == "selection"
    if spec["source"] == "public":
        chosen = slice(0 if selection else 1, None, 2)
        split = Split(dataset.test.images[chosen], dataset.test.labels[chosen])
    else:
        split = dataset.validation if selection else dataset.test
    return Split(split.images[: spec["images"]], split.labels[: spec["images"]])


def rank_grid(largest: int, shares: Iterable[float]) -> list[int]:
    """Ranks 1 and at the shares of the largest one, ascending, without the largest, which truncates nothing."""
    ranks = {1} | {max(1, round(share * largest)) for share in shares}
    return sorted(rank for rank in ranks if rank < largest)


def truncated_kernels(kernel: Tensor, spec: dict, **_) -> Iterable[Entry]:
    """Every applicable cut at every rank of a grid, pairs of single-mode cuts at equal errors, and the zero kernel.

    The spec holds `shares` of the number of singular values, to which rank 1 is added, and `joint_errors`. To read
    chosen truncations on other images beside the zero kernel, it holds `cuts` and `ranks` instead, of one length.
    """
    yield {"method": "zero"}, torch.zeros_like(kernel)
    if "ranks" in spec:
        for cut, rank in zip(spec["cuts"], spec["ranks"], strict=True):
            yield {"method": "cut", "cut": cut, "rank": rank}, truncate(kernel, cut, rank)
        return
    found = {cut: cut_svd(kernel, cut, gram=kernel.is_cuda) for cut in applicable_cuts(kernel.shape)}
    for cut, svd in found.items():
        for rank in rank_grid(len(svd.values), spec["shares"]):
            yield {"method": "cut", "cut": cut, "rank": rank}, svd.kernel(rank).to(kernel)
    for pair in measures.JOINT2:
        for error in spec["joint_errors"] if set(pair) <= found.keys() else ():
            ranks = {cut: found[cut].rank_at(error) for cut in pair}
            labels = {"method": "joint2", "cut": "+".join(pair), "target": error}
            yield labels, measures.truncate_jointly(kernel, ranks)


def control_kernels(kernel: Tensor, spec: dict, *, model: nn.Module, dataset: Data) -> Iterable[Entry]:
    """Graded truncations and every control at the relative errors `errors` of a spec, and outputs kept at equal rank.

    Noise, shrinking and pruning know no cut. "noise, outputs" has the `output_error` of the truncation beside it, at
    the error READ. If the spec asks for `subspaces`, a random one has the rank of the truncation beside it and is
    graded to the same error; the smallest singular values are matched through the rank alone.
    """
    moment = layer_moment(model, spec["layer"], dataset)
    stream = generator(spec.get("seed", 0), "controls", spec["layer"])
    for error in spec["errors"]:
        for draw in (0, 1):
            yield {"method": "noise", "target": error, "draw": draw}, measures.perturbed(kernel, error, stream)
        yield {"method": "shrunk", "target": error}, measures.shrunk(kernel, error)
        yield {"method": "pruned", "target": error}, measures.pruned(kernel, error)
    for error, labels, further in beyond_errors(kernel, spec["errors"]):
        truncated = graded(kernel, further, error)
        yield {"method": "graded"} | labels, truncated
        cut, rank = labels["cut"], labels["rank"]
        if moment is not None and error == READ:
            noise = measures.perturbed(kernel, error, stream)
            ratio = measures.output_error(kernel, truncated, moment) / measures.output_error(kernel, noise, moment)
            yield {"method": "noise, outputs"} | labels, torch.lerp(kernel, noise, ratio)
        if cut not in SINGLE or not spec.get("subspaces"):
            continue
        for side in ("short", "long"):
            random = measures.projected_at_random(kernel, cut, rank, stream, side)
            if measures.relative_error(kernel, random) >= error:
                yield {"method": f"random {side}"} | labels, graded(kernel, random, error)
        yield {"method": "smallest"} | labels, measures.smallest_kept(kernel, cut, rank)
    if moment is not None:
        for rank in rank_grid(min(len(kernel), kernel[0].numel()), (0.125, 0.25, 0.5)):
            labels = {"cut": "OUT", "rank": rank}
            yield {"method": "plain"} | labels, truncate(kernel, "OUT", rank)
            yield {"method": "outputs"} | labels, measures.truncate_outputs(kernel, rank, moment)


def beyond_errors(kernel: Tensor, errors: Sequence[float]) -> Iterable[tuple[float, dict, Tensor]]:
    """For every applicable cut and every error that rank 1 reaches: the largest rank that loses as much, its kernel."""
    for cut in applicable_cuts(kernel.shape):
        svd = cut_svd(kernel, cut, gram=kernel.is_cuda)
        lost = svd.errors()
        for error in errors:
            if rank := int((lost >= error).sum()):
                yield error, {"cut": cut, "rank": rank, "target": error}, svd.kernel(rank)


def layer_moment(model: nn.Module, name: str, dataset: Data) -> Tensor | None:
    """`patch_moment` of the inputs of a convolution on training images; None for linear and grouped layers."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return None
    split = Split(dataset.train.images[:MOMENT_IMAGES], dataset.train.labels[:MOMENT_IMAGES])
    with models.inputs_of(layer) as seen:
        for _ in training.logits(model, split, dataset, device=str(layer.weight.device)):
            pass
    return measures.patch_moment(layer, torch.cat(seen).cpu()).to(layer.weight.device)


def form_kernels(kernel: Tensor, spec: dict, **_) -> Iterable[Entry]:
    """Every form that fits in a share of the dense parameters, for the `budgets` of a spec; CP from `starts` starts.

    `target` is the share. For tensor trains `cut` names the order of the modes; an order read backwards is the same
    form, so twelve are all. The ranks are the best for the kernel (`forms.best_ranks`). Where there are several, the
    method is there a second time, as "tt, equal shares", with ranks that are equal shares of the largest ones
    (`forms.ranks_within`). "as cp" is every cut graded to the error of the best CP kernel.
    """
    shape = kernel.shape
    for budget in spec["budgets"]:
        target, within = {"target": budget}, budget * kernel.numel()
        for cut in applicable_cuts(shape):
            if forms.parameters(shape, cut, 1) <= within:
                rank = forms.ranks_within(shape, cut, within)
                yield {"method": "cut", "cut": cut, "rank": rank} | target, truncate(kernel, cut, rank)
        tensors = [("tucker2", forms.ORDER, ""), ("tucker", forms.ORDER, ""), ("ring", forms.ORDER, "")]
        tensors += [("tt", order, " ".join(order)) for order in TRAINS]
        for form, order, name in tensors:
            if forms.parameters(shape, form, forms.ranks_at(shape, form, 0, order), order) <= within:
                best = forms.best_ranks(kernel, form, within, order)
                for method, ranks in ((form, best), (form + EQUAL, forms.ranks_within(shape, form, within, order))):
                    yield {"method": method, "cut": name} | target, forms.approximate(kernel, form, ranks, order=order)
        if forms.parameters(shape, "cp", 1) > within:
            continue
        rank, errors = forms.ranks_within(shape, "cp", within), []
        for draw in range(spec["starts"]):
            stream = generator(draw, "cp", spec["layer"])
            fit = forms.cp(kernel, rank, stream, starts=1, iterations=spec["iterations"])
            method = "cp" if fit.converged else "cp, not converged"
            yield {"method": method, "rank": rank, "draw": draw} | target, fit.kernel().to(kernel)
            errors.append(fit.relative_error)
        for error, labels, further in beyond_errors(kernel, [min(errors)]):
            yield {"method": "as cp", "cut": labels["cut"]} | target, graded(kernel, further.to(kernel), error)


def spectra(folder: Path, dense_folder: Path) -> Study:
    """The study of a layer's spectra across its cuts; both folders are `runs/<profile>`."""
    return Study(f"{STUDY}.spectra", partial(measure_spectra, dense_folder=dense_folder), version=3, folder=folder)


def truncations(folder: Path, dense_folder: Path) -> Study:
    """The study of single layers truncated along every applicable cut, and along two at once."""
    return _kernels("truncations", truncated_kernels, folder, dense_folder)


def zeroed(folder: Path, dense_folder: Path) -> Study:
    """The study of networks with the kernel of one layer after another set to zero."""
    return Study(f"{STUDY}.zeroed", partial(zero_layers, dense_folder=dense_folder), version=1, folder=folder)


def controlled(folder: Path, dense_folder: Path) -> Study:
    """The study of graded truncations beside their controls, at equal relative error."""
    return _kernels("controls", control_kernels, folder, dense_folder)


def formed(folder: Path, dense_folder: Path) -> Study:
    """The study of single layers in every form at equal numbers of parameters."""
    return _kernels("forms", form_kernels, folder, dense_folder)


def _kernels(name: str, entries: Callable[..., Iterable[Entry]], folder: Path, dense_folder: Path) -> Study:
    trial = partial(truncate_layer, entries=entries, dense_folder=dense_folder)
    return Study(f"{STUDY}.{name}", trial, version=2, folder=folder)


def latencies(folder: Path) -> Study:
    """The study of the time that a factorised layer takes."""
    return Study(f"{STUDY}.latencies", measure_latency, version=1, folder=folder)


def measure_spectra(spec: dict, device: str, weights_path: Path, *, dense_folder: Path) -> dict:
    """The trial of `spectra`. The spec holds a dense network and `layer`; with `kernels_alone` inputs are not read.

    Returns:
        The kernel's `shape` and `norm`, `map` (side of the map that it reads, pixels), `usage` (mean share of positions
        at which a tap reads a pixel); the entries of `spectra_by_cut`, without weights for `kernels_alone`; and
        `output_weights`, the shares of the outputs' squares on training images that their main directions carry, none
        for linear and grouped layers.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    kernel = sweep.kernel(model.get_submodule(spec["layer"]))
    side, usage = _map_and_usage(model, spec["layer"], dataset)
    stream = generator(spec.get("seed", 0), "random kernels", spec["layer"])
    row = {"shape": list(kernel.shape), "map": side, "usage": usage.mean().item(), "norm": kernel.norm().item()}
    moment = None if spec.get("kernels_alone") else layer_moment(model, spec["layer"], dataset)
    row["output_weights"] = [] if moment is None else measures.output_weights(kernel, moment)
    row |= spectra_by_cut(kernel, stream, RANDOM_DRAWS)
    return {k: v for k, v in row.items() if not (spec.get("kernels_alone") and k.startswith("weights_"))}


def spectra_by_cut(kernel: Tensor, stream: torch.Generator, draws: int) -> dict:
    """Spectra and entropies (nats) of a kernel beside those of random ones of its shape, by applicable cut.

    Returns:
        Lists over `cut`: `entropy`, and `half_error`, the relative error at half the ranks. Of `random` kernels
        (`measures.gaussian_like`) and of `profile` kernels (`measures.profile_like`) the means `<kind>_entropy` and
        `<kind>_half_error`, and `<kind>_lowest`, the least entropy. Also the weights p of the kernel, `weights_<cut>`.
    """
    values = partial(spectrum, gram=kernel.is_cuda or kernel.numel() > GRAM)
    kinds = {"random": measures.gaussian_like, "profile": measures.profile_like}
    noise = {kind: [make(kernel, stream) for _ in range(draws)] for kind, make in kinds.items()}
    by_cut, spectra = [], {}
    for cut in applicable_cuts(kernel.shape):
        spectra[f"weights_{cut}"] = real = weights(values(kernel, cut))
        half = len(real) // 2 or 1
        found = {"cut": cut, "entropy": torch.special.entr(real).sum().item()}
        found["half_error"] = real[half:].sum().sqrt().item()
        for kind, kernels in noise.items():
            drawn = torch.stack([weights(values(one, cut)) for one in kernels])
            entropies = torch.special.entr(drawn).sum(1)
            found |= {f"{kind}_entropy": entropies.mean().item(), f"{kind}_lowest": entropies.min().item()}
            found[f"{kind}_half_error"] = drawn[:, half:].sum(1).sqrt().mean().item()
        by_cut.append(found)
    return pd.DataFrame(by_cut).to_dict("list") | spectra


def truncate_layer(
    spec: dict, device: str, weights_path: Path, *, entries: Callable[..., Iterable[Entry]], dense_folder: Path
) -> dict:
    """The trial of `truncations`, `controlled` and `formed`: one layer with each of many kernels, nothing else changed.

    The spec holds a dense network, `layer`, `part`, `images`, `batch`, and the fields that `entries` reads; also
    `evaluation`, its precision, float32 if there is none. With `first` images, kernels that are HOPELESS on these are
    not looked at again.

    Returns:
        Lists, one entry per kernel: `method`, `cut`, `rank`, `target` (the error or share aimed at), `draw`;
        `relative_error`, `norm_loss`, `effective_norm_loss`; of `n` images the `wrong` ones, and against the dense
        kernel the `lost` and `gained` ones, also of those in even places (`lost_even`) and of the `first` ones
        (`lost_first`); `rise` of the loss against the dense kernel on the same images, and `kl` (nats). Also `loss` of
        the dense kernel, `n_first`, and the kernel's `shape`.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    kernel = sweep.kernel(model.get_submodule(spec["layer"]))
    _, usage = _map_and_usage(model, spec["layer"], dataset)
    listed = [({"method": "dense"}, kernel), *entries(kernel, spec, model=model, dataset=dataset)]
    kernels = [one for _, one in listed]
    split = part(dataset, spec)
    first = min(spec.get("first") or len(split), len(split))

    def compared(places: Sequence[int], start: int, end: int) -> dict:
        images = Split(split.images[start:end], split.labels[start:end])
        options = {"batch_size": spec["batch"], "device": device, "precision": spec.get("evaluation", "float32")}
        found = sweep.compare(model, spec["layer"], [kernels[k] for k in places], images, dataset, **options)
        before = found["wrong"][0]
        sums = {"lost": found["wrong"] & ~before, "gained": ~found["wrong"] & before, "wrong": found["wrong"]}
        sums |= {f"{name}_even": sums[name][:, start % 2 :: 2] for name in ("lost", "gained")}
        counted = {name: one.sum(1).double() for name, one in sums.items()}
        return (
            counted
            | {"rise": (found["loss"] - found["loss"][0]) * len(images), "kl": found["kl"] * len(images)}
            | {
                "n": torch.full((len(places),), len(images)).double(),
                "loss": found["loss"][0].item() * len(images),
            }
        )

    sums = compared(range(len(kernels)), 0, first)
    early = {f"{name}_first": sums[name].clone() for name in ("lost", "gained")}
    loss = sums.pop("loss")
    if first < len(split):
        drops = 100 * (sums["lost"] - sums["gained"]) / first
        zero = [drop for (labels, _), drop in zip(listed, drops.tolist(), strict=True) if labels["method"] == "zero"]
        worst = max(HOPELESS[0], HOPELESS[1] * max(zero, default=0.0))  # the zero kernel is one to compare with
        promising = [k for k, drop in enumerate(drops.tolist()) if drop <= worst or listed[k][0]["method"] == "zero"]
        further = compared(promising, first, len(split))
        loss += further.pop("loss")
        for name, values in further.items():
            sums[name][promising] += values
    blank = {"cut": "", "rank": 0, "target": 0.0, "draw": 0}
    row = {name: [(blank | labels)[name] for labels, _ in listed] for name in ("method", *blank)}
    means = {name: sums.pop(name) / sums["n"] for name in ("rise", "kl")}
    counts = {name: values.long() for name, values in (sums | early).items()}
    return (
        row
        | counts
        | means
        | {
            "relative_error": [measures.relative_error(kernel, one) for one in kernels],
            "norm_loss": [measures.norm_loss(kernel, one) for one in kernels],
            "effective_norm_loss": [measures.effective_norm_loss(kernel, one, usage) for one in kernels],
            "loss": loss / len(split),
            "n_first": first,
            "shape": list(kernel.shape),
        }
    )


def zero_layers(spec: dict, device: str, weights_path: Path, *, dense_folder: Path) -> dict:
    """The trial of `zeroed`: one network without the kernel of one layer after another; biases stay.

    The spec holds a dense network, `part`, `images`, `first`, `batch` and `evaluation`. A layer that costs more than
    the points of HOPELESS on the `first` images is not looked at again.

    Returns:
        Lists with an entry for each `layer` before the head: its `shape`, and of `n` images those `lost` and `gained`
        against the dense network; likewise `n_first`, `lost_first` and `gained_first`.
    """
    model, dataset = baselines.baseline(baselines.dense_spec(spec), dense_folder, device)
    layers, split = sweep.layer_names(model), part(dataset, spec)
    network = sweep.ZeroSweep(model, layers)
    first = min(spec["first"], len(split))

    def changes(chosen: Sequence[int], start: int, end: int) -> Tensor:
        """Lost and gained images (2, layers) with each of the chosen layers zeroed, 0 for others."""
        found = torch.zeros(2, len(layers), dtype=torch.long)
        for images, labels in batches(Split(split.images[start:end], split.labels[start:end]), spec["batch"]):
            with training.autocast(device, spec["evaluation"]):
                scores = network(normalise(images, dataset.mean, dataset.std), chosen)
            wrong = (scores.argmax(2) != labels).cpu()
            for row, one in zip(found, (wrong[1:] & ~wrong[0], ~wrong[1:] & wrong[0]), strict=True):
                row[list(chosen)] += one.sum(1)
        return found

    early = changes(range(len(layers)), 0, first)
    promising = [k for k, drop in enumerate((early[0] - early[1]).tolist()) if 100 * drop <= HOPELESS[0] * first]
    lost, gained = (early + changes(promising, first, len(split))).tolist()
    return {
        "layer": layers,
        "shape": ["x".join(map(str, sweep.kernel(model.get_submodule(name)).shape)) for name in layers],
        "n": [len(split) if k in promising else first for k in range(len(layers))],
        "lost": lost,
        "gained": gained,
        "n_first": [first] * len(layers),
        "lost_first": early[0].tolist(),
        "gained_first": early[1].tolist(),
    }


def _map_and_usage(model: nn.Module, name: str, dataset: Data) -> tuple[int, Tensor]:
    """Side of the map that a layer reads in pixels, and the usage of its taps; 1 and all of it for a linear layer."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return 1, torch.ones(1, 1, dtype=torch.float64)
    with models.inputs_of(layer) as seen, torch.no_grad():
        model(torch.zeros(1, dataset.channels, dataset.size, dataset.size, device=layer.weight.device))
    size = tuple(seen[0].shape[-2:])
    return size[0], measures.tap_usage(layer, size)


def measure_latency(spec: dict, device: str, weights_path: Path) -> dict:
    """The trial of `latencies`; it is timed, so it must run alone.

    The spec holds `shape` of a kernel (OUT, IN, KH, KW), `map` (side, pixels), `batch`, `form` ("dense" or one of
    `forms.RANKS`) and `share` of the dense MACs that the ranks may cost at most, or else the `rank` of a cut; also
    `stride`, 1 if there is none.

    Returns:
        `parameters`, `macs` of one image, `ranks`, and the median milliseconds of one pass; zeros if no rank fits.
    """
    outputs, inputs, *window = spec["shape"]
    options = {"stride": spec.get("stride", 1), "padding": window[0] // 2, "bias": False, "device": "meta"}
    conv = nn.Conv2d(inputs, outputs, window, **options).to_empty(device="cpu")
    torch.nn.init.normal_(conv.weight, generator=generator(0, "latency"))
    count = partial(models.count_macs, shape=(1, inputs, spec["map"], spec["map"]))

    def built(step: int) -> tuple[int | tuple[int, ...], nn.Sequential]:
        """Ranks at a share of the largest ones, in steps of a 200th, and the layer with these."""
        ranks = forms.ranks_at(conv.weight.shape, spec["form"], step / 200)
        if spec["form"] == "cp":  # the time does not depend on the fit
            return ranks, forms.layers(conv, forms.cp(conv.weight, ranks, generator(0, "cp"), starts=1, iterations=1))
        return ranks, forms.factorise(conv, spec["form"], ranks)

    ranks, layer = [], conv
    if "rank" in spec:
        ranks, layer = spec["rank"], forms.factorise(conv, spec["form"], spec["rank"])
    elif spec["form"] != "dense":
        step = bisect_right(range(201), spec["share"] * count(conv), key=lambda step: count(built(step)[1])) - 1
        if step < 0:
            return {"parameters": 0, "macs": 0, "ranks": []}
        ranks, layer = built(step)
    row = {"parameters": models.count_parameters(layer), "macs": count(layer)}
    row["made_latency_ms"] = training.latency_ms(layer, (spec["batch"], inputs, spec["map"], spec["map"]), device)
    return row | {"ranks": [ranks] if isinstance(ranks, int) else list(ranks)}
