"""Contact sheets: every labelled curve with its labels as a bar above and our events in the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitor._records import Event
from monitor.replay import Curve
from monitor.replay._plot import COLOURS, thin

Spans = list[tuple[str, float, float]]
Item = tuple[str, Spans, Curve, list[Event]]

LABEL_COLOURS = {
    "spike": COLOURS["spike"],
    "diverge": COLOURS["divergence"],
    "blowup": "#00838f",
    "plateau": COLOURS["plateau"],
    "overfit": COLOURS["overfit"],
    "nan": COLOURS["nonfinite"],
    "minor": "#bdbdbd",
}


def write_sheets(items: Sequence[Item], folder: Path, per_sheet: int = 36, columns: int = 6) -> list[Path]:
    """Draw the curves, in order; return the files, ``detectors-1.png`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, first in enumerate(range(0, len(items), per_sheet), 1):
        part = items[first : first + per_sheet]
        rows = math.ceil(len(part) / columns)
        figure = Figure(figsize=(columns * 3.1, rows * 1.75), layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, item in zip(places, part, strict=False):
            _draw(place, *item)
        for place in places[len(part) :]:
            place.set_axis_off()
        path = folder / f"detectors-{number}.png"
        figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})
        written.append(path)
    return written


def _draw(place: Axes, name: str, labels: Spans, curve: Curve, events: list[Event]) -> None:
    steps, values = thin(*curve.losses)
    finite = [value for value in values if math.isfinite(value)]
    place.plot(steps, values, linewidth=0.5, color="#1f77b4")
    place.plot(*curve.val_losses, linewidth=0.7, color="#ff7f0e")
    if finite and 0 < 5 * min(finite) < max(finite):
        place.set_yscale("log")
    last = max([*steps[-1:], *curve.val_losses[0][-1:]])
    for kind, begin, end in labels:
        place.axvspan(begin, min(end, last), 0.92, 1.0, color=LABEL_COLOURS[kind], linewidth=0)
    for event in events:
        colour = COLOURS.get(event.kind, "#1565c0")
        if event.kind == "outlier":
            place.axvline(event.start_step, 0.0, 0.04, color=colour, linewidth=0.3)
            continue
        over = last if event.end_step is None else max(event.end_step, event.step)
        place.axvspan(event.start_step, over, 0.0, 0.9, color=colour, alpha=0.12, linewidth=0)
        place.axvline(event.step, 0.0, 0.9, color=colour, linewidth=0.8)
    kinds = sorted({event.kind for event in events} - {"outlier"})
    place.set_title(f"{name.removesuffix('.csv')}\n{', '.join(kinds)}", fontsize=5)
    place.tick_params(labelsize=4, length=1, pad=1)
    place.minorticks_off()
