"""The rows of finished trials on disk: identity, one file a trial, compaction, locks. `study.py` fills it.

Finished trials lie in `runs/<profile>/trials/<study>/<key>.json`, compacted ones in `rows.parquet` beside them,
published ones in `runs/<profile>/<study>.parquet`; what is known is the union of the three.
"""

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib.provenance import PREFIX, CompanionError, locked, write_atomically


def _canonical_value(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return canonical(value)
    if isinstance(value, list | tuple | np.ndarray):
        return [_canonical_value(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _is_null(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def canonical(spec: dict) -> dict:
    """A spec as it is hashed: nulls dropped, integral floats as ints, keys sorted; so a DataFrame changes nothing."""
    return {name: _canonical_value(spec[name]) for name in sorted(spec) if not _is_null(spec[name])}


def plain(value: object) -> object:
    """A result as JSON and parquet hold it: tensors and arrays as lists, numpy scalars as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _table(records: list[dict]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: pa.array([record.get(name) for record in records]) for name in names})


def _union(tables: Iterable[pa.Table]) -> pa.Table:
    """All rows of all tables; of rows with one key the first stays."""
    tables = [table for table in tables if table.num_rows]
    if not tables:
        return pa.table({name: pa.array([], pa.string()) for name in ("key", "status", "reason", "spec")})
    union = pa.concat_tables(tables, promote_options="permissive")
    return union.take(np.flatnonzero(~union["key"].to_pandas().duplicated().to_numpy()))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=12)
    return sink.getvalue().to_pybytes()


@cache
def _keys(path: Path, mtime_ns: int, inode: int) -> frozenset[str]:
    return frozenset(pq.read_table(path, columns=["key"])["key"].to_pylist())


@dataclass(frozen=True)
class Store:
    """The rows of one study and version in one folder of `runs`.

    Args:
        name: `NN_notebook.study`.
        version: raised when what a trial means changes; older rows are then unknown.
        folder: `runs/<profile>`.
    """

    name: str
    version: int
    folder: Path

    @property
    def trials(self) -> Path:
        return self.folder / "trials" / self.name

    @property
    def published(self) -> Path:
        return self.folder / f"{self.name}.parquet"

    def key(self, spec: dict) -> str:
        """16 hex digits that name a trial: a hash of its *canonical* spec and of the study's name and version."""
        text = json.dumps([self.name, self.version, spec], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lock(self, key: str, blocking: bool) -> contextlib.AbstractContextManager[bool]:
        """The lock of one trial: who holds it computes that trial."""
        return locked(self.trials / f"{key}.lock", blocking)

    def has(self, key: str) -> bool:
        """Whether a trial is among the loose or compacted rows, without reading them."""
        if (self.trials / f"{key}.json").exists():
            return True
        try:
            state = (self.trials / "rows.parquet").stat()
        except FileNotFoundError:
            return False
        return key in _keys(self.trials / "rows.parquet", state.st_mtime_ns, state.st_ino)

    def put(self, key: str, spec: dict, row: dict) -> None:
        """Write one finished trial, at once and atomically."""
        record = {"key": key, "spec": json.dumps(spec), "version": self.version} | spec
        record |= {name: plain(value) for name, value in row.items()}
        write_atomically(self.trials / f"{key}.json", json.dumps(record).encode())

    def ask(self, keys: list[str], processes: int) -> None:
        """Remember which trials a notebook wants, and how many processes compute them: `status.py` reads it."""
        with locked(self.trials / "asked.lock"):
            before = self.asked()
            if before["version"] == self.version:
                keys = [*before["keys"], *keys]
            record = {"version": self.version, "processes": processes, "keys": [*dict.fromkeys(keys)]}
            if record != before:
                write_atomically(self.trials / "asked", json.dumps(record).encode())

    def asked(self) -> dict:
        """What `ask` was told since the batch began: version, processes, keys."""
        try:
            return json.loads((self.trials / "asked").read_text())
        except (OSError, ValueError):
            return {"version": None, "processes": 1, "keys": []}

    def known(self) -> pa.Table:
        """Every known row: the union of published, loose and compacted trials; what is published counts first.

        A store may be older than what was published since, by somebody else; but a published failure gives way to a row
        of the store, where it may have been tried again.
        """
        # Loose files are listed before the compacted file is read, so that a compaction in between hides nothing.
        stored, published = [_table(self._loose()), self._compacted()], self._published()
        if not published.num_rows:
            return _union(stored)
        failed = pc.equal(published["status"], "failed")
        return _union([published.filter(pc.invert(failed)), *stored, published.filter(failed)])

    def compact(self) -> None:
        """Move the loose rows into one parquet file, under a lock: 100,000 single files take seconds to read."""
        with locked(self.trials / "compaction.lock"):
            loose = self._loose()
            compacted = self.trials / "rows.parquet"
            write_atomically(compacted, _parquet(_union([_table(loose), self._compacted()])))
            for record in loose:
                (self.trials / f"{record['key']}.json").unlink(missing_ok=True)
            for leftover in self.trials.glob(".*.tmp"):  # of a process killed while it wrote
                with contextlib.suppress(FileNotFoundError):  # aged by the file system's clock, which its writer shares
                    if compacted.stat().st_mtime - leftover.stat().st_mtime > 3600:
                        leftover.unlink()

    def count_loose(self) -> int:
        return sum(1 for _ in self.trials.glob("*.json"))

    def publish(self, rows: pd.DataFrame, folder: Path) -> None:
        """Write rows as `folder/<study>.parquet`, from which figures and claims can be remade.

        Columns stand in the order of `study.Study.rows`, also those that a notebook added: published rows that are read
        and published again are the same bytes.
        """
        fixed = ["status", "reason", "key", "spec"]
        names = list(rows)
        spec, results = names[: names.index("status")], sorted(set(names[names.index("status") :]) - set(fixed))
        results.sort(key=lambda name: name.startswith(PREFIX))
        rows = rows[[*spec, *fixed[:2], *results, *fixed[2:]]]
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        write_atomically(folder / self.published.name, _parquet(table))

    def _set_aside(self, path: Path, why: str) -> None:
        aside = self.trials / "set_aside"
        aside.mkdir(exist_ok=True)
        path.replace(aside / path.name)
        print(f"{path.name} in the store of {self.name} is {why}: set aside in {aside}.", file=sys.stderr)

    def _loose(self) -> list[dict]:
        records = []
        for path in sorted(self.trials.glob("*.json")):
            try:
                record = json.loads(path.read_text())
                if record["version"] != self.version:
                    continue
                trusted = record["key"] == path.stem == self.key(json.loads(record["spec"])) and "status" in record
            except FileNotFoundError:  # compacted by another process since it was listed
                continue
            except (ValueError, KeyError, TypeError):
                self._set_aside(path, "not a whole row")
                continue
            if trusted:
                records.append(record)
            else:
                self._set_aside(path, "a row of another trial")
        return records

    def _compacted(self) -> pa.Table:
        path = self.trials / "rows.parquet"
        try:
            return pq.read_table(path) if path.exists() else _table([])
        except (pa.ArrowInvalid, OSError):
            self._set_aside(path, "not a whole parquet file")
            return _table([])

    def _published(self) -> pa.Table:
        try:
            return pq.read_table(self.published) if self.published.exists() else _table([])
        except (pa.ArrowInvalid, OSError):
            sentence = f"{self.published} is not a whole parquet file: restore it from git or delete it."
            raise CompanionError(sentence) from None
