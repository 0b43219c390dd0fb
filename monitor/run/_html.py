"""A run as a notebook shows it: its state, its loss as a curve, and where its page is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from monitor._records import OptimizerSnapshot, Snapshot

WIDTH, HEIGHT = 480, 96
POINTS = 240


def to_html(snapshot: Snapshot, losses: Sequence[float | None], url: str | None) -> str:
    """Return HTML without a script; what a run has not got is left out.

    Args:
        snapshot: the run.
        losses: of its first optimizer, in order; None and NaN for steps that have none.
        url: of its live page, None without one.
    """
    page = f' · <a href="{escape(url)}" target="_blank" rel="noopener">{escape(url)}</a>' if url else ""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(_row(one) for one in snapshot.optimizers)
    return (
        f'<div style="font-family:system-ui,sans-serif"><b>{escape(snapshot.run.run_id)}</b> · {snapshot.state}{page}'
        f"{_curve(losses)}<table><tr>{head}</tr>{rows}</table></div>"
    )


_COLUMNS = ("optimizer", "step", "loss", "smoothed", "gradient norm", "LR")


def _row(one: OptimizerSnapshot) -> str:
    rates = sorted({group.applied for group in one.groups if group.applied is not None})
    lr = "" if not rates else _text(rates[0]) if len(rates) == 1 else f"{_text(rates[0])} to {_text(rates[-1])}"
    values = (escape(one.key), f"{one.global_step:,}", *map(_text, (one.loss, one.loss_ema, one.gradient_norm)), lr)
    return f"<tr>{''.join(f'<td>{value}</td>' for value in values)}</tr>"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _curve(losses: Sequence[float | None]) -> str:
    """Return the curve as an SVG; nothing where there is none to draw."""
    points = [(index, loss) for index, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    if len(points) < 2:
        return ""
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    across, down = WIDTH / max(1, points[-1][0]), (HEIGHT - 4) / ((high - low) or 1.0)
    line = " ".join(f"{index * across:.1f},{2 + (high - loss) * down:.1f}" for index, loss in points)
    return (
        f'<br><svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="loss from {_text(points[0][1])} to {_text(points[-1][1])}">'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/></svg>'
    )
