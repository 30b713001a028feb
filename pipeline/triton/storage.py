"""File operations under the model repository: a publisher may be killed and a disk may fill up at any of them."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import FolderError, StorageError

_LOCK_SECONDS = 60
_STAGING = ".zoo-staging-"
_AGAIN = "run the bin/zoo command again, or after bin/train bin/zoo publish --run"
# The last two: a file lies where the repository's folder should be.
_NOT_A_WRITABLE_FOLDER = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
# The root is a mount of its own; or a model's folder has lost its config and still holds versions.
_NOT_BY_RENAME = (errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def errors(root: Path) -> Iterator[None]:
    """FolderError where rights are missing; StorageError where the disk is full, broken, read-only or gone."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or root}: {error.strerror or error}"
        if error.errno in _NOT_A_WRITABLE_FOLDER:
            raise FolderError(
                f"{reason}; nothing went live: {root} must be a folder that can be written; "
                "change its rights or name another --model-repository"
            ) from error
        raise StorageError(
            f"{reason}, while writing {root}; nothing went live: free or mend the disk, then {_AGAIN}"
        ) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Locked as long as its owner lives; those whose owner has been killed are removed."""
    top = Path(tempfile.gettempdir())
    with ExitStack() as held:
        with _flocked(top):
            for leftover in top.glob(f"{_STAGING}*"):
                with suppress(OSError), _flocked(leftover, fcntl.LOCK_NB):
                    shutil.rmtree(leftover)
            folder = Path(tempfile.mkdtemp(prefix=_STAGING))
            held.enter_context(_flocked(folder))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """The repository's only writer. StorageError where another one holds it for a minute."""
    try:
        with FileLock(root / ".lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise StorageError(
            f"another publisher has held {root}/.lock for {_LOCK_SECONDS} s; nothing went live: "
            f"wait for it or end it, then {_AGAIN}"
        ) from None


@contextmanager
def _flocked(folder: Path, how: int = 0) -> Iterator[None]:
    """Until the end of this process at the latest. BlockingIOError where LOCK_NB is asked for and another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)


def is_writable(path: Path) -> bool:
    """Whether files can be made in this folder."""
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def make_folder(path: Path) -> None:
    """With parents, where they are missing; the server's user can read what is made, whatever the umask is."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def remove(folder: Path) -> None:
    """With its parent, if nothing else lies there. Nothing happens where it is missing."""
    if folder.exists():
        shutil.rmtree(folder)
    if folder.parent.exists() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def copy(source: Path, target: Path) -> None:
    """Unlike shutil.copytree, stop at the first error and keep its number."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_dir():
            copy(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def renamed(staged: Path, target: Path) -> bool:
    """Rename a folder to where nothing lies; False where only copying helps."""
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in _NOT_BY_RENAME:
            raise
        return False
    return True


def make_durable(folder: Path) -> None:
    """All on disk, and readable by the server's user."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)


def replace_newer(target: Path, text: str, temporary: Path) -> None:
    """Replace a file by one rename; the new one counts as changed for a reader who compares times."""
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        if target.exists():
            old = target.stat()
            # A whole second, as some file systems count; the old one may come from a host whose clock is ahead.
            newer = max(time.time_ns(), max(old.st_mtime_ns, old.st_ctime_ns) + 1_000_000_000)
            os.utime(temporary, ns=(newer, newer))
        sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
