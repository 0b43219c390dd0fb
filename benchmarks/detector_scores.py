"""Labelled curves, and the judge that came with them, as the benchmark of the detectors needs them."""

from __future__ import annotations

import csv
import importlib.util
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from detector_rules import Series

from monitor._records import Event
from monitor.replay import Curve, read_curve

HEAD = "| rule | found | recall | false alarms (curves) | precision | median delay, points |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Labelled:
    """A curve and what its labels say."""

    name: str
    source: str
    is_rl: bool
    labels: list[tuple[str, float, float]]
    dont_care: list[tuple[str, float, float]]
    steps: list[float]
    curve: Curve

    @property
    def series(self) -> Series:
        steps, losses = self.curve.losses
        return Series(steps, losses, *self.curve.val_losses)


@dataclass
class Score:
    """What a detector did on some curves."""

    labels: int = 0
    found: int = 0
    false: int = 0
    curves_with_false: int = 0
    delays: list[float] | None = None

    def add(self, other: Score) -> None:
        self.labels += other.labels
        self.found += other.found
        self.false += other.false
        self.curves_with_false += other.curves_with_false
        self.delays = [*(self.delays or []), *(other.delays or [])]


def load_judge(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("score", folder / "score.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder: Path, judge: ModuleType) -> list[Labelled]:
    out = []
    with open(folder / "INDEX.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            dont_care = ";".join(":" + part.strip() for part in row["plateau_dont_care"].split(";") if part.strip())
            out.append(
                Labelled(
                    row["file"],
                    source_of(row),
                    "rl" in row["tags"].split(),
                    judge.spans(row["events"]),
                    judge.spans(dont_care),
                    judge.steps_of(folder / row["file"]),
                    read_curve(folder / row["file"]),
                )
            )
    return out


def source_of(row: Mapping[str, str]) -> str:
    """Where a curve comes from: its repository; of a collection of many models, and of our own, the model too."""
    if row["source_repo"].startswith(("own", "mlcommons")):
        return f"{row['source_repo']}: {row['domain'].split(',')[0].split(' (')[0]}"
    return row["source_repo"]


def judged(judge: ModuleType, item: Labelled, kind: str, steps: Iterable[float]) -> Score:
    delays, labels, false, _ = judge.judge(kind, sorted(steps), item.labels, item.dont_care, item.steps)
    return Score(labels, len(delays), len(false), int(bool(false)), delays)


def by_kind(events: Iterable[Event]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = defaultdict(list)
    for event in events:
        out[event.kind].append(event.step)
        if event.kind in ("spike", "divergence"):
            out["blowup"].append(event.step)
    return out


def score_rule(
    judge: ModuleType,
    items: Iterable[Labelled],
    find: Callable[[Labelled], Mapping[str, list[float]]],
    kinds: Iterable[str],
) -> dict[str, Score]:
    scores = {kind: Score() for kind in kinds}
    for item in items:
        found = find(item)
        for kind, score in scores.items():
            score.add(judged(judge, item, kind, found.get(kind, [])))
    return scores


def table_line(name: str, score: Score) -> str:
    recall = f"{score.found / score.labels:.2f}" if score.labels else "-"
    flagged = score.found + score.false
    precision = f"{score.found / flagged:.2f}" if flagged else "-"
    delay = f"{statistics.median(score.delays):g}" if score.delays else "-"
    false = f"{score.false} ({score.curves_with_false})"
    return f"| {name} | {score.found} of {score.labels} | {recall} | {false} | {precision} | {delay} |"
