"""Stands between a program and the Triton server it started, so that nothing outlives the program.

    python -I -S guard.py TEMPORARY PYTHON_BACKEND STUB BACKENDS DRAIN_SECONDS TRITONSERVER [ARGUMENT ...]

Standard input is a pipe whose other end only the program holds. When it closes (the program ended
or was killed), or on SIGTERM or SIGINT, the server is stopped: requests that run may go on for
DRAIN_SECONDS, unless a further signal comes. Whatever ended the server, its Python stubs, shared
memory and backend folder are gone when the guard exits, with the server's status. If the guard itself
is killed, the kernel kills the server, and the next guard removes what is left.

This file imports nothing but the standard library, and little of that: it must start at once.
"""

import ctypes
import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
NAME_PREFIX = "zoo-triton-"

# 1970, by the clock of Boost's times: microseconds since the beginning of the Julian days.
EPOCH = 2_440_588 * 86_400_000_000

# What differs in our copy of the Python backend's library; each keeps its length.
PATCHES = {
    # Where it unpacks environments. It makes this folder for each of the backends, whether or not a model has one,
    # and removes it only at a clean end. Ours lies in the server's own folder, and goes with it.
    b"/tmp/python_env_": b".////python_env_",
    # How many microseconds it waits for a stub that neither answers nor says that it lives: ten seconds, not one.
    # Where other work takes all cores a stub may have none for a second; the request then fails, and the stub's late
    # answer, which nobody waits for, makes the server hang or end.
    (1_000_000 - EPOCH).to_bytes(8, "little", signed=True): (10_000_000 - EPOCH).to_bytes(8, "little", signed=True),
    # When it releases a version it kills a stub that says nothing for one second. If that held a lock, a robust mutex
    # makes the server abort (server issue 8882); with any other one that version stays "unloading". Both functions take
    # the attributes and a 1: robust, recursive. No thread takes a lock that it has.
    b"pthread_mutexattr_setrobust\0": b"pthread_mutexattr_settype\0\0\0",
}

# The backends lock this file, whose path they find under this name, while requests run. Triton itself does not
# say when none runs any more, and then takes 1.4 s to end each stub, and up to five for clients that stay connected.
BUSY_FILE = "ZOO_TRITON_BUSY_FILE"
# As the server sees its folder from where it runs: the Python backend starts a stub by a line for a shell, in which it
# quotes neither the folder's path nor that of the repository, and a shell may not take them as one word.
OWN_FOLDER = ".."
# Where it copies models that it loads from an object store, in place of /tmp; a server that is killed leaves them.
MODELS_FOLDER = "TRITON_AWS_MOUNT_DIRECTORY"

# For requests that come or wait between Triton and a backend, and for answers on their way to their clients.
QUIET_SECONDS = 0.5

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Server = subprocess.Popen[bytes]


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


def make_locked(folder: Path) -> None:
    """Make a folder that stays locked until this process and all that it starts have ended."""
    while True:
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                os.set_inheritable(lock, True)
                return
            os.close(lock)
        # Another guard was quicker, and has removed it as stale.


def busy_file(folder: Path) -> Path:
    return folder / "busy"


def fill_backend_folder(folder: Path, python_backend: Path, stub: Path, backends: Path) -> None:
    """Make the content of the folder for --backend-directory."""
    python = folder / "python"
    python.mkdir()
    for file in (*python_backend.iterdir(), stub):
        shutil.copy(file, python)  # Triton refuses a library that links out of here
    library = python / "libtriton_python.so"
    content = library.read_bytes()
    for original, ours in PATCHES.items():
        content = content.replace(original, ours)
    library.write_bytes(content)
    for backend in backends.glob("*/model.py"):
        (folder / backend.parent.name).symlink_to(backend.parent)
    busy_file(folder).touch()


def with_plain_path(argument: str, folder: Path) -> str:
    """The same argument, its repository under the path of a link where a shell would not take its own as one word."""
    flag, equals, path = argument.partition("=")
    if flag != "--model-repository" or shlex.quote(path) == path:
        return argument
    link = "models"
    (folder / link).symlink_to(path)
    return f"{flag}{equals}{OWN_FOLDER}/{link}"


def start(command: list[str], folder: Path) -> Server:
    """Start the server in a process group of its own; the kernel kills it if this process dies.

    Returns when the server's program runs, so that no signal meets it half made.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # stubs that lose the server become our children
    guard = os.getpid()

    def die_with_guard() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(127)

    return subprocess.Popen(
        command,
        cwd=folder / "python",  # what relative paths, the library's too, and the stub's imports begin from
        env={**os.environ, BUSY_FILE: str(busy_file(folder)), MODELS_FOLDER: OWN_FOLDER},
        process_group=0,
        preexec_fn=die_with_guard,
        close_fds=False,  # it and its stubs inherit the lock on the folder
    )


def has_ended(server: Server) -> bool:
    """Asks without reaping: while the zombie stands, its process group's number is not reused."""
    return os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def is_signalled(signals: int) -> bool:
    """Whether one of the signals that have arrived is not just a child's end."""
    return bool(set(os.read(signals, 64)) - {signal.SIGCHLD})


def wait_for_end_or_stop(server: Server, signals: int) -> None:
    """Return when the server has ended, the program has gone or a signal asks us to stop."""
    while not has_ended(server):
        ready, _, _ = select.select([sys.stdin, signals], [], [])
        if sys.stdin in ready or is_signalled(signals):
            return


def is_locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(lock, fcntl.LOCK_UN)
    return False


def let_requests_end(server: Server, signals: int, folder: Path, seconds: float) -> None:
    """Tell the server to stop; return when no request runs any more, a signal comes or the time is over."""
    os.kill(server.pid, signal.SIGTERM)
    lock = os.open(busy_file(folder), os.O_RDONLY)
    deadline = time.monotonic() + seconds
    quiet = time.monotonic() + QUIET_SECONDS
    while not has_ended(server) and time.monotonic() < min(deadline, quiet):
        if is_locked(lock):
            quiet = time.monotonic() + QUIET_SECONDS
        ready, _, _ = select.select([signals], [], [], 0.01)
        if ready and is_signalled(signals):
            return


def kill(server: Server) -> int:
    """Kill what is left of the server and its stubs, all in one group; return the server's exit status.

    A process that is being made while its group is killed is killed with it or not made: none escapes.
    """
    os.killpg(server.pid, signal.SIGKILL)
    status = server.wait()
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return status if status >= 0 else 128 - status


def main(temporary: str, python_backend: str, stub: str, backends: str, drain_seconds: str, *command: str) -> int:
    """Run the server until it, or the program that wants it, ends; return the server's status."""
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    remove_stale(Path(temporary))
    folder = Path(temporary, f"{NAME_PREFIX}{os.getpid()}-{time.time_ns()}")
    try:
        make_locked(folder)
        fill_backend_folder(folder, Path(python_backend), Path(stub), Path(backends))
        server = start(
            [
                *(with_plain_path(argument, folder) for argument in command),
                f"--backend-directory={OWN_FOLDER}",
                f"--backend-config=python,shm-region-prefix-name={folder.name}",
            ],
            folder,
        )
        wait_for_end_or_stop(server, signals)
        if float(drain_seconds):
            let_requests_end(server, signals, folder, float(drain_seconds))
        return kill(server)
    finally:
        remove(folder)
        remove_stale(Path(temporary))  # what the program has kept in such a folder, if it was killed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
