"""A repository of one's own that holds nothing but what has verified, for a server that must serve nothing else.

Triton reads a repository when it likes, and who can write there could change a file after it was looked at. So it is
given other files: copies of the very bytes that were hashed and are signed. Its config.pbtxt is made from that of the
signed version; of the one in the repository only the numbers of versions are taken.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import RELEASE_NAME
from pipeline.errors import FolderError, InputError, StorageError
from pipeline.triton import guard, model_config, repository, storage, transfer
from pipeline.triton.file_store import FileStore
from pipeline.triton.signing import Signatories
from pipeline.triton.store import Store


class VerifiedCopy:
    """What is loaded of each name in `source`, where all of that is signed; a folder `root`, in Triton's layout."""

    def __init__(self, source: Store, signatories: Signatories, root: Path) -> None:
        self.root = root
        self._source = source
        self._signatories = signatories
        self._copy = FileStore(root)
        self._seen: dict[str, bytes] = {}  # by name, the config.pbtxt that was dealt with
        self._refused: dict[str, dict[str, str]] = {}
        storage.make_folder(root)

    def update(self) -> dict[str, str]:
        """Take over what has changed. Returns what cannot be, and why: by name and version, as people read it.

        A name of which something is refused stays as it was taken over before, if ever. It is looked at again when its
        config.pbtxt changes; what could not be read is tried again each time.
        """
        try:
            # In an object store, a folder may have any name, and so lead out of here.
            names = {*filter(RELEASE_NAME.fullmatch, self._source.folders())}
        except (InputError, StorageError, OSError) as error:
            return {self._source.location: f"cannot be looked at: {error}"}
        for name in (self._seen.keys() | self._refused.keys()) - names:
            self._remove(name)
        for name in sorted(names):
            self._look_at(name)
        return {what: reason for refused in self._refused.values() for what, reason in refused.items()}

    def _look_at(self, name: str) -> None:
        try:
            config = repository.live_config(self._source, name)
        except (InputError, StorageError, OSError) as error:
            self._refused[name] = {name: f"cannot be looked at: {error}"}
            return
        if config is None:
            self._remove(name)
        elif self._seen.get(name) != config:
            self._refused[name] = self._take_over(name, config)

    def _remove(self, name: str) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)
        self._seen.pop(name, None)
        self._refused.pop(name, None)

    def _take_over(self, name: str, config: bytes) -> dict[str, str]:
        """All versions that this config.pbtxt has loaded, or nothing: then why."""
        what = name
        try:
            loaded = repository.loaded_in(self._source, name, config)
            here = repository.versions(self._copy, name)
            with self._copy.staging() as staging:
                staged = staging / "model"
                staged.mkdir()
                for version in loaded:
                    if version not in here:
                        what = f"{name} version {version}"
                        self._fetch(name, version, staged / str(version))
                self._switch(name, loaded, staged)
        except (FolderError, StorageError, OSError) as error:
            return {what: f"cannot be copied: {error}"}
        except InputError as error:
            self._seen[name] = config
            return {what: f"refused: {error}"}
        self._seen[name] = config
        return {}

    def _fetch(self, name: str, version: int, folder: Path) -> None:
        folder.mkdir()
        transfer.download(self._source, name, version, folder, trust=True)
        found, signature = repository.hashes(folder), folder / repository.SIGNATURE
        found.pop(repository.SIGNATURE, None)
        self._signatories.demand(
            found,
            signature.read_bytes() if signature.exists() else None,
            f"{self._source.location}/{name}/{version}",
        )

    def _switch(self, name: str, loaded: tuple[int, ...], staged: Path) -> None:
        """As a publisher does: versions first, then one rename of the config; the first ones come with it at once."""
        *kept, live = loaded
        model, before = self.root / name, repository.loaded_versions(self._copy, name)
        arrived = [folder.name for folder in staged.iterdir()]
        own, *others = (
            model_config.read((staged if str(number) in arrived else model) / str(number) / repository.CONFIG)
            for number in (live, *kept)
        )
        if any(other != own for other in others):
            raise InputError(f"versions {loaded} of {name} have several configurations, and a server loads all by one")
        config = repository.pointing_config(own, live, kept)
        if not model.exists():
            (staged / repository.CONFIG).write_text(config, encoding="utf-8")
            storage.make_durable(staged)
            staged.rename(model)
            return
        storage.make_durable(staged)
        for number in arrived:
            (staged / number).rename(model / number)
        if config.encode() != repository.live_config(self._copy, name):
            storage.replace_newer(model / repository.CONFIG, config, self.root / f".{name}.{repository.CONFIG}")
        # Until the new ones are loaded, the server answers by those before.
        for version in {*repository.versions(self._copy, name)} - {*loaded, *before}:
            shutil.rmtree(model / str(version))


@contextmanager
def verified_copy(source: Store, signatories: Signatories) -> Iterator[VerifiedCopy]:
    """In the folder for temporary files, and gone at the end; what a killed program has left, guards remove."""
    temporary = Path(tempfile.gettempdir())
    guard.remove_stale(temporary)
    folder = temporary / f"{guard.NAME_PREFIX}verified-{os.getpid()}-{time.time_ns()}"
    guard.make_locked(folder)
    try:
        yield VerifiedCopy(source, signatories, folder / "models")
    finally:
        shutil.rmtree(folder)
