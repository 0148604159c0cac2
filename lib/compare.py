"""What a compression did to a network, by the measures of all four papers: one row a layer, and one for the whole.

Both networks are copied first, in float32 and in evaluation mode: their own mode, masks and gradients stay as they are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from lib import channels, figures, latent, masks, matching, spaces, spline, truncation
from lib.matching import Layer
from lib.provenance import CompanionError
from lib.study import generator

SINGLE = ("OUT", "IN", "KH", "KW")  # the cuts that are measured by default: one mode against the others
CURVED = 64  # images on which curvature is taken
DRAWS = 16  # classes that are drawn for it, where there are more
SIDE = 5  # points along each side of the slice on which maps are compared
VALUES_AT_ONCE = 2**19  # numbers of all images of a batch
TOTAL = "total"
COLUMNS = {
    "layer": "name of the layer in the dense network; the last row, total, is the whole network",
    "match": "how the layer was found again: same, fewer channels, factorised; empty if it was not",
    "shape": "shape of the dense kernel: outputs x inputs x height x width",
    "shape_after": "shape of the kernel in the compressed network, before it is put into the dense shape",
    "kept_weights": "share of the kernel's entries that are not 0 afterwards",
    "kept_filters": "share of the kernel's outputs with an entry that is not 0 afterwards",
    "kept_parameters": "share of the layer's stored parameters; a masked weight is still stored",
    "kept_macs": "share of the multiply-accumulates (MACs) of one image; masks save none",
    "macs": "multiply-accumulates of one image in the dense network",
    "mcb": "mean computation budget: kept MACs over kept parameters; above 1 computation was spared",
    "std": "standard deviation of the pruned shares of all channel groups",
    "tilt": "slope of the pruned share on log pixels; above 0, layers with many pixels were pruned more",
    "ap2": "squared length of the change of the weights",
    "ap2_share": "that squared length over the squared length of the dense weights",
    "t_ap3": "KL divergence (nats) of Student-t distributions around 100 group means before and after",
    "curvature_ap3": "half of the change squared in the metric of the loss curvature (Gauss-Newton): nats lost at "
    "second order",
    "relative_error": "length of the change over the length of the dense kernel",
    "norm_loss": "1 minus the length of the kernel afterwards over that before",
    "norm_loss_{cut}": "least norm loss of any kernel that has the rank of the compressed one across this cut",
    "entropy_{cut}_before": "entanglement entropy (nats) of the dense kernel across this cut",
    "entropy_{cut}_after": "the same of the compressed kernel",
    "effective_rank_{cut}_before": "exponential of that entropy: the number of directions that matter",
    "effective_rank_{cut}_after": "the same of the compressed kernel",
    "code_change": "share of the bits of the activation code (signs of units) that differ, over images",
    "map_change": "relative change of the affine maps around points of the plane through the first three images",
    "kl": "KL divergence (nats) of the class probabilities from those of the dense network, mean over images",
    "accuracy_before": "share of the images that the dense network classifies as their labels say",
    "accuracy_after": "the same of the compressed network",
    "reason": "what could not be computed, and why; what it concerns is NaN",
}


def measure(
    dense: nn.Module,
    compressed: nn.Module,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    size: int = 32,
    cuts: Sequence[str] = SINGLE,
) -> pd.DataFrame:
    """What a compression did: a row for each convolution and linear layer of the dense network, and a total.

    Layers are matched by name. One with fewer channels is compared with the dense one through the channels that
    survive, as `channels.keep` recorded them or as equal weights show them; the others count as zero. A sequence of
    convolutions or linear layers is multiplied out.

    Args:
        dense: the network before.
        compressed: the network after, with the same names of layers.
        images: normalised (n, ...), as the network takes them; without them nothing that needs outputs is computed.
        labels: of the images, int64 (n,).
        size: side of the square images (pixels) for which MACs are counted where no images are given.
        cuts: across which norm loss, entropy and effective rank are taken.

    Returns:
        The columns of `COLUMNS`. What cannot be computed is NaN, and the column `reason` says why.

    Raises:
        CompanionError: for weights that are not finite; it names them.
        ValueError: for arguments that are no networks, or images and labels of different numbers.
    """
    before, after = _prepared(dense, "dense"), _prepared(compressed, "compressed")
    if labels is not None and (images is None or len(labels) != len(images)):
        raise ValueError("Labels need images in equal number: pass both.")
    device = next((parameter.device for parameter in before.parameters()), torch.device("cpu"))
    after = after.to(device)
    layers = matching.match(before, after, compressed)
    if not layers:
        raise ValueError("The dense network has no convolution and no linear layer: there is nothing to compare.")
    total = {"layer": TOTAL, "match": "", "reasons": _left_over(layers, after)}
    rows = {layer.name: _weights(layer, cuts) for layer in layers}
    example = images[:1].to(device) if images is not None else _example(before, size)
    _costs(layers, rows, total, before, after, example)
    total |= _whole(layers, rows)
    total |= _recipe(layers, before, example, total["reasons"])
    if images is not None:
        images = images.to(device).float() if images.is_floating_point() else images.to(device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), _plain_attention():
            _outputs(layers, rows, total, before, after, images, labels)
            _curvature(layers, rows, total, before, images[:CURVED])
            total["map_change"] = _tried("map change", total["reasons"], _maps, before, after, images)
    rows = [*(rows[layer.name] | {"reasons": layer.reasons} for layer in layers), total]
    names = [name.format(cut=cut) for name in COLUMNS for cut in (cuts if "{cut}" in name else [""])]
    for row in rows:
        row["reason"] = "; ".join(dict.fromkeys(row.pop("reasons")))
    return pd.DataFrame([{name: row.get(name, math.nan) for name in names} for row in rows])


def explained() -> pd.DataFrame:
    """What each column of `measure` means, a row for each; {cut} stands for the name of a cut."""
    return pd.DataFrame({"column": COLUMNS.keys(), "meaning": COLUMNS.values()})


def _prepared(model: nn.Module, which: str) -> nn.Module:
    """A plain copy in float32 and evaluation mode; CompanionError for weights that are not finite."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"The {which} network is a {type(model).__name__}: pass an nn.Module.")
    copy = masks.permanent(model).eval().requires_grad_(False)
    for name, values in (*copy.named_parameters(), *copy.named_buffers()):
        if values.is_floating_point() and values.isnan().any():
            raise CompanionError(f"{name} of the {which} network holds NaN: its training diverged, lower lr.")
        if isinstance(values, nn.Parameter) and not values.isfinite().all():
            raise CompanionError(f"{name} of the {which} network is infinite: its training diverged, lower lr.")
    return copy.float()


