"""One torch thread a process; markers; checkouts of their own; patience with the output of notebooks."""

import os
import shutil
import subprocess
import warnings

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from lib import run
from lib.figures import STYLE
from tests import toy_checkout

torch.set_num_threads(1)  # several that share busy cores are many times slower
NIGHTLY = os.environ.get("NIGHTLY") == "1"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("nightly") and not NIGHTLY:
            item.add_marker(pytest.mark.skip(reason="long: NIGHTLY=1 runs it"))
        if hasattr(item, "output_timeout"):  # a cell of a notebook
            item.output_timeout = 600  # nbval waits 5 s for its output, which a busy machine exceeds
            item.parent.skip_compare += ("stderr",)  # no stored notebook holds it


@pytest.fixture(autouse=True)
def settings_of_its_own(monkeypatch):
    """No test leaves its style to the next, or shares settings with the notebooks that are checked beside it."""
    for variable in ("RUNS_DIR", "FIGURES_DIR", "COMPANION_QUIET", "COMPANION_WORKERS"):
        monkeypatch.delenv(variable, raising=False)
    with matplotlib.rc_context():
        yield


@pytest.fixture
def drawn():
    """Every figure of a test is drawn in the end, and a warning of its layout is an error."""
    with warnings.catch_warnings(), plt.style.context(STYLE):
        warnings.simplefilter("error")
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout with one notebook, in which this process works."""
    return toy_checkout.enter(toy_checkout.build(tmp_path / "checkout"), monkeypatch)


@pytest.fixture(scope="session")
def executed_once(tmp_path_factory):
    folder = toy_checkout.build(tmp_path_factory.mktemp("executed") / "checkout")
    with pytest.MonkeyPatch.context() as monkeypatch:
        toy_checkout.enter(folder, monkeypatch)
        run.execute("smoke", "00_toy")
    return folder


@pytest.fixture
def executed(executed_once, tmp_path, monkeypatch):
    """As `checkout`, with the notebook executed and published."""
    return toy_checkout.enter(shutil.copytree(executed_once, tmp_path / "executed", symlinks=True), monkeypatch)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 8 MiB; only root may mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a tiny disk here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def pytest_terminal_summary(terminalreporter):
    """Say how many of the published rows `test_recompute` recomputed."""
    passed = terminalreporter.getreports("passed")
    counts = [value for report in passed for name, value in report.user_properties if name == "recomputed"]
    if counts:
        terminalreporter.write_line("Rows computed again: " + "; ".join(counts))
