"""The repository as a whole: pins, imports, safety, links, and the evidence for every listed error."""

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from lib import models, parameters
from lib.provenance import root
from lib.summary import PUBLISHED, claims_of

LIB = sorted(path.relative_to(root() / "lib") for path in (root() / "lib").rglob("*.py"))
PACKAGES = ("latent", "truncation", "spaces", "spline", "which")
# A file imports only what stands before it; other files of a package stand between its claims and its analysis.
SHARED = (
    "provenance stats claims parameters store study data models training baselines masks channels export figures run "
    "summary matching compare"
).split()
ABOVE = ("matching", "compare", "which")  # shared files, and a package, that may import the packages of the papers
PLACES = {"claims": 0, "analysis": 2, "network": 2, "figures": 3}
SOURCES = {path: ast.parse((root() / "lib" / path).read_text()) for path in LIB}
PAGES = sorted(path for folder in (".", "docs", "runs/*") for path in root().glob(f"{folder}/*.md"))


def imports(tree: ast.AST) -> set[str]:
    """The modules of `lib` that a file imports anywhere, such as "stats" or "latent.trials"."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in LIB}
    inside = {name.removeprefix("lib.") for name in found if name.startswith("lib.")}
    return {name if name in modules else name.rpartition(".")[0] for name in inside} - {""}


def test_every_requirement_is_pinned_exactly_and_conda_reads_the_same_list():
    lists = ("requirements.txt", "docs/requirements.txt")
    lines = [line for name in lists for line in (root() / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*", line) for line in lines)
    dependencies = yaml.safe_load((root() / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-r requirements.txt"]} in dependencies


def test_lib_stays_small():
    lines = {str(path): len((root() / "lib" / path).read_text().splitlines()) for path in LIB}
    assert len(lines) <= 67
    assert {path: n for path, n in lines.items() if n > 600} == {}


@pytest.mark.parametrize("path", [path for path in LIB if path.name != "__init__.py"], ids=str)
def test_a_file_imports_shared_helpers_and_its_own_package_and_nothing_upwards(path):
    own = path.parent.name
    for module in imports(SOURCES[path]):
        package = module.partition(".")[0]
        if package in PACKAGES[:-1] and {path.stem, own} & {*ABOVE}:
            continue
        if package in PACKAGES:
            assert package == own, f"{path} imports {module}: move the code that it needs to a shared file"
            places = [PLACES.get(name, 1) for name in (module.rpartition(".")[2], path.stem)]
            assert module == own or places[0] <= places[1], f"{path} imports {module}, which comes after it"
        elif not own:
            assert SHARED.index(module) < SHARED.index(path.stem), f"{path} imports {module}, which comes after it"


def test_files_of_a_package_do_not_import_each_other_in_a_circle():
    edges = {f"{path.parent}.{path.stem}": imports(tree) for path, tree in SOURCES.items() if path.parent.name}

    def reached(module: str, seen: frozenset = frozenset()) -> None:
        assert module not in seen, f"{module} imports itself, by way of {', '.join(seen)}"
        for below in edges.get(module, set()):
            reached(below, seen | {module})

    for module in edges:
        reached(module)


def test_nothing_of_foreign_origin_is_unpickled():
    """CIFAR's own files are unpickled by torchvision, after lib.data has compared their MD5 sums."""
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                call, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert call != "torch.load" or options.get("weights_only") == "True", path
                assert call != "yaml.load" and not call.endswith("read_pickle"), path
                assert options.get("allow_pickle", "False") == "False", path


def test_every_text_file_is_read_and_written_in_a_named_encoding():
    """Without a name it would be the terminal's, which may be Latin-1."""
    for path, tree in SOURCES.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            call = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            options = {word.arg: word.value for word in node.keywords}
            if call == "open" and ast.unparse(node.func) not in ("os.open", "Image.open", "Raster.open"):
                binary = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in node.args[-1:])
                assert binary or "encoding" in options, f"{path}:{node.lineno}"
            assert call not in ("read_text", "write_text") or "encoding" in options, f"{path}:{node.lineno}"
            assert not {"text", "universal_newlines"} & options.keys(), f"{path}:{node.lineno}"


def ignored(*paths: str, folder: Path) -> set[str]:
    done = subprocess.run(["git", "check-ignore", *paths], cwd=folder, capture_output=True, encoding="utf-8")
    return set(done.stdout.split())


