"""One torch thread: two that share a busy core are many times slower. And no test leaves its style to the next."""

import matplotlib
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def matplotlib_settings_of_its_own():
    with matplotlib.rc_context():
        yield


def pytest_terminal_summary(terminalreporter):
    """Say which share of the published rows `test_recompute` stands for."""
    passed = terminalreporter.getreports("passed")
    told = [value for report in passed for name, value in report.user_properties if name == "recomputed"]
    if told:
        terminalreporter.write_line("Rows computed again: " + "; ".join(told))
