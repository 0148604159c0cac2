"""One torch thread: two that share a busy core are many times slower. And no test leaves its style to the next."""

import matplotlib
import pytest
import torch

from tests import toy_house

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def matplotlib_settings_of_its_own():
    with matplotlib.rc_context():
        yield


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A small checkout with one notebook, whose profile writes into it."""
    toy_house.build(tmp_path)
    for module in ("lib.run", "lib.run", "lib.parameters", "lib.provenance"):
        monkeypatch.setattr(f"{module}.root", lambda: tmp_path)
    for variable in ("RUNS_DIR", "FIGURES_DIR"):
        monkeypatch.setenv(variable, "")
    for variable in ("STAGE", "BATCH", "QUIET", "SHARD"):
        monkeypatch.setenv(f"COMPANION_{variable}", "")
    monkeypatch.setenv("PYTHONPATH", "")  # restored afterwards: executing a notebook puts the root on it
    return tmp_path


def pytest_terminal_summary(terminalreporter):
    """Say which share of the published rows `test_recompute` stands for."""
    passed = terminalreporter.getreports("passed")
    told = [value for report in passed for name, value in report.user_properties if name == "recomputed"]
    if told:
        terminalreporter.write_line("Rows computed again: " + "; ".join(told))
