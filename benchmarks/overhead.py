"""Measure what the monitor costs the training it watches, against what people use today. Prints tables.

    python benchmarks/overhead.py                     # everything, about ten minutes on two quiet cores
    python benchmarks/overhead.py --quick             # the same with fewer repetitions, for a look
    python benchmarks/overhead.py --only hooks step   # some parts: hooks, peers, many, step, scrape, memory
    python benchmarks/overhead.py --write             # put the tables into docs/performance.md

The trackers it is compared with are installed into .bench-venv, never into the environment that runs this. One that
cannot be installed is reported as not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from overhead_peers import LOGS, Blocks, watchers  # noqa: E402

import monitor  # noqa: E402
from monitor.cli._demo import load_example  # noqa: E402

PARTS = ("hooks", "peers", "many", "step", "scrape", "memory")
NUM_OPTIMIZERS = 80
US = 1e6
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SCRAPER = "import sys,time,urllib.request as u\nwhile True:\n u.urlopen(sys.argv[1]).read(); time.sleep(1)"


class Idle(torch.optim.Optimizer):
    """An optimizer that updates nothing: what is left of a step is the cost of the hooks around it."""

    def __init__(self, num_groups: int) -> None:
        super().__init__([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)], {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


def environment() -> list[str]:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    names = ("torch", "prometheus-client", "flask", "cheroot")
    size = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return [
        f"- {time.strftime('%Y-%m-%d')}, {model}, {os.cpu_count()} cores, {size}",
        f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names),
        f"- load of the machine when this began (1, 5, 15 min): {load_average()}",
        "",
    ]


def load_average() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)] + [""]


def median_added(
    function: Callable[[], Any], base: Callable[[], Any], rounds: int, between: Callable[[], Any] = int, batch: int = 50
) -> float:
    """The median over many pairs of batches of what one call in a tight loop takes longer than the other.

    ``between`` runs untimed after each pair: the recorder catches up there, so no step is dropped for lack of room.
    """
    added = []
    repeat = range(batch)
    for _ in range(rounds):
        times = []
        for call in (base, function):
            started = time.perf_counter()
            for _ in repeat:
                call()
            times.append((time.perf_counter() - started) / batch)
        added.append(times[1] - times[0])
        between()
    return statistics.median(added)


def hooks(args: argparse.Namespace, folder: Path) -> list[str]:
    """What the hooks take on the training thread, called in a tight loop, the gradient-norm pass off."""
    from prometheus_client import CollectorRegistry, Gauge

    rounds = 200 if args.quick else 2000
    gauge = Gauge("lr", "lr", ["run_id", "group"], registry=CollectorRegistry())
    label = median_added(lambda: gauge.labels("a", "0").set(1.0), lambda: None, rounds)
    bare, hooked = Idle(1), Idle(1)
    hooked.register_step_post_hook(lambda *_: None)
    hook = median_added(hooked.step, bare.step, rounds)
    rows, first, dropped = [], 0.0, 0
    for num_groups in (1, 2, 4, 8, 16):
        bare, watched = Idle(num_groups), Idle(num_groups)
        with monitor.attach(watched, directory=str(folder), gradient_norm="off", port=0) as run:
            ours = median_added(watched.step, bare.step, rounds, between=run.flush)
            dropped += run.snapshot().dropped_steps
        first = first or ours
        per_group = f"{(ours - first) / (num_groups - 1) * US:.2f}" if num_groups > 1 else ""
        rows.append([str(num_groups), f"{ours * US:.2f}", per_group])
    references = [
        f"one unbound `Gauge.labels().set` {label * US:.2f} us",
        f"one empty optimizer step hook {hook * US:.2f} us",
    ]
    return [
        "### Hooks in a tight loop",
        "",
        "Microseconds a step on the training thread, over the same step without the monitor; gradient-norm pass off.",
        "",
        *table(["param groups", "added, median us", "us per further group"], rows),
        f"For comparison, in the same run: {', '.join(references)}. Steps lost on the way: {dropped}.",
        "",
    ]


def peers(args: argparse.Namespace, _: Path) -> list[str]:
    """What logging five scalars a step costs with each tracker, beside what the monitor costs in the same process."""
    python = bench_python()
    num_blocks = 10 if args.quick else 24
    rows, calls, missing = [], [], []
    for name in ("nothing", *LOGS):
        problem = install(python, LOGS[name][0] if name in LOGS else "")
        found = None if problem else run_peer(python, name, num_blocks)
        if not isinstance(found, dict):
            missing.append(f"- {name}: not measured ({problem or found})")
            continue
        peer, ours = found["peer"], found["monitor"]
        title = f"{name} {found['version']}".strip()
        if name != "nothing":
            theirs, own, empty = (found["calls"][key] for key in ("peer", "monitor", "empty"))
            calls.append([title, *(f"{x * US:,.1f}" for x in (theirs, own, empty)), f"{own / theirs:.2f}"])
        figures = [
            f"{each[key] * US:,.0f}" for key in ("added_median", "added_p99", "added_cpu") for each in (peer, ours)
        ]
        share = f"{ours['added_median'] / peer['added_median']:.2f}" if name != "nothing" else ""
        rows.append([title, f"{peer['step'] * 1e3:.2f}", *figures, share])
    header = ["", "step, ms", "median us", "ours", "p99 us", "ours", "CPU us", "ours", "median, ours / theirs"]
    return [
        "### Against trackers: five scalars a step",
        "",
        "What is added to a step, against the same step bare. One process a tracker; blocks of 100 steps, bare, with",
        "the monitor and with the tracker, by turns, so that both are measured under the same load. CPU is that of the",
        "process, all its threads and its children. `nothing` logs nothing: its figures are the noise.",
        "",
        *table(header, rows),
        *missing,
        "",
        "The same at the calls: the median time that the training thread spends in the call that logs, and in all the",
        "functions and hooks of the monitor together, less those of torch that they hand on to. `empty` is as many",
        "functions and hooks that do nothing: no look at a step that is written in Python costs less.",
        "",
        *table(["", "theirs us", "ours us", "empty us", "ours / theirs"], calls),
    ]


def bench_python() -> Path:
    """Return the Python of .bench-venv, which sees the packages of this environment behind its own."""
    home = ROOT / ".bench-venv"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    behind = [path for path in sys.path if path.endswith("site-packages")]
    (site / "behind.pth").write_text("\n".join([*behind, str(ROOT)]) + "\n")
    return python


def install(python: Path, package: str) -> str | None:
    """Install a package beside the others in .bench-venv, and say why that failed, if it did."""
    if not package or package == "prometheus_client":
        return None
    known = subprocess.run(
        [python, "-c", f"from importlib.metadata import version; version({package!r})"], capture_output=True
    )
    if known.returncode == 0:
        return None
    words = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return "pip took more than 15 minutes"
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return None if done.returncode == 0 else f"pip: {(errors or ['failed'])[-1]}"


def run_peer(python: Path, name: str, num_blocks: int) -> dict[str, Any] | str:
    words = [str(python), str(ROOT / "benchmarks" / "overhead_peers.py"), name, "--blocks", str(num_blocks)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=900)
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return "took more than 15 minutes"
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]
    return found


def step(args: argparse.Namespace, folder: Path) -> list[str]:
    """A whole training step of examples/char_gpt.py with the monitor against without."""
    example = load_example("char_gpt")
    options = example.parse([])
    num_blocks = 6 if args.quick else 24
    rows = []
    for title, is_scraped in (("attached", False), ("attached, scraped every second", True)):
        one_step, optimizer, scheduler = char_gpt_step(example, options)
        blocks = Blocks("bare", "monitor")
        port = free_port()
        with scraping(port) if is_scraped else contextlib.nullcontext():
            for _ in range(num_blocks):
                blocks.run("bare", one_step, 12, warm_up=2)
                with monitor.attach(optimizer, scheduler, directory=str(folder), port=port, linger=0):
                    blocks.run("monitor", one_step, 12, warm_up=2)
        found = blocks.result("monitor", "bare")
        figures = [f"{found['step'] * 1e3:.1f}", f"{found['ratio']:.4f}", f"{found['added_cpu'] / found['step']:.2%}"]
        rows.append([title, *figures])
    return [
        "### A whole training step",
        "",
        "`examples/char_gpt.py`, everything on. Blocks of 12 steps with and without alternate in one process; the",
        "ratio is the median over the pairs.",
        "",
        *table(["", "step without, ms", "ratio of median step times", "added CPU / step time"], rows),
    ]


def char_gpt_step(example: types.ModuleType, options: argparse.Namespace) -> tuple[Callable[[], None], Any, Any]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    corpus = example.Corpus(options.context)
    model = example.GPT(len(corpus.characters), options.context)
    optimizer = example.make_optimizer(model, options.lr)
    scheduler = example.make_schedule(optimizer, 100_000)

    def one_step() -> None:
        for _ in range(options.accumulate):
            x, y = corpus.batch(corpus.training, options.batch_size, generator)
            (model.loss(x, y) / options.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return one_step, optimizer, scheduler


@contextlib.contextmanager
def scraping(port: int) -> Iterator[None]:
    """Scrape once a second from another process; while nothing listens there, that is one refused connection."""
    code = SCRAPER.replace(
        "u.urlopen(sys.argv[1]).read()", "exec('try: u.urlopen(sys.argv[1]).read()\\nexcept OSError: 0')"
    )
    scraper = subprocess.Popen([sys.executable, "-c", code, f"http://127.0.0.1:{port}/metrics"])
    try:
        yield
    finally:
        scraper.kill()
        scraper.wait()


def many(args: argparse.Namespace, folder: Path) -> list[str]:
    """One optimizer a layer, as optimizers that are stepped inside backward have: what each further one costs."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [torch.nn.Linear(64, 64) for _ in range(NUM_OPTIMIZERS)]
    optimizers = {f"layer{i}": torch.optim.SGD(layer.parameters(), 1e-3) for i, layer in enumerate(layers)}

    def one_step() -> None:
        x = torch.randn(64, 64)
        for layer in layers:
            x = torch.tanh(layer(x))
        x.square().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    rows = []
    for gradient_norm in ("off", "auto"):
        blocks = Blocks("bare", "monitor")
        for _ in range(6 if args.quick else 20):
            blocks.run("bare", one_step, 40, warm_up=5)
            with monitor.attach(
                optimizers, directory=str(folder), serve=False, gpu=False, gradient_norm=gradient_norm
            ) as run:
                blocks.run("monitor", one_step, 40, warm_up=30)
                run.flush(60.0)
                ratio = run.snapshot().overhead_ratio or 0.0
        found = blocks.result("monitor", "bare")
        added = found["added_own"] / NUM_OPTIMIZERS
        figures = [f"{found['step'] * 1e3:.1f}", f"{added * 1e6:.1f}", f"{ratio:.1%}"]
        rows.append([f"`gradient_norm={gradient_norm!r}`", *figures])
    return [
        "### Many optimizers",
        "",
        f"{NUM_OPTIMIZERS} optimizers, one a layer. CPU time of the training thread, blocks of 40 steps by turns. It",
        "includes waiting for the interpreter lock while the link ships 80 entries for each of these steps.",
        "",
        *table(["", "step without, ms", "added a step of one optimizer, us", "`overhead_ratio`"], rows),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(args: argparse.Namespace, _: Path) -> list[str]:
    """CPU of one scrape, by benchmarks/scrape.py."""
    script = ROOT / "benchmarks" / "scrape.py"
    words = [sys.executable, str(script), "--rounds", "50" if args.quick else "200"]
    done = subprocess.run(words, capture_output=True, text=True)
    return ["### One scrape", "", *(done.stdout or f"not measured: {done.stderr}").splitlines(), ""]


def memory(args: argparse.Namespace, folder: Path) -> list[str]:
    """How much the process grows over a long run: steps as fast as they can be digested."""
    num_steps = 200_000 if args.quick else 2_000_000
    code = f"import overhead; overhead.simulate({num_steps}, {str(folder)!r})"
    where = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": where}
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return ["### Memory", "", f"not measured: {reason}", ""]
    found = json.loads(done.stdout)
    sentences = (
        f"Resident size after {found['steps']:,} steps with a loss, a gradient norm and two param groups each:",
        f"{found['growth'] / 1e6:+.1f} MB against step 20,000 ({found['size'] / 1e6:.0f} MB) in the training process,",
        f"{found['watcher_growth'] / 1e6:+.1f} MB ({found['watcher_size'] / 1e6:.0f} MB) in the watcher.",
        f"Steps lost on the way: {found['dropped']}.",
    )
    return ["### Memory", "", *sentences, ""]


def simulate(num_steps: int, folder: str) -> None:
    """Make steps with everything on; the recorder is waited for, so that it digests every one of them."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1e-6)
    me, early, watcher_early = psutil.Process(), 0, 0
    with monitor.attach(optimizer, directory=folder, port=0, linger=0) as run:
        assert run.url  # it has started
        (watcher,) = watchers()
        for number in range(1, num_steps + 1):
            loss = (weights[0] * weights[1]).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number % 1000 == 0:
                run.flush(timeout=60.0)
            if number == 20_000:
                gc.collect()
                early, watcher_early = me.memory_info().rss, watcher.memory_info().rss
        gc.collect()
        size, watcher_size = me.memory_info().rss, watcher.memory_info().rss
        dropped = run.snapshot().dropped_steps
    found = {"steps": num_steps, "size": early, "growth": size - early, "dropped": dropped}
    found |= {"watcher_size": watcher_early, "watcher_growth": watcher_size - watcher_early}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.relative_to(ROOT)}")
    args = parser.parse_args()
    logging.getLogger("monitor").setLevel(logging.ERROR)
    lines = environment()
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only:
            found = globals()[part](args, Path(folder))
            print("\n".join(found), flush=True)
            lines += found
    lines += [f"Load of the machine when this ended: {load_average()}. Others' work is in the figures.", ""]
    print("\n".join(lines[-2:]))
    if args.write:
        text = DOCUMENT.read_text()
        head, _, rest = text.partition(BEGIN)
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n" + "\n".join(lines) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
