"""How a version comes into a model repository and goes live: by one rename, under a lock.

A server may read at any moment, and a publisher may be killed at any moment. So a version is
complete before it is visible; the first one of a name appears with its config by one rename.
A publisher takes its number under the lock, above all that were ever used: so it never moves
the pointer to a lower one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.triton import history, model_config, repository, storage


def publish_version(root: Path, name: str, source: Path, release_json: bytes) -> tuple[int, int | None]:
    """Copy a complete version in and make it live; returns its number and the one that was live before.

    Killed at any point, the repository is as before or complete. SignatureError where the name is live
    with another signature; StorageError where the disk is full or gone, or another publisher holds the
    lock for a minute; FolderError where rights are missing.
    """
    with storage.errors(root):
        storage.make_folder(root)
        with storage.locked(root), storage.staging(root, source.parent) as staging:
            _settle(root)
            repository.demand_signature(
                root, name, model_config.read(source / repository.CONFIG), repository.labels_of(source)
            )
            version, previous = repository.next_version(root, name), repository.live_version(root, name)
            staged = staging / name
            storage.copy(source, staged / str(version))
            (staged / str(version) / repository.RELEASE).write_bytes(release_json)
            if previous is None:
                (staged / repository.CONFIG).write_text(repository.live_config(source, version), encoding="utf-8")
            storage.make_durable(staged)
            event = history.intent("publish", name, version, previous, hashlib.sha256(release_json).hexdigest())
            with _recorded(root, event):
                # A model's folder without config must never be seen, so the first version comes with it at once.
                if previous is not None or not storage.renamed(staged, root / name):
                    _add(staged / str(version), root / name / str(version))
                    _point_at(root, name, version)
            return version, previous


def rollback(root: Path, name: str) -> tuple[int, int]:
    """Make the version live that was live before; returns the numbers before and after.

    Its own config comes back with it. InputError where there is nothing before or it was altered.
    """
    if repository.live_version(root, name) is None:
        raise InputError(f"{name} is not in {root}: known: {', '.join(repository.names(root)) or 'nothing yet'}")
    with storage.errors(root), storage.locked(root):
        _settle(root)
        before, promoted = repository.live_version(root, name), history.promotions(history.read(root), name)
        if before is None or len(promoted) < 2:
            raise InputError(f"{name} has no version before {before}: there is nothing to roll back to")
        after = promoted[-2]
        repository.verify_version(root, name, after)
        content = (root / name / str(after) / repository.RELEASE).read_bytes()
        with _recorded(root, history.intent("rollback", name, after, before, hashlib.sha256(content).hexdigest())):
            _point_at(root, name, after)
        return before, after


def _add(staged: Path, target: Path) -> None:
    """Bring a version in. By copying it may be seen half done, harmlessly: the config names another or none yet.

    Servers of a zoo run with --disable-auto-complete-config and pass over a model without config.
    """
    storage.make_folder(target.parent)
    if not storage.renamed(staged, target):
        storage.copy(staged, target)
        storage.make_durable(target)
    storage.sync(target.parent)


def _point_at(root: Path, name: str, version: int) -> None:
    """Replace the model's config by the version's own, with its number. The switch."""
    # In the root, where Triton ignores plain files; a new file in the model's folder makes it reload.
    temporary = root / f".{name}.{repository.CONFIG}"
    storage.replace_newer(
        root / name / repository.CONFIG, repository.live_config(root / name / str(version), version), temporary
    )


@contextmanager
def _recorded(root: Path, event: history.Event) -> Iterator[None]:
    """Write the intent down before the switch, and how it ended after; also if it failed."""
    history.append(root, event)
    try:
        yield
    finally:
        # On a full disk the intent stays open for the next writer: the switch itself is made, or not.
        with suppress(OSError):
            _settle(root)


def _settle(root: Path) -> None:
    """Say of each open intent what became of it, and remove what it left. Under the lock.

    Only config.pbtxt tells whether a version is live. One that was brought in but never named is removed.
    """
    for event in history.open_intents(history.read(root)):
        model = root / event.name
        is_live = repository.live_version(root, event.name) == event.version
        if is_live:
            storage.sync(model)
            storage.sync(root)
        elif event.action == "publish":
            storage.remove(model / str(event.version))
        history.append(root, event.model_copy(update={"state": "done" if is_live else "abandoned"}))
    for leftover in root.glob(f".*.{repository.CONFIG}"):
        leftover.unlink()
