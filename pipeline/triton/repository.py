"""The model repository on a file system: versions that never change, and one rename that makes one live.

    <root>/<name>/config.pbtxt        names the live version; replaced by one rename
    <root>/<name>/<N>/                a version: its files, its own config.pbtxt, release.json
    <root>/history.jsonl, .lock       plain files, which Triton ignores

A server may read at any moment, and a publisher may be killed at any moment. So a version is
complete before it is visible; the first one of a name appears with its config by one rename.
A publisher takes its number under the lock, above all that were ever used: so it never moves
the pointer to a lower one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from pipeline.config import RunConfig
from pipeline.errors import FolderError, InputError, SignatureError
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
from pipeline.triton import history, model_config, storage

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"
RELEASE = "release.json"
LABELS = model_config.LABELS_FILE


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


class _Manifest(Record):
    """As much of a release.json as a check needs: it may come from an older or newer pipeline."""

    model_config = ConfigDict(extra="ignore")

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
    return 1 + max([live_version(root, name) or 0, *used, *versions(root, name)])


def newest(root: Path) -> str:
    """The name that was published or rolled back last; InputError where there is none."""
    for event in reversed(history.read(root)):
        # Of a publisher that was killed there is only the intent: the config tells how it ended.
        if event.state != "abandoned" and live_version(root, event.name) == event.version:
            return event.name
    raise InputError(f"nothing is released in {root}: run bin/train, or name --model-repository")


def release(root: Path, name: str, version: int) -> Release:
    """A version's release.json; InputError where it is missing or of another pipeline."""
    return Release.load(root / name / str(version) / RELEASE)


def check_writable(root: Path) -> None:
    """FolderError where the repository cannot be written; makes nothing."""
    with storage.errors(root):
        existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not storage.is_writable(existing):
        raise FolderError(
            f"{existing} is not a folder that can be written: change its rights or name another --model-repository"
        )


def check_signature(root: Path, name: str, shape: tuple[int, int, int], labels: tuple[str, ...]) -> None:
    """SignatureError where the name is live with other inputs, outputs or labels: clients would break.

    `shape`: channels, height, width.
    """
    # Backend and batch size are not compared.
    config = model_config.build(name=name, backend="onnxruntime", shape=shape, classes=len(labels), max_batch_size=1)
    with storage.errors(root):
        _demand_signature(root, name, config, labels)


def verify_version(root: Path, name: str, version: int) -> None:
    """InputError names the first file that is altered, missing or not of the release."""
    folder = root / name / str(version)
    found = hashes(folder)
    listed = found.pop(RELEASE, None)
    recorded = {event.release_sha256 for event in history.read(root) if (event.name, event.version) == (name, version)}
    if listed is None or (recorded and listed not in recorded):
        raise _altered(folder / RELEASE)
    expected = _Manifest.load(folder / RELEASE).hashes
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise _altered(folder / path)
    model_config.read(folder / CONFIG)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels_text(labels: tuple[str, ...]) -> str:
    """The content of a labels.txt: one class a line, in the order of the probabilities."""
    return "".join(f"{label}\n" for label in labels)


def live_config(version_folder: Path, version: int) -> str:
    """The text of the config.pbtxt that makes this version live."""
    return model_config.to_text(model_config.pointed_at(model_config.read(version_folder / CONFIG), version))


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
            _demand_signature(root, name, model_config.read(source / CONFIG), _labels(source))
            version, previous = next_version(root, name), live_version(root, name)
            staged = staging / name
            storage.copy(source, staged / str(version))
            (staged / str(version) / RELEASE).write_bytes(release_json)
            if previous is None:
                (staged / CONFIG).write_text(live_config(source, version), encoding="utf-8")
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
    if live_version(root, name) is None:
        raise InputError(f"{name} is not in {root}: known: {', '.join(names(root)) or 'nothing yet'}")
    with storage.errors(root), storage.locked(root):
        _settle(root)
        before, promoted = live_version(root, name), history.promotions(history.read(root), name)
        if before is None or len(promoted) < 2:
            raise InputError(f"{name} has no version before {before}: there is nothing to roll back to")
        after = promoted[-2]
        verify_version(root, name, after)
        content = (root / name / str(after) / RELEASE).read_bytes()
        with _recorded(root, history.intent("rollback", name, after, before, hashlib.sha256(content).hexdigest())):
            _point_at(root, name, after)
        return before, after


def _demand_signature(root: Path, name: str, config: "ModelConfig", labels: tuple[str, ...]) -> None:
    live = live_version(root, name)
    if live is None:
        return
    advice = "clients of the one cannot ask the other; give another --release-name"
    tensors = model_config.signature(model_config.read(root / name / CONFIG)), model_config.signature(config)
    for kind, old, new in zip(("inputs", "outputs"), *tensors, strict=True):
        if old != new:
            raise SignatureError(f"{name} is live in {root} with {kind} {old}, and this model has {new}: {advice}")
    for index, (was, now) in enumerate(zip_longest(_labels(root / name / str(live)), labels)):
        if was != now:
            raise SignatureError(f"{name} is live in {root} with label {index} {was!r}, here it is {now!r}: {advice}")


def _labels(version_folder: Path) -> tuple[str, ...]:
    return tuple((version_folder / LABELS).read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def _altered(path: Path) -> InputError:
    return InputError(f"{path} is not as it was released: restore it, or publish the model again")


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
    temporary = root / f".{name}.{CONFIG}"
    storage.replace_newer(root / name / CONFIG, live_config(root / name / str(version), version), temporary)


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
        is_live = live_version(root, event.name) == event.version
        if is_live:
            storage.sync(model)
            storage.sync(root)
        elif event.action == "publish":
            storage.remove(model / str(event.version))
        history.append(root, event.model_copy(update={"state": "done" if is_live else "abandoned"}))
    for leftover in root.glob(f".*.{CONFIG}"):
        leftover.unlink()
