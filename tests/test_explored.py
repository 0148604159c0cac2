"""Every notebook with parameters that no published profile has, as a reader may choose them.

The profiles are in `tests/explored`. EXPLORE_TEST=1 runs them on digits from an empty store, in about ten minutes.
"""

import os
import shutil
from pathlib import Path

import pytest

from lib import parameters
from lib import run as notebook
from lib.provenance import root

EXPLORED = sorted((root() / "tests" / "explored").glob("*"))
FOLDERS = ("lib", "tests", "notebooks", "pyproject.toml")
OWN = ("COMPANION_STAGE", "COMPANION_BATCH", "COMPANION_QUIET", "COMPANION_SHARD")
MODULES = ("lib.run", "lib.run", "lib.parameters", "lib.provenance")


def checkout(folder: Path, profile: Path, monkeypatch) -> None:
    """A checkout whose only profile is this one."""
    for name in FOLDERS:
        (folder / name).symlink_to(root() / name)
    shutil.copytree(profile, folder / "runs" / profile.name)
    for module in MODULES:
        monkeypatch.setattr(f"{module}.root", lambda: folder)
    for variable in ("RUNS_DIR", "FIGURES_DIR", "PYTHONPATH", *OWN):
        monkeypatch.setenv(variable, "")


@pytest.mark.parametrize("profile", EXPLORED, ids=lambda path: path.name)
def test_many_parameters_of_an_explored_profile_are_its_own(profile, tmp_path, monkeypatch):
    checkout(tmp_path, profile, monkeypatch)
    for name in parameters.check_profile(profile.name):
        values, usual = parameters.profile_parameters(profile.name, name), parameters.default_parameters(name)
        assert sum(values[key] != usual[key] for key in usual) > len(usual) / 3, name
    assert parameters.check_profile(profile.name) == parameters.notebook_names()


@pytest.mark.skipif(os.environ.get("EXPLORE_TEST") != "1", reason="EXPLORE_TEST=1 runs it, in about ten minutes")
@pytest.mark.parametrize("profile", EXPLORED, ids=lambda path: path.name)
def test_notebooks_run_to_their_end_with_other_parameters(profile, tmp_path, monkeypatch):
    checkout(tmp_path, profile, monkeypatch)
    for name in parameters.notebook_names():
        notebook.execute(profile.name, name)
        assert (tmp_path / "runs" / profile.name / f"{name}.claims.json").exists()
    assert list((tmp_path / "figures" / profile.name).glob("04_*.png"))
