"""The model repository on a file system: versions that never change, and one rename that makes one live.

    <root>/<name>/config.pbtxt        names the live version; replaced by one rename
    <root>/<name>/<N>/                a version: its files, its own config.pbtxt, release.json
    <root>/history.jsonl, .lock       plain files, which Triton ignores

A server may read at any moment, and a publisher may be killed at any moment. So a version is
complete before it is visible; the first one of a name appears with its config by one rename.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.config import RunConfig
from pipeline.errors import FolderError, InputError, SignatureError, StorageError
from pipeline.records import (
    Benchmarked,
    CodeInfo,
    DataInfo,
    Evaluated,
    Exported,
    Gated,
    Record,
    Trained,
    Validated,
    Verified,
)
from pipeline.specs import MAX_BATCH_SIZE
from pipeline.triton import history, model_config

CONFIG = "config.pbtxt"
RELEASE = "release.json"
LABELS = model_config.LABELS_FILE

_LOCK_SECONDS = 60
_DENIED = (errno.EACCES, errno.EPERM)


class Release(Record):
    """A version's release.json: where it comes from, what was measured and by whom it was proven.

    `hashes` are SHA-256 of every other file of the version, by path. The version's number is not in it.
    """

    name: str
    created: str
    config: RunConfig
    code: CodeInfo
    data: DataInfo
    trained: Trained
    evaluated: Evaluated
    exported: Exported
    verified: Verified
    benchmarked: Benchmarked
    gated: Gated
    validated: Validated
    hashes: dict[str, str]


def names(root: Path) -> list[str]:
    """Released names, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))


def versions(root: Path, name: str) -> list[int]:
    """Versions at hand, ascending."""
    return sorted(int(path.name) for path in (root / name).glob("[0-9]*") if path.name.isdecimal())


def live_version(root: Path, name: str) -> int | None:
    """The version that config.pbtxt names, or None where the name is not released."""
    path = root / name / CONFIG
    return model_config.live_version(model_config.read(path)) if path.exists() else None


def next_version(root: Path, name: str) -> int:
    """1 + the highest number ever used, also by a publish that did not end."""
    used = [event.version for event in history.read(root) if event.name == name]
    return 1 + max([0, *used, *versions(root, name)])


def newest(root: Path) -> str:
    """The name that was published or rolled back last; InputError where there is none."""
    done = [event.name for event in history.read(root) if event.state == "done"]
    if not done:
        raise InputError(f"nothing is released in {root}: run bin/train, or name --model-repository")
    return done[-1]


def release(root: Path, name: str, version: int) -> Release:
    return Release.load(root / name / str(version) / RELEASE)


def check_writable(root: Path) -> None:
    """FolderError where the repository cannot be written; makes nothing."""
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise FolderError(f"{existing} is not a folder that can be written: name another --model-repository")


def check_signature(root: Path, name: str, shape: tuple[int, int, int], labels: tuple[str, ...]) -> None:
    """SignatureError where the name is live with other inputs, outputs or labels: clients would break."""
    live = live_version(root, name)
    if live is None:
        return
    wanted = model_config.build(
        name=name, backend="onnxruntime", shape=shape, classes=len(labels), max_batch_size=MAX_BATCH_SIZE
    )
    found = model_config.read(root / name / CONFIG)
    if model_config.signature(found) != model_config.signature(wanted):
        raise SignatureError(
            f"{name} is live in {root} with {model_config.signature(found)}, and this model has "
            f"{model_config.signature(wanted)}: clients of the one cannot ask the other; give another --release-name"
        )
    if tuple((root / name / str(live) / LABELS).read_text(encoding="utf-8").splitlines()) != labels:
        raise SignatureError(f"{name} is live in {root} with other labels: give another --release-name")


def verify_version(root: Path, name: str, version: int) -> None:
    """InputError names the first file that is altered, missing or not of the release."""
    folder = root / name / str(version)
    expected = release(root, name, version).hashes
    found = hashes(folder)
    found.pop(RELEASE, None)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise InputError(f"{folder / path} is not as it was released: restore it, or publish the model again")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def publish_version(root: Path, name: str, source: Path, release_json: bytes) -> tuple[int, int | None]:
    """Copy a complete version in and make it live; returns its number and the one that was live before.

    Killed at any point, the repository is as before or complete. StorageError where the disk is
    full or gone, or another publisher holds the lock for a minute.
    """
    with _storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root), _staging(root) as staging:
            _settle(root)
            version, previous = next_version(root, name), live_version(root, name)
            staged = staging / name / str(version)
            shutil.copytree(source, staged)
            (staged / RELEASE).write_bytes(release_json)
            _make_durable(staging / name)
            event = history.intent("publish", name, version, previous, hashlib.sha256(release_json).hexdigest())
            history.append(root, event)
            if previous is None:
                _appear(root, name, version, staging)
            else:
                _move(staged, root / name / str(version))
                _point_at(root, name, version)
            history.append(root, event.model_copy(update={"state": "done"}))
            return version, previous


