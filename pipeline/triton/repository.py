"""What a model repository holds, and whether it is as it was released.

    <root>/<name>/config.pbtxt        names the live version
    <root>/<name>/<N>/                a version, which never changes: its files, its own config.pbtxt, release.json
    <root>/history.jsonl, .lock       plain files, which Triton ignores; on a file system

Only `publishing` changes it.
"""

import hashlib
from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from pipeline.config import RunConfig
from pipeline.errors import InputError, SignatureError
from pipeline.records import (
    Benchmarked,
    CodeInfo,
    DataInfo,
    Evaluated,
    Exported,
    Format,
    Gated,
    Record,
    Trained,
    Validated,
    Verified,
)
from pipeline.triton import model_config
from pipeline.triton.history import Event
from pipeline.triton.store import Store

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"
RELEASE = "release.json"
SIGNATURE = "model.sig"
LABELS = model_config.LABELS_FILE
# The names that Triton's backends look for.
MODEL_FILES: dict[Format, str] = {"onnx": "model.onnx", "torchscript": "model.pt", "pytorch": "model.pth"}


class Release(Record):
    """A version's release.json: where it comes from, what was measured and by whom it was proven.

    `hashes` are SHA-256 of every other file of the version, by path, but for the signature, which covers release.json
    as well. The version's number is not in it.
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


def names(store: Store) -> list[str]:
    """Released names, sorted."""
    return sorted(name for name in store.folders() if live_config(store, name) is not None)


def versions(store: Store, name: str) -> list[int]:
    """Versions at hand, ascending."""
    return sorted(int(folder) for folder in store.folders(name) if folder.isdecimal())


def live_config(store: Store, name: str) -> bytes | None:
    """The config.pbtxt that Triton reads, or None where the name is not released."""
    try:
        return store.read(f"{name}/{CONFIG}")
    except FileNotFoundError:
        return None


def own_config(store: Store, name: str, version: int) -> "ModelConfig":
    """A version's own config, in which no number is; InputError where it is missing or cannot be parsed."""
    return model_config.parse(read(store, name, version, CONFIG), f"{store.location}/{name}/{version}/{CONFIG}")


def loaded_in(store: Store, name: str, config: bytes) -> tuple[int, ...]:
    """The versions that this content of a name's config.pbtxt has Triton load, ascending: the last one is live."""
    return model_config.loaded_versions(config, f"{store.location}/{name}/{CONFIG}")


def loaded_versions(store: Store, name: str) -> tuple[int, ...]:
    """The versions that config.pbtxt names, ascending, or () where the name is not released."""
    config = live_config(store, name)
    return () if config is None else loaded_in(store, name, config)


def live_version(store: Store, name: str) -> int | None:
    """The one that answers who names no version, or None where the name is not released."""
    return max(loaded_versions(store, name), default=None)


def unknown_name(store: Store, name: str) -> InputError:
    return InputError(f"{name} is not in {store.location}: known: {', '.join(names(store)) or 'nothing yet'}")


def demand_version(store: Store, name: str, version: int) -> None:
    """InputError where there is no such name, or no such version of it."""
    known = versions(store, name)
    if not known:
        raise unknown_name(store, name)
    if version not in known:
        raise InputError(f"{name} has no version {version}: known: {', '.join(map(str, known))}")


def next_version(store: Store, name: str) -> int:
    """1 + the highest number ever used, also by a publish that did not end."""
    used = [event.version for event in store.events() if event.name == name]
    return 1 + max([live_version(store, name) or 0, *used, *versions(store, name)])


def newest(store: Store) -> str:
    """The name that was published or rolled back last; InputError where the history does not tell."""
    for event in reversed(store.events()):
        # Of a publisher that was killed there is only the intent: the config tells how it ended.
        if event.state != "abandoned" and live_version(store, event.name) == event.version:
            return event.name
    known = names(store)
    if len(known) == 1:
        return known[0]
    if known:
        raise InputError(f"{store.location} does not tell what was released last: name one of {', '.join(known)}")
    raise InputError(f"nothing is released in {store.location}: run bin/train, or name --model-repository")


def find(store: Store, name: str, version: int | None = None) -> int:
    """That version, or the live one where none is named; InputError where it is not at hand."""
    wanted = version or live_version(store, name)
    if wanted is None:
        raise unknown_name(store, name)
    demand_version(store, name, wanted)
    return wanted


