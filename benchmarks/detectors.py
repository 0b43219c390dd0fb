"""Score our detectors, and the rules people use today, on labelled training curves, and draw what we found.

    python benchmarks/detectors.py [--curves DIR] [--write] [--plots DIR] [--skip-held-out] [--seed N]

DIR (or $MONITOR_CURVES, or ../shared/curves beside the repository) holds the curves, INDEX.csv and the judge, score.py.
Where it has ``families/``, synthetic families are made with the seed, and judged. ``--write`` puts the tables into
docs/detection.md between its markers, ``--plots`` the pictures into a folder (by matplotlib). river, where installed,
adds two rules.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from detector_families import family_lines  # noqa: E402
from detector_held_out import held_out_lines  # noqa: E402
from detector_noise import noise_lines  # noqa: E402
from detector_rules import RULES, Series  # noqa: E402
from detector_scores import HEAD, Labelled, by_kind, load, load_judge, score_rule, table_line  # noqa: E402

from monitor._records import Clip, ParamGroup, Step  # noqa: E402
from monitor.detect import DetectorSet, rl_detectors  # noqa: E402
from monitor.replay import replay  # noqa: E402

KINDS = ("spike", "divergence", "blowup", "plateau", "overfit", "nonfinite")
MARKERS = ("<!-- benchmarks/detectors.py: begin -->", "<!-- benchmarks/detectors.py: end -->")


def find_curves(given: Path | None) -> Path:
    """Return the folder of the curves, or leave with the reason why there is nothing to do."""
    named = given or (Path(os.environ["MONITOR_CURVES"]) if os.environ.get("MONITOR_CURVES") else None)
    folder = named or ROOT.parent / "shared" / "curves"
    if (folder / "INDEX.csv").exists() and (folder / "score.py").exists():
        return folder
    reason = (
        f"no INDEX.csv and score.py in {folder}; name the folder of labelled curves with --curves or MONITOR_CURVES"
    )
    if named:
        sys.exit(f"error: {reason}")
    print(f"skipped: {reason}")
    sys.exit(0)


def our_tables(judge: ModuleType, items: list[Labelled]) -> list[str]:
    ours = {item.name: by_kind(replay(item.curve)) for item in items}
    rest = [item for item in items if not item.is_rl]
    scores = score_rule(judge, rest, lambda item: ours[item.name], KINDS)
    lines = [f"{len(rest)} curves, {sum(len(item.curve.records) for item in rest)} records, RL apart.", ""]
    lines += [healthy_line(judge, rest, ours), ""]
    peers: dict[str, list[str]] = defaultdict(list)
    for name, (rule, kinds) in RULES.items():
        if "river" in name and importlib.util.find_spec("river") is None:
            print(f"skipped: {name} needs river; pip install river")
            continue
        for kind, score in score_rule(judge, rest, lambda item, rule=rule: rule(item.series), kinds).items():
            peers[kind].append(table_line(name, score))
    for kind in KINDS:
        if kind == "blowup":
            score = scores[kind]
            lines += [f"Blow-ups that come back late, as spike or divergence: {score.found} of {score.labels}."]
        else:
            lines += [f"**{kind}**", "", HEAD, table_line("**ours**", scores[kind]), *peers[kind]]
        lines.append("")
    return [*lines, *rl_lines(judge, [item for item in items if item.is_rl], ours)]


def healthy_line(judge: ModuleType, items: list[Labelled], ours: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Say how many false spikes the curves without a label of trouble have, by the number of their records."""
    healthy = [item for item in items if all(kind == "minor" for kind, _, _ in item.labels)]
    records = sum(len(item.curve.records) for item in healthy)
    false = score_rule(judge, healthy, lambda item: ours[item.name], ("spike",))["spike"].false
    return (
        f"Healthy curves: {len(healthy)}, {records} records, {false} false spikes: "
        f"{1e5 * false / max(1, records):.1f} in 100,000 records."
    )


def rl_lines(judge: ModuleType, items: list[Labelled], ours: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    records = sum(len(item.curve.records) for item in items)
    default = sum(
        score.false for score in score_rule(judge, items, lambda i: ours[i.name], KINDS[:2] + KINDS[3:]).values()
    )
    armed = sum(len(replay(item.curve, rl_detectors())) for item in items)
    text = (
        f"RL: {len(items)} curves, {records} records: {default} false alarms with the default set, {armed} events with "
    )
    return [text + "`rl_detectors()`."]


def time_lines(count: int = 20_000) -> list[str]:
    """Time all detectors on full records (loss, norm, clips, two param groups, durations) beside a rolling z-score."""
    random.seed(1)
    groups = (ParamGroup(0, None, 3e-4, 3e-4), ParamGroup(1, None, 3e-4, 3e-4))
    steps = []
    for number in range(1, count + 1):
        loss = 2 + 8 * number**-0.3 + random.gauss(0, 0.03)
        norm = math.exp(random.gauss(0, 0.2))
        clips = (Clip("norm", 1.0, norm > 1, min(1.0, 1 / norm)),)
        steps.append(Step("", number, number, 0.3 * number, random.gauss(0.3, 0.003), loss, norm, groups, clips))
    losses = [step.loss for step in steps if step.loss is not None]
    ours, z = [], []
    for _ in range(3):
        watch = DetectorSet()
        start = time.process_time()
        for step in steps:
            watch.update(step)
        ours.append((time.process_time() - start) / count * 1e6)
        start = time.process_time()
        rolling_z = RULES["rolling z > 3, window 100"][0]
        rolling_z(Series([float(n) for n in range(count)], losses, [], []))
        z.append((time.process_time() - start) / count * 1e6)
    text = f"All detectors together: {min(ours):.1f} us a step; a rolling z-score alone, beside it: {min(z):.1f} us "
    return [text + f"(best of 3, processor time, CPython {platform.python_version()}, {os.cpu_count()} cores)."]


def draw(items: list[Labelled], folder: Path) -> list[Path]:
    """Draw every curve with its labels above and our events below."""
    try:
        from detector_plots import write_sheets
    except ImportError as error:
        sys.exit(f"error: --plots needs matplotlib ({error}); pip install matplotlib")
    return write_sheets([(item.name, item.labels, item.curve, replay(item.curve)) for item in items], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/detection.md")
    parser.add_argument("--plots", type=Path, help="folder for the pictures")
    parser.add_argument(
        "--skip-held-out", action="store_true", help="leave out the leave-one-source-out table (minutes)"
    )
    parser.add_argument("--seed", type=int, default=11, help="of the synthetic families")
    args = parser.parse_args()
    folder = find_curves(args.curves)
    judge = load_judge(folder)
    items = load(folder, judge)
    lines = [*our_tables(judge, items), "", *time_lines(), ""]
    lines += ["**False spikes in 100,000 records of noise alone**, at the asked rate", "", *noise_lines(), ""]
    lines += family_lines(judge, folder, args.seed)
    if not args.skip_held_out:
        lines += [
            "",
            "**Settings chosen without the source they are judged on** (leave one source out, RL apart)",
            "",
        ]
        lines += held_out_lines(judge, items)
    print("\n".join(lines))
    if args.plots:
        print("wrote", *draw(items, args.plots))
    if args.write:
        page = ROOT / "docs" / "detection.md"
        text = page.read_text(encoding="utf-8")
        head, _, rest = text.partition(MARKERS[0])
        _, _, tail = rest.partition(MARKERS[1])
        page.write_text(f"{head}{MARKERS[0]}\n" + "\n".join(lines) + f"\n{MARKERS[1]}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
