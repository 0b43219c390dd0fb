"""The committed dashboards against Grafana's own TypeScript types: shell, panels, and each panel type's options."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.grafana.reading import FILES, load, panels

TYPES = Path(__file__).parent / "types"
# panel type -> where Grafana declares its Options and, where it has one, its FieldConfig
PANEL_TYPES = {
    "timeseries": ("timeseries", "TimeSeries", True),
    "stat": ("stat", "Stat", False),
    "gauge": ("gauge", "Gauge", False),
    "table": ("table", "Table", True),
    "state-timeline": ("statetimeline", "StateTimeline", True),
    "heatmap": ("heatmap", "Heatmap", True),
    "xychart": ("xychart", "XYChart", True),
}
# What Grafana's Prometheus plugin and its own store read of an annotation, beside what the schema knows.
ANNOTATION = """{
  expr?: string; step?: string; useValueForTime?: 'on'; titleFormat?: string; textFormat?: string; tagKeys?: string;
  target?: { type: 'tags'; tags: string[]; matchAny: boolean; limit: number };
}"""
HEAD = f"""\
import * as schema from '@grafana/schema';
import {{ Part, Plain }} from './plain';
type Panel = Plain<schema.Panel>;
type Row = Plain<schema.RowPanel>;
type Mark = Omit<Plain<schema.AnnotationQuery>, 'target'> & {ANNOTATION};
type Shell = Omit<Plain<schema.Dashboard>, 'panels' | 'annotations'>;
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out a folder with the schema and the compiler in it, as npm installs them."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm: the types are checked where it is there")
    folder = tmp_path_factory.mktemp("types")
    for name in ("package.json", "plain.ts"):
        shutil.copy(TYPES / name, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        reason = f"npm cannot install what this test needs: {done.stderr[-500:]}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return folder


def check(folder: Path, source: str) -> str:
    """Return what the compiler has to say about a source."""
    (folder / "check.ts").write_text(source, encoding="utf-8")
    command = [
        *(str(folder / "node_modules" / ".bin" / "tsc"), "--noEmit", "--strict", "--skipLibCheck"),
        *("--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022", "check.ts"),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False).stdout


def as_source(dashboard: dict[str, Any]) -> str:
    """Write a dashboard as typed constants."""
    parts = [HEAD]
    for kind, (folder, name, has_fields) in PANEL_TYPES.items():
        module = f"@grafana/schema/dist/esm/raw/composable/{folder}/panelcfg/x/{name}PanelCfg_types.gen"
        alias = kind.replace("-", "_")
        parts.append(
            f"import type * as {alias} from '{module}';\ntype {alias}_options = Part<Plain<{alias}.Options>>;\n"
        )
        fields = f"Part<Plain<{alias}.FieldConfig>>" if has_fields else "Record<string, never>"
        parts.append(f"type {alias}_fields = {fields};\n")
    shell = {name: value for name, value in dashboard.items() if name not in ("panels", "annotations")}
    parts.append(f"export const shell: Shell = {json.dumps(shell)};\n")
    for number, mark in enumerate(dashboard["annotations"]["list"]):
        parts.append(f"export const mark{number}: Mark = {json.dumps(mark)};\n")
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    parts += [f"export const row{row['id']}: Row = {json.dumps(row)};\n" for row in rows]
    for panel in panels(dashboard):
        number, alias = panel["id"], panel["type"].replace("-", "_")
        parts.append(f"export const panel{number}: Panel = {json.dumps(panel)};\n")
        parts.append(f"export const options{number}: {alias}_options = {json.dumps(panel['options'])};\n")
        custom = panel["fieldConfig"]["defaults"].get("custom", {})
        parts.append(f"export const fields{number}: {alias}_fields = {json.dumps(custom)};\n")
    return "".join(parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_is_of_grafanas_types(workplace: Path, path: Path) -> None:
    """The compiler accepts the dashboard, every panel, and the options of every panel type, with nothing unknown."""
    assert check(workplace, as_source(load(path))) == ""


def test_the_compiler_would_object(workplace: Path) -> None:
    """An unknown word, a value that is none of an enum's, and an option of another panel type are errors."""
    dashboard = load(FILES[0])
    dashboard["grafToolTip"] = 1
    panels(dashboard)[-1]["options"]["tooltip"]["mode"] = "multiple"
    panels(dashboard)[-2]["options"]["showHeadder"] = True
    said = check(workplace, as_source(dashboard))
    assert '"grafToolTip"' in said
    assert '"multiple"' in said
    assert "showHeadder" in said
