"""The store: its growth with the rows and with the processes that share it, and worker processes beside one another."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import torch

from lib import run
from lib.provenance import root
from lib.store import LEVELS, LOOSE, canonical, parquet
from lib.study import Study
from tests.bench import Growth, Line, trials

ROWS = (1_000, 10_000, 100_000, 1_000_000)
LINEAR = 1.3  # the largest exponent of linear work: tables of keys outgrow the caches of the processor
SHARED = 4_000  # trials that shards share; 100,000 would take minutes a point and cost as much for each
SHARDS = (1, 2, 4, 8)
SHARD = """
import sys, time
from pathlib import Path
from lib.study import Study
from tests.bench.store import waiting
folder, study = Path(sys.argv[1]), Study("00_bench.shared", waiting, 1, Path(sys.argv[1]))
study.run([{"x": -1}])
(folder / f"{sys.argv[3]}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
start = time.process_time()
study.run([{"x": x} for x in range(int(sys.argv[2]))])
print(time.process_time() - start)
"""


def waiting(spec: dict, device: str, weights: Path) -> dict:
    time.sleep(0.001)
    return {"value": 0.5}


def busy(spec: dict, device: str, weights: Path) -> dict:
    start = time.process_time()
    while time.process_time() - start < 0.1:
        pass
    return {"value": 0.5}


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def overhead_of_a_trial() -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as folder:
        study = Study("00_bench.nothing", trials.nothing, 1, Path(folder))
        parts = [[{"x": x} for x in range(start, start + 200)] for start in range(0, 1000, 200)]

        def cost() -> float:
            return min(cpu_seconds(lambda part=part: [study.finish(spec, "cpu") for spec in part]) for part in parts)

        yield Line("one trial: the store's share", 1e3 * cost() / 200, "ms of CPU", "<", 0.5)
        yield Line("   if it is stored already", 1e6 * cost() / 200, "us of CPU", "<", 50)


def filled(study: Study, rows: int) -> list[dict]:
    """The specs of a study whose store holds so many compacted rows."""
    specs = [canonical({"network": "resnet20", "x": x, "lr": 0.1, "seed": x % 7}) for x in range(rows)]
    columns = {"key": [study.store.key(spec) for spec in specs], "spec": [json.dumps(spec) for spec in specs]}
    columns |= {"version": [1] * rows, "status": ["done"] * rows, "reason": [""] * rows}
    columns |= {name: [spec[name] for spec in specs] for name in specs[0]}
    columns |= {"accuracy": [x / rows for x in range(rows)], "made_seconds": [0.1] * rows}
    study.store.trials.mkdir(parents=True)
    (study.store.trials / LEVELS[-1]).write_bytes(parquet(pa.table(columns), 1))
    return specs


def costs_beside(rows: int) -> tuple[dict[str, float], float]:
    """CPU seconds of what a study is asked beside so many stored rows, and the GiB that it all took."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    with tempfile.TemporaryDirectory() as folder:
        study = Study("00_bench.rows", trials.nothing, 1, Path(folder))
        specs, before = filled(study, rows), peak()
        costs = {"which rows are missing": cpu_seconds(lambda: study.missing(specs))}
        costs["resuming with everything known"] = cpu_seconds(lambda: study.run(specs))
        costs["the progress"] = cpu_seconds(lambda: run.study_state(Path(folder), study.name))
        found = study.rows(specs)
        costs["publishing"] = cpu_seconds(lambda: study.store.publish(found, Path(folder)))
        more = [{"x": x} for x in range(2 * LOOSE)]
        costs[f"{len(more)} trials more, compacted"] = cpu_seconds(lambda: study.run(more))
        return costs, peak() - before


def rows_in_a_store() -> Iterator[Growth | Line]:
    costs, memory = zip(*map(costs_beside, ROWS), strict=True)
    for name in costs[0]:
        yield Growth(f"rows in a store: {name}", "s of CPU", [*ROWS], [cost[name] for cost in costs], LINEAR)
    yield Line(f"memory for {ROWS[-1]:,} rows, beside their specs", memory[-1], "GiB", "<", 2)


def shards() -> Iterator[Growth | Line]:
    costs = []
    environment = os.environ | {"PYTHONPATH": str(root()), "COMPANION_QUIET": "lines"}
    for n in SHARDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = [sys.executable, "-c", SHARD, name, str(SHARED)]
            options = {"cwd": root(), "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            processes = [
                subprocess.Popen([*command, str(i)], env=environment | {"COMPANION_SHARD": f"{i}/{n}"}, **options)
                for i in range(n)
            ]
            while len([*folder.glob("*.ready")]) < n and all(process.poll() is None for process in processes):
                time.sleep(0.05)
            (folder / "go").touch()
            costs.append(sum(float(process.communicate()[0]) for process in processes))
    yield Growth(f"{SHARED:,} trials of 1 ms over shards: beside the trials", "s of CPU", [*SHARDS], costs, 0.35)
    yield Line(f"   of it for each trial, with {SHARDS[-1]} shards", 1000 * costs[-1] / SHARED, "ms")


def workers() -> Iterator[Line]:
    torch.set_num_threads(1)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):
            study = Study("00_bench.busy", busy, 1, Path(folder) / str(count))
            study.run([{"x": -1 - x} for x in range(4)], workers=count)  # starts the processes
            start = time.perf_counter()
            study.run([{"x": x} for x in range(40)], workers=count)
            seconds[count] = time.perf_counter() - start
    yield Line("two workers against one, trials of 0.1 s", seconds[1] / seconds[2], "x on two idle cores", ">", 1.85)


BENCHMARKS = (overhead_of_a_trial, rows_in_a_store, shards, workers)
