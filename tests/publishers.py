"""Publishers in processes of their own, and what happens to them at a step of their work.

A step is a change of the file system; the same action has the same steps each time.
"""

import errno
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

# What changes a file system, by the name of Python's audit event; "open" counts only where it may write.
CHANGES = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.utime", "os.chmod", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

DONE, NOT_REACHED, STORAGE_ERROR, UNEXPECTED = 0, 10, 11, 12


def fork(action: Callable[[], int]) -> int:
    """Run it in a forked process, which starts at once; its process id. The status is what it returns."""
    with warnings.catch_warnings():
        # Libraries' idle threads do not matter to a child that only works on files.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = UNEXPECTED
    try:
        status = action()
    finally:
        os._exit(status)


def killed_after(seconds: float, action: Callable[[], object]) -> bool:
    """Whether a process was still in this action after so many seconds, and was killed."""
    begun, begin = os.pipe()

    def run() -> int:
        os.write(begin, b"x")
        action()
        return DONE

    child = fork(run)
    os.read(begun, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(begun)
    os.close(begin)
    assert status in (DONE, -signal.SIGKILL)
    return status != DONE


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def have_no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disturb(step: int, happens: Callable[[], None], *, syncs: bool = False) -> Callable[[], int]:
    """In a child: let something happen before the step-th change of the file system.

    With `syncs`, waiting for the disk is a step too, and no more than that. Returns what counts the steps so far.
    """
    count = 0

    def changing() -> None:
        nonlocal count
        count += 1
        if count == step:
            happens()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            changing()

    if syncs:  # there is no audit event for it
        os.fsync = lambda fd: changing()
    sys.addaudithook(hook)
    return lambda: count


def count_steps(act: Callable[[], object]) -> int:
    """How many changes of the file system an action makes; it is carried out in a child."""

    def run() -> int:
        steps = disturb(0, die)
        act()
        return steps()

    return os.waitstatus_to_exitcode(os.waitpid(fork(run), 0)[1])
