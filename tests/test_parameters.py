"""Parameters are refused before anything starts, with a sentence that names the remedy."""

import nbformat
import pytest
import torch
from torch import nn

from lib import baselines, models, parameters, training
from lib.provenance import CompanionError, root
from tests.toy_checkout import enter, write_notebook, write_yaml

NAMED = """profile = "smoke"
networks = ["digits_cnn"]
dataset = "digits"
public = []
null_network = "mlp"
epochs = 3
lr = 0.1
limit = 0
workers = 2
grid = [0.1, 0.9]
parameter_share = 0.4
levels = [16, 8]
cases = [["OUT", 0.5]]
steps = {}"""


def write(checkout, line: str) -> None:
    (checkout / "runs/smoke/00_toy.yaml").write_text(f"profile: smoke\n{line}\n")


def test_parameters_are_the_plain_values_of_the_tagged_cell(checkout):
    expected = {"profile": "smoke", "n": 3, "rate": 0.5, "workers": 1, "quick": True, "names": ["a"]}
    expected |= {"trouble": "", "decides": []}
    assert parameters.default_parameters("00_toy") == expected
    assert parameters.profile_parameters("smoke", "00_toy") == expected | {"rate": 0.0}


def test_a_notebook_without_a_parameters_cell_or_with_computed_ones_is_refused(checkout):
    write_notebook(checkout / "notebooks", "n = 3", tag="other")
    with pytest.raises(CompanionError, match="0 cells tagged 'parameters'"):
        parameters.default_parameters("00_toy")
    write_notebook(checkout / "notebooks", "n = len([1])")
    with pytest.raises(CompanionError, match="only assign plain values"):
        parameters.default_parameters("00_toy")


