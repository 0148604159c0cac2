"""A study is many trials; a trial is a pure function spec -> row. What is missing, what failed, shards.

A trial is `trial(spec, device, weights) -> row`: a function of an importable module (workers import it) that takes the
canonical spec, a torch device and the `.safetensors` path that is its own to write, and returns plain values: numbers,
strings, lists. Result names that begin with `made_` are measurements (seconds, memory), not results.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import provenance
from lib.progress import shown
from lib.provenance import CompanionError
from lib.store import Store, canonical
from lib.workers import one_thread, side_by_side

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
        return [spec for key, spec in dict(self._asked(specs)).items() if key not in stored]

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