def read(store: Store, name: str, version: int, path: str) -> bytes:
    """A file of a version; InputError where it is missing."""
    try:
        return store.read(f"{name}/{version}/{path}")
    except FileNotFoundError:
        raise _altered(store, name, version, path) from None


def release(store: Store, name: str, version: int) -> Release:
    """A version's release.json; InputError where it is missing or of another pipeline."""
    return Release.parse(read(store, name, version, RELEASE), f"{store.location}/{name}/{version}/{RELEASE}")


def check_signature(store: Store, name: str, shape: tuple[int, int, int], labels: tuple[str, ...]) -> None:
    """SignatureError where the name is live with other inputs, outputs or labels: clients would break.

    `shape`: channels, height, width.
    """
    # Backend and batch size are not compared.
    config = model_config.build(name=name, backend="onnxruntime", shape=shape, classes=len(labels), max_batch_size=1)
    demand_signature(store, name, config, labels)


def verified_files(
    store: Store, name: str, version: int, events: list[Event] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file of a version. Take all: the last step tells whether they are as released.

    InputError then names the first file that is altered, missing or not of the release. `events` are those of the
    store, where they have been read already.
    """
    found = {}
    manifest = b""
    for path in sorted(store.files(f"{name}/{version}")):
        content = read(store, name, version, path)
        found[path] = sha256(content)
        manifest = content if path == RELEASE else manifest
        yield path, content
    recorded = {
        event.release_sha256
        for event in (store.events() if events is None else events)
        if (event.name, event.version) == (name, version)
    }
    if RELEASE not in found or (recorded and found[RELEASE] not in recorded):
        raise _altered(store, name, version, RELEASE)
    demand_as_released(found, manifest, f"{store.location}/{name}/{version}")
    own_config(store, name, version)


def verify_version(store: Store, name: str, version: int, events: list[Event] | None = None) -> None:
    """InputError names the first file that is altered, missing or not of the release; `events` as above."""
    for _ in verified_files(store, name, version, events):
        pass


def demand_as_released(found: dict[str, str], manifest: bytes, where: str) -> None:
    """InputError names the first file below `where` whose hash is not the one in the release.json `manifest`."""
    expected = _Manifest.parse(manifest, f"{where}/{RELEASE}").hashes
    for path in sorted(expected.keys() | (found.keys() - {RELEASE, SIGNATURE})):
        if expected.get(path) != found.get(path):
            raise InputError(_not_as_released(f"{where}/{path}"))


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a local folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def labels_text(labels: tuple[str, ...]) -> str:
    """The content of a labels.txt: one class a line, in the order of the probabilities."""
    return "".join(f"{label}\n" for label in labels)


def labels_in(content: bytes) -> tuple[str, ...]:
    """The classes in a labels.txt."""
    return tuple(content.decode().removesuffix("\n").split("\n"))


def pointing_config(own: "ModelConfig", version: int, kept: Collection[int] = ()) -> str:
    """The text of the config.pbtxt that makes the version with this config of its own live."""
    return model_config.to_text(model_config.pointed_at(own, version, kept))


def demand_signature(store: Store, name: str, config: "ModelConfig", labels: tuple[str, ...]) -> None:
    """SignatureError where the name is live with other inputs or outputs than the config's, or other labels."""
    content = live_config(store, name)
    if content is None:
        return
    advice = "clients of the one cannot ask the other; train it under another --release-name"
    is_live = f"{name} is live in {store.location} with"
    current = model_config.parse(content, f"{store.location}/{name}/{CONFIG}")
    tensors = model_config.signature(current), model_config.signature(config)
    for kind, old, new in zip(("inputs", "outputs"), *tensors, strict=True):
        if old != new:
            raise SignatureError(f"{is_live} {kind} {old}, and this model has {new}: {advice}")
    known = labels_in(read(store, name, max(loaded_in(store, name, content)), LABELS))
    for index, (was, now) in enumerate(zip_longest(known, labels)):
        if was != now:
            raise SignatureError(f"{is_live} label {index} {was!r}, here it is {now!r}: {advice}")


def _altered(store: Store, name: str, version: int, path: str) -> InputError:
    return InputError(_not_as_released(f"{store.location}/{name}/{version}/{path}"))


def _not_as_released(path: str) -> str:
    return f"{path} is not as it was released: restore it, or publish the model again"
