"""What is exported is what is in the store, in the columns that docs/store.md describes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monitor._errors import StoreError
from monitor._records import CommandRecord
from monitor.store import STORE_FILE, TABLES, RunFolder, StoreReader, StoreWriter, export
from monitor.store._export import _COLUMNS
from tests.requirements import need_module
from tests.store.made import START, a_sample, a_step, an_event, loss_at

DOCS = Path(__file__).resolve().parents[2] / "docs" / "store.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = RunFolder.create(None, "digits-3f9a0c", name="digits", start_time=START).path
    writer = StoreWriter(made / STORE_FILE)
    for step in (*range(1, 11), *range(8, 11)):
        writer.add_step(a_step(step))
    for step, value in enumerate((0.5, math.nan, -math.inf), start=1):
        writer.add_sample(a_sample('top-5, "raw"\n', value, step))
    writer.add_reading({"cpu_ratio": 0.5, "gpus/0/power_watts": math.nan}, time=START)
    writer.add_event(an_event(3, value=math.inf, details={"best": math.nan}))
    writer.add_event(an_event(2**70))
    writer.add_command(CommandRecord("c1", "reduce", "api", START, 0.5, groups=(0, "body"), reason="a, b", actor="ada"))
    writer.close()
    return made


def exported(folder: Path, format_: Any, table: Any = "values") -> bytes:
    file = io.BytesIO()
    num_rows = export(folder, format_, file, table)
    if format_ == "jsonl":
        assert num_rows == file.getvalue().count(b"\n")
    return file.getvalue()


def test_csv_has_every_value(folder: Path) -> None:
    """Each value is a line, in full digits, with its attempt; what is not finite is spelt as in the HTTP API."""
    rows = list(csv.DictReader(io.StringIO(exported(folder, "csv").decode(), newline="")))
    losses = [row for row in rows if row["column"] == "loss"]
    assert [(int(row["last_step"]), float(row["value"])) for row in losses] == [
        (step, loss_at(step)) for step in (*range(1, 11), *range(8, 11))
    ]
    assert [row["attempt"] for row in losses] == ["0"] * 10 + ["1"] * 3
    assert [row["is_abandoned"] for row in losses] == ["false"] * 7 + ["true"] * 3 + ["false"] * 3
    logged = [row for row in rows if row["name"] == 'top-5, "raw"\n']
    assert [row["value"] for row in logged] == ["0.5", "NaN", "-Inf"]
    assert [row["num_nonfinite"] for row in logged] == ["0", "1", "1"]
    assert [row["minimum"] for row in logged] == ["0.5", "", ""]


def test_json_lines_are_strict_json(folder: Path) -> None:
    """Each line is an object that any parser of JSON reads."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for table in TABLES:
        lines = exported(folder, "jsonl", table).splitlines()
        rows = [json.loads(line, parse_constant=refuse) for line in lines]
        assert rows
        assert all(list(row) == list(_COLUMNS[table]) for row in rows)
    events = [json.loads(line) for line in exported(folder, "jsonl", "events").splitlines()]
    assert [event["step"] for event in events] == [3, 2**70]
    assert (events[0]["value"], events[0]["details"]) == ("+Inf", '{"best": "NaN"}')


def test_commands_are_exported_with_their_groups(folder: Path) -> None:
    """What is nested is a string of JSON in its cell."""
    (row,) = csv.DictReader(io.StringIO(exported(folder, "csv", "commands").decode(), newline=""))
    assert (row["id"], row["factor"], row["groups"], row["reason"]) == ("c1", "0.5", '[0, "body"]', "a, b")
    assert (row["step"], row["changes"]) == ("", "[]")


def test_parquet_has_the_same_rows(folder: Path) -> None:
    """Parquet has the rows and columns of the other formats, with types, NaN as NaN."""
    need_module("pyarrow")
    from pyarrow import parquet

    for table in TABLES:
        rows = parquet.read_table(io.BytesIO(exported(folder, "parquet", table))).to_pylist()
        expected = [json.loads(line) for line in exported(folder, "jsonl", table).splitlines()]
        assert len(rows) == len(expected)
        assert all(list(row) == list(_COLUMNS[table]) for row in rows)
    rows = parquet.read_table(io.BytesIO(exported(folder, "parquet"))).to_pylist()
    assert [row["value"] for row in rows if row["column"] == "loss"][:3] == [loss_at(1), loss_at(2), loss_at(3)]
    assert [str(row["value"]) for row in rows if row["kind"] == "metric"] == ["0.5", "nan", "-inf"]


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra, and a format that needs none."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(StoreError, match=re.escape("pip install 'training-monitor[parquet]', or export csv")):
        exported(folder, "parquet")


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    """An unknown format or table is the caller's mistake; a folder without a store is a StoreError."""
    with pytest.raises(ValueError, match="format must be one of csv, jsonl, parquet, got 'xlsx'"):
        exported(tmp_path, "xlsx")
    with pytest.raises(ValueError, match="table must be one of values, readings, events, commands, got 'all'"):
        exported(tmp_path, "csv", "all")
    with pytest.raises(StoreError, match="cannot be read"):
        exported(tmp_path, "csv")


def test_an_export_goes_on_while_the_writer_rewrites_its_blocks(tmp_path: Path) -> None:
    """Blocks that are merged or given up while rows are read leave no step out and none twice."""
    path = tmp_path / STORE_FILE
    writer = StoreWriter(path, max_bytes=2**21)
    step = 0

    def write_more(count: int) -> None:
        nonlocal step
        for _ in range(count):
            step += 1
            writer.add_step(a_step(step))
        writer.commit()

    for _ in range(20):
        write_more(300)
    last = 0
    with StoreReader(path) as store:
        for count, point in enumerate(store.rows("optimizer", "adam", "loss")):
            assert point.first_step == last + 1
            last = point.last_step
            if count % 50 == 0 and step < 40_000:
                write_more(350)
    assert last >= 40_000
    assert writer.num_dropped == 0
    writer.close()


def test_the_columns_are_documented() -> None:
    """docs/store.md has a row for each column of each table."""
    text = DOCS.read_text(encoding="utf-8")
    for table, columns in _COLUMNS.items():
        _, found, section = text.partition(f"### `{table}`\n")
        assert found
        section = section.partition("\n## ")[0].partition("\n### ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(columns)


def test_importing_the_package_loads_no_heavy_library() -> None:
    """`import monitor.store` leaves torch and pyarrow out; only an export to Parquet loads the latter."""
    code = "import sys, monitor.store; print(sorted({'torch', 'pyarrow', 'numpy', 'flask'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
