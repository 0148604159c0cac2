"""The profiles for GPUs name networks, layers and data sets that exist, at the size that they plan with."""

import re
from functools import cache

import pandas as pd
import pytest
import torch

from lib import baselines, data, models, spaces, spline
from lib.latent import analysis as latent_analysis
from lib.latent import trials as latent_trials
from lib.parameters import DATASETS, notebook_names, profile_parameters, split_name
from lib.provenance import root
from lib.spaces import samplers
from lib.spaces import trials as spaces_trials
from lib.spline import measures
from lib.truncation import sweep
from lib.which import contest
from lib.which import trials as which_trials

PROFILES = ("gpu", "paper")
# Parameters with 10 classes. The papers' specifications and torchvision's tables of models (with another last layer);
# by hand from the layer tables: alexnet, preresnet101 (tests/test_models.py), vit_tiny: 12 x (12 x 192^2 + 13 x 192),
# patches 192 x 49, one token, 65 positions, a norm, a head.
PARAMETERS = {
    "linear": 3072 * 10 + 10,
    "mlp": 3073 * 128 + 129 * 128 + 129 * 10,
    "vanilla_cnn": 2_605_194 + 960,
    "resnet8": 269_722 - 2 * 2 * (9 * (16**2 + 32**2 + 64**2) + 2 * (16 + 32 + 64)),
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet20-x2": 1_073_962,
    "resnet20-B": 272_474,
    "resnet32-B": 464_154 + 2752,  # two projections with their BatchNorm
    "resnet44-B": 658_586 + 2752,
    "resnet56-B": 855_770,
    "resnet20-x0.5": 68_050,
    "vgg16-x0.25": 923_130,
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "resnet50-imagenet": 23_528_522,
    "vgg16": 14_724_042,
    "alexnet": 23_357_514,
    "alexnet-ungrouped": 23_357_514 + (96 * 256 * 25 + 384 * 384 * 9 + 384 * 256 * 9) // 2,
    "preresnet101": 1_054_106,
    "vit_tiny": 12 * (12 * 192**2 + 13 * 192) + 192 * 49 + 192 + 65 * 192 + 2 * 192 + 193 * 10,
    "resnet50-pretrained": 25_557_032 - 990 * 2049,
    "vgg16-pretrained": 138_357_544 - 990 * 4097,
    "alexnet-pretrained": 61_100_840 - 990 * 4097,
    "vit_b_16-pretrained": 86_567_656 - 990 * 769,
    "efficientnet_lite0-pretrained": 4_652_008 - 990 * 1281,  # timm's table
}


@cache
def parameters(profile: str, number: str) -> dict:
    name = next(name for name in notebook_names() if name.startswith(number))
    return profile_parameters(profile, name)


def split(names: list[str]) -> list[tuple[str, str]]:
    return [tuple(name.split("/")) for name in names]


def dense_specs(profile: str) -> list[dict]:
    return baselines.baseline_specs(parameters(profile, "00"))


def named(profile: str) -> set[tuple[str, str]]:
    """(network, data set) of every file of a profile."""
    found = {(spec["network"], spec["dataset"]) for spec in dense_specs(profile)}
    for number in ("01", "02"):
        found |= set(split(parameters(profile, number)["public"]))
    found |= set(split(parameters(profile, "01")["pretrained"]))
    three, four, five = (parameters(profile, number) for number in ("03", "04", "05"))
    found |= set(split([three["main"], *three["public"], *three["trained"]]))
    found |= set(split([name for name in [*five["networks"], *five["wide"]] if "/" in name]))
    return found | {tuple(f"{name}/{four['dataset']}".split("/")[:2]) for name in four["networks"]}


ALL = sorted(set().union(*map(named, PROFILES)))
NETWORKS = sorted({network for network, _ in ALL})


@pytest.mark.parametrize("profile", PROFILES)
def test_every_file_says_its_cost_and_whether_it_has_run(profile):
    for name in notebook_names():
        first = (root() / "runs" / profile / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# ") and first.endswith(".")
        cost = re.search(r"about ([\d.]+) (minutes on one H200|H200-hours)", first)
        assert cost, first
        assert profile == "paper" or (cost[2].startswith("minutes") and float(cost[1]) <= 30)
        assert ("not run yet" in first) != (root() / "runs" / profile / f"{name}.claims.json").exists(), name


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_its_known_number_of_parameters(network):
    with torch.device("meta"):
        assert models.count_parameters(models.build(models.architecture(network))) == PARAMETERS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_one_batch(network):
    base, variant = split_name(network)
    name, side, reduced = network, 32, {}
    if variant in ("224", "pretrained"):
        name, side, reduced = base, 64, {"form": "imagenet", "size": 64}
    with torch.device("meta"):
        model = models.build(name, classes=100, **reduced)
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 100)


@pytest.mark.parametrize("dataset", sorted({dataset for _, dataset in ALL}))
def test_every_data_set_has_the_shape_that_networks_are_built_for(dataset):
    entry = DATASETS[dataset]
    folders = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "tiny-imagenet": "tiny-imagenet-200"}
    if not (data.data_dir() / folders[dataset]).exists():
        pytest.skip(f"{dataset} is not here")
    loaded = data.load(dataset, limit=entry["classes"])
    assert loaded.test.images.shape[1:] == (3, entry["size"], entry["size"]) and loaded.classes == entry["classes"]
    if dataset != "tiny-imagenet":  # of which a part may be here
        assert len(loaded.test) == 10_000 and len(loaded.validation) == 5000
        assert len(loaded.test.labels.unique()) == entry["classes"]


