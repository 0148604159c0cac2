"""Every notebook has the same skeleton, fits its profiles, and runs with parameters that a reader may choose."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from lib import parameters, run
from lib.claims import rules_of
from lib.provenance import root
from tests import toy_checkout

NAMES = parameters.notebook_names()
VERDICTS = "What this shows, and what it does not"


@pytest.fixture(params=NAMES)
def notebook(request):
    return request.param, nbformat.read(root() / "notebooks" / f"{request.param}.ipynb", as_version=4)


def source(cells, kind):
    return [cell.source for cell in cells if cell.cell_type == kind]


def test_notebooks_are_there():
    assert NAMES[0] == "00_baselines"


def test_parameters_equal_the_smoke_profile(notebook):
    assert parameters.default_parameters(notebook[0]) == parameters.profile_parameters("smoke", notebook[0])


def test_every_profile_passes_its_own_check():
    for profile in parameters.profiles():
        assert parameters.check_profile(profile)


def test_every_parameter_has_a_comment(notebook):
    cell = next(c for c in notebook[1].cells if "parameters" in c.metadata.get("tags", []))
    assert all("  # " in line for line in cell.source.splitlines()), cell.source


def test_it_was_run_from_top_to_bottom_without_error(notebook):
    code = [cell for cell in notebook[1].cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_it_is_an_argument_more_than_a_program(notebook):
    cells = notebook[1].cells
    code, text = source(cells, "code"), source(cells, "markdown")
    assert 25 <= len(cells) <= 84
    assert max(len(cell.splitlines()) for cell in code) <= 40
    words = sum(len(cell.split()) for cell in text)
    code_words = sum(len(cell.split()) for cell in code)
    assert words / (words + code_words) >= 0.4


def test_its_first_cell_gives_the_answer_and_its_scale_and_sources(notebook):
    first = notebook[1].cells[0].source
    assert "**The answer, in short.**" in first and "**Scale and sources.**" in first


def test_long_code_is_folded_in_jupyterlab_and_on_the_site(notebook):
    for cell in notebook[1].cells:
        before = json.dumps(cell.metadata, sort_keys=True)
        run.fold(cell)
        assert json.dumps(cell.metadata, sort_keys=True) == before, f"{cell.id}: make notebooks folds it"


def test_its_sections_come_in_the_common_order(notebook):
    text = "\n".join(source(notebook[1].cells, "markdown"))
    headings = re.findall(r"^#+ (.*)", text, re.M)
    assert headings[0].startswith(f"{notebook[0][:2]} · ")
    assert headings[1:3] == ["Parameters", "Setup"]
    assert headings[-2:] == [VERDICTS, "Provenance"]


def test_sections_named_by_rules_exist(notebook):
    headings = re.findall(r"^#+ (.*)", "\n".join(source(notebook[1].cells, "markdown")), re.M)
    rules = rules_of(notebook[0])
    assert rules and not [f"{rule.id}: {rule.section}" for rule in rules if rule.section not in headings]


def test_no_output_or_source_holds_a_path_of_a_machine(notebook):
    assert not re.search(r"/(root|tmp|home|Users|work)/", (root() / "notebooks" / f"{notebook[0]}.ipynb").read_text())


def test_its_figures_carry_its_number(notebook):
    slugs = re.findall(r"run\.(?:save|animate)\([^\"]*\"(\w\w)_", "\n".join(source(notebook[1].cells, "code")))
    assert slugs and set(slugs) == {notebook[0][:2]}


def test_published_copies_hold_the_notebook_as_it_is(notebook):
    """A cell or a sentence that changed after the run would stand beside numbers that it did not make."""
    own = [(cell.cell_type, cell.source) for cell in notebook[1].cells]
    for path in (root() / "runs").glob(f"*/{notebook[0]}.ipynb"):
        if path.parent.name in parameters.profiles() and path.parent.name != "smoke":  # smoke's come and go
            cells = nbformat.read(path, as_version=4).cells
            copied = [(c.cell_type, c.source) for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
            assert copied == own, f"{path.relative_to(root())} is older than its notebook: make figures PROFILE=..."


# Profiles with parameters that no published profile has, as a reader may choose them.
EXPLORED = pytest.mark.parametrize(
    "explored", sorted((root() / "tests" / "explored").glob("*")), ids=lambda path: path.name
)


def enter_with(folder: Path, explored: Path, monkeypatch) -> None:
    """Work in a checkout whose only profile is this one."""
    for name in ("lib", "tests", "notebooks", "pyproject.toml"):
        (folder / name).symlink_to(root() / name)
    shutil.copytree(explored, folder / "runs" / explored.name)
    toy_checkout.enter(folder, monkeypatch)


@EXPLORED
def test_many_parameters_of_an_explored_profile_are_its_own(explored, tmp_path, monkeypatch):
    enter_with(tmp_path, explored, monkeypatch)
    for name in parameters.check_profile(explored.name):
        values, usual = parameters.profile_parameters(explored.name, name), parameters.default_parameters(name)
        assert sum(values[key] != usual[key] for key in usual) > len(usual) / 3, name
    assert parameters.check_profile(explored.name) == parameters.notebook_names()


@pytest.mark.nightly
@EXPLORED
def test_notebooks_run_to_their_end_with_other_parameters(explored, tmp_path, monkeypatch):
    enter_with(tmp_path, explored, monkeypatch)
    for name in parameters.notebook_names():
        run.execute(explored.name, name)
        assert (tmp_path / "runs" / explored.name / f"{name}.claims.json").exists()
    assert list((tmp_path / "figures" / explored.name).glob("04_*.png"))
