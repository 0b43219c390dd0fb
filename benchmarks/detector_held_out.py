"""Settings chosen without the source that they are judged on: what tuning to single files would not survive."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import ModuleType

from detector_scores import HEAD, Labelled, Score, by_kind, judged, table_line

from monitor.detect import (
    CusumSettings,
    Detector,
    DivergenceDetector,
    DivergenceSettings,
    LevelSettings,
    OverfitDetector,
    OverfitSettings,
    PlateauDetector,
    PlateauSettings,
    RiseSettings,
    SpikeDetector,
)
from monitor.replay import replay

Point = tuple[float, ...]


def spike_detector(item: Labelled, drift: float, threshold: float, fall_memory: float) -> Detector:
    settings = RiseSettings(
        level=LevelSettings(fall_memory=fall_memory),
        cusum=CusumSettings(drift=drift, threshold=threshold, clip=drift + 2),
        steps_per_record=item.curve.steps_per_record,
    )
    return SpikeDetector(settings)


def divergence_detector(_: Labelled, patience: float, block_scales: float, lost_share: float) -> Detector:
    settings = DivergenceSettings(patience=int(patience), block_scales=block_scales, lost_share=lost_share)
    return DivergenceDetector(settings)


def plateau_detector(_: Labelled, drop: float, patience: float, least: float) -> Detector:
    return PlateauDetector(PlateauSettings(drop=drop, patience=int(patience), least=int(least)))


def overfit_detector(_: Labelled, rise: float, noise: float, patience: float) -> Detector:
    return OverfitDetector(OverfitSettings(rise=rise, noise=noise, patience=int(patience)))


GRIDS: dict[str, tuple[Callable[..., Detector], dict[str, tuple[float, ...]]]] = {
    "spike": (
        spike_detector,
        {"drift": (2.5, 3, 3.5, 4), "threshold": (5, 6, 7, 8), "fall_memory": (6, 8, 10, 12, 24)},
    ),
    "divergence": (
        divergence_detector,
        {"patience": (40, 50, 70), "block_scales": (2, 2.5, 3), "lost_share": (0.2, 0.3, 0.4)},
    ),
    "plateau": (plateau_detector, {"drop": (0.005, 0.01, 0.02), "patience": (4, 5, 6, 7), "least": (64, 100, 150)}),
    "overfit": (
        overfit_detector,
        {"rise": (0.05, 0.06, 0.07, 0.08, 0.09), "noise": (1, 2), "patience": (3, 5, 8)},
    ),
}


def held_out(judge: ModuleType, items: list[Labelled], kind: str) -> tuple[Score, dict[Point, int], dict[Point, Score]]:
    """Choose settings on all sources but one, judge them on that one, for every source. RL counts for false alarms."""
    make, axes = GRIDS[kind]
    table: dict[Point, dict[str, Score]] = {}
    for point in itertools.product(*axes.values()):
        table[point] = defaultdict(Score)
        for item in items:
            events = by_kind(replay(item.curve, [make(item, *point)]))
            table[point][item.source].add(judged(judge, item, kind, events.get(kind, [])))
    total, chosen = Score(), defaultdict(int)
    for source in sorted({item.source for item in items}):
        best = _choose({point: _sum(scores, skip=source) for point, scores in table.items()}, list(axes.values()))
        chosen[best] += 1
        total.add(table[best][source])
    return total, chosen, {point: _sum(scores) for point, scores in table.items()}


def _sum(scores: Mapping[str, Score], skip: str | None = None) -> Score:
    total = Score()
    for source, score in scores.items():
        if source != skip:
            total.add(score)
    return total


def _choose(scores: Mapping[Point, Score], axes: list[tuple[float, ...]]) -> Point:
    """Choose the middle of the best region: the worth of a setting is the mean of its own and its neighbours'.

    A label found counts 1, a false alarm costs 1. Among equals the one that speaks first.
    """

    def worth(point: Point) -> tuple[float, float]:
        near = [point]
        for place, values in enumerate(axes):
            at = values.index(point[place])
            near += [(*point[:place], values[k], *point[place + 1 :]) for k in (at - 1, at + 1) if 0 <= k < len(values)]
        delays = scores[point].delays
        mean = statistics.fmean(scores[other].found - scores[other].false for other in near)
        own = scores[point].found - scores[point].false
        return (round(own + mean, 6), -statistics.median(delays) if delays else -math.inf)

    return max(scores, key=worth)


def held_out_lines(judge: ModuleType, items: list[Labelled]) -> list[str]:
    lines = [HEAD.replace("rule", "kind", 1)]
    notes = []
    for kind, (_, axes) in GRIDS.items():
        total, chosen, whole = held_out(judge, items, kind)
        lines.append(table_line(kind, total))
        most = max(chosen, key=lambda point: chosen[point])
        named = ", ".join(f"{name} {value:g}" for name, value in zip(axes, most, strict=True))
        worth = [score.found - score.false for score in whole.values()]
        good = sum(value >= max(worth) - 1 for value in worth)
        notes.append(
            f"- {kind}: {chosen[most]} of {sum(chosen.values())} sources chose {named}; "
            f"{good} of {len(whole)} settings are within one label or false alarm of the best."
        )
    return [*lines, "", *notes]
