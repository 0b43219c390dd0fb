"""The documentation is run: what it shows works, what it lists is complete, where it points exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import need_module

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROOFS = ("docs/reliability.md", "docs/security.md")
"""The pages with tables of what was tried, each row with the test that tries it again."""
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
BLOCKS = [
    pytest.param(match[1], match[2], id=f"{page.name}-{number}")
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), start=1)
]


@pytest.mark.parametrize(("language", "code"), BLOCKS)
def test_what_is_marked_runs(language: str, code: str, tmp_path: Path) -> None:
    """Every block that follows the mark <!-- run --> runs by itself and succeeds."""
    assert language in ("python", "sh"), f"{language} cannot be run here; mark python and sh only"
    if "examples/" in code:
        need_module("sklearn")
        (tmp_path / "examples").symlink_to(ROOT / "examples")
    for framework in re.findall(r"monitor\.integrations\.(\w+)", code):
        need_module(framework)
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("monitor", " -m monitor")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "MONITOR_PORT": "0",
    }
    words = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def test_the_front_page_shows_a_run() -> None:
    """README has a marked block, so that the first thing a reader tries is known to work."""
    assert BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))


def make_pages(docs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(docs / "make_pages.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_setting_and_every_metric_is_listed() -> None:
    """The generated pages are what their generator makes of the code as it is."""
    done = make_pages(ROOT / "docs", "--check")
    assert done.returncode == 0, done.stderr


def test_a_generated_page_that_was_changed_by_hand_is_told_and_made_anew(tmp_path: Path) -> None:
    """--check names what is out of date and writes nothing; without it the pages are written."""
    for name in ("make_pages.py", "settings.md", "metrics.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    (tmp_path / "metrics.md").write_text("# By hand\n")
    done = make_pages(tmp_path, "--check")
    assert (done.returncode, done.stderr) == (1, "out of date: metrics.md; run: python docs/make_pages.py\n")
    assert (tmp_path / "metrics.md").read_text() == "# By hand\n"
    assert make_pages(tmp_path).returncode == 0
    assert (tmp_path / "metrics.md").read_text() == (ROOT / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link to a file of the repository names one that is there."""
    found = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in found if not (page.parent / link).exists()] == []


def test_paths_that_maintainers_read_exist() -> None:
    """A file of the repository that the pages for maintainers name is there, and so is a test that they name in it."""
    pages = ("CONTRIBUTING.md", "docs/architecture.md", *PROOFS)
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"`((?:tests|monitor|docs|benchmarks|\.ci|\.github)/[\w./-]+)(?:::(\w+))?`", text)
    assert len(named) >= 40
    lost = [f"{path}::{test}" for path, test in named if not (ROOT / path).exists()]
    lost += [
        f"{path}::{test}"
        for path, test in named
        if test and (ROOT / path).exists() and f"def {test}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert lost == []


@pytest.mark.parametrize("page", PROOFS)
def test_what_is_claimed_in_a_table_of_proofs_names_its_test(page: str) -> None:
    """Each row whose table ends with the column "again" names a test, or the script that measures it."""
    tables = re.findall(
        r"^\|.*\| again \|\n\|[-| :]+\|\n((?:\|.*\n)+)", (ROOT / page).read_text(encoding="utf-8"), re.M
    )
    rows = "".join(tables).splitlines()
    assert len(rows) >= 8
    assert [row for row in rows if not re.search(r"`(?:tests|benchmarks)/[^`]+`[^|]*\|$", row)] == []


def test_the_workflow_runs_what_a_change_must_pass() -> None:
    """Continuous integration has no steps of its own beside .ci/run."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"- run: (.+)", workflow) == [".ci/run"]


def test_examples_for_the_demo_name_its_groups() -> None:
    """A param group that a command or a request in the documentation names is one that the demo has."""
    import torch

    from monitor.cli._demo import load_example

    example = load_example("char_gpt")
    optimizer = example.make_optimizer(torch.nn.Linear(2, 2), lr=0.1)
    known = {group["name"] for group in optimizer.param_groups}
    pages = ("README.md", "docs/quickstart.md", "docs/http-api.md")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    named = [a or b for a, b in re.findall(r'--group (\w+)|"groups": \["(\w+)"\]', text)]
    assert len(named) >= 2
    assert set(named) <= known


def test_every_command_is_named_in_the_documentation() -> None:
    """README or a page of docs names each command of the command line."""
    from monitor.cli import main

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = main.list_commands(None)  # type: ignore[arg-type]
    assert [name for name in commands if f"monitor {name}" not in text and f"`{name}`" not in text] == []
