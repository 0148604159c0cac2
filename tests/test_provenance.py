"""The root is found from anywhere, folders follow their variables, files appear whole, rows say how they were made."""

import pandas as pd
import pytest

from lib import provenance
from lib.provenance import CompanionError


def test_the_root_is_found_from_a_folder_below_it(monkeypatch):
    monkeypatch.chdir(provenance.root() / "notebooks")
    provenance.root.cache_clear()
    assert (provenance.root() / "pyproject.toml").is_file()


def test_folders_follow_their_variables(monkeypatch, tmp_path):
    for variable, folder in {
        "RUNS_DIR": provenance.runs_dir,
        "FIGURES_DIR": provenance.figures_dir,
        "DATA_DIR": provenance.data_dir,
    }.items():
        monkeypatch.delenv(variable, raising=False)
        assert folder().parent == provenance.root()
        monkeypatch.setenv(variable, str(tmp_path))
        assert folder() == tmp_path


def test_a_data_dir_that_does_not_exist_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(CompanionError, match="does not exist: create that folder or unset DATA_DIR"):
        provenance.data_dir()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    provenance.write_atomically(path, b"old")
    with pytest.raises(TypeError):
        provenance.write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_made_a_row_is_recorded_even_if_it_fails():
    with pytest.raises(ZeroDivisionError), provenance.made() as how:
        _ = 1 / 0
    assert set(how) == {f"made_{name}" for name in ("seconds", "memory_mb", *provenance.CONTEXT)}
    assert how["made_seconds"] >= 0 and how["made_memory_mb"] > 10


def test_the_table_adds_seconds_and_names_every_device():
    made = {f"made_{name}": "x" for name in provenance.CONTEXT}
    rows = pd.DataFrame(
        [
            {"status": "done", "made_seconds": 1.5, "made_memory_mb": 10} | made,
            {"status": "failed", "made_seconds": 2.0, "made_memory_mb": 30} | made | {"made_device": "y"},
        ]
    )
    table = provenance.table({"00_t.s": rows})["00_t.s"]
    assert table["trials"] == 2 and table["failed"] == 1 and table["seconds of computing"] == 3.5
    assert table["device"] == "x, y" and table["peak memory (MiB)"] == 30


def test_notes_become_columns_of_the_innermost_block_alone():
    provenance.note("nowhere", 1)
    with provenance.made() as outer:
        provenance.note("strategy", "graph")
        with provenance.made() as inner:
            provenance.note("micro_batches", 2)
    assert outer["made_strategy"] == "graph" and "made_micro_batches" not in outer and "made_nowhere" not in outer
    assert inner["made_micro_batches"] == 2 and "made_strategy" not in inner


def test_an_interrupted_command_says_how_to_go_on(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        provenance.command(interrupted)
    assert ended.value.code == 130 and capsys.readouterr().err.count("\n") == 1
