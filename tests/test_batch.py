"""Parameters are refused before anything starts; a notebook is published whole or not at all; a batch survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import batch
from lib.provenance import CompanionError, root
from lib.store import locked

PARAMETERS = 'profile = "smoke"  # a comment\nn = 3\nrate = 0.5\nquick = True\nnames = ["a"]\ntrouble = ""'
SETUP = """
import os, sys, time
import pandas as pd, matplotlib.pyplot as plt
from lib import batch, claims, figures
from lib.provenance import CompanionError
from lib.study import Study
from tests.toy_trials import logged
run = batch.Run("00_toy", globals())
"""
RESULTS = """
study = Study("00_toy.squares", logged, 1, run.folder)
specs = [{"x": x, "log": str(run.folder / "log"), "seconds": rate} for x in range(n)]
run.announce(study, specs)
rows = study.run(specs)
study.publish(rows, run.results)
ledger = claims.Ledger([claims.Rule("T1", "s", "Squares grow.", "last square", ">", 0, "0")])
ledger.enter("T1", rows["square"].iloc[-1], n=n)
ledger.save(run.results, run.name)
figure, axis = plt.subplots()
axis.plot(rows["x"], rows["square"])
figures.save(figure, run.figures, f"00_squares_{n}", rows[["x", "square"]], "Squares.")
"""
TROUBLE = """
if trouble == "error": raise CompanionError("the data are not here: fetch them.")
if trouble == "bug": raise ZeroDivisionError("division by zero")
if trouble == "death": os._exit(9)
if trouble == "hang": time.sleep(600)
"""


def write_notebook(folder: Path, *sources: str, tag: str = "parameters") -> None:
    cells = [new_markdown_cell("# Toy"), *(new_code_cell(source.strip()) for source in sources)]
    cells[1].metadata["tags"] = [tag]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "00_toy.ipynb")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A small checkout with one notebook, whose profile writes into it."""
    for name in ("lib", "tests", "Snakefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(root() / name)
    write_notebook(tmp_path / "notebooks", PARAMETERS, SETUP, RESULTS, TROUBLE)
    (tmp_path / "runs" / "smoke").mkdir(parents=True)
    write_yaml(tmp_path)
    for module in ("lib.batch", "lib.provenance"):
        monkeypatch.setattr(f"{module}.root", lambda: tmp_path)
    for variable in ("RUNS_DIR", "FIGURES_DIR", "COMPANION_STAGE", "COMPANION_BATCH", "COMPANION_QUIET"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("PYTHONPATH", "")  # restored afterwards: executing a notebook puts the root on it
    return tmp_path


def write_yaml(house: Path, **changes: object) -> None:
    values = {"profile": "smoke", "n": 3, "rate": 0.0} | changes
    (house / "runs" / "smoke" / "00_toy.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))


def published(house: Path) -> dict[str, bytes]:
    files = [*(house / "runs" / "smoke").glob("00_toy.*"), *(house / "figures").rglob("*.*")]
    return {path.name: path.read_bytes() for path in files if path.suffix != ".yaml"}


def test_parameters_are_the_plain_values_of_the_tagged_cell(house):
    expected = {"profile": "smoke", "n": 3, "rate": 0.5, "quick": True, "names": ["a"], "trouble": ""}
    assert batch.default_parameters("00_toy") == expected
    assert batch.profile_parameters("smoke", "00_toy") == expected | {"rate": 0.0}


def test_a_notebook_without_a_parameters_cell_or_with_computed_ones_is_refused(house):
    write_notebook(house / "notebooks", "n = 3", tag="other")
    with pytest.raises(CompanionError, match="0 cells tagged 'parameters'"):
        batch.default_parameters("00_toy")
    write_notebook(house / "notebooks", "n = len([1])")
    with pytest.raises(CompanionError, match="only assign plain values"):
        batch.default_parameters("00_toy")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"naems": ["a"]}, "runs/smoke/00_toy.yaml: 'naems' .did you mean names.*known are profile, n"),
        ({"n": "three"}, "n is 'three'; it must be of type int"),
        ({"n": 2.5}, "type int"),
        ({"n": True}, "type int"),
        ({"quick": 1}, "type bool"),
        ({"names": "a"}, "type list"),
        ({"profile": "laptop"}, "must say `profile: smoke`"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_starts(house, changes, sentence):
    write_yaml(house, **changes)
    with pytest.raises(CompanionError, match=sentence):
        batch.check_profile("smoke")
    assert not (house / ".build").exists()


def test_an_unknown_profile_is_one_sentence_with_the_nearest(house):
    with pytest.raises(CompanionError, match="Unknown profile 'smok' .did you mean smoke"):
        batch.check_profile("smok")


def test_yaml_that_is_none_or_no_mapping_is_one_sentence(house):
    path = house / "runs" / "smoke" / "00_toy.yaml"
    for text, sentence in (("a: [1", "is not YAML"), ("- 1", "name: value")):
        path.write_text(text)
        with pytest.raises(CompanionError, match=sentence):
            batch.check_profile("smoke")


def test_results_of_a_readers_own_parameters_go_to_local(house):
    values = batch.profile_parameters("smoke", "00_toy")
    assert batch.Run("00_toy", values).folder == house / "runs" / "smoke"
    own = batch.Run("00_toy", values | {"n": 4})
    assert own.folder == house / "runs" / "local" and own.figures == house / "figures" / "local"
    assert own.baselines == house / "runs" / "smoke"
    with pytest.raises(CompanionError, match="Unknown profile 'nowhere'"):
        batch.Run("00_toy", values | {"profile": "nowhere"})


def test_a_notebook_is_published_whole_twice_the_same_and_stale_figures_go(house):
    batch.execute("smoke", "00_toy")
    first = published(house)
    names = {"00_toy.ipynb", "00_toy.claims.json", "00_toy.squares.parquet"}
    assert set(first) == names | {f"00_squares_3.{kind}" for kind in ("svg", "png", "csv")}
    assert b"to be computed" not in first["00_toy.ipynb"] and b"duration" not in first["00_toy.ipynb"]
    log = (house / "runs" / "smoke" / "log").read_text()
    batch.execute("smoke", "00_toy")
    assert published(house) == first
    assert (house / "runs" / "smoke" / "log").read_text() == log, "a finished trial ran again"
    shutil.rmtree(house / "runs" / "smoke" / "trials")  # as in a fresh clone
    (house / "figures" / "smoke" / "00_squares_3.png").unlink()
    batch.execute("smoke", "00_toy")
    assert published(house) == first
    assert (house / "runs" / "smoke" / "log").read_text() == log, "a published row was computed again"
    write_yaml(house, n=2)
    batch.execute("smoke", "00_toy")
    assert "00_squares_2.svg" in published(house) and "00_squares_3.svg" not in published(house)


def test_one_notebook_runs_once_at_a_time(house):
    with locked(house / ".build" / "smoke" / "00_toy.lock"), pytest.raises(CompanionError, match="running in this"):
        batch.execute("smoke", "00_toy")


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("error", r"failed in cell \[5\]: CompanionError: the data are not here: fetch them"),
        ("bug", r"failed in cell \[5\]: ZeroDivisionError"),
        ("death", r"failed in cell \[5\]: the kernel died"),
        ("hang", r"failed in cell \[5\]: it took longer than 8 s"),
    ],
)
def test_a_notebook_that_fails_is_named_with_its_cell_and_publishes_nothing(house, trouble, sentence):
    write_yaml(house, trouble=trouble)
    with pytest.raises(CompanionError, match=sentence) as error:
        batch.execute("smoke", "00_toy", timeout=8 if trouble == "hang" else 60)
    assert not published(house)
    assert nbformat.read(str(error.value).rsplit("As far as it ran: ", 1)[1], as_version=4).cells
    assert len(list((house / "runs/smoke/trials/00_toy.squares").glob("*.json"))) == 3, "finished trials were lost"


