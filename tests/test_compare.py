"""What a compression did to a network: oracles for each column, and every kind of network and compression."""

import math
import time
from copy import deepcopy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

from lib import channels, compare, latent, masks, models, spline, truncation
from lib.provenance import CompanionError
from lib.spline import partition

SIZES = {
    "resnet18": 32,
    "mobilenet_v2": 32,
    "densenet121": 32,
    "vgg11_bn": 32,
    "squeezenet1_0": 64,
    "shufflenet_v2_x0_5": 32,
    "convnext_tiny": 32,
}
NETWORKS = ("resnet8", "mlp", "digits_cnn", "efficientnet_lite0", *SIZES)


class Own(nn.Module):
    """A small network as a user writes one: a gate, a shared layer, a transposed convolution, one in one dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.twice, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.line, self.head = nn.Conv1d(6, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        x = self.first(x)
        x = self.twice(self.twice(x * self.gate(x).sigmoid()).relu())
        return self.head(self.line(self.up(x).flatten(2)).relu().mean(2))


def network(name):
    torch.manual_seed(0)
    if name == "squeezenet1_0":
        return torchvision.models.squeezenet1_0(num_classes=10).eval(), SIZES[name]
    if name in SIZES:
        model = torchvision.models.get_model(name, num_classes=10)
        if name == "vgg11_bn":
            model.classifier = nn.Linear(512 * 49, 10)  # its own three layers have 120 million weights
    elif name == "own":
        model = Own()
    elif name == "vit_b_16":
        model = torchvision.models.VisionTransformer(32, 16, 2, 4, 32, 64, num_classes=10)
    else:
        model = models.build(name, size=32)
    nn.init.normal_(model.get_submodule(models.head_name(model)).weight, std=0.05)  # that of a transformer is zero
    return model.eval(), SIZES.get(name, 32)


def masked(model, fraction=0.5):
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, channels.LAYERS):
            module.weight.data *= masks.magnitude_mask(module.weight.data, fraction, "lowest")
    return copy


def images(n, size):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*NETWORKS, "vit_b_16", "own"])
def test_every_layer_of_every_network_is_measured(name):
    model, size = network(name)
    x = images(3, size)
    table = compare.measure(model, masked(model), x, torch.tensor([0, 1, 2]))
    layers, total = table.iloc[:-1], table.iloc[-1]
    kernels = [m.weight for m in model.modules() if isinstance(m, channels.LAYERS)]
    attention = sum(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    assert len(layers) == len(kernels) + attention and (layers["match"] == "same").all()
    assert layers[["ap2", "t_ap3", "relative_error", "norm_loss", "kept_weights"]].notna().all(axis=None)
    assert total["kept_macs"] == total["kept_parameters"] == total["mcb"] == 1
    assert total["macs"] == models.count_macs(model, x[:1].shape)
    assert total["kl"] >= 0 and 0 <= total["accuracy_after"] <= 1
    assert total["map_change"] > 0 and total["curvature_ap3"] >= 0 and 0 < total["code_change"] < 1
    for column, word in (("curvature_ap3", "curvature"), ("code_change", "code"), ("macs", "MACs")):
        assert layers["reason"].str.contains(word).eq(layers[column].isna()).all(), column


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "squeezenet1_0"])
@pytest.mark.parametrize("recorded", [True, False])
def test_fewer_channels_are_matched_by_those_that_survive(name, recorded):
    model, size = network(name)
    groups = channels.find(model, size)
    widths = {group: max(1, int(dense * share)) for group, dense, share in zip(
        groups.names, groups.dense, np.linspace(0.5, 1, len(groups)), strict=True)}  # fmt: skip
    pruned = channels.prune(model, widths, size=size)
    zeroed = deepcopy(model)  # the same filters and what reads them, set to zero
    for layer, module in zeroed.named_modules():
        if isinstance(module, channels.LAYERS):
            outputs, inputs = channels.surviving(pruned, layer, tuple(module.weight.shape[:2]))
            kept = torch.zeros_like(module.weight)
            kept[torch.tensor(outputs)[:, None], torch.tensor(inputs)] = 1
            module.weight.data *= kept
    if not recorded:
        del pruned.surviving
    found, expected = (compare.measure(model, other, size=size) for other in (pruned, zeroed))
    same = ["ap2", "t_ap3", "relative_error", "norm_loss", "kept_weights", "kept_filters", "entropy_OUT_after"]
    np.testing.assert_allclose(found[same].to_numpy(float), expected[same].to_numpy(float), rtol=1e-9)
    macs, parameters = channels.count(groups, np.array([*widths.values()]))
    dense = channels.count(groups, groups.dense)
    total = found.iloc[-1]
    assert total["kept_macs"] == pytest.approx(macs / dense[0])
    assert total["kept_parameters"] == pytest.approx(parameters / dense[1])
    shares = 1 - np.array([*widths.values()]) / groups.dense
    assert total["std"] == pytest.approx(shares.std())


def test_channels_of_a_retrained_network_without_a_record_are_refused_by_layer():
    model, _ = network("resnet8")
    pruned = channels.prune(model, {"layer1.0.conv1": 8})
    del pruned.surviving
    pruned.layer1[0].conv1.weight.data += 0.01
    table = compare.measure(model, pruned, images(4, 32)).set_index("layer")
    assert math.isnan(table.loc["layer1.0.conv1", "ap2"])
    assert "no record says which channels are left" in table.loc["layer1.0.conv1", "reason"]
    assert table.loc["layer1.0.conv2", "match"] == "fewer channels" and table.loc["total", "kl"] > 0
    assert "without layer1.0.conv1" in table.loc["total", "reason"]


def test_factorised_layers_are_multiplied_out():
    model, _ = network("digits_cnn")
    model.features[0] = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    small, multiplied = deepcopy(model), deepcopy(model)
    for place, form, rank in ((0, "OUT", 5), (3, "OUT.KH", 20), (7, "tucker2", (8, 8))):
        small.features[place] = truncation.factorise(model.features[place], form, rank)
        kernel = truncation.approximate(model.features[place].weight, form, rank)
        multiplied.features[place].weight.data = kernel.to(torch.float32)
    left, values, right = torch.linalg.svd(model.classifier.weight.detach(), full_matrices=False)
    factors = nn.Linear(len(right[0]), 3, bias=False), nn.Linear(3, 10)
    factors[0].weight.data, factors[1].weight.data = right[:3], left[:, :3] * values[:3]
    factors[1].bias.data = model.classifier.bias.data.clone()
    small.classifier, multiplied.classifier.weight.data = nn.Sequential(*factors), factors[1].weight @ factors[0].weight
    x = images(4, 32)
    found, expected = (compare.measure(model, other, x).set_index("layer") for other in (small, multiplied))
    for column in ("ap2", "t_ap3", "norm_loss", "norm_loss_OUT", "curvature_ap3", "code_change", "kl", "map_change"):
        np.testing.assert_allclose(found[column], expected[column], rtol=2e-3, atol=1e-6, err_msg=column)
    assert found.loc["features.0", "norm_loss_OUT"] == pytest.approx(found.loc["features.0", "norm_loss"], abs=1e-6)
    own = truncation.factorise(model.features[0], "OUT", 5)
    share = sum(p.numel() for p in own.parameters()) / model.features[0].weight.numel()
    assert found.loc["features.0", "kept_parameters"] == pytest.approx(share)
    assert found.loc["features.0", "kept_macs"] == pytest.approx(share)


def test_weights_are_measured_as_the_packages_measure_them():
    model, _ = network("resnet8")
    other = masked(model)
    row = compare.measure(model, other, cuts=("OUT", "OUT.KH")).set_index("layer").loc["layer2.0.conv1"]
    before, after = (m.layer2[0].conv1.weight.detach() for m in (model, other))
    assert row["ap2"] == pytest.approx(latent.ap2(before, after))
    assert row["t_ap3"] == pytest.approx(latent.t_ap3(before, after))
    assert row["relative_error"] == pytest.approx(truncation.relative_error(before, after))
    assert row["norm_loss"] == pytest.approx(truncation.norm_loss(before, after))
    for cut in ("OUT", "OUT.KH"):
        assert row[f"entropy_{cut}_before"] == pytest.approx(truncation.entropy(truncation.spectrum(before, cut)))
        assert row[f"effective_rank_{cut}_after"] == pytest.approx(truncation.effective_rank(after, cut))


def test_norm_loss_by_cut_is_that_of_the_best_kernel_of_the_same_rank():
    model, _ = network("resnet8")
    other, kernel = deepcopy(model), model.layer3[0].conv1.weight.detach()
    other.layer3[0].conv1.weight.data = truncation.measures.smallest_kept(kernel, "IN", 20)
    row = compare.measure(model, other).set_index("layer").loc["layer3.0.conv1"]
    best = truncation.norm_loss(kernel, truncation.truncate(kernel, "IN", 20))
    assert row["norm_loss_IN"] == pytest.approx(best, rel=1e-4) and row["norm_loss"] > best
    assert row["norm_loss_KH"] == 0


def test_code_change_is_the_distance_of_the_codes():
    model, _ = network("resnet8")
    other, x = masked(model), images(20, 32)
    table = compare.measure(model, other, x).set_index("layer")
    codes = [spline.activation_codes(one, x) for one in (model, other)]
    distance = dict(zip(codes[0].names, spline.code_distance(*codes), strict=True))
    assert table.loc["layer1.0.conv2", "code_change"] == pytest.approx(distance["layer1.0.bn2"], abs=1e-4)
    bits = np.average(list(distance.values()), weights=codes[0].units)
    assert table.loc["total", "code_change"] == pytest.approx(bits, abs=1e-4)


def test_curvature_is_the_second_order_of_the_divergence_of_the_outputs():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).double()
    x, other, step = images(30, 8).double(), deepcopy(model), 1e-3
    change = torch.randn(model[0].weight.shape, generator=torch.Generator().manual_seed(0)).double() * step
    other[0].weight.data += change
    logs = [one(x).log_softmax(1) for one in (model, other)]
    kl = nn.functional.kl_div(logs[1], logs[0], reduction="batchmean", log_target=True).item()
    table = compare.measure(model, other, x.float())
    assert table.iloc[0]["curvature_ap3"] == pytest.approx(kl, rel=0.02)
    assert table.iloc[1]["curvature_ap3"] == 0 and table.iloc[2]["curvature_ap3"] == table.iloc[0]["curvature_ap3"]


def test_curvature_over_many_classes_agrees_with_all_of_them(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30))
    other, x = masked(model), torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn = compare.measure(model, other, x)["curvature_ap3"]
    monkeypatch.setattr(compare, "DRAWS", 30)
    np.testing.assert_allclose(drawn, compare.measure(model, other, x)["curvature_ap3"], rtol=0.25)


def test_map_change_agrees_with_the_exact_partition():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 3))
    other = masked(model, 0.3)
    exact = partition.change(model, other, ((0, 1), (0, 1)))["maps"]
    table = compare.measure(model, other, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert table.iloc[-1]["map_change"] == pytest.approx(exact, rel=0.1)


def test_nothing_changes_in_equal_networks_and_the_networks_stay_as_they_are():
    model, _ = network("resnet8")
    model.train()
    model.bn1.eval()
    model.fc.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = compare.measure(model, model, images(4, 32), torch.zeros(4, dtype=torch.int64))
    zero = [
        "ap2",
        "ap2_share",
        "t_ap3",
        "relative_error",
        "norm_loss",
        "curvature_ap3",
        "norm_loss_OUT",
        "norm_loss_KW",
    ]
    assert np.nanmax(np.abs(table[zero].to_numpy(float))) == 0
    total = table.iloc[-1]
    assert total["kl"] == total["map_change"] == total["std"] == total["code_change"] == 0
    assert total["accuracy_before"] == total["accuracy_after"]
    assert model.training and not model.bn1.training and not model.fc.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_a_small_change(dtype):
    model, _ = network("resnet8")
    table = compare.measure(model, deepcopy(model).to(dtype), images(4, 32))
    error = table["relative_error"]
    assert (error > 0).all() and (error < torch.finfo(dtype).eps).all() and table.iloc[-1]["kl"] < 0.01
    assert table.iloc[-1]["kept_parameters"] == 1 and (table["norm_loss_OUT"].dropna() == 0).all()
    pruned = channels.prune(model, {"layer1.0.conv1": 8}).to(dtype)
    del pruned.surviving
    assert compare.measure(model, pruned)["match"].ne("").sum() == 8


def test_quantised_linear_layers_are_compared():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    table = compare.measure(model, small, images(5, 4))
    assert (table["relative_error"] < 0.02).all() and (table["relative_error"] > 0).all()
    assert table.iloc[-1]["kl"] < 0.01


def test_masks_and_parametrizations_count_as_weights():
    model, _ = network("digits_cnn")
    model.features[0] = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    other = deepcopy(model)
    prune.l1_unstructured(other.features[3], "weight", 0.5)
    other.features[3].weight_orig.data += 0  # a step of an optimizer would change this one
    parametrize.register_parametrization(other.classifier, "weight", Half())
    table = compare.measure(model, other).set_index("layer")
    assert table.loc["features.3", "kept_weights"] == pytest.approx(0.5)
    assert table.loc["classifier", "relative_error"] == pytest.approx(0.5)
    assert prune.is_pruned(other) and parametrize.is_parametrized(other.classifier)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12, bias=False), nn.ReLU(), nn.Linear(12, 12, bias=False))
    model[3].weight = model[1].weight
    other = deepcopy(model)
    other[1].weight.data *= 0.5
    table = compare.measure(model, other, images(4, 2))
    assert table["ap2"].nunique() == 1 and table.iloc[-1]["kept_parameters"] == 1


@pytest.mark.parametrize("which", ["dense", "compressed"])
def test_weights_that_are_not_finite_are_refused_by_name(which):
    model, _ = network("resnet8")
    broken = deepcopy(model)
    broken.layer2[0].conv1.weight.data[0, 0, 0, 0] = math.nan
    pair = (broken, model) if which == "dense" else (model, broken)
    with pytest.raises(CompanionError, match=f"layer2.0.conv1.weight of the {which} network holds NaN"):
        compare.measure(*pair)


def test_what_cannot_be_compared_is_a_row_with_its_reason():
    model, _ = network("digits_cnn")
    model.features[0] = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    other = deepcopy(model)
    other.features[3] = nn.Identity()
    other.features[7] = nn.Sequential(nn.Conv2d(32, 4, 1), nn.ReLU(), nn.Conv2d(4, 64, 3, padding=1))
    other.features.add_module("extra", nn.Conv2d(64, 64, 1))
    table = compare.measure(model, other, images(4, 32)).set_index("layer")
    assert "Identity stands in its place" in table.loc["features.3", "reason"]
    assert "cannot be multiplied out: ReLU" in table.loc["features.7", "reason"]
    assert table.loc[["features.3", "features.7"], "ap2"].isna().all()
    assert "not in the dense network: features.extra" in table.loc["total", "reason"]
    zero = deepcopy(model)
    zero.features[3].weight.data.zero_()
    row = compare.measure(model, zero).set_index("layer").loc["features.3"]
    assert row["norm_loss"] == row["relative_error"] == 1 and "the kernel is zero" in row["reason"]


def test_a_network_that_cannot_run_on_the_size_says_so_and_keeps_its_weights_measures():
    model, _ = network("vit_b_16")
    table = compare.measure(model, masked(model), size=20)
    assert "MACs of one image of shape (3, 20, 20)" in table.iloc[-1]["reason"] and table.iloc[-1]["ap2"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("no", nn.Linear(2, 2)), "dense network is a str"), ((nn.ReLU(), nn.ReLU()), "nothing to compare")],
)
def test_misuse_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare.measure(*arguments)
    with pytest.raises(ValueError, match="equal number"):
        compare.measure(nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(3, 2), torch.zeros(2))


def test_25_million_parameters_take_less_than_ten_seconds_without_images():
    model = torchvision.models.resnet50(num_classes=1000)
    other = masked(model)
    start = time.process_time()
    table = compare.measure(model, other, size=224)
    assert len(table) == 55 and time.process_time() - start < 20  # seconds of one core, twice what was measured


def test_the_figure_has_a_line_for_each_layer_and_every_column_is_explained():
    model, _ = network("resnet8")
    table = compare.measure(model, masked(model))
    figure = compare.plot(table)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(table["layer"])[:-1]
    stems = [name.replace("{cut}", cut) for name in compare.explained()["column"] for cut in compare.SINGLE]
    assert list(table.columns) == [name for name in dict.fromkeys(stems) if name in set(table.columns)] or set(
        table.columns
    ) == set(stems)


def test_functions_that_are_no_modules_leave_the_sums_unharmed():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(12, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(nn.functional.linear(x.flatten(1), self.inner.weight, self.inner.bias).relu())

    model = Functional()
    table = compare.measure(model, masked(model), images(4, 2)).set_index("layer")
    assert "does not call" in table.loc["inner", "reason"] and table.loc["outer", "curvature_ap3"] > 0
    assert functional_call(model, dict(model.named_parameters()), (images(1, 2),)).shape == (1, 3)
