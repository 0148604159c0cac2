"""Random streams by name: a trial has one seed, and each thing drawn in it a stream of its own.

Progress of a long loop: a bar where a person watches, a line now and then in a log, nothing in a worker.

Trials side by side: worker processes that start once, die with their parent and use one torch thread each.

A study is many trials; a trial is a pure function spec -> row. What is missing, what failed, shards.

A trial is `trial(spec, device, weights) -> row`: a function of an importable module (workers import it) that takes the
canonical spec, a torch device and the `.safetensors` path that is its own to write, and returns plain values: numbers,
strings, lists. Result names that begin with `made_` are measurements (seconds, memory), not results.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm as text_bar
from tqdm.auto import tqdm

from lib import provenance
from lib.provenance import CompanionError
from lib.store import Store, canonical


def seed_from(seed: int, *names: object) -> int:
    """A 63-bit seed of the random stream that these names stand for, spawned from a trial's own seed."""
    text = json.dumps([int(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """A torch generator of the named random stream of a trial's seed, for example `generator(3, "augmentation")`."""
    return torch.Generator(device).manual_seed(seed_from(seed, *names))


LINE_SECONDS = 30.0  # between two lines of progress in batch output


def quiet() -> bool:
    """Whether progress bars would be noise: in batch output, and in worker processes, whose parent shows one."""
    return bool(os.environ.get("COMPANION_QUIET")) or parent_process() is not None


def shown(steps: Iterable, total: int, name: str) -> Iterator:
    """A bar in Jupyter and terminals once it has lasted some seconds; a line now and then in a log.

    COMPANION_QUIET says which in a batch: "bar" where a person watches it in a terminal, "lines" otherwise.
    """
    if not quiet():
        yield from tqdm(steps, total=total, desc=name, delay=5, disable=total == 0)
        return
    if os.environ.get("COMPANION_QUIET") == "bar" and parent_process() is None:
        yield from text_bar(steps, total=total, desc=name, delay=5, mininterval=1, ncols=100, leave=False)
        return
    start = last = time.monotonic()
    for done, step in enumerate(steps, 1):
        if time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            left = (last - start) / done * (total - done)
            print(f"{name}: {done} of {total} trials, about {left:.0f} s left", file=sys.stderr, flush=True)
        yield step


def side_by_side(
    function: Callable[[dict], bool], specs: list[dict], workers: int, name: str
) -> Iterator[tuple[dict, bool]]:
    """Each spec with what the function returns for it, as they finish.

    Args:
        function: can be pickled; it is called in worker processes.
        workers: how many of them.
        name: of the study, for the error.

    Raises: CompanionError if a worker is killed. On any other error, an interrupt too, the workers are killed.
    """
    pool, left = _pool(workers), iter(specs)
    waiting: dict[Future, dict] = {}
    try:
        while True:
            while len(waiting) < 2 * workers and (spec := next(left, None)) is not None:
                waiting[pool.submit(function, spec)] = spec
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        _pool.cache_clear()
        raise CompanionError(
            f"A worker process of {name} was killed, most likely for lack of memory: use fewer workers and "
            "start again (finished trials are kept)."
        ) from None
    except BaseException:
        _pool.cache_clear()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.kill()
        raise


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One torch thread on the CPU: several on busy cores are many times slower, and sums depend on their number."""
    threads = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    torch.set_num_threads(1)

    def die_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """The one pool of so many processes, made when first needed: an import of torch costs seconds a process."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read by the children when they load their libraries
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (os.getpid(),))


Trial = Callable[[dict, str, Path], dict]
LOOSE = 200  # more finished trials than this as single files are compacted into one


@dataclass(frozen=True)
class Study:
    """Trials of one kind. Asking again finds their rows; a killed run goes on where it stopped.

    Args:
        name: `NN_notebook.study`.
        trial: the function that computes one row.
        version: raised when what a trial means changes; then everything is computed again.
        folder: `runs/<profile>`, which holds the store.
    """

    name: str
    trial: Trial
    version: int
    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.name, self.version, self.folder)

    def missing(self, specs: pd.DataFrame | list[dict], retry_failed: bool = False) -> list[dict]:
        """The canonical specs without a row, each once; with `retry_failed` also those whose row is a failure."""
        known = self.store.known()
        states = dict(zip(known["key"].to_pylist(), known["status"].to_pylist(), strict=True))
        stored = {key for key, state in states.items() if state == "done" or not retry_failed}
        return [spec for spec in self.distinct(specs) if self.store.key(spec) not in stored]

    def distinct(self, specs: pd.DataFrame | list[dict]) -> list[dict]:
        """The canonical specs, each once, in the order in which they are first asked for."""
        return list(dict(self._asked(specs)).values())

    def run(
        self,
        specs: pd.DataFrame | list[dict],
        *,
        workers: int = 1,
        device: str = "cpu",
        shard: tuple[int, int] = (0, 1),
        retry_failed: bool = False,
    ) -> pd.DataFrame:
        """Run the trials that are missing and return all asked rows, in the order of the specs.

        Args:
            specs: one row or dictionary a trial.
            workers: processes (on the CPU each with one torch thread); 1 runs in this process.
            device: torch device of every trial; not part of a trial's identity.
            shard: (i, n) takes only the specs i, i + n, i + 2n, …
            retry_failed: run failed trials again.

        In a shard i/n of a batch (COMPANION_SHARD) the process takes the i-th of every n missing trials first, then
        what no other process has begun, and waits for what others have in hand: it returns all rows, as without it.

        Returns: a DataFrame: spec columns, `status`, `reason`, results, `made_*` columns, `key`, `spec`.

        Raises: CompanionError for what a user must mend (memory, data, a dead worker).
        """
        asked = _records(specs)[shard[0] :: shard[1]]
        i, n = map(int, (os.environ.get("COMPANION_SHARD") or "0/1").split("/"))
        self.store.ask([key for key, _ in self._asked(asked)], workers * n)
        todo = self.missing(asked, retry_failed)
        todo = [spec for share in range(n) for spec in todo[(i + share) % n :: n]]
        for _ in shown(self._run_all(todo, workers, device, retry_failed), len(todo), self.name):
            pass
        if self.store.count_loose() > LOOSE:
            self.store.compact()
        rows = self.rows(asked)
        failures = rows.loc[rows["status"] == "failed", "reason"].value_counts()
        if len(failures):
            reasons = "; ".join(f"{n} x {why}" for why, n in failures.items())
            sentence = f"{self.name}: {failures.sum()} of {len(rows)} trials failed: {reasons}"
            if failures.sum() == len(rows) > 1:
                raise CompanionError(f"{sentence}. Change what they name; `retry_failed` runs the same ones again.")
            print(sentence, file=sys.stderr)
        return rows

    def rows(self, specs: pd.DataFrame | list[dict]) -> pd.DataFrame:
        """The stored rows of these specs, in their order; KeyError names the first that has none."""
        asked = self._asked(specs)
        known = self.store.known()
        place = {key: index for index, key in enumerate(known["key"].to_pylist())}
        if absent := [spec for key, spec in asked if key not in place]:
            raise KeyError(f"{self.name} has no row of {absent[0]} (nor of {len(absent) - 1} others): run it first.")
        # Chosen before pandas sees them: a null in a row that nobody asked for must not turn integers into floats.
        found = known.take(np.array([place[key] for key, _ in asked], dtype=np.int64))
        columns = pd.DataFrame([spec for _, spec in asked])
        fixed = ["status", "reason", "key", "spec"]
        kept = [c for c in found.column_names if found[c].null_count < len(found)]
        results = sorted(set(kept) - {"version", *fixed, *columns}, key=lambda c: (c.startswith(provenance.PREFIX), c))
        return pd.concat([columns, found.select([*fixed[:2], *results, *fixed[2:]]).to_pandas()], axis=1)

    def weights(self, spec: dict, device: str = "cpu") -> Path:
        """The weights that a trial wrote; if the file is missing, the trial runs again, visibly, and its row stays."""
        spec = canonical(spec)
        path = self._weights_file(spec)
        if not path.exists():
            self.finish(spec, device, blocking=True, again="weights")
        if not path.exists():
            raise CompanionError(f"{self.name}: the trial {spec} wrote no weights; its row says why.")
        return path

    def finish(self, spec: dict, device: str, blocking: bool = False, again: str = "") -> bool:
        """Run one trial and store its row, unless the row is there; False if another process is at it.

        Args:
            blocking: wait for the other process instead.
            again: "row" runs it even so and replaces the row, "weights" runs it if its weights are missing.
        """
        key = self.store.key(spec)
        with self.store.lock(key, blocking) as owner:
            if not owner:
                return False
            stored = self.store.has(key)
            if not stored or again == "row" or (again == "weights" and not self._weights_file(spec).exists()):
                if again == "weights":  # told once, by the process that trains them
                    print(f"{self.name}: no weights of {spec} here; training them.", file=sys.stderr)
                row = self._execute(spec, device)
                if not stored or again == "row":
                    self.store.put(key, spec, row)
        return True

    def publish(self, rows: pd.DataFrame, folder: Path) -> None:
        """Write rows as `folder/NN_notebook.study.parquet`, from which figures and claims can be remade."""
        self.store.publish(rows, folder)

    def _asked(self, specs: pd.DataFrame | list[dict]) -> list[tuple[str, dict]]:
        specs = [canonical(spec) for spec in _records(specs)]
        return [(self.store.key(spec), spec) for spec in specs]

    def _weights_file(self, spec: dict) -> Path:
        return self.store.trials / f"{self.store.key(spec)}.safetensors"

    def _execute(self, spec: dict, device: str) -> dict:
        outcome: dict = {"status": "done", "reason": ""}
        with provenance.made(device) as how, one_thread(device):
            try:
                row = self.trial(spec, device, self._weights_file(spec))
            except CompanionError:
                raise
            except Exception as error:
                if _out_of_memory(error):
                    sentence = f"Out of memory in {self.name} {spec}: lower batch_size or workers."
                    raise CompanionError(sentence) from error
                if provenance.no_room(error):
                    sentence = f"No room on the disk in {self.name} {spec}: free some space and start again."
                    raise CompanionError(sentence) from error
                # Any other failure is a row, with its reason.
                row, outcome = {}, {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        if twice := sorted(row.keys() & spec.keys()):
            raise ValueError(f"{self.name}: a trial returns {twice}, which its spec holds already.")
        return outcome | how | row

    def _run_all(self, todo: list[dict], workers: int, device: str, retry_failed: bool) -> Iterator[None]:
        again = "row" if retry_failed else ""
        if workers == 1 or len(todo) == 1:
            outcomes = ((spec, self.finish(spec, device, again=again)) for spec in todo)
        else:
            outcomes = side_by_side(partial(self.finish, device=device, again=again), todo, workers, self.name)
        elsewhere = []
        for spec, done in outcomes:
            if done:
                yield
            else:
                elsewhere.append(spec)
        for spec in elsewhere:  # another process had these in hand; if it died, they are done here
            self.finish(spec, device, blocking=True)
            yield


def _out_of_memory(error: Exception) -> bool:
    """On the CPU torch has no type of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _records(specs: pd.DataFrame | list[dict]) -> list[dict]:
    return specs.to_dict("records") if isinstance(specs, pd.DataFrame) else list(specs)