def start_batch(house: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lib.batch", "figures", "smoke", *options]
    environment = os.environ | {"PYTHONPATH": str(house)}
    return subprocess.Popen(
        command, cwd=house, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def processes_of(house: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and (folder / "cwd").resolve() == house:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


def test_a_second_batch_is_refused_a_killed_one_leaves_nothing_behind_and_a_restart_completes(house):
    n = 120
    write_yaml(house, n=n, rate=0.1)
    first = start_batch(house)
    trials = house / "runs/smoke/trials/00_toy.squares"
    assert wait_for((house / ".build/smoke/00_toy").exists, 60), first.communicate(timeout=1)
    second = start_batch(house)
    assert "Another batch is running" in second.communicate(timeout=60)[0] and second.returncode != 0
    assert wait_for(lambda: len(list(trials.glob("*.json"))) > 3, 60), first.communicate(timeout=1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert wait_for(lambda: not processes_of(house), 15), processes_of(house)
    finished = len(list(trials.glob("*.json")))
    assert 3 < finished < n and not published(house)
    log = (house / "runs/smoke/log").read_text()
    third = start_batch(house)
    output = third.communicate(timeout=120)[0]
    assert third.returncode == 0, output
    assert "00_toy.claims.json" in published(house)
    started = (house / "runs/smoke/log").read_text().removeprefix(log).count("start")
    assert started <= n - finished, "a finished trial ran again"


def test_a_failing_notebook_fails_the_batch_and_says_where(house):
    write_yaml(house, trouble="error")
    run = start_batch(house)
    output = run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert "failed in cell [5]: CompanionError: the data are not here" in output, output


def test_a_fresh_batch_computes_everything_anew_goes_on_after_a_kill_and_replaces_the_results_at_the_end(house):
    batch.execute("smoke", "00_toy")
    before, log = published(house), house / "runs/smoke/log"
    assert log.read_text().count("start") == 3
    write_yaml(house, n=4, trouble="error")
    stopped = start_batch(house, "--fresh")
    output = stopped.communicate(timeout=120)[0]
    assert stopped.returncode != 0 and "A fresh run of smoke begins" in output
    assert published(house) == before, "a fresh run that fails leaves what was published"
    fresh_log = house / "runs/fresh/smoke/log"
    assert fresh_log.read_text().count("start") == 4, "published rows were taken for new ones"
    write_yaml(house, n=4)
    output = start_batch(house, "--fresh").communicate(timeout=120)[0]
    assert "The fresh run of smoke" in output and "goes on" in output
    assert "00_squares_4.svg" in published(house) and "00_squares_3.svg" not in published(house)
    assert log.read_text().count("start") == 4, "a finished trial of the interrupted run was computed again"
    assert not list((house / "runs/fresh").iterdir()) and len(list((house / "runs/smoke/trials").rglob("*.json"))) == 4


def test_prints_are_joined_however_they_arrived(tmp_path):
    def cell(*pieces):
        outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
        code = new_code_cell("print()", outputs=outputs)
        nbformat.write(new_notebook(cells=[code]), tmp_path / "a.ipynb")
        return batch._cleaned(tmp_path / "a.ipynb")

    whole = cell(("stdout", "a\nb\n"))
    assert cell(("stdout", "a\n"), ("stderr", "12 s left"), ("stdout", "b\n")) == whole
