"""What happens to a batch from outside: killed at any moment, a full disk, no memory, a clock that jumps.

Notebooks that raise, die or hang are in test_notebook.py, damaged files in test_store.py, killed workers in
test_workers.py.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lib import run as batch
from lib import run as notebook
from lib.provenance import CompanionError, write_atomically
from lib.study import Study
from tests import toy_house, toy_trials
from tests.toy_house import (
    executions,
    finished,
    hold,
    populate,
    processes_of,
    published,
    results,
    start_batch,
    wait_for,
    waiting,
)

KILLS = 10


def kill_all(house: Path) -> None:
    """Every process of a batch at once, as a power cut does: snakemake, notebook, kernel, workers."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").resolve() == house:
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


def all_whole(house: Path) -> None:
    """Every file by the name of a finished one can be read from end to end."""
    for path in (house / "runs/smoke").rglob("*"):
        if path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".ipynb":
            assert not [cell for cell in nbformat.read(path, as_version=4).cells[1:] if not cell.execution_count]


def test_killed_at_ten_random_moments_the_result_is_that_of_an_uninterrupted_batch(house, tmp_path_factory):
    seed = int(os.environ.get("FAULT_SEED", time.time()))
    print(f"FAULT_SEED={seed} repeats these moments")
    rng = random.Random(seed)
    whole = tmp_path_factory.mktemp("whole")
    toy_house.build(whole)
    for place in (house, whole):
        toy_house.populate_with_claims(place)
    start = time.monotonic()
    finished(start_batch(whole), whole)
    seconds, killed = time.monotonic() - start, 0
    held = hold(house / "runs/smoke/trials", 36)  # half of the batches cannot end before they are killed
    for kill in range(KILLS):
        if kill == KILLS // 2:
            held.unlink()
        batch = start_batch(house)
        wait_for(lambda batch=batch: batch.poll() is not None, rng.uniform(0, seconds))
        killed += batch.poll() is None
        if kill % 2:
            batch.send_signal(signal.SIGKILL)  # the batch alone: its notebook must notice
        else:
            kill_all(house)
        batch.wait()
        assert wait_for(lambda: not processes_of(house), 60), processes_of(house)
        all_whole(house)
    assert killed >= KILLS // 2
    finished(start_batch(house), house)
    for found, expected in zip(results(house), results(whole), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    assert published(house).keys() == published(whole).keys()
    for name, content in published(whole).items():
        if not name.endswith(".parquet"):
            assert published(house)[name] == content, f"{name} differs"
    ended = [line.split()[1] for line in executions(house, "end")]
    assert len(ended) - len(set(ended)) <= 2 * killed, "more was done twice than had ended but was not yet stored"
    assert not list((house / "runs/smoke/trials").rglob("set_aside"))
    assert not processes_of(house)


def test_shards_on_one_machine_give_the_same_rows_and_compute_each_trial_once(house):
    populate(house)
    finished(start_batch(house), house)
    expected = results(house)
    shutil.rmtree(house / "runs/smoke/trials")
    for path in (house / "runs/smoke").glob("*.parquet"):
        path.unlink()
    all_here = hold(house / "runs/smoke/trials", 12)
    batch = start_batch(house, "shards=2", "--cores", "2")
    assert wait_for(lambda: len(waiting(house)) == 2 or batch.poll() is not None, 600), (
        house / "batch.log"
    ).read_text()
    all_here.unlink()
    finished(batch, house)
    for found, table in zip(results(house), expected, strict=True):
        pd.testing.assert_frame_equal(found, table)
    assert len(executions(house, "start")) == len(executions(house, "end")) == 45
    assert len({line.split()[2] for line in executions(house)}) == 2, "one process did all the work"


def test_a_shard_publishes_nothing_and_an_impossible_one_is_refused(house):
    stage = notebook.execute("smoke", "00_toy", shard="1/2")
    assert stage.exists() and not published(house)
    assert len(list((house / "runs/smoke/trials/00_toy.squares").glob("*.json"))) == 3, "it left trials to nobody"
    for shard in ("2/2", "x/2", "1", "0/0"):
        with pytest.raises(CompanionError, match="the first of four is 0/4"):
            notebook.execute("smoke", "00_toy", shard=shard)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shard=2"], "Unknown setting of a batch: 'shard' .did you mean shards"),
        (["shards=0"], "shards must be a whole number, 1 or more"),
        (["shards=two"], "shards must be a whole number"),
    ],
)
def test_a_wrong_setting_of_a_batch_is_refused_before_it_starts(house, words, sentence):
    with pytest.raises(CompanionError, match=sentence):
        batch.figures("smoke", words)
    assert not (house / ".build").exists()


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 8 MiB; only root may mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a tiny disk here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take all the space of a file system but the last bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(file.tell() - leave, 0))
    return filler


