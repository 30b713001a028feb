"""A model repository on a file system."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import FolderError
from pipeline.triton import history, storage

CONFIG = "config.pbtxt"
HISTORY = "history.jsonl"


class FileStore:
    """A folder that Triton reads while it is written. One writer at a time, who holds the file lock `.lock`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        return str(self._root)

    def check_writable(self) -> None:
        root = self._root.absolute()
        with storage.errors(self._root):
            existing = next(path for path in (root, *root.parents) if path.exists())
        if not storage.is_writable(existing):
            raise FolderError(
                f"{existing} is not a folder that can be written: change its rights or name another --model-repository"
            )

    def folders(self, path: str = "") -> list[str]:
        try:
            with os.scandir(self._root / path) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: str) -> dict[str, int]:
        top = self._root / folder
        return {path.relative_to(top).as_posix(): path.stat().st_size for path in top.rglob("*") if path.is_file()}

    def read(self, path: str) -> bytes:
        try:
            return (self._root / path).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None
        except PermissionError:
            raise FolderError(f"{self._root / path} cannot be read: change its rights") from None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with storage.errors(self._root):
            storage.make_folder(self._root)
            with storage.locked(self._root):
                for leftover in self._root.glob(f".*.{CONFIG}"):
                    leftover.unlink()
                yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Beside the root, where Triton does not look; in the folder for temporary files if that cannot be written.

        One name serves all writers, so that each removes what a killed one has left.
        """
        root = self._root.resolve()
        folder = root.parent / f".{root.name}.staging"
        if not storage.is_writable(root.parent):
            key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
            folder = Path(tempfile.gettempdir()) / f".{root.name}-{key}.staging"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def events(self) -> list[history.Event]:
        """Half a line of a killed writer is passed over."""
        path = self._root / HISTORY
        return history.parse(path.read_bytes(), str(path)) if path.exists() else []

    def append(self, event: history.Event) -> None:
        # An outcome belongs where its intent is: the folder under a disk that has vanished begins no history by it.
        creates = os.O_CREAT if event.state == "intent" else 0
        if not creates:
            for folder in (self._root / event.name, self._root):
                if folder.exists():
                    storage.sync(folder)
        descriptor = os.open(self._root / HISTORY, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | creates, 0o666)
        with os.fdopen(descriptor, "a+b") as file:
            if not file.tell():  # new: who verifies a version, or serves only signed ones, reads it too
                os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode | 0o444)
            elif os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                # A writer that was killed may have left half a line: end it, so that it harms no other.
                file.write(b"\n")
            file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def is_abandoned(self, intent: history.Event) -> bool:
        """Its writer would hold the lock."""
        return True

    def add(self, name: str, version: int, source: Path, config: str | None) -> None:
        model = self._root / name
        if config is not None:
            # A model's folder without config must never be seen, so the first version comes with it at once.
            staged = source.parent / "model"
            staged.mkdir()
            source = source.rename(staged / str(version))
            (staged / CONFIG).write_text(config, encoding="utf-8")
            storage.make_durable(staged)
            if storage.renamed(staged, model):
                return
        # By copying it may be seen half done, harmlessly: the config names another or none yet. Servers of a zoo
        # run with --disable-auto-complete-config and pass over a model without config.
        storage.make_folder(model)
        if not storage.renamed(source, model / str(version)):
            storage.copy(source, model / str(version))
            storage.make_durable(model / str(version))
        storage.sync(model)
        if config is not None:
            self._replace(name, config)

    def point(self, name: str, config: str, expected: bytes) -> None:
        """Nobody else writes: the lock is held."""
        self._replace(name, config)

    def remove(self, name: str, version: int) -> None:
        storage.remove(self._root / name / str(version))

    def _replace(self, name: str, config: str) -> None:
        # Made in the root, where Triton ignores plain files; a new file in the model's folder makes it reload.
        storage.replace_newer(self._root / name / CONFIG, config, self._root / f".{name}.{CONFIG}")
