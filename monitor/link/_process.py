"""Start the watcher process."""

from __future__ import annotations

import ctypes
import marshal
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from monitor.link._frames import Pipe
from monitor.link._messages import Hello

_SECRETS = {"MONITOR_TOKEN", "MONITOR_READ_TOKEN", "MONITOR_ALERT_TOKEN"}
"""Variables that the watcher does not inherit: it is told over the link."""
PIPE_BYTES = 2**20
"""What the pipe to the watcher may hold, where the system lets one ask (pipe(7), F_SETPIPE_SZ)."""
FAR_DESCRIPTOR = 500
"""This process's ends have numbers from here on, where there may be so many: files that the program opens have lower
ones, also after it has closed descriptors that are not its own."""
_PR_GET_CHILD_SUBREAPER = 37
"""prctl(2)"""
_FORK = "import os\nif os.fork(): os._exit(0)\n"
_BOOT = """\
import marshal, os, sys
link = os.dup(0), os.dup(1)
nowhere = os.open(os.devnull, os.O_RDWR)
os.dup2(nowhere, 0), os.dup2(nowhere, 1), os.close(nowhere)
size, path = int.from_bytes(os.read(link[0], 4), "little"), b""
while len(path) < size and (part := os.read(link[0], size - len(path))):
    path += part
sys.path[:] = marshal.loads(path)
from monitor.watcher._main import main
main(*link)
"""


class WatcherProcess:
    """A watcher process that was started, and this end of its link.

    It is no child of this process: a program that waits for all of its children does not wait for it. The process that
    was started forks the watcher and ends; :meth:`reap` takes note of that. Only where it would be this one's child all
    the same (``is_child``) it is started as such, and reaped when the next one starts: nobody else would do it.
    """

    def __init__(self, process: subprocess.Popen[bytes], outgoing: Pipe, incoming: Pipe, *, is_child: bool) -> None:
        self._process = process
        self._is_child = is_child
        self.outgoing = outgoing
        self.incoming = incoming
        _STARTED.append(process)

    def greet(self, frame: bytes) -> None:
        """Write the first message, and before it where the watcher looks for modules. Raises as :meth:`Pipe.write`."""
        path = marshal.dumps(module_path())
        self.outgoing.write(len(path).to_bytes(4, "little") + path + frame)

    def reap(self) -> None:
        """Wait for the process that starts the watcher; it ends at once."""
        if not self._is_child:
            self._process.wait()

    def close(self) -> None:
        """Close this end of the link."""
        self.outgoing.close()
        self.incoming.close()

    def abandon(self) -> None:
        """Close this end of the link in a forked child."""
        self.outgoing.abandon()
        self.incoming.abandon()


_STARTED: list[subprocess.Popen[bytes]] = []
"""What was started and not seen to end: a Popen that is dropped while its process runs would warn."""


def start_watcher(run_id: str, descriptors: Sequence[int] = ()) -> WatcherProcess:
    """Start a process that waits for its first message on its standard input and answers on its standard output.

    It has a session of its own, so that neither Ctrl-C nor a terminal that closes reaches it; it finds this very
    package, not a ``monitor.py`` of the user's; no ``sitecustomize`` runs in it; and no secret stands in its arguments
    or its environment. ``descriptors`` are open in it too, under the same numbers.

    Raises:
        OSError: no process can be started.
    """
    _STARTED[:] = [one for one in _STARTED if one.poll() is None]
    with ExitStack() as undo:
        child_in, to_child = _pipe(undo)
        from_child, child_out = _pipe(undo)
        is_child = _adopts_orphans()
        code = _BOOT if is_child else _FORK + _BOOT
        process = _start(run_id, child_in, child_out, code, descriptors)
        undo.pop_all()
    os.close(child_in)
    os.close(child_out)
    to_child, from_child = far(to_child), far(from_child)
    _widen(to_child)
    return WatcherProcess(process, Pipe(to_child), Pipe(from_child), is_child=is_child)


def _adopts_orphans() -> bool:
    """Tell whether an orphan becomes a child of this process, or none can be made."""
    return os.getpid() == 1 or not hasattr(os, "fork") or _is_subreaper()


def _is_subreaper() -> bool:
    """Tell whether this process has asked to be given the orphans below it."""
    if sys.platform != "linux":
        return False
    answer = ctypes.c_int()
    try:
        refused = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    except (OSError, AttributeError):  # a C library that cannot be asked
        return False
    return refused == 0 and answer.value == 1


def _start(
    run_id: str, child_in: int, child_out: int, code: str, descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, "training-monitor", run_id],
        stdin=child_in,
        stdout=child_out,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=descriptors,
        env={key: value for key, value in os.environ.items() if key not in _SECRETS},
    )


def _pipe(undo: ExitStack) -> tuple[int, int]:
    """Make a pipe whose ends are not numbered like a standard stream that the program has closed."""
    ends = os.pipe()
    low: list[int] = []
    try:
        while min(ends) <= 2:
            low += ends
            ends = os.pipe()
    finally:
        for number in low:
            os.close(number)
    for number in ends:
        undo.callback(os.close, number)
    return ends


def far(descriptor: int) -> int:
    """Return the same end under a number that no file of the program comes to have by accident."""
    try:
        import fcntl

        far = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FAR_DESCRIPTOR)
    except (ImportError, OSError):  # not POSIX, or fewer are allowed
        return descriptor
    os.close(descriptor)
    return far


def _forget_in_child() -> None:
    _STARTED.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def module_path() -> list[str]:
    """Return where the watcher looks for modules: this package first, and not beside the user's script."""
    home = str(Path(__file__).resolve().parents[2])
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    script = os.path.dirname(os.path.abspath(main)) if main else ""
    beside = {"", ".", script, _working_directory()}
    return [home, *(one for one in sys.path if one not in beside and one != home)]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return ""


def _widen(descriptor: int) -> None:
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # not Linux, or more than this user may have
        pass


def why_not_apart(hello: Hello, executable: str | None = sys.executable) -> str | None:
    """Say why a run cannot have a watcher process; None: it can."""
    if not executable:
        return "this Python does not know its own executable"
    if getattr(sys, "frozen", False) or "python" not in os.path.basename(executable).lower():
        return f"{executable} is not a Python interpreter"
    own = [type(one).__name__ for one in hello.detectors or () if not type(one).__module__.startswith("monitor.")]
    if own:
        return f"{own[0]} is a detector of the program's own"
    try:
        pickle.dumps(hello)
    except Exception as error:  # noqa: BLE001 - whatever the settings of a detector raise
        return f"its detectors cannot be sent ({type(error).__name__}: {error})"
    return None
