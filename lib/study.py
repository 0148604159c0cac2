"""A study is many trials; a trial is a pure function spec -> row. Also its random streams, worker processes, progress.

A trial is `trial(spec, device, weights) -> row`: a function of an importable module (workers import it) that takes the
canonical spec, a torch device and the `.safetensors` path that it alone may write, if any, and returns plain values:
numbers, strings, lists. Result names that begin with `made_` are measurements (seconds, memory), not results.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from multiprocessing import active_children, forkserver, get_context, parent_process, resource_tracker
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm as text_bar
from tqdm.auto import tqdm

from lib import provenance
from lib.provenance import CompanionError, Stopped
from lib.store import LOOSE, Store, canonical, places_of

START = "spawn" if sys.platform == "darwin" else "forkserver"  # how worker processes start
Trial = Callable[[dict, str, Path | None], dict]


def seed_from(seed: int, *names: object) -> int:
    """The 63-bit seed of a random stream, spawned by its names from a trial's own seed."""
    text = json.dumps([int(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """A torch generator of a named random stream, for example `generator(3, "augmentation")`."""
    return torch.Generator(device).manual_seed(seed_from(seed, *names))


def quiet() -> bool:
    """Whether to show no progress bar: in the output of a batch, and in a worker, whose parent shows one."""
    return bool(os.environ.get("COMPANION_QUIET")) or parent_process() is not None


def say(sentence: str) -> None:
    """Print a sentence on progress: to stderr in a batch, whose notebooks do not keep it, else where it is no error."""
    print(sentence, file=sys.stderr if quiet() else sys.stdout)


def shown(steps: Iterable, total: int, name: str) -> Iterable:
    """Show the progress of long steps: in Jupyter, in the terminal of a batch, every 30 seconds in its log.

    COMPANION_QUIET says which in a batch: "bar" or "lines".
    """
    mode = os.environ.get("COMPANION_QUIET")
    options = {"mininterval": 30 if mode == "lines" else 1, "ncols": 100, "leave": False} if mode else {}
    options["disable"] = not total or parent_process() is not None
    return (text_bar if mode else tqdm)(steps, total=total, desc=name, delay=5, **options)


def side_by_side(
    function: Callable[[dict], bool], specs: list[dict], workers: int, name: str
) -> Iterator[tuple[dict, bool]]:
    """Call a function that can be pickled on specs in worker processes; `name` is that of the study, for the error.

    Yields:
        Each spec with the function's result, in the order in which they finish.

    Raises:
        CompanionError: if a worker ends. On any other error, interrupts included, the workers are killed.
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
            f"A worker process of {name} ended: it ran out of memory (use fewer workers), or a script lacks "
            "`if __name__ == '__main__':` (finished trials are kept)."
        ) from None
    except BaseException:
        _pool.cache_clear()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.kill()
        raise


def prepare_workers(*modules: str) -> None:
    """Start, once, the process that workers are forked from; it imports modules while this one goes on.

    Each worker would take seconds to import torch by itself. On macOS it does: system libraries do not bear a fork.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read when libraries are loaded: no thread of theirs runs at a fork
    if START == "forkserver":
        forkserver.set_forkserver_preload([*modules])
        resource_tracker.ensure_running()  # which unblocks SIGINT
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for good: this process handles it
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """The one pool of this size, made when it is first needed."""
    prepare_workers(__name__)
    return ProcessPoolExecutor(workers, get_context(START), _start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt
    torch.set_num_threads(1)

    def die_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """One torch thread on the CPU: several on busy cores are many times slower, and sums depend on their number."""
    threads = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Study:
    """Trials of one kind, each computed once; a run that was killed resumes where it stopped.

    Args:
        name: `NN_notebook.study`.
        trial: the function that computes one row.
        version: raised when what a trial means changes; then everything is computed again.
        folder: `runs/<profile>`, which holds the store.
        keeps: whether every trial writes its weights; otherwise only one whose `weights` are asked for does.
    """

    name: str
    trial: Trial
    version: int
    folder: Path
    keeps: bool = True

    @cached_property
    def store(self) -> Store:
        """The stored rows."""
        return Store(self.name, self.version, self.folder)

    def distinct(self, specs: pd.DataFrame | list[dict]) -> list[dict]:
        """The canonical specs, each once, in the order in which they first occur."""
        return list(dict(self._keyed(specs)).values())

    def missing(self, specs: pd.DataFrame | list[dict]) -> list[dict]:
        """The canonical specs that have no row, each once."""
        return self._missing(self._keyed(specs))

    def run(self, specs: pd.DataFrame | list[dict], *, workers: int = 1, device: str = "cpu") -> pd.DataFrame:
        """Run the missing trials and return all rows.

        In a shard i/n of a batch (COMPANION_SHARD) the process begins with every n-th missing trial, from the i-th,
        continues with those that no other process has begun, and waits for the rest.

        Args:
            specs: one row or dictionary for each trial.
            workers: processes (on the CPU each with one torch thread); 1 runs in this process.
            device: torch device of every trial; not part of a trial's identity.

        Returns:
            A row for each spec, in order: spec columns, `status`, `reason`, results, `made_*` columns, `key`, `spec`.

        Raises:
            CompanionError: for an error that the user can fix (memory, data, a killed worker, all trials failed).
            Stopped: on an interrupt; finished trials are kept.
        """
        i, n = map(int, (os.environ.get("COMPANION_SHARD") or "0/1").split("/"))
        keyed = self._keyed(specs)
        self.store.request([key for key, _ in keyed], workers * n)
        if todo := self._missing(keyed):
            say(f"{self.name}: {len(todo)} to be computed on {device}")
        todo = [spec for share in range(n) for spec in todo[(i + share) % n :: n]]
        try:
            for finished, _ in enumerate(shown(self._run_all(todo, workers, device), len(todo), self.name), 1):
                if finished % LOOSE == 0:
                    self.store.compact()
        except KeyboardInterrupt:
            raise Stopped from None
        self.store.compact()
        rows = self._rows(keyed)
        failures = rows.loc[rows["status"] == "failed", "reason"].value_counts()
        if len(failures):
            reasons = "; ".join(f"{count} x {reason}" for reason, count in failures.items())
            sentence = f"{self.name}: {failures.sum()} of {len(rows)} trials failed: {reasons}"
            if failures.sum() == len(rows) > 1:
                raise CompanionError(f"{sentence}. Fix the cause, delete {self.store.trials} and start again.")
            print(sentence, file=sys.stderr)
        return rows

    def rows(self, specs: pd.DataFrame | list[dict]) -> pd.DataFrame:
        """The stored rows of these specs, in their order, with columns as in `run`.

        Raises:
            KeyError: naming the first spec that has no row.
        """
        return self._rows(self._keyed(specs))

    def weights(self, spec: dict, device: str = "cpu") -> Path:
        """The weights that a trial wrote; if the file is missing, the trial runs again, visibly, and its row stays.

        Raises:
            CompanionError: if the trial writes no weights.
        """
        spec = canonical(spec)
        path = self._weights_file(spec)
        if not path.exists():
            self.finish(spec, device, blocking=True, weights=True)
        if not path.exists():
            raise CompanionError(f"{self.name}: the trial {spec} wrote no weights; its row says why.")
        return path

    def finish(self, spec: dict, device: str, blocking: bool = False, weights: bool = False) -> bool:
        """Run one trial of a canonical spec and store its row, unless it is stored.

        `blocking` waits for another process that runs this trial. With `weights` a stored trial whose weights are
        missing runs again.

        Returns:
            False if another process runs this trial.
        """
        key = self.store.key(spec)
        if not weights and self.store.has(key):  # another shard's: asking takes less than a lock
            return True
        with self.store.lock(key, blocking) as owner:
            if not owner:
                return False
            stored = self.store.has(key)
            again = weights and not self._weights_file(spec).exists()
            if again:
                say(f"{self.name}: the weights of this network are not stored here, so it is trained again: {spec}")
            if again or not stored:
                row = self._execute(spec, device, self._weights_file(spec) if weights or self.keeps else None)
                if not stored:
                    self.store.put(key, spec, row)
        return True

    def _keyed(self, specs: pd.DataFrame | list[dict]) -> list[tuple[str, dict]]:
        records, store = specs.to_dict("records") if isinstance(specs, pd.DataFrame) else specs, self.store
        return [(store.key(spec), spec) for spec in map(canonical, records)]

    def _missing(self, keyed: list[tuple[str, dict]]) -> list[dict]:
        distinct = dict(keyed)
        places = places_of(list(distinct), self.store.known(["key"]))
        return [spec for spec, place in zip(distinct.values(), places, strict=True) if place < 0]

    def _rows(self, keyed: list[tuple[str, dict]]) -> pd.DataFrame:
        known = self.store.known()
        places = places_of([key for key, _ in keyed], known)
        if absent := [keyed[place][1] for place in np.flatnonzero(places < 0)]:
            raise KeyError(f"{self.name} has no row of {absent[0]} (nor of {len(absent) - 1} others): run it first.")
        # Rows are chosen before pandas sees them: a null in another row must not turn integers into floats.
        found = known.take(places)
        columns = pd.DataFrame([spec for _, spec in keyed])
        first, last = ["status", "reason"], ["key", "spec"]
        kept = {name for name in found.column_names if found[name].null_count < len(found)}
        results = sorted(kept - {"version", *first, *last, *columns})
        results.sort(key=lambda name: name.startswith(provenance.PREFIX))
        return pd.concat([columns, found.select([*first, *results, *last]).to_pandas()], axis=1)

    def _weights_file(self, spec: dict) -> Path:
        return self.store.trials / f"{self.store.key(spec)}.safetensors"

    def _execute(self, spec: dict, device: str, weights: Path | None) -> dict:
        provenance.check_code()
        outcome: dict = {"status": "done", "reason": ""}
        with provenance.made(device) as how, _one_thread(device):
            try:
                row = self.trial(spec, device, weights)
            except CompanionError:
                raise
            except Exception as error:
                if problem := _of_the_machine(error):
                    raise CompanionError(f"{problem[0]} in {self.name} {spec}: {problem[1]}.") from error
                row, outcome = {}, {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        if not isinstance(row, dict):
            raise ValueError(f"{self.name}: a trial returns a dictionary of results, not {type(row).__name__}.")
        if twice := sorted(row.keys() & spec.keys()):
            raise ValueError(f"{self.name}: a trial returns {twice}, which its spec holds already.")
        if own := provenance.own_code(spec):
            how[f"{provenance.PREFIX}own"] = own
        return outcome | how | row

    def _run_all(self, todo: list[dict], workers: int, device: str) -> Iterator[None]:
        if workers == 1 or len(todo) == 1:
            outcomes = ((spec, self.finish(spec, device)) for spec in todo)
        elif "<" in getattr(self.trial, "__qualname__", ""):  # <lambda> or <locals>
            raise ValueError(f"{self.name}: workers import the trial: make it a function of a module, or use 1 worker.")
        else:
            outcomes = side_by_side(partial(self.finish, device=device), todo, workers, self.name)
        elsewhere = []
        for spec, finished in outcomes:
            if finished:
                yield
            else:
                elsewhere.append(spec)
        for spec in elsewhere:  # another process runs these; if it died, they are computed here
            self.finish(spec, device, blocking=True)
            yield


def _of_the_machine(error: Exception) -> tuple[str, str] | None:
    """The problem and its remedy, if an error is the machine's and not a result of the trial."""
    # On the CPU, torch has no error type of its own for exhausted memory.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "Out of memory", "lower batch_size or workers"
    if provenance.disk_full(error):
        return "No room on the disk", "free some space and start again"
    if isinstance(error, torch.AcceleratorError):
        return "The GPU failed", f"start again ({error})"
    return None
