"""Stands between a program and the Triton server it started, so that nothing outlives the program.

    python -I -S guard.py TEMPORARY PYTHON_BACKEND STUB BACKENDS STOP_SECONDS TRITONSERVER [ARGUMENT ...]

Standard input is a pipe whose other end only the program holds. When it closes (the program ended
or was killed), or on SIGTERM or SIGINT, the server is stopped. Whatever ended the server, its Python
stubs, shared memory and backend folder are gone when the guard exits, with the server's status. If
the guard itself is killed, the kernel stops the server, and the next guard removes what is left.

This file imports nothing but the standard library, and little of that: it must start at once.
"""

import ctypes
import fcntl
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
NAME_PREFIX = "zoo-triton-"

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def remove(folder: Path) -> None:
    """Remove what a server left: shared memory that carries its folder's name, then the folder."""
    for region in SHARED_MEMORY.glob(f"{folder.name}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_stale(temporary: Path) -> None:
    """Remove what servers left whose guard was killed.

    Guard, server and stubs share a lock on their backend folder, so one that can be locked has no
    user any more, in whatever process namespace they ran.
    """
    for folder in temporary.glob(f"{NAME_PREFIX}*/"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # another user's, or just removed by another guard
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def fill_backend_folder(folder: Path, python_backend: Path, stub: Path, backends: Path) -> None:
    """Make the folder for --backend-directory, locked until guard, server and stubs have all ended."""
    staging = folder.with_name(f".{folder.name}")
    (staging / "python").mkdir(mode=0o700, parents=True)
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    for file in (*python_backend.iterdir(), stub):
        shutil.copy(file, staging / "python")  # Triton refuses a library that links out of here
    for backend in backends.glob("*/model.py"):
        (staging / backend.parent.name).symlink_to(backend.parent)
    # Visible only once it is locked, or another guard would take it for a stale one.
    staging.rename(folder)


def start(command: list[str]) -> int:
    """Start the server in a process group of its own; the kernel stops it if this process dies."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # stubs that lose the server become our children
    guard = os.getpid()
    server = os.fork()
    if server:
        return server
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec keeps that
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == guard:
            os.execv(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def has_ended(server: int) -> bool:
    """Asks without reaping: while the zombie stands, its process group's number is not reused."""
    return os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for_end_or_stop(server: int, signals: int) -> None:
    """Return when the server has ended, the program has gone or a signal asks us to stop."""
    while not has_ended(server):
        ready, _, _ = select.select([sys.stdin, signals], [], [])
        if sys.stdin in ready or set(os.read(signals, 64)) - {signal.SIGCHLD}:
            return


def stop(server: int, seconds: float) -> int:
    """Give the server so long to end by itself, then kill what is left of its group; return its exit status."""
    if seconds and not has_ended(server):
        os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while not has_ended(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(server, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return status if status >= 0 else 128 - status


def main(temporary: str, python_backend: str, stub: str, backends: str, stop_seconds: str, *command: str) -> int:
    """Run the server until it, or the program that wants it, ends; return the server's status."""
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    remove_stale(Path(temporary))
    folder = Path(temporary, f"{NAME_PREFIX}{os.getpid()}-{time.time_ns()}")
    try:
        fill_backend_folder(folder, Path(python_backend), Path(stub), Path(backends))
        server = start(
            [
                *command,
                f"--backend-directory={folder}",
                f"--backend-config=python,shm-region-prefix-name={folder.name}",
            ]
        )
        wait_for_end_or_stop(server, signals)
        return stop(server, float(stop_seconds))
    finally:
        remove(folder)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
