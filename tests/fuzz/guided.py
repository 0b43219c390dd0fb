"""Fuzz with the branches that were reached as the guide: atheris on the very tests that need no server.

    python -m tests.fuzz.guided              # all of them, some minutes each
    python -m tests.fuzz.guided --seconds 20 replay

A finding ends with the exception and the bytes; Hypothesis makes the example of them again.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

TARGETS = {
    "replay": "test_replay.test_any_file_is_a_curve_or_refused_with_its_line",
    "folders": "test_run_folders.test_what_reads_a_folder_returns_or_refuses",
    "ended": "test_run_folders.test_the_page_of_a_run_that_is_over_answers",
    "shares": "test_shares.test_any_bytes_are_shares_or_a_value_error",
    "commands": "test_commands.test_any_bytes_are_accepted_or_refused",
    "requests": "test_requests.test_any_request_has_an_answer_that_is_known",
    "alertmanager": "test_requests.test_any_notification_has_an_answer",
}

PARTS = (
    "cli._replay",
    "cli._main",
    "replay",
    "detect",
    "store._reader",
    "store._history",
    "ranks",
    "server",
    "watcher",
)
"""What is looked at for branches that were reached."""


def main() -> None:
    """Fuzz each target in a process of its own: libFuzzer ends the one it runs in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        print("atheris is not installed: no fuzzing by coverage; the extra [fuzz] brings it")
        return
    if args.here:
        fuzz(TARGETS[args.targets[0]], args.seconds)
    words = [sys.executable, "-m", "tests.fuzz.guided", "--here", "--seconds", str(args.seconds)]
    failed = [name for name in args.targets or TARGETS if subprocess.run([*words, name]).returncode]
    sys.exit(f"findings in {', '.join(failed)}" if failed else 0)


def fuzz(target: str, seconds: int) -> None:
    """Fuzz a test until the time is over or something is found; does not return."""
    import atheris

    logging.disable()  # what is refused is logged, and that is no finding
    module, _, name = target.partition(".")
    with atheris.instrument_imports(include=["monitor"]):
        for part in PARTS:  # some are imported only when they are needed
            import_module(f"monitor.{part}")
        test = getattr(import_module(f"tests.fuzz.{module}"), name)
    options = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-max_len=8192", "-len_control=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
