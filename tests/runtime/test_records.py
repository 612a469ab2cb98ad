"""Records of tuning: many processes, kills at any moment, damaged files, foreign folders, other machines."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtime.record_writer import CROWD, EACH, KILLS, record

from sma_compiler.backend_errors import RecordsUnusable, UnsafeCache
from sma_compiler.kernel.choices import BadChoice, Choices, plan_text, read_plan
from sma_compiler.runtime import records

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SMA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tune" / "records.sqlite"


def processes(what: str) -> list[Any]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    command = [sys.executable, "-m", "runtime.record_writer", what]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True, timeout=300
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def test_a_record_is_found_as_it_was_saved(file: Path) -> None:
    assert records.find(record("a", 3).key) is None
    assert not file.exists()
    records.save(record("a", 3))
    assert records.find(record("a", 3).key) == record("a", 3)
    assert records.find(replace(record("a", 3).key, torch="2.11.0")) is None
    newer = replace(record("a", 3), plan="recurrent", choices=Choices())
    records.save(newer)
    assert records.find(newer.key) == newer
    assert records.every() == [newer]
    assert [newer.pick, record("a", 3).pick] == ["recurrent", "chunked:forward.warps=8"]


def test_eight_processes_write_at_once() -> None:
    assert processes("crowd") == [0] * CROWD
    expected = [record(str(who), number) for who in range(CROWD) for number in range(EACH)]
    assert sorted(records.every(), key=lambda r: r.id) == sorted(expected, key=lambda r: r.id)


def test_a_kill_at_any_moment_loses_nothing_that_was_kept() -> None:
    kept = processes("killed")
    assert len(kept) == KILLS
    for who, numbers in enumerate(kept):
        found = {r.sizes["time"]: r for r in records.every() if r.key.device == str(who)}
        assert set(numbers) <= found.keys()
        assert all(found[number] == record(str(who), number) for number in found)


def test_a_file_that_is_none_is_put_aside_with_a_warning(file: Path) -> None:
    records.save(record("a", 1))
    file.write_bytes(b"no database at all, but as long as a page of one would be" * 100)
    with pytest.warns(records.DamagedRecords, match=r"damaged-\d+, and a new one is begun"):
        assert records.find(record("a", 1).key) is None
    assert list(file.parent.glob("records.damaged-*"))
    records.save(record("a", 1))
    assert records.find(record("a", 1).key) == record("a", 1)


def test_a_damaged_row_is_never_used(file: Path) -> None:
    for number in (1, 2):
        records.save(record("a", number))
    with sqlite3.connect(file) as base:
        base.execute("""UPDATE records SET value = replace(value, '"chunked"', '"quadratic"') WHERE training = 1""")
    base.close()
    with pytest.warns(records.DamagedRecords, match="its hash differs"):
        assert records.find(record("a", 1).key) is None
    assert records.find(record("a", 2).key) == record("a", 2)


def test_damage_at_any_place_is_no_wrong_record(file: Path) -> None:
    for number in range(20):
        records.save(record("a", number))
    good = file.read_bytes()
    places = random.Random(1)
    for _ in range(25):
        bad = bytearray(good)
        start = places.randrange(len(bad))
        bad[start : start + 64] = places.randbytes(len(bad[start : start + 64]))
        file.write_bytes(bad)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            try:
                found = records.every()
            except RecordsUnusable:
                found = []
        assert all(r == record("a", r.sizes["time"]) for r in found)


def test_another_version_is_put_aside(file: Path) -> None:
    records.save(record("a", 1))
    with sqlite3.connect(file) as base:
        base.execute("PRAGMA user_version = 9")
    base.close()
    with pytest.warns(records.DamagedRecords, match="version 9 instead of 1"):
        assert records.every() == []


def test_folders_that_others_may_write_to_are_refused(file: Path) -> None:
    records.save(record("a", 1))
    for folder in (file.parent, file.parent.parent):
        folder.chmod(0o777)
        with pytest.raises(UnsafeCache, match="can be written by others"):
            records.find(record("a", 1).key)
        with pytest.raises(UnsafeCache, match="can be written by others"):
            records.save(record("a", 2))
        folder.chmod(0o700)
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_held_is_a_clear_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.save(record("a", 1))
    monkeypatch.setattr(records, "BUSY", 0.05)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RecordsUnusable, match="locked"):
        records.save(record("a", 2))
    holder.close()


def test_records_travel_as_json_and_arrive_unverified() -> None:
    for number in (1, 2):
        records.save(record("a", number))
    text = records.export_text(records.every())
    assert records.clear(lambda r: r.key.training) == 1
    assert records.clear() == 1
    assert records.import_text(text) == 2
    assert [r.verified for r in records.every()] == [False, False]
    assert records.confirm(records.every()[0]).verified
    assert sorted(r.verified for r in records.every()) == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": "__import__('os')"}, "no plan"),
        ({"backend": "shell"}, "no plan"),
        ({"choices": {"forward": {"warps": 3}}}, "a power of two"),
        ({"choices": {"forward": {"code": 4}}}, "has no 'code'"),
        ({"choices": {"dq": {"chunk": 64}}}, "warps, stages, rows, columns of its own"),
        ({"choices": {"forward": {"warps": "4"}}}, "is an integer"),
        ({"choices": []}, "objects"),
        ({"forward": -1.0}, "0 or more"),
        ({"forward": "fast"}, "0 or more"),
        ({"date": "a\nb"}, "a line of text"),
        ({"key": {}}, "a line of text"),
    ],
)
def test_only_data_is_imported(change: dict[str, object], message: str) -> None:
    records.save(record("a", 1))
    data = json.loads(records.export_text(records.every()))
    data["records"].append({**data["records"][0], **change})
    records.clear()
    with pytest.raises(records.BadRecord, match=f"record 1: .*{message}"):
        records.import_text(json.dumps(data))
    assert records.every() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sma_records": 2, "records": []}', '{"sma_records": 1}'])
def test_other_text_is_not_imported(text: str) -> None:
    with pytest.raises(records.BadRecord):
        records.import_text(text)


def test_choices_are_text_and_data() -> None:
    chosen = Choices.of({"forward": {"warps": 8, "scores": True}, "dq": {"stages": 2}})
    text = plan_text("chunked", chosen)
    assert text == "chunked:dq.stages=2,forward.scores=1,forward.warps=8"
    assert read_plan(text) == ("chunked", chosen)
    assert read_plan("chunked") == ("chunked", Choices())
    assert Choices.of(chosen.data()) == chosen
    assert chosen.only(backward=True).data() == {"dq": {"stages": 2}}
    assert (chosen | Choices.of({"dq": {"stages": 3}})).data()["dq"] == {"stages": 3}
    with pytest.raises(BadChoice):
        read_plan("chunked:forward.warps=8;rm")
