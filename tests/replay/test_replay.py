"""``monitor replay``: curves as people write them, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from monitor._records import Sample, Step
from monitor.cli._replay import replay
from monitor.replay import read_curve
from tests.detect.records import learning, raised
from tests.requirements import need_module


def write(tmp_path: Path, text: str, name: str = "run.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def run(path: Path, *options: str) -> Result:
    return CliRunner().invoke(replay, [str(path), *options])


def spiky(tmp_path: Path) -> Path:
    losses = raised(learning(300), 200, 10, 0.5)
    return write(tmp_path, "step,loss\n" + "".join(f"{10 * n},{loss:.5f}\n" for n, loss in enumerate(losses)))


def read(path: Path) -> list[tuple[Any, ...]]:
    """(step, loss, grad norm, lr) of each record and (step, dataset, value) of each validation."""
    return [
        (r.global_step, r.loss, r.gradient_norm, r.groups[0].applied if r.groups else None)
        if isinstance(r, Step)
        else (r.step, r.name, r.value)
        for r in read_curve(path).records
    ]


def test_a_csv_is_read_with_gaps_empty_cells_and_nan(tmp_path: Path) -> None:
    """Unknown columns are passed over, empty cells are no value, NaN and Infinity are."""
    text = "step, Loss ,grad_norm,lr,val_loss,note\n1,2.5,0.1,1e-3,,x\n\n5,NaN,,,1.5,\n9,Infinity,nan,,,\n"
    assert str(read(write(tmp_path, text))) == str(
        [
            (1, 2.5, 0.1, 1e-3),
            (5, float("nan"), None, None),
            (5, "validation", 1.5),
            (9, float("inf"), float("nan"), None),
        ]
    )


def test_rows_of_one_step_are_joined_where_they_say_different_things(tmp_path: Path) -> None:
    """Loss and validation loss in two rows are one step; two losses are two records."""
    text = "step,loss,val_loss\n1,2.5,\n1,,2.6\n2,2.4,\n2,2.3,\n,,2.2\n"
    expected = [(1, 2.5, None, None), (1, "validation", 2.6), (2, 2.4, None, None), (2, 2.3, None, None)]
    assert read(write(tmp_path, text)) == [*expected, (2, "validation", 2.2)]


def test_unsorted_steps_are_sorted(tmp_path: Path) -> None:
    """Parts of a log may be in any order."""
    assert [row[0] for row in read(write(tmp_path, "step,loss\n3,1\n1,3\n2,2\n"))] == [1, 2, 3]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_taken(tmp_path: Path, delimiter: str) -> None:
    """Semicolons and tabs are as good as commas."""
    text = "step,loss\n1,2.5\n".replace(",", delimiter)
    assert read(write(tmp_path, text)) == [(1, 2.5, None, None)]


def test_a_file_without_steps_is_numbered_and_fractions_of_epochs_stay(tmp_path: Path) -> None:
    """Rows count from 1; half epochs are half epochs."""
    assert [row[0] for row in read(write(tmp_path, "loss\n3\n2\n"))] == [1, 2]
    assert [row[0] for row in read(write(tmp_path, "epoch,train_loss\n0.5,3\n1,2\n"))] == [0.5, 1.0]


def test_json_lines_are_read(tmp_path: Path) -> None:
    """Numbers, null, NaN and numbers in quotes; one line or many."""
    text = '{"step": 1, "loss": 2.5, "lr": null}\n\n{"step": 2, "loss": "NaN"}\n{"step": 3, "eval_loss": 2.0}\n'
    assert str(read(write(tmp_path, text))) == str(
        [(1, 2.5, None, None), (2, float("nan"), None, None), (3, "validation", 2.0)]
    )
    assert read(write(tmp_path, '{"iteration": 4, "loss": NaN}'))[0][0] == 4


def test_a_trainer_state_is_read(tmp_path: Path) -> None:
    """transformers' log history: steps before epochs, several evaluation sets, no summary of the whole run."""
    history = [
        {"epoch": 0.1, "step": 10, "loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-4},
        {"epoch": 0.1, "step": 10, "eval_loss": 2.4, "eval_runtime": 3.0},
        {"epoch": 0.1, "step": 10, "eval_code_loss": 2.2},
        {"epoch": 0.2, "step": 20, "train_loss": 2.0, "train_runtime": 60.0},
    ]
    path = write(tmp_path, json.dumps({"best_metric": None, "log_history": history}, indent=2), "trainer_state.json")
    assert read(path) == [(10, 2.5, 1.0, 1e-4), (10, "validation", 2.4), (10, "code", 2.2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n1,2.5\n2,abc\n", ":3: loss must be a number, got 'abc'"),
        ("step,loss\n1,2.5,7\n", ":2: 3 cells under a header of 2"),
        ("step,loss\nnan,2.5\n", ":2: step must be finite, got 'nan'"),
        ("\n\nhello world\n", ":3: expected a header with step and loss (CSV) or a JSON object, got 'hello world'"),
        ("step,accuracy\n1,2\n", ":1: expected a header with step and loss"),
        ("", ":1: the file is empty"),
        ("step,loss\n1,\n", ":1: no row has a loss"),
        ('{"step": 1, "loss": 2}\n{"step": 2, "loss": }\n', ":2: is not JSON: Expecting value"),
        ('{"step": 1, "loss": 2}\n[1, 2]\n', ":2: expected a JSON object, got '[1, 2]'"),
        ('{"step": 1, "loss": true}\n', ":1: loss must be a number, got True"),
        ('{"step": 1, "loss": {"a": 1}}\n', ":1: loss must be a number"),
        ('{\n "weights": [\n  1,\n 2\n ]\n}', ":1: has no log_history"),
        ('{\n "log_history": 3\n}', ":1: log_history must be a list"),
        (
            '{\n "log_history": [\n  {\n   "step": 1\n  },\n  {\n   "step": "x"\n  }\n ]\n}',
            ":6: step must be a number, got 'x'",
        ),
        ('{\n "log_history": [\n  {"step": 1},,\n ]\n}', ":3: is not JSON"),
        ("[1, 2, 3]", ":1: expected a header"),
    ],
)
def test_what_is_no_curve_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """Exit status 1, and the file, the line and the reason on standard error."""
    result = run(write(tmp_path, text))
    assert result.exit_code == 1
    assert f"run.csv{message}" in result.output


def test_a_binary_file_is_refused_with_its_line(tmp_path: Path) -> None:
    """A checkpoint is not a curve."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\n\n\x80\xff\x00")
    result = run(path)
    assert result.exit_code == 1
    assert "model.pt:3: is not text" in result.output


def test_events_are_in_the_unit_of_the_file_and_come_once(tmp_path: Path) -> None:
    """One JSON object a line, with onset, place and end of each event."""
    lines = [json.loads(line) for line in run(spiky(tmp_path), "--json").stdout.splitlines()]
    assert [(line["kind"], line["severity"], line["start_step"]) for line in lines] == [("spike", "warning", 2000)]
    assert set(lines[0]) == {"kind", "severity", "step", "start_step", "end_step", "value", "message"}
    assert 2010 <= lines[0]["step"] <= 2050 < lines[0]["end_step"] <= 2150


def test_a_nan_is_printed_as_strict_json(tmp_path: Path) -> None:
    """The value of a NaN is null; its message says what it was."""
    lines = run(write(tmp_path, "step,loss\n1,2\n2,nan\n"), "--json").stdout.splitlines()
    event = json.loads(lines[0], parse_constant=pytest.fail)
    assert (event["kind"], event["step"], event["value"]) == ("nonfinite", 2, None)


def test_a_person_reads_lines(tmp_path: Path) -> None:
    """Without --json, a line each; with nothing found, that."""
    assert "spike (warning, from 2000 to 2" in run(spiky(tmp_path)).output
    assert run(write(tmp_path, "step,loss\n1,2\n")).output == "nothing found in 1 records\n"
    assert run(spiky(tmp_path), "--rl").output == "nothing found in 300 records\n"


def test_the_logging_interval_is_the_usual_distance_of_two_losses(tmp_path: Path) -> None:
    """Validations between them and a gap do not change it."""
    text = "step,loss,val_loss\n10,3,\n15,,3\n20,2,\n30,2,\n500,1,\n510,1,\n"
    assert read_curve(write(tmp_path, text)).steps_per_record == 10.0


def test_replay_imports_no_torch_and_no_flask() -> None:
    """The command starts fast, and runs where no torch is installed."""
    code = "import sys, monitor.cli._replay; assert not {'torch', 'flask', 'numpy', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_monitor_command_knows_replay(tmp_path: Path) -> None:
    """``monitor replay FILE --json`` prints the events."""
    command = [sys.executable, "-m", "monitor", "replay", str(spiky(tmp_path)), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["kind"] == "spike"


def test_a_plot_in_html_marks_the_events(tmp_path: Path) -> None:
    """The page stands alone and names what was found."""
    need_module("plotly")
    out = tmp_path / "out.html"
    assert run(spiky(tmp_path), "--plot", str(out)).exit_code == 0
    text = out.read_text(encoding="utf-8")
    assert '"text":"spike"' in text
    assert "<script src=" not in text


def test_a_plot_in_png_is_a_picture(tmp_path: Path) -> None:
    """A PNG, drawn without a display."""
    need_module("matplotlib")
    out = tmp_path / "out.png"
    assert run(spiky(tmp_path), "--plot", str(out)).exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_another_ending_and_a_missing_library_are_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal says what would do."""
    result = run(spiky(tmp_path), "--plot", str(tmp_path / "out.svg"))
    assert (result.exit_code, "must end in .html or .png, got 'out.svg'" in result.output) == (1, True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(spiky(tmp_path), "--plot", str(tmp_path / "out.png"))
    assert (result.exit_code, "needs matplotlib, which is not installed; pip install" in result.output) == (1, True)


def test_a_thinned_plot_keeps_its_spikes() -> None:
    """Of a hundred thousand points every stretch keeps its lowest and highest."""
    from monitor.replay._plot import thin

    values = [1.0] * 100_000
    values[77_777] = 50.0
    steps, kept = thin([float(n) for n in range(100_000)], values)
    assert len(steps) <= 20_000
    assert (77_777.0, 50.0) in zip(steps, kept, strict=True)


def test_samples_follow_the_step_they_belong_to(tmp_path: Path) -> None:
    """A validation loss is fed after the training loss of its step."""
    records = read_curve(write(tmp_path, "step,loss,val_loss\n1,3,4\n")).records
    assert [type(record) for record in records] == [Step, Sample]


def test_a_validation_loss_that_is_nan_is_found(tmp_path: Path) -> None:
    """It is one event from its first NaN on, and the training loss beside it is as it is."""
    rows = "".join(f"{n},{2 - n / 50},{'nan' if n >= 10 else 2.1}\n" for n in range(30))
    result = run(write(tmp_path, "step,loss,val_loss\n" + rows), "--json")
    (event,) = (json.loads(line) for line in result.output.splitlines())
    assert (event["kind"], event["severity"]) == ("nonfinite_metric", "warning")
    assert (event["step"], event["end_step"]) == (10, None)
    assert event["value"] is None
    assert event["message"].startswith("the validation loss is NaN at step 10. ")


def test_rows_with_a_validation_each_are_epochs(tmp_path: Path) -> None:
    """Nobody validates after every step, so 40 flat epochs are no short run."""
    losses = [0.6931 + n % 3 / 5000 for n in range(40)]
    alone = write(tmp_path, "step,loss\n" + "".join(f"{n},{loss}\n" for n, loss in enumerate(losses)))
    assert (read_curve(alone).steps_per_record, run(alone, "--json").output) == (1.0, "")
    both = write(tmp_path, "step,loss,val_loss\n" + "".join(f"{n},{loss},0.7\n" for n, loss in enumerate(losses)))
    assert read_curve(both).steps_per_record == 100.0
    assert [json.loads(line)["kind"] for line in run(both, "--json").output.splitlines()] == ["plateau"]