def test_git_ignores_data_environment_and_results_even_where_they_are_symbolic_links(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copy(root() / ".gitignore", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    links = ["data", ".venv", ".build", "runs/local", "runs/laptop/trials", "figures/smoke", "figures/local"]
    for link in links:
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    assert ignored(*links, "figures/laptop/01_masks.pdf", folder=tmp_path) == {*links, "figures/laptop/01_masks.pdf"}
    kept = [
        "runs/smoke/00_baselines.yaml",
        "runs/laptop/00_baselines.ipynb",
        "figures/laptop/01_masks.svg",
        "lib/data.py",
    ]
    assert not ignored(*kept, folder=tmp_path)


def test_a_checkout_has_one_kind_of_line_ends_on_every_system():
    assert "* text=auto eol=lf" in (root() / ".gitattributes").read_text(encoding="utf-8").splitlines()


def test_another_python_than_the_tested_ones_is_refused_in_one_sentence(tmp_path):
    """Here every interpreter says that it is another one."""
    for name in ("python3", "python3.11", "python3.12"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(root() / name, tmp_path)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONDA_DEFAULT_ENV": ""}
    done = subprocess.run(["make", "lint"], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode and "Python 3.11 or 3.12 is needed and was not found" in done.stdout
    assert 'requires-python = ">=3.11,<3.13"' in (root() / "pyproject.toml").read_text(encoding="utf-8")


def import_cells() -> dict[str, str]:
    """By notebook, the first cell that imports from `lib`."""
    cells = {}
    for name in parameters.notebook_names():
        notebook = json.loads((root() / "notebooks" / f"{name}.ipynb").read_text())
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        cells[name] = next(source for source in code if re.search(r"^from lib", source, re.M))
    return cells


@pytest.mark.parametrize("name", parameters.notebook_names())
def test_a_notebook_imports_in_at_most_ten_lines(name):
    lines = [line for line in import_cells()[name].splitlines() if re.match(r"(from|import) ", line)]
    assert len(lines) <= 10


def test_a_module_has_the_same_name_in_every_notebook():
    names = defaultdict(set)
    for source in import_cells().values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    names[f"{node.module}.{alias.name}"].add(alias.asname or alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    names[alias.name].add(alias.asname or alias.name)
    assert {module: used for module, used in names.items() if len(used) > 1} == {}
    own = {module: used for module, used in names.items() if module.startswith("lib.")}
    assert {module: used for module, used in own.items() if used != {module.rpartition(".")[2]}} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(root())))
def test_links_and_pictures_exist(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(root())))
def test_pages_name_no_folder_of_a_machine(page):
    assert not re.search(r"/(root|home|Users|work)/", page.read_text())


def test_the_readme_names_every_notebook_and_every_file_and_package_of_lib():
    text = (root() / "README.md").read_text()
    for name in parameters.notebook_names():
        assert f"(notebooks/{name}.ipynb)" in text
    files = [path.name for path in LIB if not path.parent.name and path.name != "__init__.py"]
    assert [name for name in [*files, *(f"{package}/" for package in PACKAGES)] if f"`{name}`" not in text] == []


def test_verdicts_in_the_readme_are_those_of_the_published_results():
    published = {entry["id"]: entry["verdict"] for entry in claims_of(root() / "runs" / "laptop") if entry["primary"]}
    cited = re.findall(r"\((P[\w.]+): ([a-z ]+)\)", (root() / "README.md").read_text())
    assert len(cited) >= 8
    words = {"open": "inconclusive at this scale"}
    assert [(claim, said) for claim, said in cited if published[claim] != words.get(said, said)] == []


def test_the_page_on_data_names_every_data_set_and_every_source_of_weights():
    page = (root() / "DATA.md").read_text()
    for name in parameters.DATASETS:
        assert name.replace("-", "").upper() in page.replace("-", "").upper(), name
    for *_, address in models.AUTHORS.values():
        assert "/".join(address.split("/")[:2]) in page


def test_no_file_names_the_host_of_a_package_registry():
    """A registry is whatever pip and conda are configured to use, a mirror among them."""
    hosts = (
        "pypi" + ".org",
        "python" + "hosted.org",
        "anaconda" + ".org",
        "npmjs" + ".com",
        "unpkg" + ".com",
        "jsdelivr" + ".net",
    )
    pattern = "|".join(re.escape(host) for host in hosts)
    found = subprocess.run(["git", "grep", "-lIE", pattern], cwd=root(), capture_output=True, text=True)
    assert found.stdout.split() == []


def test_the_files_for_citation_agree_with_each_other_and_with_the_readme():
    citation = yaml.safe_load((root() / "CITATION.cff").read_text())
    record = json.loads((root() / ".zenodo.json").read_text())
    project = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
    assert citation["title"] == record["title"] and citation["license"] == record["license"]
    assert citation["abstract"] == record["description"] and citation["keywords"] == record["keywords"]
    assert citation["version"] == record["version"] == project["version"]
    papers = [paper["url"].rpartition("/")[2] for paper in citation["references"]]
    assert papers == [one["identifier"].removeprefix("arXiv:") for one in record["related_identifiers"]]
    assert set(papers) == set(re.findall(r"arxiv\.org/abs/([\d.]+)", (root() / "README.md").read_text()))


def test_workflows_and_the_container_run_commands_that_make_explains():
    listed = subprocess.run(["make", "help"], cwd=root(), capture_output=True, text=True, check=True).stdout
    files = [*(root() / ".github/workflows").glob("*.yml"), root() / ".devcontainer/devcontainer.json"]
    assert len(files) == 4
    for path in files:
        assert yaml.safe_load(path.read_text())  # JSON is YAML
        for command in re.findall(r"\bmake (\w+)", path.read_text()):
            assert f"make {command}" in listed, f"{path.name} runs make {command}"


@pytest.mark.parametrize("name", parameters.notebook_names())
def test_a_notebook_says_how_to_run_it_in_colab(name):
    text = (root() / "notebooks" / f"{name}.ipynb").read_text()
    assert "!git clone" in text and "`docs/cloud.md`" in text


def test_make_help_explains_the_commands_that_the_pages_name():
    listed = subprocess.run(["make", "help"], cwd=root(), capture_output=True, text=True, check=True).stdout
    for page in PAGES:
        for command in re.findall(r"`(?:\w+=\S+ )*make (\w+)", page.read_text()):
            assert f"make {command}" in listed, f"{page.name} names make {command}"


def test_every_listed_error_has_a_test_that_exists():
    rows = re.findall(r"^\| (?!where \||---).*", (root() / "ERRATA.md").read_text(), re.M)
    assert rows
    for row in rows:
        named = re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            path = root() / file
            found = [path] if path.exists() else list((root() / "tests").rglob(file))
            assert any(f"def {name}(" in one.read_text() for one in found), f"{file} has no {name}"


@pytest.mark.parametrize("profile", PUBLISHED)
def test_the_published_results_of_a_profile_stay_below_20_mb(profile):
    folders = (root() / "runs" / profile, root() / "figures" / profile)
    files = [path for folder in folders for path in folder.glob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
