"""Whatever a file holds, ``monitor replay`` prints events, or says in one line where the file is no curve."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from monitor.cli._main import main
from tests.fuzz.effort import ANYTHING, damaged, tried

HEADER = ["step", "loss", "grad_norm", "lr", "val_loss", "eval_code_loss", "epoch", "note"]
CELL = st.sampled_from(["", "1", "2.5", "nan", "-inf", "1e308", "-1e308", "1e-320", "0", "9" * 400, "null", '"', "x"])
ROW = st.dictionaries(st.sampled_from(HEADER), CELL | st.integers() | st.floats() | ANYTHING, max_size=6)
CSV = st.builds(
    lambda names, rows, mark: "\n".join(mark.join(map(str, row)) for row in [names, *rows]).encode(),
    st.lists(st.sampled_from(HEADER), min_size=1, max_size=6),
    st.lists(st.lists(CELL | st.floats().map(repr), max_size=6), max_size=60),
    st.sampled_from(",;\t"),
)
LINES = st.lists(ROW, max_size=40).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
STATE = st.builds(
    lambda history, indent: json.dumps({"log_history": history}, indent=indent).encode(),
    st.lists(ROW, max_size=40) | ANYTHING,
    st.none() | st.just(1),
)
ODD = [
    b'{"a": ' + b"[" * 100_000,
    b'{"step": 1, "loss": 2}\n{"a": ' + b"[" * 100_000,
    b'{"loss": ' + b"9" * 5000 + b"}",
    b'{"step": 1, "loss": 2}\n{"loss": ' + b"9" * 5000 + b"}",
    b'{"log_h\\u0069story": [{"step": 1, "loss": "x"}]}',
    b"step,loss\n1e-300,1\n2e-300,1\n",
    b"step,loss\n-1e308,1\n1e308,1\n",
    b"step,loss\n1," + b"9" * 200_000 + b"\n",
    b'step,loss\n1,"',
]
"""Files that only a person would think of."""
GOOD = [
    b"step,loss,val_loss\n" + b"".join(b"%d,%f,\n" % (n, 1 / n) for n in range(1, 60)),
    b"".join(b'{"step": %d, "loss": %f, "grad_norm": 1.0}\n' % (n, 1 / n) for n in range(1, 60)),
    json.dumps({"log_history": [{"step": n, "loss": 1 / n, "epoch": n / 9} for n in range(1, 40)]}, indent=2).encode(),
]


@tried(150)
@given(
    st.sampled_from(ODD) | st.binary(max_size=200) | CSV | LINES | STATE | st.sampled_from(GOOD).flatmap(damaged),
    st.booleans(),
)
def test_any_file_is_a_curve_or_refused_with_its_line(content: bytes, as_json: bool) -> None:
    """Exit status 0 with lines of strict JSON, or 1 with path, line and reason; nothing else, and no control code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curve"
        path.write_bytes(content)
        result = CliRunner().invoke(main, ["replay", str(path), *(["--json"] if as_json else [])])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.output.replace("\n", "").isprintable()
    if result.exit_code == 0:
        for line in result.stdout.splitlines() if as_json else ():
            json.loads(line, parse_constant=refuse)
    else:
        assert re.match(rf"Error: {re.escape(str(path))}:\d+: \S", result.stderr), result.stderr


def refuse(name: str) -> Any:
    pytest.fail(f"a bare {name} is not JSON")
