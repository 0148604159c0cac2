"""Parameters that cannot be run together are refused with a sentence that names the remedy, before anything starts."""

import pytest
import torch
from torch import nn

from lib import baselines as dense_networks
from lib import models as weights
from lib import parameters, training
from lib import parameters as consistency
from lib import parameters as names
from lib.parameters import contradiction
from lib.provenance import CompanionError
from lib.spaces.trials import prunable

CASES = [
    ("00_baselines", {"networks": ["mlp"]}, "networks must hold linear"),
    ("00_baselines", {"networks": ["linear", "mlp", "mlp"]}, "networks holds mlp more than once"),
    ("00_baselines", {"seeds": 1}, "seeds is 1: its intervals need 2 or more"),
    ("00_baselines", {"elsewhere": ["mlp"]}, "write network/dataset, such as mlp/cifar10"),
    ("01_latent_kl", {"trained": ["resnet8"]}, "two networks or more"),
    ("01_latent_kl", {"fractions": [0.15, 0.5]}, "grid must hold all of fractions"),
    ("02_tensor_truncation", {"trained": [], "enlarged": []}, "name a network"),
    ("02_tensor_truncation", {"steps": {"resnet9": 3}}, "steps names 'resnet9'"),
    ("01_latent_kl", {"grid": [0.1, 0.3, 0.8], "fractions": [0.1, 0.3]}, "grid must hold 0.3 and 0.5"),
    ("01_latent_kl", {"fractions": [0.3]}, "fractions must hold two or more"),
    ("02_tensor_truncation", {"errors": [0.3]}, "errors must hold 0.5"),
    (
        "02_tensor_truncation",
        {"trained": ["resnet8", "vanilla_cnn"]},
        "trained, enlarged and public hold vanilla_cnn twice",
    ),
    ("02_tensor_truncation", {"steps": {"resnet8": 3}}, "steps leaves out layers that whole needs: take resnet8 out"),
    ("02_tensor_truncation", {"whole": []}, "whole is empty: give it one entry"),
    ("02_tensor_truncation", {"formed": ["mlp"]}, "formed holds 'mlp': known are digits_cnn, resnet8, vanilla_cnn"),
    ("02_tensor_truncation", {"cases": [["OUTT", 0.5]]}, "cases holds 'OUTT'"),
    ("03_pruning_spaces", {"contest_share": 0.35}, "contest_share must be one of shares"),
    ("04_spline_early_bird", {"widths": [0.5, 0.25]}, "widths has 2 entries and networks 1"),
    ("04_spline_early_bird", {"full": ["resnet8"]}, "full must name some of networks"),
    ("04_spline_early_bird", {"full": []}, "full is empty: give it one entry"),
    ("04_spline_early_bird", {"networks": ["mlp"], "full": ["mlp"]}, "full holds 'mlp', which cannot be trained layer"),
    ("04_spline_early_bird", {"side": 18}, "side . side probes must not exceed test_images"),
    ("04_spline_early_bird", {"seeds": 1}, "its intervals need 2 or more"),
    ("04_spline_early_bird", {"tuned_levels": [10, 4]}, "tuned_levels must be some of levels"),
    ("04_spline_early_bird", {"levels": [40, 8, 4]}, "levels must lie below toy_width"),
    ("04_spline_early_bird", {"tuned_levels": [8]}, "tuned_levels must hold 4"),
    ("04_spline_early_bird", {"levels": [6, 4], "tuned_levels": [4]}, "levels must hold one of 8 or more"),
    ("00_baselines", {"decides": ["B0.9"]}, "Unknown claim .*B0.9"),
    ("00_baselines", {"schedule": "one_cycle"}, "schedule holds 'one_cycle': known are cosine, one-cycle"),
    ("00_baselines", {"public": ["vgg16/cifar10"]}, "public holds 'vgg16/cifar10': known are resnet20/cifar10"),
    ("01_latent_kl", {"public": ["resnet20"]}, "public holds 'resnet20': known are"),
    ("02_tensor_truncation", {"public": ["resnet20/digits"]}, "public holds 'resnet20/digits': known are"),
    ("03_pruning_spaces", {"shares": [0.2, 0.4]}, "shares must fall"),
    ("03_pruning_spaces", {"levels": [0.3, 0.2]}, "levels repeats 0.2 of shares"),
    ("02_tensor_truncation", {"part_step": 0}, "part_step is out of range with 0; it must be 1 or more"),
    ("03_pruning_spaces", {"stds": [0.1]}, "stds must hold two or more"),
    ("03_pruning_spaces", {"retrained": 23}, "retrained must be smaller than initial by 2"),
    ("03_pruning_spaces", {"repeated": 15}, "repeated must not exceed retrained"),
    ("03_pruning_spaces", {"refined": 0}, "refined is 0: its intervals need 4 or more"),
    ("03_pruning_spaces", {"source": "published"}, "source holds 'published': known are trained, public"),
    ("03_pruning_spaces", {"main": "resnet20"}, "main holds 'resnet20': write network/dataset, such as resnet20/"),
    ("03_pruning_spaces", {"main": "vgg16/digits"}, "main is a vgg16, whose MACs are not linear .*: take resnet20, "),
    ("03_pruning_spaces", {"source": "public"}, "main holds 'resnet20/digits': known are resnet20/cifar10"),
    ("04_spline_early_bird", {"criteria": ["merged", "random"]}, "criteria lacks magnitude, which claims compare"),
    (
        "04_spline_early_bird",
        {"criteria": ["merged", "magnitude", "random", "l1"]},
        "criteria holds 'l1': known are raw",
    ),
]


