"""The rows of finished trials on disk: their identity, one file for each trial, compaction, locks.

A finished trial is in `runs/<profile>/trials/<study>/<key>.json`. Many of them are compacted into the parquet files
of `LEVELS` beside them. Published rows are in `runs/<profile>/<study>.parquet`. The known rows are the union of the
three. Asking, resuming and publishing take time in proportion to the rows, and storing one more takes hardly any more
beside a million.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib.provenance import PREFIX, CompanionError, locked, write_atomically

# pandas is imported by whoever has data frames: `make status` reads a store without it.
if TYPE_CHECKING:
    import pandas as pd


# Fields of a spec that came later, with the values of the rows that lack them: such a value is no part of a key.
IMPLIED = {"precision": "float32", "retrain_precision": "float32", "retraining_precision": "float32"}
LOOSE = 200  # more rows than this are compacted into one file: 100,000 single files take seconds to read
# Compacted rows move up one level, into a file of this many times the rows, when theirs is full. So a row is written a
# few times only, whatever their number. They never move down: who reads the levels in this order misses none.
GROWTH = 16
LEVELS = ("rows.parquet", *(f"rows.{level}.parquet" for level in range(1, 5)))
EXACT = frozenset((str, int, bool))  # types that are hashed as they are: most values of a spec

_encoded = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
_keys: dict[str, tuple[tuple[int, int], np.ndarray]] = {}  # the keys in a compacted file, and which file that was


def plain(value: object) -> object:
    """A value as JSON and parquet hold it: tensors and arrays as lists, numpy scalars as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def canonical(spec: dict) -> dict:
    """A spec as it is hashed: nulls dropped, integral floats as ints, keys sorted; so a DataFrame changes nothing."""
    return {name: _simple(value) for name in sorted(spec) if type(value := spec[name]) in EXACT or not _null(value)}