def rollback(root: Path, name: str) -> tuple[int, int]:
    """Make the version live that was live before; returns the numbers before and after.

    Its own config comes back with it. InputError where there is nothing before or it was altered.
    """
    if live_version(root, name) is None:
        raise InputError(f"{name} is not in {root}: known: {', '.join(names(root)) or 'nothing yet'}")
    with _storage_errors(root), _locked(root):
        _settle(root)
        promoted = history.promotions(history.read(root), name)
        if len(promoted) < 2:
            raise InputError(f"{name} has no version before {promoted[-1]}: there is nothing to roll back to")
        before, after = promoted[-1], promoted[-2]
        verify_version(root, name, after)
        content = (root / name / str(after) / RELEASE).read_bytes()
        event = history.intent("rollback", name, after, before, hashlib.sha256(content).hexdigest())
        history.append(root, event)
        _point_at(root, name, after)
        history.append(root, event.model_copy(update={"state": "done"}))
        return before, after


def live_config(version_folder: Path, version: int) -> str:
    """The text of the config.pbtxt that makes this version live."""
    return model_config.to_text(model_config.pointed_at(model_config.read(version_folder / CONFIG), version))


def _appear(root: Path, name: str, version: int, staging: Path) -> None:
    """The first version of a name: a model folder without config must never be seen, so all comes at once."""
    model = root / name
    if model.exists() and not any(model.iterdir()):
        model.rmdir()
    config = staging / name / CONFIG
    config.write_text(live_config(staging / name / str(version), version), encoding="utf-8")
    _make_durable(staging / name)
    try:
        (staging / name).rename(model)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The root is a mount of its own. Servers of a zoo run with --disable-auto-complete-config, so
        # a folder without config is passed over until the config, the last file, is there.
        _move(staging / name / str(version), model / str(version))
        _point_at(root, name, version)
    _sync(root)


def _move(staged: Path, target: Path) -> None:
    """By rename; by copy where the repository lies on another file system than the staging folder.

    A copy may be seen half done, which is harmless while the config names another version.
    """
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(staged, target)
        _make_durable(target)
    _sync(target.parent)


def _point_at(root: Path, name: str, version: int) -> None:
    """Replace the model's config by the version's own, with its number. The switch."""
    target = root / name / CONFIG
    # In the root, where Triton ignores plain files; a new file in the model's folder makes it reload.
    temporary = root / f".{name}.{CONFIG}"
    temporary.write_text(live_config(root / name / str(version), version), encoding="utf-8")
    temporary.chmod(0o644)
    if target.exists():
        # Triton loads a config only if it is strictly newer, and clocks of hosts differ.
        newer = max(time.time_ns(), target.stat().st_mtime_ns + 1_000_000_000)
        os.utime(temporary, ns=(newer, newer))
    _sync(temporary)
    temporary.replace(target)
    _sync(target.parent)


def _settle(root: Path) -> None:
    """Say of each intent of a killed publisher what became of it, and remove what it left. Under the lock."""
    for event in history.open_intents(history.read(root)):
        model = root / event.name
        is_live = live_version(root, event.name) == event.version
        if not is_live and event.action == "publish":
            shutil.rmtree(model / str(event.version), ignore_errors=True)
            if model.is_dir() and not any(model.iterdir()):
                model.rmdir()
        history.append(root, event.model_copy(update={"state": "done" if is_live else "abandoned"}))
    for leftover in root.glob(f".*.{CONFIG}"):
        leftover.unlink()


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A folder outside the mounted root, on the same file system where that can be. Under the lock."""
    parent = root.absolute().parent
    if not os.access(parent, os.W_OK):
        parent = Path(tempfile.gettempdir())
    staging = parent / f".{root.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)  # of a publisher that was killed
    staging.mkdir(mode=0o755)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        with FileLock(root / ".lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise StorageError(f"another publisher has held {root}/.lock for {_LOCK_SECONDS} s: see what it does") from None


@contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or root}: {error.strerror or error}"
        if error.errno in _DENIED:
            raise FolderError(f"{reason}; {root} must be writable: change its rights or name another") from None
        raise StorageError(f"{reason}; nothing went live: mend it, then run bin/zoo publish --run again") from None


def _make_durable(folder: Path) -> None:
    """Readable by the server's user, and on disk."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
