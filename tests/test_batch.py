"""A batch is one at a time, survives whatever ends it, and says where it failed.

These tests start processes. In the push run one batch is killed at a moment that the test chooses; NIGHTLY=1 adds ten
random moments, shards and full disks. Notebooks that raise or die are in test_run.py, damaged files in test_store.py,
killed workers in test_study.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lib import run
from lib.provenance import CompanionError, root
from tests import toy_checkout
from tests.toy_checkout import (
    executions,
    finished,
    hold,
    processes_of,
    published,
    results,
    start_batch,
    wait_for,
    waiting,
    write_yaml,
)

KILLS = 10


def log(checkout: Path) -> str:
    return (checkout / "batch.log").read_text()


def counts(checkout: Path) -> list[list[str]]:
    """Trials done, failed and left of each study, as `make status` prints them."""
    return [line.split()[:4] for line in run.overview("smoke").splitlines()[2:] if line.startswith("  ")]


def test_one_batch_at_a_time_and_a_killed_one_leaves_nothing_behind_says_how_far_it_is_and_resumes(
    tmp_path, monkeypatch
):
    checkout = toy_checkout.enter(toy_checkout.build(tmp_path / "a (folder) & 'more'"), monkeypatch)
    write_yaml(checkout, n=12, rate=0.01, workers=2, trouble="error")
    assert "not started" in run.overview("smoke")
    held = hold(checkout / "runs/smoke/trials", 8)
    first = start_batch(checkout)
    assert wait_for(lambda: len(waiting(checkout)) == 2 or first.poll() is not None, 300), log(checkout)
    second = start_batch(checkout)
    assert second.wait(300) != 0 and "Another batch is running" in log(checkout)
    clean = subprocess.run(["make", "-f", root() / "Makefile", "clean"], cwd=checkout, capture_output=True, text=True)
    assert clean.returncode != 0 and "A batch is running" in clean.stdout + clean.stderr
    assert wait_for(lambda: counts(checkout) == [["squares", "8", "0", "4"]], 20), run.overview("smoke")
    assert "begun" in run.overview("smoke") and "Studies that have begun need about" in run.overview("smoke")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert wait_for(lambda: not processes_of(checkout), 60), processes_of(checkout)
    assert not published(checkout) and "Traceback" not in log(checkout)
    held.unlink()
    failing = start_batch(checkout)
    assert failing.wait(600) != 0
    assert "failed in cell [5]: CompanionError: the data are not here" in log(checkout)
    assert not published(checkout)
    write_yaml(checkout, n=12, rate=0.01, workers=2)
    finished(start_batch(checkout), checkout)
    assert "00_toy.claims.json" in published(checkout) and "00_toy                         published" in run.overview(
        "smoke"
    )
    assert counts(checkout) == [["best", "2", "0", "0"], ["squares", "12", "0", "0"]]
    ended = [line.split()[1] for line in executions(checkout, "end")]
    assert sorted(map(int, ended)) == [*range(12), 100, 121], "a finished trial ran again"
    assert not processes_of(checkout)


def test_an_interrupt_while_a_batch_starts_ends_it_with_one_sentence(checkout):
    """It comes while snakemake is imported, which takes seconds."""
    batch = start_batch(checkout)
    command = Path(f"/proc/{batch.pid}/cmdline")
    assert wait_for(lambda: "Snakefile" in command.read_text(), 120)
    batch.send_signal(signal.SIGINT)
    assert batch.wait(300) != 0
    assert log(checkout) == "Stopped. Finished trials are kept: the same command resumes from here.\n"
    assert not processes_of(checkout) and not published(checkout)


def kill_all(checkout: Path) -> None:
    """Every process of a batch at once, as a power cut does: snakemake, notebook, kernel, workers."""
    for pid in processes_of(checkout):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


def all_whole(checkout: Path) -> None:
    """Every file by the name of a finished one can be read from end to end."""
    for path in (checkout / "runs/smoke").rglob("*"):
        if path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".ipynb":
            assert not [cell for cell in nbformat.read(path, as_version=4).cells[1:] if not cell.execution_count]


@pytest.mark.nightly
def test_killed_at_ten_random_moments_the_result_is_that_of_an_uninterrupted_batch(checkout, tmp_path_factory):
    seed = int(os.environ.get("FAULT_SEED", time.time()))
    print(f"FAULT_SEED={seed} repeats these moments")
    rng = random.Random(seed)
    whole = toy_checkout.build(tmp_path_factory.mktemp("whole") / "checkout")
    for place in (checkout, whole):
        write_yaml(place, n=40, rate=0.25, workers=2)
    start = time.monotonic()
    finished(start_batch(whole), whole)
    seconds, killed = time.monotonic() - start, 0
    held = hold(checkout / "runs/smoke/trials", 36)  # half of the batches cannot end before they are killed
    for kill in range(KILLS):
        if kill == KILLS // 2:
            held.unlink()
        batch = start_batch(checkout)
        wait_for(lambda batch=batch: batch.poll() is not None, rng.uniform(0, seconds))
        killed += batch.poll() is None
        if kill % 2:
            batch.send_signal(signal.SIGKILL)  # the batch alone: its notebook must notice
        else:
            kill_all(checkout)
        batch.wait()
        assert wait_for(lambda: not processes_of(checkout), 60), processes_of(checkout)
        all_whole(checkout)
    assert killed >= KILLS // 2
    finished(start_batch(checkout), checkout)
    for found, expected in zip(results(checkout), results(whole), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    assert published(checkout).keys() == published(whole).keys()
    for name, content in published(whole).items():
        assert name.endswith(".parquet") or published(checkout)[name] == content, f"{name} differs"
    ended = [line.split()[1] for line in executions(checkout, "end")]
    assert len(ended) - len(set(ended)) <= 2 * killed, "more was done twice than had ended but was not yet stored"
    assert not list((checkout / "runs/smoke/trials").rglob("set_aside"))
    assert not processes_of(checkout)


@pytest.mark.nightly
def test_shards_on_one_machine_give_the_same_rows_and_compute_each_trial_once(checkout, tmp_path_factory):
    whole = toy_checkout.build(tmp_path_factory.mktemp("whole") / "checkout")
    for place in (checkout, whole):
        write_yaml(place, n=40)
    finished(start_batch(whole), whole)
    held = hold(checkout / "runs/smoke/trials", 12)
    batch = start_batch(checkout, "shards=2", "--cores", "2")
    assert wait_for(lambda: len(waiting(checkout)) == 2 or batch.poll() is not None, 600), log(checkout)
    held.unlink()
    finished(batch, checkout)
    for found, expected in zip(results(checkout), results(whole), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    assert len(executions(checkout, "start")) == len(executions(checkout, "end")) == 42
    assert len({line.split()[2] for line in executions(checkout)}) == 2, "one process did all the work"


@pytest.mark.nightly
def test_a_full_disk_while_a_notebook_is_written_is_a_sentence_and_publishes_nothing(checkout, tiny_disk):
    (checkout / ".build").symlink_to(tiny_disk)
    filler = toy_checkout.fill(tiny_disk, 8 * 1024)
    with pytest.raises(CompanionError, match="No room on the disk for .*: free some space and start again"):
        run.execute("smoke", "00_toy")
    assert not published(checkout)
    filler.unlink()
    run.execute("smoke", "00_toy")
    assert "00_toy.ipynb" in published(checkout)


@pytest.mark.nightly
def test_a_full_disk_while_results_are_published_leaves_only_whole_files(executed, tiny_disk):
    first = published(executed)
    shutil.rmtree(executed / "figures")
    (executed / "figures").symlink_to(tiny_disk)
    filler = toy_checkout.fill(tiny_disk, 0)
    with pytest.raises(CompanionError, match="No room on the disk for .*figures"):
        run.execute("smoke", "00_toy")
    assert not [path for path in tiny_disk.rglob("*") if path.is_file() and path != filler]
    filler.unlink()
    run.execute("smoke", "00_toy")
    assert published(executed) == first
