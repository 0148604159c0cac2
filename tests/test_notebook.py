"""A notebook is published whole or not at all, and twice the same."""

import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib import parameters
from lib import run as notebook
from lib.provenance import CompanionError, locked
from tests.toy_house import PARAMETERS, published, write_notebook, write_yaml


def test_results_of_a_readers_own_parameters_go_to_local(house):
    values = parameters.profile_parameters("smoke", "00_toy")
    assert notebook.Run("00_toy", values).folder == house / "runs" / "smoke"
    own = notebook.Run("00_toy", values | {"n": 4})
    assert own.folder == house / "runs" / "local" and own.figures == house / "figures" / "local"
    assert own.baselines == house / "runs" / "smoke"
    with pytest.raises(CompanionError, match="Unknown profile 'nowhere'"):
        notebook.Run("00_toy", values | {"profile": "nowhere"})


def test_a_notebook_is_published_whole_twice_the_same_and_stale_figures_go(house):
    notebook.execute("smoke", "00_toy")
    first = published(house)
    names = {"00_toy.ipynb", "00_toy.claims.json", "00_toy.squares.parquet"}
    assert set(first) == names | {f"00_squares_3.{kind}" for kind in ("svg", "png", "csv")}
    assert b"to be computed" not in first["00_toy.ipynb"] and b"duration" not in first["00_toy.ipynb"]
    log = (house / "runs" / "smoke" / "log").read_text()
    notebook.execute("smoke", "00_toy")
    assert published(house) == first
    assert (house / "runs" / "smoke" / "log").read_text() == log, "a finished trial ran again"
    shutil.rmtree(house / "runs" / "smoke" / "trials")  # as in a fresh clone
    (house / "figures" / "smoke" / "00_squares_3.png").unlink()
    notebook.execute("smoke", "00_toy")
    assert published(house) == first
    assert (house / "runs" / "smoke" / "log").read_text() == log, "a published row was computed again"
    write_yaml(house, n=2)
    notebook.execute("smoke", "00_toy")
    assert "00_squares_2.svg" in published(house) and "00_squares_3.svg" not in published(house)


def test_one_notebook_runs_once_at_a_time(house):
    with locked(house / ".build" / "smoke" / "00_toy.lock"), pytest.raises(CompanionError, match="running in this"):
        notebook.execute("smoke", "00_toy")


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
        notebook.execute("smoke", "00_toy", timeout=600)
    assert not published(house)
    assert nbformat.read(str(error.value).rsplit("As far as it ran: ", 1)[1], as_version=4).cells
    assert len(list((house / "runs/smoke/trials/00_toy.squares").glob("*.json"))) == 3, "finished trials were lost"


def test_a_cell_that_hangs_is_named_and_publishes_nothing(house):
    write_notebook(house / "notebooks", PARAMETERS, "import time", "time.sleep(600)")
    with pytest.raises(CompanionError, match=r"failed in cell \[4\]: it took longer than 8 s"):
        notebook.execute("smoke", "00_toy", timeout=8)
    assert not published(house)


def test_prints_are_joined_however_they_arrived(tmp_path):
    def cell(*pieces):
        outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
        code = new_code_cell("print()", outputs=outputs)
        nbformat.write(new_notebook(cells=[code]), tmp_path / "a.ipynb")
        return notebook._cleaned(tmp_path / "a.ipynb")

    whole = cell(("stdout", "a\nb\n"))
    assert cell(("stdout", "a\n"), ("stderr", "12 s left"), ("stdout", "b\n")) == whole