def _simple(value: object) -> object:
    if type(value) in EXACT:
        return value
    value = plain(value)
    if isinstance(value, dict):
        return canonical(value)
    if isinstance(value, list | tuple):
        return [_simple(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def _table(records: list[dict]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: pa.array([record.get(name) for record in records]) for name in names})


def _union(tables: Iterable[pa.Table]) -> pa.Table:
    """All rows of all tables, in order; of the rows with one key the first stays."""
    tables = [table for table in tables if table.num_rows]
    if not tables:
        return pa.table({name: pa.array([], pa.string()) for name in ("key", "status", "reason", "spec")})
    union = pa.concat_tables(tables, promote_options="permissive")
    if len(tables) == 1:
        return union
    keys = union["key"].combine_chunks().dictionary_encode()
    if len(keys.dictionary) == len(keys):
        return union
    _, first = np.unique(keys.indices.to_numpy(), return_index=True)
    return union.take(np.sort(first))


def places_of(keys: list[str], table: pa.Table) -> np.ndarray:
    """The row of each key in a table of known rows, -1 where it has none."""
    return pc.index_in(pa.array(keys, table["key"].type), value_set=table["key"]).fill_null(-1).to_numpy()


def _read(path: str | Path, columns: list[str] | None) -> list[pa.Table]:
    """The table of a file, or none; `pq.read_table` would import pandas."""
    try:
        return [pq.ParquetFile(path).read(columns)]
    except FileNotFoundError:
        return []


def parquet(table: pa.Table, compression: int, split: bool = False) -> bytes:
    """A table as the bytes of a file, compressed at a level of zstd; `split` stores floats byte by byte."""
    sink, options = pa.BufferOutputStream(), {}
    if split:
        floats = [
            field.name for field in table.schema if pa.types.is_floating(getattr(field.type, "value_type", field.type))
        ]
        options = {
            "use_dictionary": [n for n in table.column_names if n not in floats],
            "use_byte_stream_split": floats,
        }
    pq.write_table(table, sink, compression="zstd", compression_level=compression, **options)
    return sink.getvalue().to_pybytes()


def _holds(path: str, key: str) -> bool:
    """Whether a compacted file holds a key; its keys are read once, into 16 bytes for each."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return False
    version = (state.st_mtime_ns, state.st_ino)
    if path not in _keys or _keys[path][0] != version:
        if not (tables := _read(path, ["key"])):
            return False
        characters = tables[0]["key"].combine_chunks().cast(pa.binary(16)).buffers()[1]
        _keys[path] = version, np.sort(np.frombuffer(characters, "S16"))
    keys = _keys[path][1]
    place = keys.searchsorted(key.encode())
    return place < len(keys) and keys[place] == key.encode()


@dataclass(frozen=True)
class Store:
    """The rows of one study and version in one folder of `runs`; the arguments are those of `Study`.

    Without a version all published and compacted rows count.
    """

    name: str
    version: int | None
    folder: Path

    @cached_property
    def trials(self) -> Path:
        """The folder of loose and compacted rows and of weights."""
        return self.folder / "trials" / self.name

    @property
    def published(self) -> Path:
        """The published rows, from which figures and claims can be remade."""
        return self.folder / f"{self.name}.parquet"

    def key(self, spec: dict) -> str:
        """16 hex digits that name a trial: a hash of its *canonical* spec and of the study's name and version."""
        hashed = {field: value for field, value in spec.items() if IMPLIED.get(field) != value}
        text = _encoded([self.name, self.version, hashed])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lock(self, key: str, blocking: bool) -> AbstractContextManager[bool]:
        """The lock of one trial; its owner computes that trial."""
        return locked(self.trials / f"{key}.lock", blocking)

    def has(self, key: str) -> bool:
        """Whether a trial is among the loose or compacted rows, without reading them."""
        folder = f"{self.trials}/"  # strings: a path object for each level would take most of the time
        return os.path.exists(f"{folder}{key}.json") or any(_holds(folder + level, key) for level in LEVELS)

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

    def known(self, columns: list[str] | None = None) -> pa.Table:
        """Every known row: the union of published, loose and compacted rows, in this order of precedence.

        `columns` names those to read, if not all are needed; `key` must be among them.
        """
        # Loose files are listed before the compacted files are read, so that a compaction in between hides nothing.
        loose = _table(self._loose())
        loose = loose.select(columns) if columns and len(loose) else loose
        return _union([*self._published(columns), loose, *self._compacted(self._levels(), columns)])

    def outcomes(self) -> tuple[dict[str, str], dict[str, float]]:
        """The status of every known trial and the seconds that it took, by key; read without pandas."""
        columns, loose = ["key", "status", f"{PREFIX}seconds"], self._loose()
        tables = [*self._compacted(self._levels(), columns), *self._published(columns)]
        found = [[row[column] for row in loose] for column in columns]
        for values, column in zip(found, columns, strict=True):
            for table in tables:
                values += table[column].to_pylist()
        keys, statuses, seconds = found
        return dict(zip(keys, statuses, strict=True)), dict(zip(keys, seconds, strict=True))

    def compact(self, above: int = LOOSE) -> None:
        """Move the loose rows into a compacted file if they are more than `above` and no other process does it."""
        if len(self._loose_names()) <= above:
            return
        with locked(self.trials / "compaction.lock", blocking=False) as owner:
            if not owner or len(loose := self._loose()) <= above:
                return
            tables, levels = [_table(loose)], self._levels()
            for level, path in enumerate(levels):
                tables += self._compacted([path], None)
                if sum(map(len, tables)) <= LOOSE * GROWTH ** (level + 1):
                    break
            write_atomically(path, parquet(_union(tables), 1))
            for lower in levels[:level]:
                lower.unlink(missing_ok=True)
            for record in loose:
                (self.trials / f"{record['key']}.json").unlink(missing_ok=True)

    def publish(self, rows: pd.DataFrame, folder: Path) -> None:
        """Write rows, as `Study.rows` returns them, to `folder/<study>.parquet`; the same rows give the same bytes.

        Measured numbers take less space with the bytes of one place together, counts and repeated numbers do not.
        """
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        both = (parquet(table, 12), parquet(table, 12, split=True))
        write_atomically(folder / self.published.name, min(both, key=len))

    def _set_aside(self, path: Path, problem: str) -> None:
        aside = self.trials / "set_aside"
        aside.mkdir(exist_ok=True)
        try:
            path.replace(aside / path.name)
        except FileNotFoundError:  # another process was faster
            return
        print(f"{path.name} in the store of {self.name} is {problem}; it was moved to {aside}.", file=sys.stderr)

    def _loose(self) -> list[dict]:
        records = []
        for name in sorted(self._loose_names()):
            path = self.trials / name
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

    def _loose_names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.trials) if name.endswith(".json")]
        except FileNotFoundError:
            return []

    def _levels(self) -> list[Path]:
        return [self.trials / name for name in LEVELS]

    def _compacted(self, levels: list[Path], columns: list[str] | None) -> list[pa.Table]:
        tables = []
        for path in levels:
            try:
                for table in _read(path, columns and [*columns, "version"]):
                    if self.version is not None:
                        table = table.filter(pc.equal(table["version"], self.version))
                    tables.append(table.select(columns) if columns else table)
            except (pa.ArrowInvalid, OSError):
                self._set_aside(path, "not a whole parquet file")
        return tables

    def _published(self, columns: list[str] | None) -> list[pa.Table]:
        """The published rows, or none if they are of another version of the study, which may have other columns."""
        try:
            if not (first := _read(self.published, ["key", "spec"])) or not first[0].num_rows:
                return []
            key, spec = (first[0][column][0].as_py() for column in ("key", "spec"))
            if self.version is not None and key != self.key(json.loads(spec)):
                return []
            return _read(self.published, columns)
        except (pa.ArrowInvalid, OSError):
            remedy = "restore it from git or delete it"
            raise CompanionError(f"{self.published} is not a whole parquet file: {remedy}.") from None