def test_a_full_disk_stops_a_study_with_a_sentence_and_what_was_stored_stays_whole(tiny_disk):
    folder = tiny_disk / "runs"
    specs = [{"x": x} for x in range(200)]
    population = Study("00_t.square", toy_trials.square, 1, folder)
    filler = fill(tiny_disk, 64 * 1024)
    with pytest.raises(CompanionError, match="No room on the disk for .*: free some space and start again"):
        population.run(specs)
    stored = population.store.known()
    assert 0 < len(stored) < 200
    assert not list(population.store.trials.glob(".*.tmp")) and not list(population.store.trials.glob("*.lock"))
    filler.unlink()
    assert len(population.run(specs)) == 200


def test_a_full_disk_while_a_notebook_is_written_is_a_sentence_and_publishes_nothing(house, tiny_disk):
    (house / ".build").symlink_to(tiny_disk)
    filler = fill(tiny_disk, 8 * 1024)
    with pytest.raises(CompanionError, match="No room on the disk for .*: free some space and start again"):
        notebook.execute("smoke", "00_toy")
    assert not published(house)
    filler.unlink()
    notebook.execute("smoke", "00_toy")
    assert "00_toy.ipynb" in published(house)


def test_a_full_disk_while_results_are_published_leaves_whole_files_alone(house, tiny_disk):
    notebook.execute("smoke", "00_toy")
    first = published(house)
    shutil.rmtree(house / "figures")
    (house / "figures").symlink_to(tiny_disk)
    filler = fill(tiny_disk, 0)
    with pytest.raises(CompanionError, match="No room on the disk for .*figures"):
        notebook.execute("smoke", "00_toy")
    assert not [path for path in tiny_disk.rglob("*") if path.is_file() and path != filler]
    filler.unlink()
    notebook.execute("smoke", "00_toy")
    assert published(house) == first


def test_a_file_larger_than_allowed_is_a_sentence_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CompanionError, match="No room on the disk"):
            write_atomically(tmp_path / "row.json", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_trial_that_runs_out_of_memory_stops_the_run_with_a_sentence_and_no_row(tmp_path, library, workers):
    population = Study("00_t.greedy", toy_trials.greedy, 1, tmp_path)
    with pytest.raises(CompanionError, match="Out of memory in 00_t.greedy .*: lower batch_size or workers"):
        population.run([{"x": x, "library": library} for x in range(2)], workers=workers)
    assert not len(population.store.known())


def test_a_disk_that_fills_inside_a_trial_is_no_failure_of_the_trial(tmp_path):
    population = Study("00_t.full", toy_trials.disk_full, 1, tmp_path)
    with pytest.raises(CompanionError, match="No room on the disk in 00_t.full"):
        population.run([{"x": 1}])
    assert not len(population.store.known())


@pytest.mark.parametrize(("age", "kept"), [(10.0, True), (-1e8, True), (7200.0, False)])
def test_leftovers_are_aged_by_the_clock_of_their_disk(tmp_path, monkeypatch, age, kept):
    population = Study("00_t.square", toy_trials.square, 1, tmp_path)
    population.run([{"x": 1}])
    leftover = population.store.trials / ".a.json.elsewhere.1.tmp"
    leftover.write_text("{")
    now = leftover.stat().st_mtime
    os.utime(leftover, (now - age, now - age))
    monkeypatch.setattr(time, "time", lambda: now + 1e9)
    population.store.compact()
    assert leftover.exists() == kept
    assert population.rows([{"x": 1}])["square"].tolist() == [1]
