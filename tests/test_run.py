"""A notebook is published whole or not at all and twice the same; the status of a profile counts its trials."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib import parameters, run
from lib.provenance import PREFIX, CompanionError, code_hash, locked
from lib.store import Store
from lib.study import Study
from tests import toy_checkout, toy_trials
from tests.toy_checkout import executions, kill_at, killed, published, write_yaml


def test_results_of_a_readers_own_parameters_go_to_local(checkout):
    values = parameters.profile_parameters("smoke", "00_toy")
    assert run.Run("00_toy", values).folder == checkout / "runs" / "smoke"
    own = run.Run("00_toy", values | {"n": 4})
    assert (own.profile, own.folder) == ("local", checkout / "runs" / "local")
    assert own.baselines == checkout / "runs" / "smoke"
    with pytest.raises(CompanionError, match="Unknown profile 'nowhere'"):
        run.Run("00_toy", values | {"profile": "nowhere"})


@pytest.mark.parametrize("file, prepared", [(None, True), ("00_toy.claims.json", False)])
def test_worker_processes_are_prepared_before_they_are_needed_but_only_if_nothing_is_published(
    checkout, monkeypatch, file, prepared
):
    calls = []
    monkeypatch.setattr("lib.study.prepare_workers", lambda *modules: calls.append(modules))
    if file:
        (checkout / "runs" / "smoke" / file).touch()
    write_yaml(checkout, workers=2)
    run.Run("00_toy", parameters.profile_parameters("smoke", "00_toy"))
    assert bool(calls) == prepared
    calls.clear()
    write_yaml(checkout, workers=1)
    run.Run("00_toy", parameters.profile_parameters("smoke", "00_toy"))
    assert not calls, "a notebook that trains in its own process needs no others"


def test_a_notebook_is_published_whole(executed):
    files = published(executed)
    rows = {"00_toy.squares.parquet", "00_toy.best.parquet"}
    expected = (
        {"00_toy.ipynb", "00_toy.claims.json"} | rows | {f"00_squares_3.{kind}" for kind in ("svg", "png", "csv")}
    )
    assert set(files) == expected
    assert b"to be computed" not in files["00_toy.ipynb"] and b"duration" not in files["00_toy.ipynb"]
    assert len(executions(executed, "end")) == 5


def test_published_twice_the_same_from_published_rows_alone(executed):
    first = published(executed)
    shutil.rmtree(executed / "runs" / "smoke" / "trials")  # as in a fresh clone
    (executed / "figures" / "smoke" / "00_squares_3.png").unlink()
    run.execute("smoke", "00_toy")
    assert published(executed) == first
    assert not executions(executed), "a published row was computed again"


def test_figures_that_are_not_made_again_are_deleted_and_stored_trials_do_not_run_again(executed):
    before = executions(executed)
    write_yaml(executed, n=2)
    run.execute("smoke", "00_toy")
    assert "00_squares_2.svg" in published(executed) and "00_squares_3.svg" not in published(executed)
    new = executions(executed, "start")[len(before) // 2 :]
    assert [line.split()[1] for line in new] == ["0"], "a finished trial ran again"  # the second largest of two squares


def test_results_elsewhere_are_computed_anew_and_equal_the_published_ones(executed, tmp_path, monkeypatch):
    """`make figures RUNS_DIR=... FIGURES_DIR=...` reads no row of the checkout, and works if that is read-only."""
    files, before = published(executed), executions(executed)
    for variable in ("RUNS_DIR", "FIGURES_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere" / variable))
    shutil.rmtree(executed / ".build")
    run.execute("smoke", "00_toy")
    assert not (executed / ".build").exists() and executions(executed) == before
    new = tmp_path / "elsewhere" / "RUNS_DIR" / "smoke"
    assert (new / "trials" / "log").read_text().count("end") == 5
    for name, content in files.items():
        folder = new if name.startswith("00_toy.") else tmp_path / "elsewhere" / "FIGURES_DIR" / "smoke"
        assert name.endswith(".parquet") or (folder / name).read_bytes() == content, f"{name} differs"


def test_one_notebook_runs_once_at_a_time(checkout):
    with locked(checkout / ".build" / "smoke" / "00_toy.lock"), pytest.raises(CompanionError, match="is running in"):
        run.execute("smoke", "00_toy")


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [("error", "CompanionError: the data are not here: fetch them"), ("death", "the kernel died")],
)
def test_a_notebook_that_fails_is_named_with_its_cell_publishes_nothing_and_keeps_trials(checkout, trouble, sentence):
    write_yaml(checkout, trouble=trouble)
    with pytest.raises(CompanionError, match=rf"failed in cell \[5\]: {sentence}") as error:
        run.execute("smoke", "00_toy")
    assert not published(checkout) and len(executions(checkout, "end")) == 5
    assert nbformat.read(str(error.value).rsplit("As far as it ran: ", 1)[1], as_version=4).cells
    assert len(list((checkout / "runs/smoke/trials/00_toy.squares").glob("*.json"))) == 3, "finished trials were lost"
    assert f"failed in cell [5]: {sentence}" in run.overview("smoke")


def test_a_kernel_that_never_starts_is_one_sentence_with_its_remedy(checkout, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CompanionError, match="^Jupyter's kernel did not start .*: delete .venv, then make creates"):
        run.execute("smoke", "00_toy")


def test_missing_data_are_told_before_a_kernel_starts_unless_published_rows_stand_in(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(run, "inputs", lambda values: ({"tiny-imagenet"}, set()))
    with pytest.raises(CompanionError, match="^tiny-imagenet is not in .*: unpack http"):
        run.execute("smoke", "00_toy")
    assert not (checkout / ".build").exists()
    (checkout / "runs" / "smoke" / "00_toy.claims.json").touch()
    assert run.execute("smoke", "00_toy").exists()


def test_code_that_changed_after_a_batch_began_is_refused_before_a_kernel_starts(checkout, monkeypatch):
    monkeypatch.setenv("COMPANION_CODE", "of another lib")
    with pytest.raises(CompanionError, match="^lib changed while this batch was running: start it again"):
        run.execute("smoke", "00_toy")
    assert not (checkout / ".build").exists()


@pytest.fixture
def environment(checkout, monkeypatch):
    """The environment of this process, which becomes a batch in name only; what the batch changes is undone."""
    monkeypatch.setattr("os.execv", lambda *_: None)
    for variable in ("COMPANION_BATCH", "COMPANION_CODE", "PYTHONUTF8", "SNAKEMAKE_PROFILE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "")
    return os.environ


def test_every_process_of_a_batch_knows_the_code_that_it_began_with(environment):
    run.figures("smoke", [])
    assert environment["COMPANION_CODE"] == code_hash() and environment["PYTHONUTF8"] == "1"


def test_a_batch_needs_no_home_folder_and_ignores_the_users_settings_of_snakemake(checkout, environment, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "theirs")
    run.figures("smoke", [])
    assert Path(environment["XDG_CACHE_HOME"]).is_relative_to(checkout) and "SNAKEMAKE_PROFILE" not in environment


def started_lab(options: list[str], monkeypatch, user: int = 1000) -> list[str]:
    """The command that `make lab` becomes."""
    commands = []
    monkeypatch.setattr("os.execv", lambda program, command: commands.append(command))
    monkeypatch.setattr("os.geteuid", lambda: user)
    run.lab(options)
    return commands[0]


def test_jupyterlab_opens_at_the_root_with_this_interpreter_as_its_kernel_and_the_options_given(checkout, monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    command = started_lab(["--port", "9000"], monkeypatch)
    assert command[1:3] == ["-m", "jupyterlab"] and command[-2:] == ["--port", "9000"]
    assert f"--ServerApp.root_dir={checkout}" in command and "--no-browser" not in command
    first = os.environ["JUPYTER_PATH"].split(os.pathsep)[0]
    kernel = json.loads((Path(first) / "kernels" / "python3" / "kernel.json").read_bytes())
    assert kernel["argv"][0] == sys.executable


@pytest.mark.parametrize("options", [[], ["--no-browser"]])
def test_over_ssh_jupyterlab_opens_no_browser_and_says_how_to_reach_it(checkout, monkeypatch, capsys, options):
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    assert started_lab(options, monkeypatch).count("--no-browser") == 1
    assert "ssh -N -L 8888:localhost:8888" in capsys.readouterr().out


def test_root_is_told_how_to_start_jupyterlab(checkout, monkeypatch):
    with pytest.raises(CompanionError, match='become another user, or say make lab LAB="--allow-root"'):
        started_lab([], monkeypatch, user=0)
    assert "--allow-root" in started_lab(["--allow-root"], monkeypatch, user=0)


def test_the_parameters_that_injected_ones_replace_are_folded(executed):
    cells = nbformat.read(executed / "runs" / "smoke" / "00_toy.ipynb", as_version=4).cells
    folded = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in cells]
    tags = [cell.metadata.get("tags") for cell, hidden in zip(cells, folded, strict=True) if hidden]
    assert tags == [["parameters", "hide-input"]]


@pytest.mark.parametrize(("lines", "tags", "folded"), [(16, [], 1), (15, [], 0), (30, ["parameters"], 0)])
def test_long_code_is_folded_and_parameters_are_not(lines, tags, folded):
    cell = new_code_cell("\n".join(["1"] * lines), metadata={"tags": [*tags, "hide-input"]})
    run.fold(cell)
    assert cell.metadata["tags"] == [*tags, *["hide-input"] * folded]
    assert cell.metadata.get("jupyter", {}) == ({"source_hidden": True} if folded else {})


def test_prints_are_joined_however_they_arrived(tmp_path):
    def cleaned(*pieces):
        outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
        nbformat.write(new_notebook(cells=[new_code_cell("print()", outputs=outputs)]), tmp_path / "a.ipynb")
        return run._cleaned(tmp_path / "a.ipynb")

    whole = cleaned(("stdout", "a\nb\n"))
    assert cleaned(("stdout", "a\n"), ("stderr", "12 s left"), ("stdout", "b\n")) == whole


def test_a_shard_publishes_nothing_and_leaves_no_trial_to_a_shard_that_never_comes(checkout):
    stage = run.execute("smoke", "00_toy", shard="1/2")
    assert stage.exists() and not published(checkout)
    assert len(executions(checkout, "end")) == 5


@pytest.mark.parametrize("shard", ["2/2", "x/2", "1", "0/0"])
def test_an_impossible_shard_is_refused(checkout, shard):
    with pytest.raises(CompanionError, match=f"Invalid shard {shard}: use i/n, such as 0/4"):
        run.execute("smoke", "00_toy", shard=shard)


def test_figures_in_an_unknown_format_are_refused_before_a_batch_starts(checkout, monkeypatch):
    monkeypatch.setenv("FIGURES", "eps")
    with pytest.raises(CompanionError, match="FIGURES asks for eps: say FIGURES=pdf"):
        run.figures("smoke", [])
    assert not (checkout / ".build").exists()


@pytest.mark.parametrize("setting", ["shard=2", "shards=0", "shards=two"])
def test_a_wrong_setting_of_a_batch_is_refused_before_it_starts(checkout, setting):
    with pytest.raises(CompanionError, match=f"Invalid setting {setting}: use shards=N"):
        run.figures("smoke", [setting])
    assert not (checkout / ".build").exists()


PUBLISHED_IN_ORDER = (
    "00_toy.best.parquet",
    "00_toy.claims.json",
    "00_squares_3.csv",
    "00_squares_3.svg",
    "00_toy.ipynb",
)


@pytest.mark.parametrize("file", PUBLISHED_IN_ORDER)
@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_killed_while_it_publishes_files_are_whole_and_a_restart_completes(executed, monkeypatch, method, file):
    """The cells are not run again here: the stage gets the files that they made."""
    expected = published(executed)
    (old := json.loads(expected["00_toy.claims.json"]))[0]["value"] = -1
    for name in expected:
        folder = executed / ("runs" if name.startswith("00_toy.") else "figures") / "smoke"
        (folder / name).write_bytes(json.dumps(old).encode() if name.endswith(".json") else b"old")

    def run_staged(stage, name, values):
        for target, content in expected.items():
            folder = stage if target.endswith(".ipynb") else stage / ("runs" if "toy" in target else "figures")
            (folder / target).open("wb").write(content)
        return 0.0

    monkeypatch.setattr(run, "_run_staged", run_staged)
    with monkeypatch.context() as deadly:
        kill_at(method, file, deadly, half=method == "write_bytes")
        assert killed(lambda: run.execute("smoke", "00_toy"))
    after = published(executed)
    assert after != expected
    for name, content in expected.items():
        assert after[name] in (content, b"old", json.dumps(old).encode()), f"{name} is neither the old nor the new file"
    run.execute("smoke", "00_toy")
    assert {name: content for name, content in published(executed).items() if name in expected} == expected


def test_the_batch_takes_its_own_interpreter_whatever_kernel_has_the_name(checkout, tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    toy_checkout.write_notebook(checkout / "notebooks", 'profile = "smoke"', "import sys", "print(sys.executable)")
    (checkout / "runs/smoke/00_toy.yaml").write_text("profile: smoke\n")
    cells = nbformat.read(run.execute("smoke", "00_toy"), as_version=4).cells
    assert cells[-1].outputs[0].text.strip() == sys.executable


@pytest.mark.parametrize("command", ["check", "status", "figures"])
def test_starting_a_batch_imports_neither_torch_nor_pandas(executed, command):
    """They take seconds in every process of a batch."""
    code = (
        "import os, sys\nfrom lib import run\nos.execv = lambda *_: None\n"
        f"run.main([{command!r}, 'smoke'])\nassert not {{'torch', 'pandas'}} & sys.modules.keys()"
    )
    environment = os.environ | {"PYTHONPATH": str(executed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=executed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def put(store: Store, x: int, state: str = "done", seconds: float = 10.0) -> None:
    store.put(store.key({"x": x}), {"x": x}, {"status": state, "reason": "", f"{PREFIX}seconds": seconds})


def test_done_failed_and_left_add_up_to_the_requested_trials_and_the_rest_costs_as_much_as_the_first(tmp_path):
    store = Store("00_toy.squares", 3, tmp_path)
    store.request([store.key({"x": x}) for x in range(10)], processes=2)
    put(store, 0)
    put(store, 1, seconds=30.0)
    put(store, 2, "failed", 20.0)
    put(store, 99)  # of other parameters: not requested
    expected = {"done": 2, "failed": 1, "left": 7, "spent": 60.0, "still": 7 * 20 / 2}
    assert run.study_state(tmp_path, "00_toy.squares") == expected
    store.compact(0)
    assert run.study_state(tmp_path, "00_toy.squares") == expected


def test_nothing_is_estimated_before_the_first_trial_has_ended_nor_after_the_last(tmp_path):
    store = Store("00_toy.squares", 1, tmp_path)
    store.request([store.key({"x": 0})], processes=2)
    assert run.study_state(tmp_path, "00_toy.squares")["still"] is None
    put(store, 0)
    assert run.study_state(tmp_path, "00_toy.squares")["still"] == 0.0


def test_requests_of_one_study_add_up_and_a_raised_version_forgets_them(tmp_path):
    for version, first in ((1, 0), (2, 10), (2, 12)):
        study = Study("00_toy.squares", toy_trials.square, version, tmp_path)
        study.run([{"x": x} for x in range(first, first + 3)])
    assert sorted(study.store.requested()["keys"]) == sorted(study.store.key({"x": x}) for x in range(10, 15))
    assert run.study_state(tmp_path, "00_toy.squares")["done"] == 5


def test_a_fresh_clone_shows_the_published_rows(executed):
    shutil.rmtree(executed / "runs" / "smoke" / "trials")
    lines = run.overview("smoke").splitlines()
    assert "00_toy                         published" in lines[1]
    assert [line.split()[:4] for line in lines[2:]] == [["best", "2", "0", "0"], ["squares", "3", "0", "0"]]


def test_an_unknown_profile_is_one_sentence():
    with pytest.raises(CompanionError, match="Unknown profile 'smok' .did you mean smoke"):
        run.overview("smok")


def test_durations_read_as_a_person_says_them():
    seconds = (0, 40, 119, 120, 5400, 86400, 200000)
    expected = ["0 s", "40 s", "119 s", "2 min", "90 min", "24 h", "2.31 d"]
    assert [run.duration(s) for s in seconds] == expected


def test_the_commands_are_explained(capsys):
    with pytest.raises(CompanionError, match="for `make status`"):
        run.main(["nonsense"])
    run.main(["check", "smoke"])
    assert capsys.readouterr().out.split() == parameters.check_profile("smoke")
