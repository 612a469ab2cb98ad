"""What was measured: the best plan and configuration of an op at a size, on a device, under some versions.

One SQLite file in a folder of the user's own. A record is written in one transaction with a rollback journal, so a
process may be killed at any moment: the next one that opens the file undoes what was half written. Eight processes
and more may write at once: each waits for its turn. No shared memory is used (as WAL would), so a home folder on NFS
will do where the server locks files; where it does not, set SMA_CACHE_DIR to a local folder.

Nothing is believed: the folder must be the user's own, every row carries a hash of itself and is checked when it is
read, and a file that SQLite cannot read is put aside, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sma_compiler.backend_errors import RecordsUnusable
from sma_compiler.kernel.choices import BadChoice, Choices, plan_text
from sma_compiler.plan.choose import PLANS
from sma_compiler.runtime.load import cache_dir, private_folder

FOLDER, FILE = "tune", "records.sqlite"
VERSION = 1
"""Of the table: a file of another version is put aside."""
BUSY = 60.0
"""Seconds that a process waits for its turn."""
BACKENDS = ("torch", "triton")

T = TypeVar("T")

_TABLE = """
CREATE TABLE IF NOT EXISTS records (
  spec TEXT NOT NULL, generator TEXT NOT NULL, shape TEXT NOT NULL, dtype TEXT NOT NULL, device TEXT NOT NULL,
  torch TEXT NOT NULL, triton TEXT NOT NULL, training INTEGER NOT NULL,
  value TEXT NOT NULL, verified INTEGER NOT NULL, digest TEXT NOT NULL,
  PRIMARY KEY (spec, generator, shape, dtype, device, torch, triton, training)
) WITHOUT ROWID
"""
_KEY = ("spec", "generator", "shape", "dtype", "device", "torch", "triton", "training")


class DamagedRecords(UserWarning):
    """Tuning records that cannot be used, and what was done about them."""


class BadRecord(ValueError):
    """A record that does not say what records say."""


class Pick(NamedTuple):
    """What a record or the cost model says. plan: with its choices, see `kernel.choices`."""

    backend: str
    plan: str


@dataclass(frozen=True)
class Key:
    """What a record is for. spec: the hash of the op. shape: sizes in classes, see `tuned.shape_class`.

    generator: of the code that makes plans and kernels. training: whether gradients are wanted.
    """

    spec: str
    generator: str
    shape: str
    dtype: str
    device: str
    torch: str
    triton: str
    training: bool


@dataclass(frozen=True)
class Record:
    """The winner. forward, backward: seconds, None where that was not measured.

    error: the largest error that its check found, over the bound. predicted: by the cost model, seconds.
    sizes: exactly those that were measured. date: when, UTC. verified: whether it was checked on this machine.
    """

    key: Key
    op: str
    backend: str
    plan: str
    choices: Choices
    forward: float
    backward: float | None
    error: float
    predicted: float | None
    sizes: Mapping[str, int]
    date: str
    verified: bool = True

    @property
    def pick(self) -> str:
        """The plan with its choices, as calls name it."""
        return plan_text(self.plan, self.choices)

    @property
    def id(self) -> str:
        """A short name for people: it changes with the key."""
        return _digest([getattr(self.key, name) for name in _KEY])[:12]

    def value(self) -> dict[str, Any]:
        """All but the key and whether it was verified, for JSON."""
        names = ("op", "backend", "plan", "forward", "backward", "error", "predicted", "date")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return found | {"choices": self.choices.data(), "sizes": dict(self.sizes)}

    def data(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"key": asdict(self.key), **self.value(), "verified": self.verified}


def read_record(key: Mapping[str, object], value: Mapping[str, object], *, verified: bool) -> Record:
    """A record from data that may come from anywhere. Raises BadRecord."""
    texts = {name: _text(key, name) for name in _KEY if name != "training"}
    training = key.get("training")
    if training not in (0, 1):
        raise BadRecord("training is true or false")
    backend, plan = _text(value, "backend"), _text(value, "plan")
    if backend not in BACKENDS or plan not in (*PLANS, "auto"):
        raise BadRecord(f"no plan {plan!r} of backend {backend!r}")
    choices, sizes = value.get("choices"), value.get("sizes")
    if not isinstance(choices, Mapping) or not isinstance(sizes, Mapping):
        raise BadRecord("choices and sizes are objects")
    if not all(isinstance(n, int) and isinstance(axis, str) for axis, n in sizes.items()):
        raise BadRecord("sizes are integers by axis")
    backward, predicted = value.get("backward"), value.get("predicted")
    try:
        return Record(
            Key(**texts, training=bool(training)),
            _text(value, "op"),
            backend,
            plan,
            Choices.of(choices),
            _seconds(value.get("forward")),
            None if backward is None else _seconds(backward),
            _seconds(value.get("error")),
            None if predicted is None else _seconds(predicted),
            dict(sizes),
            _text(value, "date"),
            verified,
        )
    except BadChoice as error:
        raise BadRecord(str(error)) from None


def _text(data: Mapping[str, object], name: str) -> str:
    found = data.get(name)
    if not isinstance(found, str) or len(found) > 4096 or not found.isprintable():
        raise BadRecord(f"{name} is a line of text")
    return found


def _seconds(x: object) -> float:
    if isinstance(x, bool) or not isinstance(x, int | float) or not 0 <= x < math.inf:
        raise BadRecord(f"a number of 0 or more is wanted, not {x!r}")
    return float(x)


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def records_file() -> Path:
    """Where records are kept, whether or not it exists."""
    return cache_dir() / FOLDER / FILE


def save(record: Record) -> None:
    """Keep a record in place of an older one of the same key.

    Raises:
        UnsafeCache: the folder cannot be made or is not the user's own.
        RecordsUnusable: another process holds the file for too long, or the disk refuses.
    """
    value = json.dumps(record.value(), sort_keys=True)
    row = [*(getattr(record.key, name) for name in _KEY), value, record.verified]
    row[7] = int(record.key.training)
    marks = ", ".join("?" * 11)

    def write(base: sqlite3.Connection) -> None:
        with base:
            base.execute(f"INSERT OR REPLACE INTO records VALUES ({marks})", [*row, _digest(_plain(row))])

    _with_file(write)


def _plain(row: list[Any]) -> list[object]:
    return [int(x) if isinstance(x, bool) else x for x in row]


def find(key: Key) -> Record | None:
    """The record of a key; None where there is none, or no folder to keep any in."""
    if not records_file().exists():
        return None
    where = " AND ".join(f"{name} = ?" for name in _KEY)
    asked = _plain([getattr(key, name) for name in _KEY])
    rows = _with_file(lambda base: base.execute(f"SELECT * FROM records WHERE {where}", asked).fetchall())
    return next(_records(rows), None)


def every() -> list[Record]:
    """All records, the newest first."""
    if not records_file().exists():
        return []
    rows = _with_file(lambda base: base.execute("SELECT * FROM records").fetchall())
    return sorted(_records(rows), key=lambda record: record.date, reverse=True)


def clear(wanted: Callable[[Record], bool] = lambda _: True) -> int:
    """Forget records; how many there were."""
    if not records_file().exists():
        return 0
    doomed = [record.key for record in every() if wanted(record)]
    where = " AND ".join(f"{name} = ?" for name in _KEY)

    def delete(base: sqlite3.Connection) -> None:
        with base:
            base.executemany(
                f"DELETE FROM records WHERE {where}", [_plain([getattr(key, name) for name in _KEY]) for key in doomed]
            )

    _with_file(delete)
    return len(doomed)


def export_text(records: list[Record]) -> str:
    """Records as JSON, to be taken to another machine."""
    return json.dumps({"sma_records": VERSION, "records": [record.data() for record in records]}, indent=1) + "\n"


def import_text(text: str) -> int:
    """Keep the records of `export_text`, marked unverified: each is checked when it is first used. How many.

    Raises:
        BadRecord: the text holds anything else; then none is kept.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BadRecord(f"no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("sma_records") != VERSION or not isinstance(data.get("records"), list):
        raise BadRecord(
            f'records are {{"sma_records": {VERSION}, "records": [...]}}, as `sma cache export` writes them'
        )
    found = []
    for number, entry in enumerate(data["records"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), dict):
            raise BadRecord(f"record {number} is no record")
        try:
            found.append(read_record(entry["key"], entry, verified=False))
        except BadRecord as error:
            raise BadRecord(f"record {number}: {error}") from None
    for record in found:
        save(record)
    return len(found)


def confirm(record: Record) -> Record:
    """The record as one that was checked on this machine; kept so."""
    found = replace(record, verified=True)
    save(found)
    return found


def _records(rows: list[tuple[Any, ...]]) -> Iterator[Record]:
    """Rows that are what was written; the others are told of and left out."""
    for row in rows:
        try:
            if _digest(list(row[:10])) != row[10]:
                raise BadRecord("its hash differs")
            key = dict(zip(_KEY, row, strict=False))
            yield read_record(key, json.loads(row[8]), verified=bool(row[9]))
        except ValueError as error:
            _warn(f"a tuning record in {records_file()} is damaged and not used ({error}): tune that shape again")


def _with_file(use: Callable[[sqlite3.Connection], T]) -> T:
    """Do something with the file; put it aside and start anew where it is damaged."""
    path = private_folder(FOLDER) / FILE
    before = _identity(path)
    try:
        with _opened(path) as base:
            return use(base)
    except sqlite3.OperationalError as error:
        raise RecordsUnusable(path, str(error)) from None
    except sqlite3.DatabaseError as error:
        _put_aside(path, before, error)
    with _opened(path) as base:
        return use(base)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=BUSY, isolation_level="IMMEDIATE")) as base:
        base.execute("PRAGMA synchronous = FULL")
        version = base.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with base:
                base.execute("BEGIN IMMEDIATE")
                base.execute(_TABLE)
                base.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version} instead of {VERSION}")
        yield base


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _put_aside(path: Path, known: tuple[int, int] | None, error: Exception) -> None:
    """Rename a damaged file, unless another process has done so by now."""
    if known is None or _identity(path) != known:
        return
    aside = path.with_suffix(f".damaged-{os.getpid()}")
    os.replace(path, aside)
    for suffix in ("-journal", "-wal", "-shm"):  # they belong to the damaged file
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    _warn(f"the tuning records in {path} are damaged ({error}): the file is now {aside.name}, and a new one is begun")


def _warn(message: str) -> None:
    warnings.warn(message, DamagedRecords, stacklevel=4)
