"""The rows of finished trials on disk: their identity, one file for each trial, compaction, locks.

A finished trial is in `runs/<profile>/trials/<study>/<key>.json`. Many of them are compacted into `rows.parquet`
beside them. Published rows are in `runs/<profile>/<study>.parquet`. The known rows are the union of the three.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lib.provenance import PREFIX, CompanionError, locked, write_atomically

# pandas is imported by whoever has data frames: `make status` reads a store without it.
if TYPE_CHECKING:
    import pandas as pd


# Fields of a spec that came later, with the values of the rows that lack them: such a value is no part of a key.
IMPLIED = {"precision": "float32", "retrain_precision": "float32", "retraining_precision": "float32"}
LOOSE = 200  # more rows than this are compacted into one file: 100,000 single files take seconds to read


def plain(value: object) -> object:
    """A value as JSON and parquet hold it: tensors and arrays as lists, numpy scalars as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def canonical(spec: dict) -> dict:
    """A spec as it is hashed: nulls dropped, integral floats as ints, keys sorted; so a DataFrame changes nothing."""

    def simple(value: object) -> object:
        value = plain(value)
        if isinstance(value, dict):
            return canonical(value)
        if isinstance(value, list | tuple):
            return [simple(entry) for entry in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def null(value: object) -> bool:
        return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))

    return {name: simple(spec[name]) for name in sorted(spec) if not null(spec[name])}


def _table(records: list[dict]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: pa.array([record.get(name) for record in records]) for name in names})


def _union(tables: Iterable[pa.Table]) -> pa.Table:
    """All rows of all tables, in order; of the rows with one key the first stays."""
    tables = [table for table in tables if table.num_rows]
    if not tables:
        return pa.table({name: pa.array([], pa.string()) for name in ("key", "status", "reason", "spec")})
    union = pa.concat_tables(tables, promote_options="permissive")
    _, first = np.unique(union["key"].to_pylist(), return_index=True)
    return union.take(np.sort(first))


def _read(path: Path) -> list[pa.Table]:
    """The table of a file, or none; `pq.read_table` would import pandas."""
    return [pq.ParquetFile(path).read()] if path.exists() else []


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=12)
    return sink.getvalue().to_pybytes()


@cache
def _keys(path: Path, mtime_ns: int, inode: int) -> frozenset[str]:
    return frozenset(pq.read_table(path, columns=["key"])["key"].to_pylist())


@dataclass(frozen=True)
class Store:
    """The rows of one study and version in one folder of `runs`; the arguments are those of `Study`."""

    name: str
    version: int
    folder: Path

    @property
    def trials(self) -> Path:
        """The folder of loose and compacted rows and of weights."""
        return self.folder / "trials" / self.name

    @property
    def published(self) -> Path:
        """The published rows, from which figures and claims can be remade."""
        return self.folder / f"{self.name}.parquet"

    def key(self, spec: dict) -> str:
        """16 hex digits that name a trial: a hash of its *canonical* spec and of the study's name and version."""
        spec = {field: value for field, value in spec.items() if IMPLIED.get(field) != value}
        text = json.dumps([self.name, self.version, spec], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lock(self, key: str, blocking: bool) -> AbstractContextManager[bool]:
        """The lock of one trial; its owner computes that trial."""
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

    def request(self, keys: list[str], processes: int) -> None:
        """Remember which trials a notebook requests, and how many processes compute them, for `make status`."""
        with locked(self.trials / "requested.lock"):
            before = self.requested()
            if before["version"] == self.version:
                keys = [*before["keys"], *keys]
            record = {"version": self.version, "processes": processes, "keys": [*dict.fromkeys(keys)]}
            if record != before:
                write_atomically(self.trials / "requested", json.dumps(record).encode())

    def requested(self) -> dict:
        """Version, processes and keys of the trials that were requested since the batch began."""
        try:
            return json.loads((self.trials / "requested").read_bytes())
        except (OSError, ValueError):
            return {"version": None, "processes": 1, "keys": []}

    def known(self) -> pa.Table:
        """Every known row: the union of published, loose and compacted rows, in this order of precedence."""
        # Loose files are listed before the compacted file is read, so that a compaction in between hides nothing.
        loose = _table(self._loose())
        return _union([*self._published(), loose, *self._compacted()])

    def outcomes(self) -> dict[str, tuple[str, float]]:
        """The status of every known trial and the seconds that it took, by key; read without pandas."""
        columns, loose = ["key", "status", f"{PREFIX}seconds"], self._loose()
        tables = [table.select(columns).to_pylist() for table in (*self._compacted(), *self._published())]
        rows = (*loose, *(row for table in tables for row in table))
        return {row["key"]: (row["status"], row[f"{PREFIX}seconds"]) for row in rows}

    def compact(self, above: int = LOOSE) -> None:
        """Move the loose rows into one parquet file, under a lock, if they are more than `above`."""
        if sum(1 for _ in self.trials.glob("*.json")) <= above:
            return
        with locked(self.trials / "compaction.lock"):
            loose = self._loose()
            compacted = _parquet(_union([_table(loose), *self._compacted()]))
            write_atomically(self.trials / "rows.parquet", compacted)
            for record in loose:
                (self.trials / f"{record['key']}.json").unlink(missing_ok=True)

    def publish(self, rows: pd.DataFrame, folder: Path) -> None:
        """Write rows, as `Study.rows` returns them, to `folder/<study>.parquet`; the same rows give the same bytes."""
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        write_atomically(folder / self.published.name, _parquet(table))

    def _set_aside(self, path: Path, problem: str) -> None:
        aside = self.trials / "set_aside"
        aside.mkdir(exist_ok=True)
        path.replace(aside / path.name)
        print(f"{path.name} in the store of {self.name} is {problem}; it was moved to {aside}.", file=sys.stderr)

    def _loose(self) -> list[dict]:
        records = []
        for path in sorted(self.trials.glob("*.json")):
            try:
                record = json.loads(path.read_bytes())
                if record["version"] != self.version:
                    continue
                if not record["key"] == path.stem == self.key(json.loads(record["spec"])):
                    raise ValueError(f"{path} holds another trial.")
                records.append(record | {"status": record["status"]})
            except FileNotFoundError:  # compacted by another process since it was listed
                continue
            except (ValueError, KeyError, TypeError):
                self._set_aside(path, "not a whole row of its trial")
        return records

    def _compacted(self) -> list[pa.Table]:
        path = self.trials / "rows.parquet"
        try:
            return _read(path)
        except (pa.ArrowInvalid, OSError):
            self._set_aside(path, "not a whole parquet file")
            return []

    def _published(self) -> list[pa.Table]:
        try:
            return _read(self.published)
        except (pa.ArrowInvalid, OSError):
            remedy = "restore it from git or delete it"
            raise CompanionError(f"{self.published} is not a whole parquet file: {remedy}.") from None
