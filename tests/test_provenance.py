"""The root is found from anywhere, files appear whole, locks end with their owner, rows say how they were made."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from lib import provenance
from lib.provenance import CompanionError, locked


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another checkout, in which this process works."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    provenance.root.cache_clear()
    yield tmp_path
    provenance.root.cache_clear()


def test_the_root_is_found_from_a_folder_below_it(monkeypatch):
    monkeypatch.chdir(provenance.root() / "notebooks")
    provenance.root.cache_clear()
    assert (provenance.root() / "pyproject.toml").is_file()


def test_a_checkout_whose_lib_is_not_the_imported_one_is_refused(elsewhere):
    with pytest.raises(CompanionError, match=f"You are in {elsewhere}, but Python imports lib from .*PYTHONPATH="):
        provenance.root()


def test_the_commit_of_a_repository_around_the_checkout_does_not_count(tmp_path, monkeypatch):
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    checkout = tmp_path / "outer" / "checkout"
    checkout.mkdir(parents=True)
    commits = {}
    for place in (tmp_path / "outer", checkout):
        for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
            subprocess.run((*git, *command), cwd=place, check=True)
        monkeypatch.setattr(provenance, "root", lambda: checkout)
        provenance.git_commit.cache_clear()
        commits[place.name] = provenance.git_commit()
    provenance.git_commit.cache_clear()
    assert commits["outer"] == "none" and len(commits["checkout"]) == 12


def test_the_hash_is_of_the_code_whatever_its_line_ends_and_code_that_changed_in_a_batch_is_refused(tmp_path):
    lib = shutil.copytree(Path(provenance.__file__).parent, tmp_path / "lib", ignore=shutil.ignore_patterns("*cache*"))
    (tmp_path / "pyproject.toml").touch()

    def imported(statement: str, begun: str = "") -> str:
        environment = os.environ | {
            "PYTHONPATH": str(tmp_path),
            "COMPANION_CODE": begun,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", f"from lib import provenance; print({statement})"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
        return (done.stdout + done.stderr).strip().splitlines()[-1]

    hashed, check = "provenance.code_hash()", "provenance.check_code()"
    begun = imported(hashed)
    assert begun == provenance.code_hash()
    stats = lib / "stats.py"
    stats.write_bytes(stats.read_bytes().replace(b"\n", b"\r\n"))
    assert imported(hashed) == begun and imported(check, begun) == "None"
    stats.write_bytes(stats.read_bytes() + b"CHANGED = True\n")
    assert "lib changed while this batch was running" in imported(check, begun) and imported(check) == "None"


def test_a_notebook_shows_the_sentence_of_an_error_that_the_user_can_fix_and_no_traceback():
    shell, shown = InteractiveShell(), []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    for error in (CompanionError("no data: fetch them."), provenance.Stopped()):
        try:
            raise error
        except BaseException:
            shell.showtraceback()
    assert shown[0] == "CompanionError: no data: fetch them."
    assert shown[1].startswith("Stopped. Finished trials are kept") and len(shown) == 2


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
    monkeypatch.setenv("RUNS_DIR", "tests/runs")
    monkeypatch.chdir(tmp_path)
    assert provenance.runs_dir() == provenance.root() / "tests/runs", (
        "a relative folder moved with the working directory"
    )


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


def test_an_interrupted_command_says_how_to_go_on(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        provenance.command(interrupted)
    assert ended.value.code == 130 and capsys.readouterr().err.count("\n") == 1


def test_a_lock_excludes_others_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.lock"
    with locked(path) as first, locked(path, blocking=False) as second:
        assert first and not second
    assert not path.exists()
    with locked(path, blocking=False) as again:
        assert again


def test_the_lock_of_a_killed_process_is_free_though_its_file_stays(tmp_path):
    path = tmp_path / "a.lock"
    code = "from pathlib import Path; from lib.provenance import locked\n"
    code += f"with locked(Path({str(path)!r})): print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=provenance.root(),
        env=os.environ | {"PYTHONPATH": str(provenance.root())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        owner.stdout.readline()
        with locked(path, blocking=False) as mine:
            assert not mine
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert path.exists()
    with locked(path, blocking=False) as mine:
        assert mine
    assert not path.exists()


def test_a_file_larger_than_allowed_is_a_sentence_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CompanionError, match="No room on the disk"):
            provenance.write_atomically(tmp_path / "row.json", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
