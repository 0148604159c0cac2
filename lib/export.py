"""A network in files that load without this process: weights with the JSON that rebuilds it, torch.export, and ONNX.

A compressed network has shapes that no constructor gives. The JSON names a function that builds the dense network, and
the attributes and layers in which the compressed one differs from it. Rebuilding imports that function by its name and
unpickles nothing; layers that are new may only be of `torch.nn` and of this library.
"""

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lib import masks, models
from lib.provenance import CompanionError, imported, own_name, write_atomically

OPSET = 18  # of ONNX
FILES = {"weights": "network.safetensors", "structure": "network.json", "torch": "network.pt2", "onnx": "network.onnx"}
ORIGINS = ("torch.nn.", "lib.")  # of classes that a file may name
STATE = set(vars(nn.Module()))  # what every module has


def save(
    model: nn.Module,
    folder: Path | str,
    images: Tensor,
    *,
    builder: str = "",
    arguments: Mapping[str, object] | None = None,
    formats: tuple[str, ...] = ("torch", "onnx"),
) -> pd.DataFrame:
    """Write a network to a folder, load every file again, and compare the outputs.

    Args:
        model: is saved in evaluation mode and stays as it is; masks and parametrizations become weights.
        folder: is made if it is missing; files of an earlier call are replaced.
        images: at least two, as the network takes them (n, ...); n stays free in the files.
        builder: "package.module:function" that builds the dense network; a network of `models.build` knows its own.
        arguments: of that function, plain values.
        formats: "torch" for a `torch.export` program, "onnx" for ONNX of the opset OPSET, beside the weights.

    Returns:
        A row for each file: `file`, `bytes`, and `difference`, the largest absolute one of the outputs once loaded.

    Raises:
        CompanionError: for a network without a builder, one that its builder's JSON cannot describe or that cannot be
            traced, and for a missing package.
    """
    folder, plain = Path(folder), masks.permanent(model).eval().requires_grad_(False)
    place = next(plain.parameters())
    images = images.to(place) if images.is_floating_point() else images.to(place.device)
    write(plain, folder / FILES["weights"], builder=builder, arguments=arguments)
    text = _metadata(folder / FILES["weights"])
    write_atomically(folder / FILES["structure"], text.encode())
    with torch.no_grad():
        expected = plain(images)
        found = {"weights": _distance(rebuild(folder)(images), expected), "structure": float("nan")}
        if formats:
            program = _program(plain, images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            if "torch" in formats:
                torch.export.save(program, folder / FILES["torch"])
                loaded = torch.export.load(folder / FILES["torch"]).module()
                found["torch"] = _distance(loaded(images), expected)
            if "onnx" in formats:
                found["onnx"] = _onnx(program, folder / FILES["onnx"], images, expected)
    rows = [(FILES[kind], (folder / FILES[kind]).stat().st_size, found[kind]) for kind in found]
    return pd.DataFrame(rows, columns=["file", "bytes", "difference"])


def write(
    model: nn.Module, path: Path | str, *, builder: str = "", arguments: Mapping[str, object] | None = None
) -> None:
    """Write the weights of a network as one safetensors file whose metadata rebuild it; arguments as `save`."""
    structure, tensors = describe(masks.permanent(model), builder, arguments)
    metadata = {"network": json.dumps(structure, indent=1)}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata))


