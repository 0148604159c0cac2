"""A notebook is published whole or not at all; a batch survives."""

import shutil
import signal

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib import batch
from lib.locks import locked
from lib.provenance import CompanionError
from tests.toy_house import (
    PARAMETERS,
    finished,
    processes_of,
    published,
    start_batch,
    wait_for,
    write_notebook,
    write_yaml,
)


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
    ],
)
def test_a_notebook_that_fails_is_named_with_its_cell_and_publishes_nothing(house, trouble, sentence):
    write_yaml(house, trouble=trouble)
    with pytest.raises(CompanionError, match=sentence) as error:
        batch.execute("smoke", "00_toy", timeout=600)
    assert not published(house)
    assert nbformat.read(str(error.value).rsplit("As far as it ran: ", 1)[1], as_version=4).cells
    assert len(list((house / "runs/smoke/trials/00_toy.squares").glob("*.json"))) == 3, "finished trials were lost"


def test_a_cell_that_hangs_is_named_and_publishes_nothing(house):
    write_notebook(house / "notebooks", PARAMETERS, "import time", "time.sleep(600)")
    with pytest.raises(CompanionError, match=r"failed in cell \[4\]: it took longer than 8 s"):
        batch.execute("smoke", "00_toy", timeout=8)
    assert not published(house)


def test_a_second_batch_is_refused_a_killed_one_leaves_nothing_behind_and_a_restart_completes(house):
    n = 120
    write_yaml(house, n=n, rate=0.1)
    first = start_batch(house)
    trials = house / "runs/smoke/trials/00_toy.squares"
    assert wait_for((house / ".build/smoke/00_toy").exists, 300), (house / "batch.log").read_text()
    assert start_batch(house).wait(300) != 0
    assert "Another batch is running" in (house / "batch.log").read_text()
    assert wait_for(lambda: len(list(trials.glob("*.json"))) > 3, 300), (house / "batch.log").read_text()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert wait_for(lambda: not processes_of(house), 60), processes_of(house)
    done = len(list(trials.glob("*.json")))
    assert 3 < done < n and not published(house)
    log = (house / "runs/smoke/log").read_text()
    finished(start_batch(house), house)
    assert "00_toy.claims.json" in published(house)
    started = (house / "runs/smoke/log").read_text().removeprefix(log).count("start")
    assert started <= n - done, "a finished trial ran again"


def test_a_failing_notebook_fails_the_batch_and_says_where(house):
    write_yaml(house, trouble="error")
    assert start_batch(house).wait(600) != 0
    output = (house / "batch.log").read_text()
    assert "failed in cell [5]: CompanionError: the data are not here" in output, output


def test_a_fresh_batch_computes_everything_anew_goes_on_after_a_kill_and_replaces_the_results_at_the_end(house):
    batch.execute("smoke", "00_toy")
    before, log = published(house), house / "runs/smoke/log"
    assert log.read_text().count("start") == 3
    write_yaml(house, n=4, trouble="error")
    assert start_batch(house, "fresh=1").wait(600) != 0
    assert "A fresh run of smoke begins" in (house / "batch.log").read_text()
    assert published(house) == before, "a fresh run that fails leaves what was published"
    fresh_log = house / "runs/fresh/smoke/log"
    assert fresh_log.read_text().count("start") == 4, "published rows were taken for new ones"
    write_yaml(house, n=4)
    output = finished(start_batch(house, "fresh=1"), house)
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
