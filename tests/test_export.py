"""A network exported loads in a fresh process and in other tools, with equal outputs."""

import json
import subprocess
import sys
from copy import deepcopy

import onnx
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from lib import channels, export, latent, models, spaces, spline, truncation
from lib.provenance import CompanionError, root

FRESH = """
import sys, torch, onnxruntime
from lib import export
for folder in sys.argv[1:]:
    images = torch.load(f"{folder}/images.pt", weights_only=True)
    outputs = {"weights": export.rebuild(folder)(images)}
    outputs["torch"] = torch.export.load(f"{folder}/network.pt2").module()(images)
    session = onnxruntime.InferenceSession(f"{folder}/network.onnx", providers=["CPUExecutionProvider"])
    outputs["onnx"] = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    torch.save({name: output.detach() for name, output in outputs.items()}, f"{folder}/outputs.pt")
"""


SHAPE = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
VIT = {"builder": "torchvision.models:VisionTransformer", "arguments": SHAPE | {"num_classes": 10}}


def built(name):
    model = models.build(name, seed=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(model.get_submodule(models.head_name(model)).weight, std=0.05)
    return model.eval()


def transformer():
    """A vision transformer of two layers, as torchvision's own function builds it."""
    model = torchvision.models.VisionTransformer(**VIT["arguments"])
    nn.init.normal_(model.heads.head.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    model.made_by = VIT
    return model.eval()


def masked(model):
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)
    return copy


CASES = {
    "pruned resnet20": lambda: spaces.prune(built("resnet20"), 0.5),
    "merged resnet8": lambda: spline.merge(built("resnet8"), 0.5),
    "factorised vgg16": lambda: truncation.compress(m := built("vgg16-x0.25"), truncation.plan(m, 0.5, "tucker2")),
    "masked mobilenet_v2": lambda: masked(built("mobilenet_v2-x0.5")),
    "sparse vit": lambda: latent.sparsify(transformer(), "lowest", 0.5),
}


def test_outputs_are_equal_after_loading_in_a_fresh_process(tmp_path):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = {}
    for name, make in CASES.items():
        folder, model = tmp_path / name.replace(" ", "_"), make()
        table = export.save(model, folder, images).set_index("file")
        with torch.no_grad():
            expected[folder] = model(images)
        scale = expected[folder].abs().max().item()
        assert (table["difference"].dropna() <= 1e-5 * max(1, scale)).all(), name
        assert (table["bytes"] == [(folder / file).stat().st_size for file in table.index]).all()
        torch.save(images[:2], folder / "images.pt")  # another number of images than was traced
    subprocess.run([sys.executable, "-c", FRESH, *map(str, expected)], check=True, cwd=root())
    for folder, outputs in expected.items():
        for kind, loaded in torch.load(folder / "outputs.pt", weights_only=True).items():
            scale = max(1, outputs.abs().max().item())
            assert torch.allclose(loaded, outputs[:2], rtol=0, atol=1e-5 * scale), (folder.name, kind)


def test_a_rebuilt_network_is_the_same_network(tmp_path):
    model = spaces.prune(models.build("resnet8", shortcut="A"), 0.6).half()
    model.conv1.weight.requires_grad_(False)
    export.write(model, tmp_path / "small.safetensors")
    again = export.rebuild(tmp_path / "small.safetensors")
    assert again.surviving == model.surviving and not again.training
    for (name, one), (other, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two) and one.requires_grad == two.requires_grad
    assert [type(m) for m in model.modules()] == [type(m) for m in again.modules()]
    wider = channels.find(again.float()).names  # it can be pruned again
    assert channels.prune(again, {wider[0]: 2}) and json.loads(export._metadata(tmp_path / "small.safetensors"))


def test_a_network_of_another_library_needs_its_builder_named(tmp_path):
    model = spaces.prune(torchvision.models.squeezenet1_0(num_classes=4), 0.5, size=64).eval()
    with pytest.raises(CompanionError, match="pass builder="):
        export.write(model, tmp_path / "small.safetensors")
    builder = {"builder": "torchvision.models:squeezenet1_0", "arguments": {"num_classes": 4}}
    x = torch.randn(2, 3, 64, 64)
    table = export.save(model, tmp_path, x, formats=(), **builder)
    assert list(table["file"]) == ["network.safetensors", "network.json"] and table["difference"][0] == 0
    assert torch.equal(export.rebuild(tmp_path)(x), model(x))


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tied_net.py").write_text(
        "from torch import nn\n"
        "def make(width):\n"
        "    net = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False))\n"
        "    net[2].weight = net[0].weight\n"
        "    return net\n"
    )
    builder = {"builder": "tied_net:make", "arguments": {"width": 3}}
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    export.write(model, tmp_path / "tied.safetensors", **builder)
    again = export.rebuild(tmp_path / "tied.safetensors")
    assert again[2].weight is again[0].weight and torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda model: model.add_module("fc", Foreign()), "fc is a .*Foreign, which no file may name"),
        (lambda model: setattr(model, "made_by", {"builder": "os", "arguments": {}}), "names no builder"),
        (lambda model: setattr(model, "made_by", {"builder": "nowhere:net", "arguments": {}}), "no module nowhere"),
    ],
)
def test_what_cannot_be_described_is_refused_by_name(change, sentence, tmp_path):
    model = models.build("resnet8")
    change(model)
    with pytest.raises(CompanionError, match=sentence):
        export.write(model, tmp_path / "none.safetensors")


class Foreign(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)


def test_damaged_and_plain_files_are_refused(tmp_path):
    models.save(models.build("resnet8"), tmp_path / "plain.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    for name in ("plain", "damaged", "missing"):
        with pytest.raises(CompanionError, match=f"{name}.safetensors cannot be read as a network"):
            export.rebuild(tmp_path / f"{name}.safetensors")


def test_a_file_cannot_name_a_class_of_another_library(tmp_path):
    model = models.build("resnet8")
    structure, _ = export.describe(model)
    structure["layers"]["fc"] = {"class": "subprocess.Popen", "attributes": {}}
    with pytest.raises(CompanionError, match="which no file may"):
        export._restore(model, "fc", structure["layers"]["fc"])


def test_a_network_that_cannot_be_traced_is_exported_without(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "branching.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) if x.sum() > 0 else x\n"
        "def make():\n"
        "    return Net(2, 2)\n"
    )
    from branching import make

    images = torch.ones(2, 2)
    with pytest.raises(CompanionError, match=r"pass formats=\(\)"):
        export.save(make(), tmp_path, images, builder="branching:make")
    assert len(export.save(make(), tmp_path, images, builder="branching:make", formats=())) == 2


def test_the_opset_is_the_stated_one(tmp_path):
    model = models.build("mlp", size=4)
    export.save(model, tmp_path, torch.randn(2, 3, 4, 4), formats=("onnx",))
    loaded = onnx.load(tmp_path / "network.onnx")
    assert {entry.version for entry in loaded.opset_import if entry.domain == ""} == {export.OPSET}