def describe(
    model: nn.Module, builder: str = "", arguments: Mapping[str, object] | None = None
) -> tuple[dict, dict[str, Tensor]]:
    """What rebuilds a network: plain values for a JSON, and tensors by name.

    Raises:
        CompanionError: without a builder, or for a part that is not plain, by its name.
    """
    made = {"builder": builder, "arguments": dict(arguments or {})} if builder else getattr(model, "made_by", None)
    if not made:
        raise CompanionError('The function that builds the network is unknown: pass builder="package.module:function".')
    skeleton, layers = _built(made), {}
    twins = dict(skeleton.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        if entry := _entry(path, module, twins.get(path)):
            layers[path] = entry
    here = dict(model.named_modules(remove_duplicate=False))
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first, tensors, tied = {}, {}, {}
    for name, tensor in named:
        if first.setdefault(id(tensor), name) == name:
            tensors[name] = tensor.detach().cpu().contiguous().clone()
        else:
            tied[name] = first[id(tensor)]
    structure = made | {
        "layers": layers,
        "removed": [path for path in twins if path not in here and path.rpartition(".")[0] in here],
        "tied": tied,
        "parameters": [name for name, _ in model.named_parameters(remove_duplicate=False)],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "surviving": getattr(model, "surviving", {}),
    }
    return structure, tensors


def rebuild(path: Path | str) -> nn.Module:
    """The network that `save` wrote to a folder, or `write` to a file, in evaluation mode on the CPU.

    Raises:
        CompanionError: for files that are missing or damaged, or a builder that is not there any more.
    """
    path = Path(path)
    file = path / FILES["weights"] if path.is_dir() else path
    try:
        tensors, structure = safetensors.torch.load_file(file), json.loads(_metadata(file))
    except (OSError, SafetensorError, ValueError) as error:
        raise CompanionError(f"{file} cannot be read as a network ({error}): export it again.") from error
    model = _built(structure)
    for name in structure["removed"]:
        parent, _, own = name.rpartition(".")
        del model.get_submodule(parent)._modules[own]
    for name, entry in structure["layers"].items():
        _restore(model, name, entry)
    for name in [*tensors, *structure["tied"]]:
        parent, _, own = name.rpartition(".")
        module, source = model.get_submodule(parent), structure["tied"].get(name)
        if source:
            module._parameters[own] = model.get_parameter(source)
        elif name in structure["parameters"]:
            module._parameters[own] = nn.Parameter(tensors[name], name not in structure["frozen"])
        else:
            module._buffers[own] = tensors[name]
    model.made_by = {name: structure[name] for name in ("builder", "arguments")}
    if structure["surviving"]:
        model.surviving = structure["surviving"]
    return model.eval()


def _built(made: Mapping[str, object]) -> nn.Module:
    """The dense network; an own function is called by `models.build`, which keeps the random state."""
    builder, arguments = str(made["builder"]), dict(made["arguments"])
    if builder == "lib.models:build":
        return models.build(**arguments)
    if not own_name(builder):
        raise CompanionError(f"{builder!r} names no builder: write package.module:function.")
    with torch.random.fork_rng(devices=[]):
        return imported(builder)(**arguments)


def _metadata(file: Path) -> str:
    with safetensors.safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get("network")
    if text is None:
        raise ValueError("it holds weights alone")
    return text


def _plain(value: object) -> bool:
    """Whether a value survives JSON, but for tuples, which come back as tuples."""
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _attributes(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if name not in STATE | {"surviving", "made_by"}}


def _entry(path: str, module: nn.Module, twin: nn.Module | None) -> dict:
    """What distinguishes a module from the one that the builder makes there; empty if nothing does."""
    empty = [name for name, value in module._parameters.items() if value is None]
    if twin is not None and type(module) is type(twin):
        known = _attributes(twin)
        changed = {k: v for k, v in _attributes(module).items() if _plain(v) and (k not in known or known[k] != v)}
        emptied = [name for name in empty if twin._parameters.get(name) is not None]
        return ({"attributes": changed} if changed else {}) | ({"empty": emptied} if emptied else {})
    origin = f"{type(module).__module__}.{type(module).__qualname__}"
    if not origin.startswith(ORIGINS):
        raise CompanionError(f"{path} is a {origin}, which no file may name: use layers of torch.nn there.")
    attributes = _attributes(module)
    odd = [name for name, value in attributes.items() if not _plain(value)]
    if odd:
        raise CompanionError(f"{path} has the attribute {odd[0]}, which is no plain value: build it in the builder.")
    return {"class": origin, "attributes": attributes, "empty": empty}


def _restore(model: nn.Module, path: str, entry: dict) -> None:
    if "class" in entry:
        if not entry["class"].startswith(ORIGINS):
            raise CompanionError(f"{path} names {entry['class']}, which no file may: export it again.")
        package, _, name = entry["class"].rpartition(".")
        kind = getattr(importlib.import_module(package), name)
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        parent, _, own = path.rpartition(".")
        model.get_submodule(parent)._modules[own] = module
    module = model.get_submodule(path)
    for name, value in entry.get("attributes", {}).items():
        setattr(module, name, _tuples(value))
    for name in entry.get("empty", []):
        module._parameters[name] = None


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for output in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(output)


def _distance(outputs: object, expected: object) -> float:
    pairs = zip(_tensors(outputs), _tensors(expected), strict=True)
    return max((one.double() - other.double().to(one.device)).abs().max().item() for one, other in pairs)


def _program(model: nn.Module, images: Tensor) -> "torch.export.ExportedProgram":
    try:
        return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    except Exception as error:  # a user's forward pass may raise anything
        reason = str(error).strip().splitlines()[0][:200]
        raise CompanionError(f"torch.export cannot trace the network ({reason}): pass formats=().") from error


def _onnx(program: "torch.export.ExportedProgram", path: Path, images: Tensor, expected: object) -> float:
    """Write an ONNX file; the largest difference of its outputs by onnxruntime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise CompanionError(f"{error.name} is not installed: pip install -r requirements.txt.") from None
    torch.onnx.export(program, (), path, opset_version=OPSET, dynamo=True, external_data=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images.cpu().numpy()})
    return _distance([torch.from_numpy(output) for output in outputs], [part.cpu() for part in _tensors(expected)])
