"""Settings chosen without the source that they are judged on: what tuning to single files would not survive."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from detector_scores import HEAD, Labelled, Score, by_kind, judged, table_line

from monitor.detect import (
    Detector,
    DivergenceDetector,
    DivergenceSettings,
    LossRise,
    LossSettings,
    MaximaSettings,
    OverfitDetector,
    OverfitSettings,
    PlateauDetector,
    PlateauSettings,
    SignalSettings,
    SpikeDetector,
)
from monitor.replay import replay

Point = tuple[float, ...]


def spike_detector(item: Labelled, wander_share: float, prior_deviation: float, young_blocks: float) -> Detector:
    settings = LossSettings(
        signal=SignalSettings(wander_share=wander_share),
        maxima=MaximaSettings(prior_deviation=prior_deviation, young_blocks=young_blocks),
        steps_per_record=item.curve.steps_per_record,
    )
    return SpikeDetector(settings)


def divergence_detector(item: Labelled, large_scales: float, patience: float, lost_share: float) -> Detector:
    settings = DivergenceSettings(large_scales=large_scales, patience=int(patience), lost_share=lost_share)
    return DivergenceDetector(settings, rise_settings=LossSettings(steps_per_record=item.curve.steps_per_record))


def plateau_detector(item: Labelled, drop: float, confidence: float, shown_patience: float) -> Detector:
    settings = PlateauSettings(drop=drop, confidence=confidence, shown_patience=int(shown_patience))
    return PlateauDetector(settings, rise=LossRise(LossSettings(steps_per_record=item.curve.steps_per_record)))


def overfit_detector(_: Labelled, rise: float, noise: float, young: float) -> Detector:
    return OverfitDetector(OverfitSettings(rise=rise, noise=noise, young=young))


GRIDS: dict[str, tuple[Callable[..., Detector], dict[str, tuple[float, ...]]]] = {
    "spike": (
        spike_detector,
        {"wander_share": (0.5, 0.75, 1), "prior_deviation": (0.5, 0.6, 0.7), "young_blocks": (1, 2, 3)},
    ),
    "divergence": (
        divergence_detector,
        {"large_scales": (4, 5, 6), "patience": (50, 70, 100), "lost_share": (0.2, 0.3, 0.4)},
    ),
    "plateau": (
        plateau_detector,
        {"drop": (0.005, 0.01, 0.02), "confidence": (1, 1.3, 1.64), "shown_patience": (3, 4, 5)},
    ),
    "overfit": (overfit_detector, {"rise": (0.04, 0.05, 0.06, 0.07), "noise": (2.5, 3, 3.5), "young": (0.01, 0.02)}),
}


@dataclass
class HeldOut:
    """What a kind scores with settings that were chosen without the source they are judged on; RL apart."""

    total: Score
    rl: Score
    chosen: dict[Point, int]
    whole: dict[Point, Score]


def held_out(judge: ModuleType, items: list[Labelled], kind: str) -> HeldOut:
    """Choose settings on all sources but one, judge them on that one, for every source. RL takes part in the choice."""
    make, axes = GRIDS[kind]
    table: dict[Point, dict[str, Score]] = {}
    for point in itertools.product(*axes.values()):
        table[point] = defaultdict(Score)
        for item in items:
            events = by_kind(replay(item.curve, [make(item, *point)]))
            table[point][item.source].add(judged(judge, item, kind, events.get(kind, [])))
    out = HeldOut(Score(), Score(), defaultdict(int), {point: _sum(scores) for point, scores in table.items()})
    rl = {item.source for item in items if item.is_rl}
    for source in sorted({item.source for item in items}):
        best = _choose({point: _sum(scores, skip=source) for point, scores in table.items()}, list(axes.values()))
        out.chosen[best] += 1
        (out.rl if source in rl else out.total).add(table[best][source])
    return out


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
        out = held_out(judge, items, kind)
        chosen, whole = out.chosen, out.whole
        lines.append(table_line(kind, out.total))
        most = max(chosen, key=lambda point: chosen[point])
        named = ", ".join(f"{name} {value:g}" for name, value in zip(axes, most, strict=True))
        worth = [score.found - score.false for score in whole.values()]
        good = sum(value >= max(worth) - 1 for value in worth)
        notes.append(
            f"- {kind}: {chosen[most]} of {sum(chosen.values())} sources chose {named}; "
            f"{good} of {len(whole)} settings are within one label or false alarm of the best; "
            f"in RL {out.rl.false} false alarms."
        )
    return [*lines, "", *notes]
