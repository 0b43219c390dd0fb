"""``monitor replay``: the detectors over a finished curve."""

from __future__ import annotations

from pathlib import Path

import click

from monitor.cli._terminal import echo, echo_json
from monitor.detect import rl_detectors
from monitor.replay import as_json, as_line, read_curve, write_plot
from monitor.replay import replay as find_events


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object a line for each event.")
@click.option("--rl", "is_rl", is_flag=True, help="An RL run: its loss is no sign of health; watch NaN and standstill.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the curve with its events: OUT.png or OUT.html.",
)
def replay(file: Path, is_json: bool, is_rl: bool, plot: Path | None) -> None:
    """Run the detectors over the finished curve in FILE and print what they find.

    FILE is CSV (columns step, loss and, where there are any, grad_norm, lr, val_loss), JSON lines with these keys, or
    the trainer_state.json of transformers. Steps are printed in the unit of the file.
    """
    try:
        curve = read_curve(file)
        events = find_events(curve, rl_detectors() if is_rl else None)
        for event in events:
            echo_json(as_json(event), indent=None) if is_json else echo(as_line(event))
        if not events and not is_json:
            echo(f"nothing found in {len(curve.records)} records")
        if plot is not None:
            write_plot(curve, events, plot, file.name)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