@pytest.mark.parametrize(("notebook", "changes", "sentence"), CASES)
def test_what_cannot_be_run_together_is_one_sentence(notebook, changes, sentence):
    with pytest.raises(CompanionError, match=rf"^[^\n]*{sentence}[^\n]*\.$"):
        parameters.checked(notebook, changes, f"runs/mine/{notebook}.yaml")


@pytest.mark.parametrize(
    ("notebook", "changes"),
    [
        ("03_pruning_spaces", {"main": "resnet18-224/digits"}),
        ("02_tensor_truncation", {"steps": {"resnet8": 1}}),
        ("02_tensor_truncation", {"joint_errors": []}),
    ],
)
def test_what_can_be_run_is_taken(notebook, changes):
    parameters.checked(notebook, changes, f"runs/mine/{notebook}.yaml")


def test_the_names_that_profiles_are_checked_by_are_those_that_the_library_knows():
    assert tuple(f"{network}/{dataset}" for network, dataset in weights.PUBLIC) == names.PUBLIC
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    dense = {"dataset": "imagenet", "source": "trained"}  # large enough images for all
    found = {
        name
        for name in names.NETWORKS
        if "vit" not in name
        and name not in ("alexnet", "mlp", "linear")
        and not prunable(dense | {"network": name}).polynomials[2].any()
    }
    assert found == set(consistency.LINEAR)
    for name in consistency.PLAIN:
        model = dense_networks.untrained({"network": name, "dataset": "cifar10"})
        assert model.features and any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for name in names.SCHEDULES:
        training.scheduler(name, optimizer, 10)


def test_every_committed_profile_and_every_notebook_fits():
    for name in parameters.notebook_names():
        assert contradiction(name, parameters.default_parameters(name)) == ""
    for profile in parameters.profiles():
        parameters.check_profile(profile)
    assert contradiction("00_toy", {"names": ["a"]}) == ""


def test_a_number_that_yaml_reads_as_text_is_told_with_its_remedy():
    with pytest.raises(CompanionError, match=r"lr is '1e-2'; it must be a number. Write 0.01"):
        parameters.checked("00_baselines", {"lr": "1e-2"}, "runs/mine/00_baselines.yaml")