def _left_over(layers: Sequence[Layer], after: nn.Module) -> list[str]:
    """Reasons of the whole: layers of the dense network not matched, and those of the compressed one not asked for."""
    known = tuple(layer.name for layer in layers)
    new = [
        name
        for name, _, _ in matching.kernels(after)
        if name not in known and not name.startswith(tuple(f"{k}." for k in known))
    ]
    lost = [layer.name for layer in layers if layer.after is None]
    return [
        f"{text} {', '.join(names)}" for text, names in (("without", lost), ("not in the dense network:", new)) if names
    ]


def _weights(layer: Layer, cuts: Sequence[str]) -> dict:
    """The measures of a row that follow from the kernels alone."""
    row = {"layer": layer.name, "match": layer.match, "shape": matching.text(layer.before)}
    row["shape_after"] = "x".join(map(str, layer.shape_after))
    before, after = layer.before, layer.after
    spectra = _spectra(before, cuts)
    for cut, values in spectra.items():
        row |= _entropies(cut, "before", values)
    if after is None:
        return row
    row["kept_weights"] = after.count_nonzero().item() / after.numel()
    row["kept_filters"] = after.flatten(1).any(1).double().mean().item()
    row["kept_parameters"] = layer.stored_after / layer.stored
    row["ap2"], row["t_ap3"] = latent.ap2(before, after), max(0.0, latent.t_ap3(before, after))
    squares = [latent.ap2(kernel, torch.zeros_like(kernel)) for kernel in (before, after)]
    row["squares"] = squares
    if not squares[0]:
        layer.reasons.append("the dense kernel is zero: nothing is relative to it")
        return row
    row |= _relative(row["ap2"], *squares)
    if before.dim() > 4:
        layer.reasons.append("cuts: a kernel with three axes has none")
    elif not squares[1]:
        layer.reasons.append("entropy afterwards: the kernel is zero")
    changed = _spectra(after, cuts) if row["ap2"] and squares[1] else spectra if squares[1] else {}
    resolved = max(1e-6, torch.finfo(layer.precision).eps) if layer.precision.is_floating_point else 1e-2
    for cut, values in changed.items():
        row |= _entropies(cut, "after", values)
        rank = int((values > resolved * values[0]).sum())
        row[f"norm_loss_{cut}"] = max(0.0, 1 - math.sqrt(spectra[cut][:rank].square().sum() / squares[0]))
    return row


