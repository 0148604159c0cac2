"""The house keeps its own rules: one list of pins, imports that point upwards, a README that names what is there."""

import ast
import re
import subprocess

import pytest
import yaml

from lib import models as weights
from lib import parameters
from lib.parameters import DATASETS
from lib.provenance import root

README = (root() / "README.md").read_text()
FILES = sorted(path.stem for path in (root() / "lib").glob("[a-z]*.py"))


def test_every_requirement_is_pinned_exactly_and_conda_reads_the_same_list():
    lines = [line for line in (root() / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*", line) for line in lines)
    dependencies = yaml.safe_load((root() / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-r requirements.txt"]} in dependencies


def test_the_readme_lists_every_file_of_lib_in_an_order_in_which_imports_point_upwards():
    listed = re.findall(r"^\| `(\w+)\.py`", README, re.M)
    assert sorted(listed) == FILES
    for place, name in enumerate(listed):
        tree = ast.parse((root() / "lib" / f"{name}.py").read_text())
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "lib":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
                imported.add(node.module.removeprefix("lib."))
        assert imported <= set(listed[:place]), (
            f"{name} imports {sorted(imported - set(listed[:place]))}, listed below it"
        )


def test_every_file_of_lib_has_a_test_file():
    assert not [name for name in FILES if not (root() / "tests" / f"test_{name}.py").exists()]


def test_nothing_of_foreign_origin_is_unpickled():
    """CIFAR's own files are unpickled by torchvision, after lib.data has compared their MD5 sums."""
    for name in FILES:
        for node in ast.walk(ast.parse((root() / "lib" / f"{name}.py").read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, name
            if isinstance(node, ast.Call):
                call, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert call != "torch.load" or options.get("weights_only") == "True", name
                assert call != "yaml.load" and not call.endswith("read_pickle"), name
                assert options.get("allow_pickle", "False") == "False", name


def test_the_readme_names_every_notebook_and_every_committed_profile():
    for name in parameters.notebook_names():
        assert f"notebooks/{name}.ipynb" in README
        for profile in set(parameters.profiles()) - {"smoke"}:
            if (root() / "runs" / profile / f"{name}.ipynb").exists():
                assert f"runs/{profile}/{name}.ipynb" in README


def test_links_and_pictures_of_every_page_exist():
    pages = sorted(root().glob("*.md"))
    assert {"CONTRIBUTING.md", "DATA.md", "ERRATA.md", "README.md"} <= {page.name for page in pages}
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            assert target.startswith("http") or (root() / target).exists(), f"{page.name}: {target}"


def test_the_page_on_data_names_every_data_set_and_every_source_of_weights():
    page = (root() / "DATA.md").read_text()
    for name in DATASETS:
        assert name.replace("-", "").upper() in page.replace("-", "").upper(), name
    for *_, address in weights.AUTHORS.values():
        assert "/".join(address.split("/")[:2]) in page


def test_the_makefile_explains_its_commands():
    listed = subprocess.run(["make", "help"], cwd=root(), capture_output=True, text=True, check=True).stdout
    for command in ("figures", "status", "test", "notebooks", "lab", "bench", "clean", "help"):
        assert f"make {command}" in listed


def test_every_error_in_the_list_has_a_test_that_exists():
    rows = [
        line
        for line in (root() / "ERRATA.md").read_text().splitlines()
        if line.startswith("| ") and "where |" not in line
    ]
    assert rows
    for row in rows:
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            assert f"def {name}(" in (root() / "tests" / f"{file}.py").read_text(), f"{file} has no {name}"


@pytest.mark.parametrize("profile", ["laptop", "gpu"])
def test_the_published_results_of_a_profile_stay_below_20_mb(profile):
    folders = (root() / "runs" / profile, root() / "figures" / profile)
    files = [path for folder in folders for path in folder.glob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