def test_a_cell_may_be_one_string_or_a_list_of_lines_as_the_format_allows(checkout):
    path = checkout / "notebooks/00_toy.ipynb"
    expected = parameters.default_parameters("00_toy")
    notebook = nbformat.read(path, as_version=4)
    assert isinstance(notebook.cells[1].source, str)
    path.write_text(nbformat.writes(notebook, split_lines=False))
    assert parameters.default_parameters("00_toy") == expected
    path.write_text(nbformat.writes(notebook))
    assert parameters.default_parameters("00_toy") == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"naems": ["a"]},
            "smoke/00_toy.yaml: Unknown parameter 'naems' .did you mean names.*known are profile, n",
        ),
        ({"n": "three"}, "n is 'three'; it must be a whole number"),
        ({"n": 2.5}, "must be a whole number"),
        ({"n": True}, "must be a whole number"),
        ({"quick": 1}, "must be true or false"),
        ({"names": "a"}, "must be a list"),
        ({"names": ["a", 1]}, "names holds 1; each must be a text"),
        ({"n": -1}, "n is out of range with -1; it must be 0 or more"),
        ({"profile": "laptop"}, "must say `profile: smoke`"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_starts(checkout, changes, sentence):
    write_yaml(checkout, **changes)
    with pytest.raises(CompanionError, match=sentence):
        parameters.check_profile("smoke")
    assert not (checkout / ".build").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("epochs: 0", "epochs is out of range with 0; it must be 1 or more"),
        ("workers: -2", "it must be 1 or more"),
        ("lr: 0", "it must be above 0"),
        ("lr: .nan", "lr is out of range with nan"),
        ("lr: .inf", "lr is out of range with inf"),
        ("parameter_share: 1.5", "it must be above 0 and at most 1"),
        ("grid: [0.5, 0]", "grid is out of range with 0; it must be above 0 and at most 1"),
        ("limit: -1", "it must be 0 or more"),
        ("lr: 0.1\nlimit: 1\nlr: 0.2", "00_toy.yaml has lr more than once: keep one line of each"),
        ("levels: [8, 0.5]", "levels holds 0.5; each must be a whole number"),
        ("cases: [[OUT, -0.5]]", "cases is out of range with -0.5"),
        ("steps: {a: [-1, 2]}", "steps is out of range with -1"),
        (
            "networks: [resnet21]",
            "runs/smoke/00_toy.yaml: networks: Unknown network 'resnet21' .did you mean resnet",
        ),
        ("null_network: mpl", "did you mean mlp"),
        ("dataset: cifar11", "Unknown data set 'cifar11' .did you mean cifar10"),
        ("public: [resnet20/cifar10, resnet20/../x]", "has no folder train"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_starts(checkout, line, sentence):
    write_notebook(checkout / "notebooks", NAMED)
    write(checkout, line)
    with pytest.raises(CompanionError, match=sentence):
        parameters.check_profile("smoke")


@pytest.mark.parametrize(
    "line",
    [
        "limit: 0",
        "lr: 1",
        "grid: [1, 0.5]",
        "public: [resnet20/cifar100]",
        "networks: [resnet56, linear]",
        "levels: []",
        "steps: {resnet20/cifar10: [3, 1000]}",
    ],
)
def test_values_within_range_are_accepted(checkout, line):
    write_notebook(checkout / "notebooks", NAMED)
    write(checkout, line)
    assert parameters.check_profile("smoke") == ["00_toy"]


def test_the_ranges_hold_for_a_reader_who_changes_a_value_in_a_notebook(checkout):
    values = parameters.default_parameters("00_toy")
    with pytest.raises(CompanionError, match="00_toy.ipynb: n is out of range"):
        parameters.checked("00_toy", values | {"n": -3}, "00_toy.ipynb")


def test_a_profile_whose_notebooks_start_from_baselines_needs_their_file(tmp_path, monkeypatch):
    for name in ("lib", "notebooks", "pyproject.toml"):
        (tmp_path / name).symlink_to(root() / name)
    enter(tmp_path, monkeypatch)
    (tmp_path / "runs/mine").mkdir(parents=True)
    for name in ("01_latent_kl", "03_pruning_spaces", "04_spline_early_bird"):
        file = tmp_path / f"runs/mine/{name}.yaml"
        file.write_text("profile: mine\n")
        if name.startswith("04"):
            assert parameters.check_profile("mine") == [name]
        else:
            with pytest.raises(CompanionError, match=f"^runs/mine needs 00_baselines.yaml, from which {name} starts"):
                parameters.check_profile("mine")
        file.unlink()
    with pytest.raises(CompanionError, match="^There is no runs/mine/00_baselines.yaml: copy it"):
        file.write_text("profile: mine\n")
        parameters.profile_parameters("mine", "00_baselines")


def test_data_and_checkpoints_that_must_be_there_follow_from_the_parameters():
    assert parameters.inputs(parameters.default_parameters("03_pruning_spaces")) == (set(), set())
    values = parameters.profile_parameters("laptop", "01_latent_kl")
    assert parameters.inputs(values) == ({"cifar10", "cifar100"}, {*values["public"], *values["tasks_of"]})
    values = parameters.profile_parameters("laptop", "03_pruning_spaces")
    assert (
        values["main"] in parameters.inputs(values)[1] and "resnet20-x0.5/cifar10" not in parameters.inputs(values)[1]
    )
    assert "imagenet" in parameters.inputs(values | {"imagenet_recipes": 1})[0]


def test_an_unknown_profile_is_one_sentence_with_the_nearest(checkout):
    with pytest.raises(CompanionError, match="Unknown profile 'smok' .did you mean smoke"):
        parameters.check_profile("smok")


def test_no_profile_or_notebook_name_leads_out_of_the_checkout(checkout):
    outside = checkout.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "00_toy.yaml").write_text("profile: smoke\n")
    (checkout / "runs" / "a; b").mkdir()
    (checkout / "runs" / "a; b" / "00_toy.yaml").write_text("profile: a; b\n")
    for profile in ("../../outside", str(outside), "smoke/../smoke", "..", "a; b", ""):
        with pytest.raises(CompanionError, match="Unknown profile"):
            parameters.check_profile(profile)
        with pytest.raises(CompanionError, match="Unknown profile"):
            parameters.profile_parameters(profile, "00_toy")
    for name in ("../../outside/00_toy", "../smoke/00_toy"):
        with pytest.raises(CompanionError, match="Unknown notebook"):
            parameters.profile_parameters("smoke", name)
        with pytest.raises(CompanionError, match="Unknown notebook"):
            parameters.default_parameters(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "is not YAML"),
        ("- 1", "name: value"),
        ("n: !!python/object/apply:os.mkdir [made_by_yaml]", "is not YAML"),
        ("n: !!python/name:os.system", "is not YAML"),
        ("# caf\xe9", "is not YAML"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_of_plain_values_is_one_sentence(checkout, monkeypatch, text, sentence):
    monkeypatch.chdir(checkout)
    (checkout / "runs" / "smoke" / "00_toy.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(CompanionError, match=sentence):
        parameters.check_profile("smoke")
    assert not (checkout / "made_by_yaml").exists()


def test_a_name_is_a_network_and_one_of_its_variants():
    assert parameters.split_name("resnet50-imagenet") == ("resnet50", "imagenet") and parameters.split_name("mlp") == (
        "mlp",
        "",
    )
    assert parameters.split_name("alexnet-ungrouped") == ("alexnet", "ungrouped")
    assert parameters.split_name("resnet20-x0.5") == ("resnet20", "x0.5")
    assert parameters.split_name("vgg16-x2") == ("vgg16", "x2")
    assert parameters.split_name("resnet44-B") == ("resnet44", "B")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg16-384", "Unknown variant of vgg16"),
        ("resnet20-imagenet", "Unknown form of resnet20 .*known are cifar"),
        ("vgg16-ungrouped", "Unknown form of vgg16"),
        ("vgg-224", "Unknown network 'vgg-224'.*vgg16"),
        *(
            (f"resnet20-{v}", f"Unknown variant of resnet20 '{v}'")
            for v in ("x0", "xfoo", "x-1", "x.5", "x1e3", "x0.5-B")
        ),
        ("vgg16-B", "vgg16 has no shortcut B"),
        ("resnet18-B", "resnet18 has no shortcut B"),
    ],
)
def test_an_unknown_network_or_variant_is_one_sentence(name, message):
    with pytest.raises(CompanionError, match=message):
        parameters.split_name(name)


def test_every_variant_is_a_form_of_some_network():
    forms = {form for network in parameters.NETWORKS.values() for form in network}
    assert set(parameters.VARIANTS.values()) <= forms == {"cifar", "imagenet", "ungrouped", "5x5", "7x7"}


CASES = [
    ("00_baselines", {"networks": ["mlp"]}, "networks must hold linear"),
    ("00_baselines", {"networks": ["linear", "mlp", "mlp"]}, "networks holds mlp more than once"),
    ("00_baselines", {"seeds": 1}, "seeds is 1: its intervals need 2 or more"),
    ("00_baselines", {"elsewhere": ["mlp"]}, "write network/dataset, such as mlp/cifar10"),
    (
        "01_latent_kl",
        {name: [] for name in ("trained", "also_trained", "public", "pretrained", "tasks_of")},
        "are all empty: name a network",
    ),
    ("06_your_network", {"train": False}, "train is false and weights is empty"),
    ("06_your_network", {"weights": "my.safetensors"}, "weights are read as they are: set train to false"),
    ("06_your_network", {"dataset": "imagenet"}, "which does not fit in memory"),
    ("06_your_network", {"images": 2}, "images must be 3 or more"),
    *(
        ("06_your_network", {n: 1.0}, f"{n} must be below 1")
        for n in ("removed_fraction", "merged_ratio", "factor_share")
    ),
    ("06_your_network", {"kept_share": 1.5}, "kept_share is out of range with 1.5"),
    ("06_your_network", {"network": "resnet9"}, "network: Unknown network 'resnet9'"),
    ("06_your_network", {"network": "absent_module:net"}, "no module absent_module"),
    ("06_your_network", {"dataset": "./no/such/folder"}, "has no folder train"),
    ("01_latent_kl", {"pruning_steps": 3}, "pruning_steps must divide tuning_epochs"),
    *(("01_latent_kl", {n: 1}, f"{n} is 1: its intervals need 2") for n in ("trials", "masks_per_sparsity", "matched")),
    *(("01_latent_kl", {n: ["mlp"]}, f"{n} holds 'mlp': write network/") for n in ("also_trained", "pretrained")),
    ("01_latent_kl", {"also_trained": ["resnet9/digits"]}, "also_trained: Unknown network 'resnet9'"),
    ("01_latent_kl", {"pretrained": ["resnet20-pretrained/cifar10"]}, "pretrained: Unknown form of resnet20"),
    ("01_latent_kl", {"tuning_lrs": [0.1, 0]}, "tuning_lrs is out of range with 0; it must be above 0"),
    ("01_latent_kl", {"ranks": [0.5, 1.5]}, "ranks is out of range with 1.5; it must be above 0 and at most 1"),
    *(
        ("01_latent_kl", changes, "is out of range with 0; it must be 1 or more")
        for changes in (
            {"layer_steps": 0},
            {"pruning_steps": 0},
            {"layer_count": 0},
            {"group_counts": [0]},
            {"bits": [0]},
        )
    ),
    ("01_latent_kl", {"mask_fractions": [1.2]}, "mask_fractions is out of range with 1.2"),
    ("01_latent_kl", {"precision": "half"}, "precision holds 'half': known are auto, float32, bfloat16"),
    ("02_tensor_truncation", {"trained": [], "also_trained": []}, "name a network"),
    ("02_tensor_truncation", {"tensor_epochs": 1}, "tensor_retrain_epochs must be below tensor_epochs"),
    ("02_tensor_truncation", {"wide": ["digits_cnn-5x5"]}, "wide holds 'digits_cnn-5x5': write network/dataset"),
    ("02_tensor_truncation", {"zeroed": ["resnet8/digits"]}, "zeroed holds 'resnet8/digits': known are"),
    ("02_tensor_truncation", {"steps": {"resnet9": 3}}, "steps names 'resnet9'"),
    ("01_latent_kl", {"grid": [0.1, 0.3, 0.8], "fractions": [0.1, 0.3]}, "grid must hold 0.3 and 0.5"),
    ("01_latent_kl", {"fractions": [0.3]}, "fractions must hold two or more"),
    ("02_tensor_truncation", {"errors": [0.3]}, "errors must hold 0.5"),
    (
        "02_tensor_truncation",
        {"trained": ["digits_cnn", "resnet8", "vanilla_cnn-x0.25/digits16"]},
        "trained, also_trained and public hold vanilla_cnn-x0.25/digits16 twice",
    ),
    ("02_tensor_truncation", {"steps": {"resnet8": 3}}, "steps leaves out layers that whole needs: take resnet8 out"),
    ("02_tensor_truncation", {"whole": []}, "whole is empty: give it one entry"),
    (
        "02_tensor_truncation",
        {"formed": ["mlp"]},
        "formed holds 'mlp': known are digits_cnn, resnet8, vanilla_cnn-x0.25/digits16",
    ),
    ("02_tensor_truncation", {"cases": [["OUTT", 0.5]]}, "cases holds 'OUTT'"),
    ("04_spline_early_bird", {"widths": [0.5, 0.25]}, "widths has 2 entries and networks 1"),
    ("04_spline_early_bird", {"full": ["resnet8"]}, "full must name some of networks"),
    ("04_spline_early_bird", {"full": []}, "full is empty: give it one entry"),
    ("04_spline_early_bird", {"networks": ["mlp"], "full": ["mlp"]}, "full holds 'mlp', which cannot be trained layer"),
    ("04_spline_early_bird", {"side": 18}, "side . side probes must not exceed test_images"),
    ("04_spline_early_bird", {"seeds": 1}, "its intervals need 2 or more"),
    ("04_spline_early_bird", {"levels": [40, 8, 4]}, "levels must be below 20"),
    ("04_spline_early_bird", {"factors": [2.0, 1.0]}, "factors must be above 1"),
    ("04_spline_early_bird", {"migration_epochs": [5, 64]}, "migration_epochs must rise, and hold a sixteenth"),
    ("04_spline_early_bird", {"route_widths": [3]}, "route_widths must hold 4"),
    ("04_spline_early_bird", {"levels": [8]}, "4 must be among the last two of levels"),
    ("04_spline_early_bird", {"levels": [6, 4]}, "levels must hold one of 8 or more"),
    ("00_baselines", {"decides": ["B0.9"]}, "Unknown claim in decides: 'B0.9'"),
    ("00_baselines", {"schedule": "one_cycle"}, "schedule holds 'one_cycle': known are cosine, one-cycle"),
    ("00_baselines", {"public": ["vgg16/cifar10"]}, "public holds 'vgg16/cifar10': known are resnet20/cifar10"),
    *(("01_latent_kl", {n: ["resnet20"]}, f"{n} holds 'resnet20': known are") for n in ("public", "tasks_of")),
    ("02_tensor_truncation", {"public": ["resnet20/digits"]}, "public holds 'resnet20/digits': known are"),
    ("03_pruning_spaces", {"shares": [0.2, 0.4]}, "shares must fall"),
    ("03_pruning_spaces", {"levels": [0.3, 0.2]}, "levels repeats 0.2 of shares"),
    ("02_tensor_truncation", {"part_step": 0}, "part_step is out of range with 0; it must be 1 or more"),
    ("03_pruning_spaces", {"stds": [0.1]}, "stds must hold two or more"),
    ("03_pruning_spaces", {"rungs": 5}, "rungs is 5: its intervals need 6 or more"),
    ("03_pruning_spaces", {"short_rungs": 4}, "short_rungs is 4: its intervals need 5 or more"),
    ("03_pruning_spaces", {"space_recipes": 4}, "space_recipes is 4: its intervals need 5 or more"),
    ("03_pruning_spaces", {"seeds": 1}, "seeds is 1: its intervals need 2 or more"),
    ("03_pruning_spaces", {"proxies": 1}, "proxies is 1: its intervals need 2 or more"),
    ("03_pruning_spaces", {"best_of": 8}, "best_of must be smaller than space_recipes"),
    ("03_pruning_spaces", {"lengths": [256, 512, 1500]}, "1500 images of retraining are no whole number of epochs"),
    ("03_pruning_spaces", {"lengths": [512]}, "lengths must hold long_images and short_images: add 256"),
    ("03_pruning_spaces", {"source": "published"}, "source holds 'published': known are trained, public"),
    ("03_pruning_spaces", {"main": "resnet20"}, "main holds 'resnet20': write network/dataset, such as resnet20/"),
    ("03_pruning_spaces", {"trained": ["vgg16-x0.25"]}, "trained holds 'vgg16-x0.25': write network/dataset, such as"),
    ("03_pruning_spaces", {"trained": ["vgg16-x0/cifar10"]}, "trained: Unknown variant of vgg16 'x0'"),
    ("03_pruning_spaces", {"public": ["resnet32/cifar10"]}, "public holds 'resnet32/cifar10': known are resnet20/"),
    ("03_pruning_spaces", {"ruled": ["resnet20/cifar100"]}, "ruled holds 'resnet20/cifar100'"),
    ("03_pruning_spaces", {"source": "public"}, "main holds 'resnet20/digits': known are resnet20/cifar10"),
    ("05_which_one", {"networks": ["resnet8", "resnet20", "mlp"]}, "networks must be of three families or more"),
    ("05_which_one", {"forms": ["OUT.IN.KH"]}, "forms holds 'OUT.IN.KH': known are OUT, IN"),
    ("05_which_one", {"strengths": [0.5, 1.0]}, "strengths must hold two or more shares between 0 and 1"),
    ("05_which_one", {"budgets": [1.0]}, "budgets must be below 1"),
    ("05_which_one", {"contest_networks": ["resnet8"]}, "contest_networks must hold two or more"),
    ("04_spline_early_bird", {"criteria": ["merged", "random"]}, "criteria lacks magnitude, which claims compare"),
    (
        "04_spline_early_bird",
        {"criteria": ["merged", "magnitude", "random", "l1"]},
        "criteria holds 'l1': known are raw",
    ),
]


@pytest.mark.parametrize(("notebook", "changes", "sentence"), CASES)
def test_parameters_that_contradict_each_other_are_one_sentence(notebook, changes, sentence):
    with pytest.raises(CompanionError, match=rf"^[^\n]*{sentence}[^\n]*\.$"):
        parameters.checked(notebook, changes, f"runs/mine/{notebook}.yaml")


@pytest.mark.parametrize(
    ("notebook", "changes"),
    [
        ("01_latent_kl", {"trained": [], "public": ["resnet20/cifar10"], "pretrained": ["alexnet-pretrained/cifar10"]}),
        ("01_latent_kl", {"trained": ["resnet8"], "seeds": 2, "layered": [], "decides": []}),
        ("01_latent_kl", {"tuning_epochs": 6, "pruning_steps": 3, "tuning_lrs": [0.5], "fractions": [0.2, 0.4]}),
        ("03_pruning_spaces", {"main": "vgg16-x0.25/digits", "levels": []}),
        ("03_pruning_spaces", {"public": ["resnet44-B/cifar10"], "ruled": ["resnet44-B/cifar10"]}),
        ("03_pruning_spaces", {"lengths": [3, 256, 512, 4096]}),
        ("02_tensor_truncation", {"steps": {"resnet8": 1}}),
        ("02_tensor_truncation", {"wide": [], "also_trained": [], "zeroed": ["resnet20/cifar10"]}),
    ],
)
def test_parameters_that_fit_together_are_accepted(notebook, changes):
    parameters.checked(notebook, changes, f"runs/mine/{notebook}.yaml")


def test_profiles_are_checked_by_the_names_that_the_library_knows():
    assert tuple(f"{network}/{dataset}" for network, dataset in models.PUBLIC) == parameters.PUBLIC
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    for name in parameters.PLAIN:
        model = baselines.untrained({"network": name, "dataset": "cifar10"})
        assert model.features and any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for name in parameters.SCHEDULES:
        training.scheduler(name, optimizer, 10)


def test_every_committed_profile_and_every_notebook_fits():
    for name in parameters.notebook_names():
        assert parameters.contradiction(name, parameters.default_parameters(name)) == ""
    for profile in parameters.profiles():
        parameters.check_profile(profile)
    assert parameters.contradiction("00_toy", {"names": ["a"]}) == ""


def test_a_number_that_yaml_reads_as_text_is_refused_with_its_remedy():
    with pytest.raises(CompanionError, match=r"lr is '1e-2'; it must be a number. Write 0.01"):
        parameters.checked("00_baselines", {"lr": "1e-2"}, "runs/mine/00_baselines.yaml")