@pytest.mark.parametrize("profile", PROFILES)
def test_notebooks_find_their_networks_among_the_baselines(profile):
    known, one, two = dense_specs(profile), parameters(profile, "01"), parameters(profile, "02")
    for names, seeds in ((one["trained"], one["seeds"]), (two["trained"], two["seeds"])):
        for name in names:
            found = [baselines.find_baseline(name, known, seed) for seed in range(seeds)]
            assert {spec["source"] for spec in found} == {"trained"}, name
    for name in (*one["public"], *one["tasks_of"], *two["public"]):
        assert baselines.find_baseline(name, known)["source"] == "public", name
    assert all(step % 2 for step in two["steps"].values()) and two["part_step"] % 2


@pytest.mark.parametrize("profile", PROFILES)
def test_numbers_that_belong_together_fit(profile):
    three, four = parameters(profile, "03"), parameters(profile, "04")
    assert three["validation_images"] + three["test_images"] <= 10_000
    assert four["epochs"] % 4 == 0


@pytest.mark.parametrize("network", sorted({n.split("/")[0] for p in PROFILES for n in parameters(p, "02")["trained"]}))
def test_the_layers_of_paper_2_are_swept_in_every_network(network):
    spec, (base, variant) = {"network": network, "dataset": "cifar10"}, split_name(network)
    with torch.device("meta"):
        names = sweep.layer_names(baselines.untrained(spec))
        assert len(names) > 3
        model, last = models.build(base, form="imagenet" if variant else None), names[-1].removeprefix("network.")
        layer, kernel = sweep.LayerSweep(model, last), sweep.kernel(model.get_submodule(last))
        assert layer(torch.zeros(2, 3, 32, 32), [kernel, 0 * kernel], 2).shape == (2, 2, 10)


def latent_specs(profile: str) -> list[dict]:
    """The dense networks of paper 1's notebook: trained ones, then public ones."""
    known, one = dense_specs(profile), parameters(profile, "01")
    found = [baselines.find_baseline(name, known, seed) for name in one["trained"] for seed in range(one["seeds"])]
    found += [{"source": "public", "network": n, "dataset": d} for n, d in split([*one["public"], *one["pretrained"]])]
    return found + [baselines.find_baseline(name, known) | {"seen": one["seen"]} for name in one["tasks_of"]]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_cases_of_paper_1_are_different_and_its_lists_name_some_of_them(profile):
    one, specs = parameters(profile, "01"), latent_specs(profile)
    cases = latent_analysis.with_case(pd.DataFrame(specs))["case"].tolist()
    assert len(set(cases)) == len(cases) and 0.01 in one["tuning_lrs"]
    for name in ("drawn_cases", "masked", "layered"):
        assert set(one[name]) <= set(cases), name
    assert set(one["layered"]) <= {case for case, spec in zip(cases, specs, strict=True) if "epochs" in spec}
    assert one["drawn_cases"][-1] in one["masked"] and one["mask_fractions"][-1] in one["fractions"]  # of one figure


@pytest.mark.parametrize(
    "network", sorted({case.split(", ")[0] for profile in PROFILES for case in parameters(profile, "01")["layered"]})
)
def test_the_hidden_layers_of_paper_1_exist(network):
    with torch.device("meta"):
        model = baselines.untrained({"network": network, "dataset": "cifar10"})
    found = latent_trials.hidden_layers(model, 4)
    assert len(found) == 4 and models.head_name(model) not in found


@pytest.mark.parametrize("profile", PROFILES)
def test_the_regimes_of_paper_3_can_be_reached(profile):
    three = parameters(profile, "03")
    main = spaces_trials.dense_network(three["main"], three["source"], profile)
    for share in (*three["shares"], *three["levels"]):
        low, high = samplers.tilted_range(spaces_trials.prunable(main), spaces.Regime(share))
        assert low < 0.9 < 1.1 < high
    spaces.Regime(three["parameter_share"], "parameters").check(spaces_trials.prunable(main), samplers.FLOOR)
    middle = three["shares"][(len(three["shares"]) - 1) // 2]
    contest, kinds = spaces.Regime(middle), {"public": three["public"], "trained": three["trained"]}
    for what in spaces_trials.PRUNED:
        contest.check(spaces_trials.prunable(main, what), samplers.FLOOR)
    for source, name in ((source, name) for source, names in kinds.items() for name in names):
        contest.check(spaces_trials.prunable(spaces_trials.dense_network(name, source, profile)), 0.25)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_layers_of_notebook_05_exist_and_its_budgets_can_be_reached(profile):
    five, known = parameters(profile, "05"), dense_specs(profile)
    for spec in which_trials.networks([*five["networks"], *five["wide"]], known, five["precision"]):
        with torch.device("meta"):
            model = baselines.untrained(spec)
        assert 5 <= len(latent_trials.hidden_layers(model, five["layers"])) <= five["layers"]
    for spec in which_trials.networks(five["contest_networks"], known, five["precision"]):
        for cost in contest.COSTS:
            spaces.Regime(min(five["budgets"]), cost).check(spaces_trials.prunable(spec), samplers.FLOOR)


def test_all_groups_of_resnet50_are_pruned_on_imagenet():
    assert len(spaces_trials.imagenet_groups()) == 37


OF_PAPER_4 = {name.split("/")[0] for profile in PROFILES for name in parameters(profile, "04")["networks"]}


@pytest.mark.parametrize("network", sorted(OF_PAPER_4))
def test_the_nodes_and_codes_of_paper_4_are_found(network):
    model = models.build(network, classes=100)
    found = len(measures.layers(model)), len(spline.coded_layers(model))
    if network.startswith("alexnet"):
        assert found == (5 + 2, 5)  # its wide linear layers are pruned and not coded
    else:
        assert found[0] >= 8 and found[1] >= 13
