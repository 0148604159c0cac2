"""What the README says about adding to the house works as it is written, in a copy of the house."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from lib.provenance import root

README = (root() / "README.md").read_text()
SECTIONS = ("network", "data set", "measure")
MARK = re.compile(r"^# (\S+), (above|below|instead of) `(.*)`$")
PROFILE = {"networks": ["linear", "perceptron"], "dataset": "noise", "epochs": 2, "seeds": 2, "null_seeds": 2}
MEASURE = """
from pathlib import Path
from lib import latent_trials
dense = {"dataset": "digits", "network": "mlp", "source": "trained", "seed": 0, "epochs": 1, "lr": 0.1}
spec = dense | {"layer": "1", "method": "lowest", "structure": "weights", "fraction": 0.5, "images": 50, "trial": 0}
spec |= {"tuning_epochs": 1, "tuning_lr": 0.1, "tuning_batch": 16}
study = latent_trials.layers(Path("runs/mine"), Path("runs/mine"))
row = study.run([spec]).iloc[0]
assert row["status"] == "done", row["reason"]
assert study.version == 2 and 0 < row["largest_move"] < row["ap2"] ** 0.5
"""


def section(what: str) -> list[str]:
    """The lines of a section, without blank ones."""
    text = README.split(f"### How to add a {what}\n")[1]
    return [line for line in re.split(r"^#{2,3} ", text, flags=re.M)[0].splitlines() if line.strip()]


def block(what: str) -> list[str]:
    lines = section(what)
    return lines[lines.index("```python") + 1 : lines.index("```")]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the house to which all three sections have been applied."""
    copy = tmp_path_factory.mktemp("house")
    for folder in ("lib", "notebooks", "runs/smoke"):
        shutil.copytree(
            root() / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "trials", "*.parquet")
        )
    shutil.copy(root() / "pyproject.toml", copy)
    for what in SECTIONS:
        apply(copy, block(what))
    (copy / "runs" / "mine").mkdir()
    values = yaml.safe_load((copy / "runs/smoke/00_baselines.yaml").read_text())
    (copy / "runs/mine/00_baselines.yaml").write_text(yaml.safe_dump(values | {"profile": "mine"} | PROFILE))
    return copy


def apply(copy, lines: list[str]) -> None:
    """Put the lines that follow each comment where the comment says."""
    assert MARK.match(lines[0]), lines[0]
    starts = [place for place, line in enumerate(lines) if MARK.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        file, where, beside = MARK.match(lines[start]).groups()
        text = (copy / file).read_text()
        assert text.count(f"\n{beside}\n") == 1, f"{file} has not one line {beside!r}"
        added = "\n".join(lines[start + 1 : end])
        kept = {"above": [added, beside], "below": [beside, added], "instead of": [added]}[where]
        (copy / file).write_text(text.replace(f"\n{beside}\n", "\n" + "\n".join(kept) + "\n"))


def run(house, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(house), "RUNS_DIR": "", "FIGURES_DIR": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=house, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("what", SECTIONS)
def test_each_way_to_add_something_takes_at_most_ten_lines(what):
    assert len([line for line in section(what) if not line.startswith("```")]) <= 10


def test_the_added_network_learns_on_the_added_data_set_in_a_profile_of_ones_own(house):
    run(house, "-m", "lib.run", "execute", "mine", "00_baselines")
    rows = (house / "runs/mine/00_baselines.networks.parquet").read_bytes()
    assert b"perceptron" in rows and b"noise" in rows


def test_the_added_measure_is_a_column_of_its_trial(house):
    run(house, "-c", MEASURE)
