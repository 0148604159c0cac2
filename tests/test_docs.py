"""What README.md and docs/extending.md say about using and extending `lib` works as it is written."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from lib.provenance import root

MARK = re.compile(r"^ *# (\S+), (?:(above|below) `(.*)`|at the end)$")
KINDS = ("network", "data set", "measure", "figure", "interval", "claim")
PROFILE = {"networks": ["linear", "perceptron"], "dataset": "noise", "epochs": 2, "seeds": 2, "null_seeds": 2}
SCRIPT = """
from pathlib import Path
from lib import baselines, figures, parameters, stats
from lib.claims import Ledger
from lib.latent import claims
from lib.latent import figures as latent_figures
from lib.latent import trials
runs = Path("runs/mine")
specs = baselines.baseline_specs(parameters.profile_parameters("mine", "00_baselines"))
specs = [spec for spec in specs if spec["network"] == "perceptron" and spec["dataset"] == "noise"]
rows = baselines.baselines(runs).run(specs)
assert len(rows) >= 2 and set(rows["status"]) == {"done"}, list(rows["reason"])
assert set(figures.colours(["mlp", "perceptron"])) == {"mlp", "perceptron"}

dense = {"dataset": "digits", "network": "mlp", "source": "trained", "seed": 0, "epochs": 1, "lr": 0.1}
spec = dense | {"layer": "1", "method": "lowest", "structure": "weights", "fraction": 0.5, "trial": 0}
spec |= {"test_images": 50, "steps": 2, "rate": 0.1, "tuning_batch": 16}
study = trials.layers(runs, runs)
rows = study.run([spec, spec | {"fraction": 0.2}])
assert list(rows["status"]) == ["done"] * 2, list(rows["reason"])
assert study.version == 3 and all(0 < rows["largest_move"]) and rows["largest_move"].nunique() == 2
assert len(latent_figures.moves(rows).axes) == 1
loss, other, ledger = range(1, 20), range(2, 21), Ledger(claims.RULES)
"""
CHECK = """
for rule in claims.RULES[1:]:
    ledger.untestable(rule.id, "not entered here")
first, fork = ledger.entries()[:2]
assert first["id"] == fork["id"] == "P1.E20" and first["verdict"] == fork["verdict"] == "supported"
assert (first["value"], first["n"], fork["fork"]) == (10, 19, "tuning_lr = 0.01") and first["low"] < 10 < first["high"]
parameters.checked("01_latent_kl", {"decides": ["P1.E20"]}, "mine")
"""


def block(page: str, heading: str, number: int = 1) -> list[str]:
    """The lines of the first code block in a section, or of another one."""
    section = re.split(r"^## ", page.split(f"## {heading}\n")[1], flags=re.M)[0]
    return section.split("```python\n")[number].split("\n```")[0].splitlines()


def apply(copy, lines: list[str]) -> None:
    """Put the lines that follow each comment where the comment says."""
    starts = [index for index, line in enumerate(lines) if MARK.match(line)]
    assert starts and starts[0] == 0
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        file, where, beside = MARK.match(lines[start]).groups()
        text, added = (copy / file).read_text(), "\n".join(lines[start + 1 : end])
        if where:
            assert text.count(f"\n{beside}\n") == 1, f"{file} has not one line {beside!r}"
            both = f"{added}\n{beside}" if where == "above" else f"{beside}\n{added}"
            text = text.replace(f"\n{beside}\n", f"\n{both}\n")
        else:
            text += f"\n\n{added}\n"
        (copy / file).write_text(text)


@pytest.fixture
def extended(tmp_path):
    """A copy of the repository to which all blocks have been applied."""
    copy = tmp_path / "extended"
    ignore = shutil.ignore_patterns("__pycache__", "trials", "*.parquet")
    for folder in ("lib", "notebooks", "runs/smoke"):
        shutil.copytree(root() / folder, copy / folder, ignore=ignore)
    shutil.copy(root() / "pyproject.toml", copy)
    page = (root() / "docs" / "extending.md").read_text()
    for kind in KINDS:
        apply(copy, block(page, f"{'An' if kind == 'interval' else 'A'} {kind}"))
    trials = copy / "lib" / "latent" / "trials.py"
    raised, count = re.subn(r'("01_latent_kl\.layers".*?version=)2', r"\g<1>3", trials.read_text(), flags=re.S)
    assert count == 1
    trials.write_text(raised)
    (copy / "runs" / "mine").mkdir()
    values = yaml.safe_load((copy / "runs/smoke/00_baselines.yaml").read_text())
    (copy / "runs/mine/00_baselines.yaml").write_text(yaml.safe_dump(values | {"profile": "mine"} | PROFILE))
    return copy


def test_an_added_network_data_set_measure_figure_interval_and_claim_work(extended):
    cell = "\n".join(block((root() / "docs" / "extending.md").read_text(), "A claim", 2))
    environment = os.environ | {"PYTHONPATH": str(extended), "RUNS_DIR": "", "FIGURES_DIR": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + cell + CHECK], cwd=extended, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_measures_work_on_a_network_of_ones_own():
    names = {}
    exec("\n".join(block((root() / "README.md").read_text(), "How to use it")), names)
    assert (names["sparse"].conv1.weight == 0).double().mean() == 0.5
    assert names["pruned"].layer1[0].conv1.out_channels == names["merged"].layer1[0].conv1.out_channels == 48
    assert names["table"]["match"].eq("fewer channels").sum() == 21 and names["table"]["ap2"].gt(0).all()


def test_the_page_on_own_networks_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(block((root() / "docs" / "own.md").read_text(), "In ten lines")), names)
    assert names["files"]["difference"].max() < 1e-5 and names["table"].iloc[-1]["accuracy_before"] >= 0
    exec("\n".join(block((root() / "docs" / "own.md").read_text(), "A network by its import path")), names)
    assert names["small"](10, 1, 8)(names["torch"].zeros(2, 1, 8, 8)).shape == (2, 10)
