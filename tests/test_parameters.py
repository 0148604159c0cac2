"""Parameters are refused before anything starts, with a sentence that names the remedy."""

import subprocess
import sys

import nbformat
import pytest

from lib import parameters
from lib.provenance import CompanionError, root
from tests.toy_house import write_notebook, write_yaml

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
contest_share = 0.4
levels = [16, 8]
cases = [["OUT", 0.5]]
steps = {}"""


def write(house, line: str) -> None:
    (house / "runs/smoke/00_toy.yaml").write_text(f"profile: smoke\n{line}\n")


def test_parameters_are_the_plain_values_of_the_tagged_cell(house):
    expected = {"profile": "smoke", "n": 3, "rate": 0.5, "quick": True, "names": ["a"], "trouble": ""}
    assert parameters.default_parameters("00_toy") == expected
    assert parameters.profile_parameters("smoke", "00_toy") == expected | {"rate": 0.0}


def test_a_notebook_without_a_parameters_cell_or_with_computed_ones_is_refused(house):
    write_notebook(house / "notebooks", "n = 3", tag="other")
    with pytest.raises(CompanionError, match="0 cells tagged 'parameters'"):
        parameters.default_parameters("00_toy")
    write_notebook(house / "notebooks", "n = len([1])")
    with pytest.raises(CompanionError, match="only assign plain values"):
        parameters.default_parameters("00_toy")


def test_a_cell_may_be_one_string_or_a_list_of_lines_as_the_format_allows(house):
    path = house / "notebooks/00_toy.ipynb"
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
        ({"naems": ["a"]}, "runs/smoke/00_toy.yaml: 'naems' .did you mean names.*known are profile, n"),
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
def test_a_wrong_parameter_is_refused_before_anything_starts(house, changes, sentence):
    write_yaml(house, **changes)
    with pytest.raises(CompanionError, match=sentence):
        parameters.check_profile("smoke")
    assert not (house / ".build").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("epochs: 0", "epochs is out of range with 0; it must be 1 or more"),
        ("workers: -2", "it must be 1 or more"),
        ("lr: 0", "it must be above 0"),
        ("lr: .nan", "lr is out of range with nan"),
        ("lr: .inf", "lr is out of range with inf"),
        ("contest_share: 1.5", "it must be above 0 and at most 1"),
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
        ("dataset: cifar11", "Unknown data set in .*'cifar11' .did you mean cifar10"),
        ("public: [resnet20/cifar10, resnet20/../x]", "Unknown data set .*'../x'"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_starts(house, line, sentence):
    write_notebook(house / "notebooks", NAMED)
    write(house, line)
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
def test_what_is_within_range_is_taken(house, line):
    write_notebook(house / "notebooks", NAMED)
    write(house, line)
    assert parameters.check_profile("smoke") == ["00_toy"]


def test_the_ranges_hold_for_a_reader_who_changes_a_value_in_a_notebook(house):
    values = parameters.default_parameters("00_toy")
    with pytest.raises(CompanionError, match="00_toy.ipynb: n is out of range"):
        parameters.checked("00_toy", values | {"n": -3}, "00_toy.ipynb")


def test_an_unknown_profile_is_one_sentence_with_the_nearest(house):
    with pytest.raises(CompanionError, match="Unknown profile 'smok' .did you mean smoke"):
        parameters.check_profile("smok")


def test_no_profile_or_notebook_leads_out_of_the_house(house):
    outside = house.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "00_toy.yaml").write_text("profile: smoke\n")
    (house / "runs" / "a; b").mkdir()
    (house / "runs" / "a; b" / "00_toy.yaml").write_text("profile: a; b\n")
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
    ],
)
def test_yaml_that_is_none_or_no_mapping_or_a_program_is_one_sentence(house, monkeypatch, text, sentence):
    monkeypatch.chdir(house)
    (house / "runs" / "smoke" / "00_toy.yaml").write_text(text)
    with pytest.raises(CompanionError, match=sentence):
        parameters.check_profile("smoke")
    assert not (house / "made_by_yaml").exists()


def test_a_profile_is_checked_without_loading_torch():
    """Every process of a batch checks its parameters, and torch with torchvision takes seconds."""
    code = "import sys; from lib import parameters; parameters.check_profile('laptop'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
