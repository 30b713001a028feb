"""What a model repository asks of the place where it lies: a file system, an object store, releases.

Paths are relative to the repository, with slashes. What a place cannot do is a StorageError or FolderError.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.errors import InputError
from pipeline.triton.history import Event


class Store(Protocol):
    """Where a repository lies. `location` is as people name it and as Triton takes it."""

    @property
    def location(self) -> str: ...

    def check_writable(self) -> None:
        """FolderError where nothing can be written here; makes nothing."""

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below, in no order; [] where there is no such folder."""

    def files(self, folder: str) -> dict[str, int]:
        """All files below a folder: relative path to bytes; {} where there is no such folder."""

    def read(self, path: str) -> bytes:
        """A file's content; FileNotFoundError where it is missing."""

    def exclusive(self) -> AbstractContextManager[None]:
        """To be the only writer. Where there is no lock, ConflictError of the single steps takes its place."""

    def staging(self) -> AbstractContextManager[Path]:
        """An empty local folder from which `add` is quick; what a killed writer left in it is gone. Be exclusive."""

    def events(self) -> list[Event]:
        """The history, oldest first."""

    def append(self, event: Event) -> None:
        """Lasting when this returns. ConflictError of an intent that another's excludes: the number is taken, the
        version to be made live is to be removed, or there is work on the one to be removed.

        What an event that is no intent tells has become lasting before it.
        """

    def is_abandoned(self, intent: Event) -> bool:
        """Whether nobody is at work on an open intent of the history any more. Be exclusive."""

    def add(self, name: str, version: int, source: Path, config: str | None) -> None:
        """Make a complete version visible; `source` is below `staging` and may be used up.

        With a config it is the first one of its name, which a reader must never find without; ConflictError where
        the name has a config already, and then the version is visible all the same.
        """

    def point(self, name: str, config: str, expected: bytes) -> None:
        """Replace the live config.pbtxt in one step: the switch. ConflictError where it is not `expected` any more."""

    def remove(self, name: str, version: int) -> None:
        """Remove a version that is not served, or what there is of it; and the name, if nothing else is in it."""


def open_store(location: str | Path) -> Store:
    """The store at a folder's path, at s3://... or at github:...; nothing is made or read yet.

    InputError for another URL.
    """
    if str(location).startswith("s3://"):
        from pipeline.triton.s3 import S3Store

        return S3Store(str(location))
    if str(location).startswith("github:"):
        from pipeline.triton.github import GithubStore

        return GithubStore(str(location))
    if "://" in str(location):
        raise InputError(
            f"{location} cannot be a repository: expected a folder, s3://bucket/prefix or github:OWNER/NAME"
        )
    from pipeline.triton.file_store import FileStore

    return FileStore(Path(location))
