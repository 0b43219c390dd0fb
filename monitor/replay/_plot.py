"""Draw a curve with its events: HTML by plotly, PNG by matplotlib; both imported when asked for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitor._records import Event
from monitor.replay._curves import Curve

COLOURS = {
    "nonfinite": "#000000",
    "divergence": "#c2185b",
    "spike": "#d32f2f",
    "plateau": "#2e7d32",
    "overfit": "#ef6c00",
    "gradient_explosion": "#6a1b9a",
    "gradient_vanishing": "#4527a0",
    "stuck": "#5d4037",
    "outlier": "#9e9e9e",
}
_OTHER = "#1565c0"
_MOST_POINTS = 20_000


def write_plot(curve: Curve, events: Sequence[Event], path: str | Path, title: str) -> None:
    """Write the curve with its events marked to ``path``, as its ending says: .html or .png.

    Raises:
        ValueError: another ending, or the library for it is not installed; the message names the cure.
    """
    path = Path(path)
    if path.suffix == ".html":
        _write_html(curve, events, path, title)
    elif path.suffix == ".png":
        _write_png(curve, events, path, title)
    else:
        raise ValueError(f"a plot must end in .html or .png, got {path.name!r}")


def _need(module: str, ending: str, cure: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ValueError(f"a plot in {ending} needs {library}, which is not installed; {cure}") from error


def _write_html(curve: Curve, events: Sequence[Event], path: Path, title: str) -> None:
    graph = _need("plotly.graph_objects", ".html", "pip install plotly")
    figure = graph.Figure()
    for name, (steps, values) in (("loss", thin(*curve.losses)), ("validation loss", thin(*curve.val_losses))):
        if steps:
            figure.add_trace(graph.Scatter(x=steps, y=[_or_gap(v) for v in values], name=name, mode="lines"))
    last = _last_step(curve)
    for event in events:
        colour = COLOURS.get(event.kind, _OTHER)
        if event.kind == "outlier":
            figure.add_vline(x=event.start_step, line={"color": colour, "width": 1, "dash": "dot"}, opacity=0.4)
            continue
        end = last if event.end_step is None else event.end_step
        figure.add_vrect(
            x0=event.start_step, x1=max(end, event.step), fillcolor=colour, opacity=0.15, line_width=0, layer="below"
        )
        figure.add_vline(x=event.step, line={"color": colour, "width": 1}, annotation={"text": event.kind})
    axis_type = "log" if _is_log(curve) else "linear"
    figure.update_layout(title=title, xaxis_title="step", yaxis={"title": "loss", "type": axis_type})
    figure.write_html(path, include_plotlyjs=True)


def _write_png(curve: Curve, events: Sequence[Event], path: Path, title: str) -> None:
    # The canvas of the figure, not pyplot: no display, no global state.
    figures = _need("matplotlib.figure", ".png", "pip install matplotlib, or ask for .html")
    figure = figures.Figure(figsize=(11, 5), layout="constrained")
    draw(figure.add_subplot(), curve, events)
    figure.axes[0].set_title(title)
    figure.savefig(path, dpi=110)


def draw(axes: Any, curve: Curve, events: Sequence[Event]) -> None:
    """Draw the curve and its events on matplotlib's ``axes``."""
    for name, (steps, values) in (("loss", thin(*curve.losses)), ("validation loss", thin(*curve.val_losses))):
        if steps:
            axes.plot(steps, values, linewidth=0.7, label=name)
    last = _last_step(curve)
    named: set[str] = set()
    for event in events:
        colour = COLOURS.get(event.kind, _OTHER)
        if event.kind == "outlier":
            axes.axvline(event.start_step, color=colour, linewidth=0.4, linestyle=":")
            continue
        end = last if event.end_step is None else event.end_step
        label = None if event.kind in named else event.kind
        named.add(event.kind)
        axes.axvspan(event.start_step, max(end, event.step), color=colour, alpha=0.12, linewidth=0, label=label)
        axes.axvline(event.step, color=colour, linewidth=0.9)
    if _is_log(curve):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.legend(fontsize="small")


def thin(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Keep the lowest and the highest value of each stretch, so that a drawn curve keeps its spikes; NaN ones too."""
    if len(steps) <= _MOST_POINTS:
        return steps, values
    width = math.ceil(2 * len(steps) / _MOST_POINTS)
    keep: list[int] = []
    for first in range(0, len(steps), width):
        stretch = range(first, min(first + width, len(steps)))
        keep.extend(sorted({min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}))
    return [steps[index] for index in keep], [values[index] for index in keep]


def _or_gap(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _last_step(curve: Curve) -> float:
    steps = [*curve.losses[0][-1:], *curve.val_losses[0][-1:]]
    return max(steps, default=0.0)


def _is_log(curve: Curve) -> bool:
    """A positive curve that spans more than a factor of 20 is drawn on a log axis."""
    finite = [value for value in (*curve.losses[1], *curve.val_losses[1]) if math.isfinite(value)]
    return bool(finite) and min(finite) > 0.0 and max(finite) > 20.0 * min(finite)
