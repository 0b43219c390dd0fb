"""Write a run's store out as rows: CSV, JSON lines or Parquet. docs/store.md describes the columns."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any, Literal

from monitor._checks import is_number
from monitor._errors import StoreError
from monitor.store._columns import READINGS
from monitor.store._curve import Point
from monitor.store._reader import Series, StoreReader

Format = Literal["csv", "jsonl", "parquet"]
Table = Literal["values", "readings", "events", "commands"]
FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")
_BATCH_ROWS = 10_000
_COLUMNS: dict[Table, dict[str, str]] = {
    "values": {
        "kind": "string",
        "name": "string",
        "column": "string",
        "attempt": "int64",
        "is_abandoned": "bool",
        "first_step": "int64",
        "last_step": "int64",
        "time": "float64",
        "num_rows": "int64",
        "value": "float64",
        "minimum": "float64",
        "maximum": "float64",
        "num_nonfinite": "int64",
    },
    "readings": {
        "device": "string",
        "column": "string",
        "time": "float64",
        "num_rows": "int64",
        "value": "float64",
        "minimum": "float64",
        "maximum": "float64",
    },
    "events": {
        "number": "int64",
        "id": "int64",
        "kind": "string",
        "severity": "string",
        "step": "int64",
        "start_step": "int64",
        "end_step": "int64",
        "time": "float64",
        "optimizer": "string",
        "value": "float64",
        "message": "string",
        "details": "string",
    },
    "commands": {
        "number": "int64",
        "id": "string",
        "action": "string",
        "source": "string",
        "actor": "string",
        "created": "float64",
        "factor": "float64",
        "groups": "string",
        "over_steps": "int64",
        "reason": "string",
        "status": "string",
        "step": "int64",
        "finished": "float64",
        "message": "string",
        "changes": "string",
    },
}
"""The columns of each table, in order, with their types. What is nested is a string of JSON."""
TABLES: tuple[Table, ...] = tuple(_COLUMNS)
Row = dict[str, Any]


def export(run_folder: str | os.PathLike[str], format: Format, file: IO[bytes], table: Table = "values") -> int:  # noqa: A002
    """Write one table of a run's store into a binary file, row by row, and return the number of rows.

    The run may be training meanwhile: what it adds after the start may or may not be included.

    Args:
        run_folder: the folder of the run, or its store itself.
        format: "csv", "jsonl" or "parquet"; the last needs pyarrow (``pip install 'training-monitor[parquet]'``).
        file: opened for writing bytes.
        table: "values" (every curve of the training, at the finest resolution there is), "readings" (those of the
            machine, likewise), "events" or "commands".

    Raises:
        ValueError: for an unknown format or table.
        StoreError: if there is no store or it cannot be read; if pyarrow is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if table not in _COLUMNS:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    columns = _COLUMNS[table]
    write = _WRITERS[format]
    with StoreReader(run_folder) as store:
        return write(_rows_of(store, table), columns, file)


def _rows_of(store: StoreReader, table: Table) -> Iterator[Row]:
    if table in ("values", "readings"):
        yield from _points(store, table)
        return
    ask, after = store.events if table == "events" else store.commands, 0
    while found := ask(after):
        for record in found:
            yield {name: _flat(record.get(name), kind) for name, kind in _COLUMNS[table].items()}
        after = found[-1]["number"]


def _points(store: StoreReader, table: Table) -> Iterator[Row]:
    for series in store.series():
        is_reading = series[:2] == READINGS
        if is_reading != (table == "readings"):
            continue
        name = _reading_name(series) if is_reading else series._asdict()
        for point in store.rows(*series):
            if point.value is not None:
                yield {**name, **_point(point)}


def _reading_name(series: Series) -> Row:
    """Return what was read, and of what: ``host``, or a GPU such as ``gpu/0``."""
    device, _, column = series.column.rpartition("/")
    return {"device": device.replace("gpus", "gpu") or "host", "column": column}


def _point(point: Point) -> Row:
    return {
        "attempt": point.attempt,
        "is_abandoned": point.is_abandoned,
        "first_step": point.first_step,
        "last_step": point.last_step,
        "time": point.time,
        "num_rows": point.num_rows,
        "value": point.value,
        "minimum": point.minimum,
        "maximum": point.maximum,
        "num_nonfinite": point.num_nonfinite,
    }


def _flat(value: Any, kind: str) -> Any:
    """Return a field as its column has it; None for what a damaged or cut record has in its place."""
    if value is None:
        return None
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(_spelt(value))
    if not is_number(value):
        return None
    if kind == "float64":
        return float(value) if abs(value) < 2**1023 or not isinstance(value, int) else math.inf
    return value


def _spelt(value: Any) -> Any:
    """Spell what is not finite as the HTTP API does: JSON has no number for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    if isinstance(value, dict):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelt(item) for item in value]
    return value


def _write_csv(rows: Iterable[Row], columns: dict[str, str], file: IO[bytes]) -> int:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    num_rows = 0
    rows = iter(rows)
    while True:
        batch = list(islice(rows, _BATCH_ROWS))
        writer.writerows([[_cell(row[name]) for name in columns] for row in batch])
        num_rows += len(batch)
        file.write(buffer.getvalue().encode("utf-8", "backslashreplace"))
        buffer.seek(0)
        buffer.truncate()
        if not batch:
            return num_rows


def _cell(value: Any) -> Any:
    """Return a cell: nothing for None, NaN and the like as the HTTP API spells them, floats in full."""
    value = _spelt(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else value


def _write_jsonl(rows: Iterable[Row], columns: dict[str, str], file: IO[bytes]) -> int:
    num_rows = 0
    for row in rows:
        file.write(json.dumps(_spelt({name: row[name] for name in columns}), separators=(",", ":")).encode() + b"\n")
        num_rows += 1
    return num_rows


def _write_parquet(rows: Iterable[Row], columns: dict[str, str], file: IO[bytes]) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise StoreError(
            "Parquet needs pyarrow, which is not installed: pip install 'training-monitor[parquet]', or export csv"
        ) from error
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()])
    num_rows, rows = 0, iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            cells = {name: [_fit(row[name], kind) for row in batch] for name, kind in columns.items()}
            writer.write_table(pyarrow.table(cells, schema=schema))
            num_rows += len(batch)
    return num_rows


def _fit(value: Any, kind: str) -> Any:
    """Return what a typed column can hold: None for an integer beyond 64 bits, text that is UTF-8."""
    if kind == "int64" and isinstance(value, (int, float)):
        return int(value) if math.isfinite(value) and abs(value) < 2**63 else None
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


_WRITERS: dict[Format, Callable[[Iterable[Row], dict[str, str], IO[bytes]], int]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