def _relative(ap2: float, before: float, after: float) -> dict:
    share = ap2 / before
    return {"ap2_share": share, "relative_error": math.sqrt(share), "norm_loss": 1 - math.sqrt(after / before)}


def _spectra(kernel: Tensor, cuts: Sequence[str]) -> dict[str, Tensor]:
    """Singular values, descending, across those cuts that the kernel has; through the small side's Gram matrix."""
    if kernel.dim() > 4 or not kernel.any():
        return {}
    kernel = kernel[:, :, None] if kernel.dim() == 3 else kernel[..., None, None] if kernel.dim() == 2 else kernel
    known = truncation.measures.applicable_cuts(kernel.shape)
    found = {}
    for cut in cuts:
        if cut in known:
            matrix = truncation.unfold(kernel, cut).double()
            matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
            found[cut] = torch.linalg.eigvalsh(matrix @ matrix.mT).flip(0).clamp(min=0).sqrt()
    return found


def _entropies(cut: str, when: str, values: Tensor) -> dict:
    entropy = truncation.entropy(values)
    return {f"entropy_{cut}_{when}": entropy, f"effective_rank_{cut}_{when}": math.exp(entropy)}


def _whole(layers: Sequence[Layer], rows: dict[str, dict]) -> dict:
    """The measures of the whole that add up over layers; a tied weight counts once."""
    distinct = {}
    for layer in layers:
        if layer.after is not None:
            distinct.setdefault(
                (layer.before.data_ptr(), layer.after.data_ptr()), rows[layer.name] | {"n": layer.before.numel()}
            )
    found = list(distinct.values())
    if not found:
        return {}
    squares = np.sum([row["squares"] for row in found], 0)
    sums = {name: sum(row[name] for row in found) for name in ("ap2", "t_ap3")}
    sums["kept_weights"] = sum(row["kept_weights"] * row["n"] for row in found) / sum(row["n"] for row in found)
    filters = [len(layer.before) for layer in layers if layer.after is not None]
    shares = [rows[layer.name]["kept_filters"] for layer in layers if layer.after is not None]
    sums["kept_filters"] = float(np.average(shares, weights=filters))
    return sums | (_relative(sums["ap2"], *squares) if squares[0] else {})


def _example(model: nn.Module, size: int) -> Tensor:
    """One image for counting: square, with the channels that the first layer reads."""
    layer = next(module for module in model.modules() if isinstance(module, channels.LAYERS))
    if isinstance(layer, _ConvNd):
        return torch.zeros(1, layer.in_channels, *[size] * len(layer.kernel_size))
    return torch.zeros(1, layer.in_features)


def _tried(what: str, reasons: list[str], function, *arguments) -> object:
    """The result of a function, or NaN and its error as a reason."""
    try:
        return function(*arguments)
    except Exception as error:  # user-written modules may raise anything
        reasons.append(f"{what}: {type(error).__name__}: {error}".splitlines()[0][:200])
        return math.nan


