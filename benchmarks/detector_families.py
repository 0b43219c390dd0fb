"""Synthetic curves, one family for each cause of a miss or a false alarm, and healthy twins: found, and alarmed."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from detector_scores import by_kind

from monitor.replay import read_curve, replay

HEAD = "| family | kind | found | twins with a false alarm | false alarms |\n|---|---|---|---|---|"


@dataclass
class Tally:
    """What was found in a family."""

    kind: str
    found: int = 0
    labels: int = 0
    twins: int = 0
    alarmed: int = 0
    alarms: int = 0

    def line(self, name: str) -> str:
        return (
            f"| {name} | {self.kind} | {self.found} of {self.labels} | {self.alarmed} of {self.twins} | {self.alarms} |"
        )


def family_lines(judge: ModuleType, curves: Path, seed: int, per: int = 40) -> list[str]:
    """Make the families of ``curves/families`` with a seed, and return the table; empty where there are none."""
    folder = curves / "families"
    if not (folder / "gen.py").exists():
        return []
    kinds = _kinds(folder)
    lines = [f"Synthetic families, seed {seed}:", "", HEAD]
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, str(folder / "gen.py"), made, "--per", str(per), "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, kind in kinds.items():
            lines.append(_tally(judge, Path(made) / name, kind).line(name))
    return lines


def _kinds(folder: Path) -> dict[str, str]:
    """Read which kind each family is about from ``measure.py``."""
    sys.path[:0] = [str(folder), str(folder.parent)]
    try:
        spec = importlib.util.spec_from_file_location("measure", folder / "measure.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        del sys.path[:2]
    kinds: dict[str, str] = module.KIND
    return kinds


def _tally(judge: ModuleType, folder: Path, kind: str) -> Tally:
    tally = Tally(kind)
    with open(folder / "INDEX.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path = folder / row["file"]
            dont_care = ";".join(":" + part.strip() for part in row["plateau_dont_care"].split(";") if part.strip())
            events = by_kind(replay(read_curve(path)))
            delays, labels, false, _ = judge.judge(
                kind, sorted(events[kind]), judge.spans(row["events"]), judge.spans(dont_care), judge.steps_of(path)
            )
            is_twin = "twin" in row["file"]
            if kind == "blowup" and is_twin:
                false = events["blowup"]
            tally.found += len(delays)
            tally.labels += labels
            tally.alarms += len(false)
            tally.twins += is_twin
            tally.alarmed += is_twin and bool(false)
    return tally
