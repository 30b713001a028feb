"""Arrays that are costly to make, in files of the user's cache folder: mapped, so that they may be larger than memory.

A file's name says what is in it, and it gets that name by one rename when it is complete and on disk. So one of the
right size is the right one; one that was cut short later is made again.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipeline import cache
from pipeline.errors import unwritable

_log = logging.getLogger(__name__)


def mapped(key: str, shape: tuple[int, ...], make: Callable[[], Iterable[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """The array `key` of this shape, read-only; made of the parts of `make()`, in order, where it is not there whole.

    One process at a time makes arrays. FolderError where they cannot be written, StorageError where the disk is full.
    """
    folder = cache.folder()
    path = folder / f"{key}.uint8"
    try:
        if not _is_whole(path, shape):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                # Another process may have made it meanwhile.
                if not _is_whole(path, shape):
                    _make(path, make())
        return np.memmap(path, np.uint8, mode="r", shape=shape)
    except OSError as error:
        raise unwritable(error)(
            f"the cache {path} cannot be used ({error.strerror or error}): free its disk, change its folder's rights, "
            "or name another folder by XDG_CACHE_HOME"
        ) from None


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    return path.is_file() and path.stat().st_size == math.prod(shape)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("waiting for another run that writes into %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(path: Path, parts: Iterable[NDArray[np.uint8]]) -> None:
    # The same name for all arrays: what a killed process has left is overwritten.
    part = path.with_name("unfinished")
    try:
        with part.open("wb") as file:
            for array in parts:
                file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