def _macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """MACs of one image by path of module; the whole network has the path ""."""
    copy = deepcopy(model).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy(example.to("meta", torch.float32 if example.is_floating_point() else example.dtype))
    name, counts = type(model).__name__, counter.get_flop_counts()
    paths = {path: f"{name}.{path}".rstrip(".") for path, _ in copy.named_modules(remove_duplicate=False)}
    found = {path: sum(counts.get(key, {}).values()) // 2 for path, key in paths.items()}
    return found | {"": counter.get_total_flops() // 2}


def _costs(
    layers: Sequence[Layer], rows: dict[str, dict], total: dict, before: nn.Module, after: nn.Module, example: Tensor
) -> None:
    """Fill in MACs, parameters and the mean computation budget."""
    reasons, stored = total["reasons"], [sum(p.numel() for p in model.parameters()) for model in (before, after)]
    stored[1] += sum(layer.stored_after for layer in layers if layer.after is not None and _packed(after, layer.name))
    total["kept_parameters"] = stored[1] / stored[0]
    shape = tuple(example.shape[1:])
    macs = [_tried(f"MACs of one image of shape {shape}", reasons, _macs, model, example) for model in (before, after)]
    if not isinstance(macs[0], dict):
        return
    for layer in layers:
        row = rows[layer.name]
        if not macs[0].get(layer.name):
            layer.reasons.append("MACs: counted in the total alone, since the network does not call it as a module")
            continue
        row["macs"] = macs[0][layer.name]
        if isinstance(macs[1], dict) and layer.after is not None:
            row["kept_macs"] = macs[1].get(layer.name, math.nan) / row["macs"]
            row["mcb"] = row["kept_macs"] / row["kept_parameters"]
    total["macs"] = macs[0][""]
    if isinstance(macs[1], dict) and total["macs"]:
        total["kept_macs"] = macs[1][""] / total["macs"]
        total["mcb"] = total["kept_macs"] / total["kept_parameters"]


def _packed(model: nn.Module, name: str) -> bool:
    """Whether a layer keeps its weight outside its parameters, as quantised layers do."""
    try:
        return callable(getattr(model.get_submodule(name), "weight", None))
    except AttributeError:
        return False


def _recipe(layers: Sequence[Layer], dense: nn.Module, example: Tensor, reasons: list[str]) -> dict:
    """Standard deviation and tilt of the pruned shares of the channel groups."""
    left = {layer.name: layer.after.flatten(1).any(1) for layer in layers if layer.after is not None}
    if all(kept.all() for kept in left.values()):
        return {"std": 0.0, "tilt": 0.0}

    def found() -> dict:
        groups = channels.find(dense, example.shape[-1])
        widths = [sum(left[name] for name in names if name in left).count_nonzero().item() for names in groups.writers]
        recipe = spaces.coordinates(groups, np.maximum(widths, 1))
        return {name: recipe[name].item() + 0.0 for name in ("std", "tilt")}

    recipe = _tried("std and tilt", reasons, found)
    return recipe if isinstance(recipe, dict) else {}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention without its fused paths, through which no derivative goes forward."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _outputs(
    layers: Sequence[Layer],
    rows: dict[str, dict],
    total: dict,
    before: nn.Module,
    after: nn.Module,
    images: Tensor,
    labels: Tensor | None,
) -> None:
    """Fill in changes of codes, the divergence of the outputs and accuracies, from one pass through both networks."""
    flips, places, scores = {}, {}, ([], [])
    coded, by_name = set(spline.coded_layers(before)), {layer.name: layer for layer in layers}
    signs: dict[str, Tensor] = {}
    latest: list[str] = []

    def seen(name: str, output: Tensor) -> None:
        if name in by_name:
            latest[:] = [name]
        if name in coded and isinstance(output, Tensor):
            signs[name] = output > 0
            places[name] = name if name in by_name else (latest or [""])[0]

    def compared(name: str, output: Tensor) -> None:
        sign = signs.get(name)
        if sign is None or not isinstance(output, Tensor):
            return
        if sign.shape != output.shape:
            kept = _units(after, name, by_name.get(places[name]), sign.shape, output.shape)
            sign = sign[:, kept] if kept else None
        if sign is not None:
            flipped, bits = flips.get(name, (0, 0))
            flips[name] = flipped + (sign ^ (output > 0)).count_nonzero().item(), bits + output.numel()

    def forward() -> None:
        step = max(1, VALUES_AT_ONCE // images[0].numel())
        with ExitStack() as hooks, torch.inference_mode():
            for model, keep in ((before, seen), (after, compared)):
                for name, module in model.named_modules():
                    if name in coded or name in by_name:
                        hook = lambda _, __, output, name=name, keep=keep: keep(name, output)  # noqa: E731
                        hooks.callback(module.register_forward_hook(hook).remove)
            for part in images.split(step):
                for model, kept in zip((before, after), scores, strict=True):
                    kept.append(model(part).double())

    if not math.isnan(_tried("outputs", total["reasons"], forward) or 0):
        _codes(layers, rows, total, flips, places)
        _scores(total, *map(torch.cat, scores), labels)


def _units(after: nn.Module, name: str, layer: Layer | None, dense: torch.Size, left: torch.Size) -> list[int] | None:
    """The units of a coded layer of the dense network that the compressed one still has; None if they are unknown."""
    if len(dense) != len(left) or dense[2:] != left[2:]:
        return None
    kept, _ = channels.surviving(after, name, (dense[1], 0))
    kept = kept if len(kept) == left[1] else layer.outputs if layer else []
    return kept if len(kept) == left[1] and max(kept, default=0) < dense[1] else None


def _codes(
    layers: Sequence[Layer], rows: dict[str, dict], total: dict, flips: dict[str, tuple], places: dict[str, str]
) -> None:
    """Fill in the share of flipped bits behind each layer."""
    sums = {}
    for name, (flipped, bits) in flips.items():
        earlier = sums.get(places[name], (0, 0))
        sums[places[name]] = earlier[0] + flipped, earlier[1] + bits
    for layer in layers:
        if layer.name in sums:
            flipped, bits = sums[layer.name]
            rows[layer.name]["code_change"] = flipped / bits
        elif layer.name in places.values():
            layer.reasons.append("code: its units cannot be matched")
        else:
            layer.reasons.append("code: no unit whose sign is coded stands behind it")
    if sums:
        total["code_change"] = sum(flipped for flipped, _ in sums.values()) / sum(bits for _, bits in sums.values())


def _scores(total: dict, before: Tensor, after: Tensor, labels: Tensor | None) -> None:
    """Fill in the divergence of the outputs and the accuracies."""
    if before.dim() != 2 or before.shape != after.shape:
        total["reasons"].append(f"outputs of shapes {tuple(before.shape[1:])}, {tuple(after.shape[1:])}: no classes")
        return
    logs = before.log_softmax(1), after.log_softmax(1)
    if not all(log.isfinite().all() for log in logs):
        total["reasons"].append("outputs: they are not finite")
        return
    total["kl"] = max(0.0, F.kl_div(logs[1], logs[0], reduction="batchmean", log_target=True).item())
    if labels is not None:
        for when, log in zip(("before", "after"), logs, strict=True):
            total[f"accuracy_{when}"] = (log.argmax(1) == labels.to(log.device)).double().mean().item()


def _curvature(layers: Sequence[Layer], rows: dict[str, dict], total: dict, model: nn.Module, images: Tensor) -> None:
    """Fill in half of the change squared in the metric of the Gauss-Newton matrix, layer by layer and for all at once.

    With logits z, their derivative t along the change, and probabilities p it is half the mean over images of the
    variance of t under p. Every image has its own step along the change of each layer, so that one backward pass for
    each class gives t for all images and layers; of more than DRAWS classes as many are drawn from p.

    Source: paper 1's Gaussian projection with the curvature as precision; this companion's extension.
    """
    changed = [layer for layer in layers if layer.after is not None and not torch.equal(layer.after, layer.before)]
    sums, steps = dict.fromkeys([layer.name for layer in changed] + [TOTAL], 0.0), {}

    def squares(part: Tensor) -> None:
        steps.update({layer.name: images.new_zeros(len(part), requires_grad=True) for layer in changed})
        scores = model(part).double()
        p, classes = scores.detach().softmax(1), scores.shape[1]
        draws = p.multinomial(DRAWS, replacement=True, generator=stream).mT if classes > DRAWS else None
        chosen = draws if draws is not None else torch.arange(classes, device=p.device)[:, None].expand(-1, len(p))
        for label in chosen:
            weight = p.gather(1, label[:, None])[:, 0] if draws is None else 1 / DRAWS
            centred = scores.gather(1, label[:, None]).sum() - (p * scores).sum()
            found = torch.autograd.grad(centred, list(steps.values()), retain_graph=True, allow_unused=True)
            known = {name: grad.double() for name, grad in zip(steps, found, strict=True) if grad is not None}
            known[TOTAL] = sum(known.values())
            for name, moved in known.items():
                sums[name] += (weight * moved.square()).sum().item()
            missing.update(steps.keys() - known.keys())

    def run() -> None:
        with ExitStack() as hooks:
            for layer in [layer for layer in changed if layer.parameter == f"{layer.name}.weight".lstrip(".")]:
                hooks.callback(_along(model.get_submodule(layer.name), layer, steps))
            for part in images.split(max(1, VALUES_AT_ONCE // images[0].numel())):
                squares(part)

    missing, stream = set(), generator(0, "classes for the curvature", device=images.device.type)
    if not changed or _tried("curvature", total["reasons"], run) is None:
        for layer in [layer for layer in layers if layer.after is not None]:
            if layer.name in missing:
                layer.reasons.append("curvature: the network does not call the layer as a module")
            else:
                rows[layer.name]["curvature_ap3"] = sums.get(layer.name, 0.0) / len(images) / 2
        if missing:
            total["reasons"].append(f"curvature: without {', '.join(sorted(missing))}")
        total["curvature_ap3"] = sums[TOTAL] / len(images) / 2


def _along(module: nn.Module, layer: Layer, steps: dict[str, Tensor]) -> Callable[[], None]:
    """Add a step of every image along the change of a layer's weight to its outputs; returns what undoes it."""
    moved, change = deepcopy(module), layer.after - layer.before
    if isinstance(module, _ConvTransposeNd):
        change = change.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    moved.weight, moved.bias = nn.Parameter(change, requires_grad=False), None

    def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        step = steps[layer.name]
        copies = step.repeat_interleave(len(output) // len(step))  # a layer may see parts of an image as a batch
        return output + copies.view(-1, *[1] * (output.dim() - 1)) * moved(*inputs)

    return module.register_forward_hook(add).remove


def _maps(before: nn.Module, after: nn.Module, images: Tensor) -> float:
    """Relative change of the affine maps of the regions around points of the plane through the first three images.

    The map at a point has its two slopes along the plane and its constant. Differences and maps are measured in the
    Frobenius norm, and the means of both over the points are divided.
    """
    if len(images) < 3:
        raise ValueError("a plane needs three images")
    origin, first, second = images[:3]
    middle = (torch.arange(SIDE, device=images.device) + 0.5) / SIDE
    grid = torch.cartesian_prod(middle, middle).to(images.dtype)
    a, b = (share.view(-1, *[1] * origin.dim()) for share in grid.T)
    points, change, size = origin + a * (first - origin) + b * (second - origin), 0.0, 0.0
    for part, share in zip(points.split(SIDE), grid.split(SIDE), strict=True):
        found = []
        for model in (before, after):
            along = [jvp(model, (part,), ((end - origin).expand_as(part),)) for end in (first, second)]
            slopes = torch.stack([moved for _, moved in along]).double()
            constant = along[0][0].double() - (share.T[..., None] * slopes).sum(0)
            found.append(torch.cat([slopes, constant[None]]).movedim(1, 0).flatten(1))
        change += (found[1] - found[0]).norm(dim=1).sum().item()
        size += found[0].norm(dim=1).sum().item()
    return change / size


def plot(table: pd.DataFrame) -> Figure:
    """The table of `measure` as one figure: what is kept, how far weights moved, their directions, and the codes.

    Each panel has a line for each layer, the network's input on top. What could not be computed is left out.
    """
    layers = table[table["layer"] != TOTAL].reset_index(drop=True)
    height = max(3.2, 1.6 + 0.2 * len(layers))
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(10.5, height), sharey=True)
    colour, places = figures.PALETTE, np.arange(len(layers))
    ranks = layers["effective_rank_OUT_after"] / layers["effective_rank_OUT_before"]
    kept = {"weights": "kept_weights", "filters": "kept_filters", "parameters": "kept_parameters", "MACs": "kept_macs"}
    moved = {"relative error": "relative_error", "norm loss": "norm_loss"}
    panels = (
        ("kept share", {label: layers[name] for label, name in kept.items()}),
        ("weights moved", {label: layers[name] for label, name in moved.items()}),
        ("effective rank, OUT", {"afterwards / before": ranks}),
        ("code changed", {"share of bits": layers["code_change"]}),
    )
    for axis, (title, series) in zip(axes, panels, strict=True):
        for place, ((label, values), mark) in enumerate(zip(series.items(), "oDs^", strict=False)):
            lines = places + 0.18 * (place - (len(series) - 1) / 2)  # side by side where values are equal
            axis.plot(values, lines, mark, color=colour[place], label=label, markersize=4)
        axis.set(
            xticks=(0, 0.5, 1),
            title=title,
            xlim=(-0.03, max(1.03, *(1.05 * v.max() for v in series.values() if v.notna().any()))),
        )
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35 / height), ncols=1)
    axes[0].set(yticks=places, yticklabels=layers["layer"], ylim=(len(layers) - 0.4, -0.6))
    axes[0].tick_params(axis="y", labelsize=8)
    return figure
