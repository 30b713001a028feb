"""What a model repository on a file system holds, and whether it is as it was released.

    <root>/<name>/config.pbtxt        names the live version
    <root>/<name>/<N>/                a version, which never changes: its files, its own config.pbtxt, release.json
    <root>/history.jsonl, .lock       plain files, which Triton ignores

Only `publishing` changes it.
"""

import hashlib
import re
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from pipeline.config import RELEASE_NAME, RunConfig
from pipeline.errors import FolderError, InputError, SignatureError
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
from pipeline.triton import history, model_config, storage

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"
RELEASE = "release.json"
LABELS = model_config.LABELS_FILE
VERSION = re.compile("[1-9][0-9]{0,17}")
# The names that Triton's backends look for.
MODEL_FILES: dict[Format, str] = {"onnx": "model.onnx", "torchscript": "model.pt", "pytorch": "model.pth"}


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


def parsed(target: str) -> tuple[str, int | None]:
    """The name and the version of `NAME` or `NAME:V`; InputError where it is neither."""
    name, colon, number = target.partition(":")
    if not RELEASE_NAME.fullmatch(name) or (colon and not VERSION.fullmatch(number)):
        raise InputError(f"{target!r} names no release: expected NAME or NAME:VERSION, as mnist_cnn_v1-mnist_v1:3")
    return name, int(number) if colon else None


def find(root: Path, name: str, version: int | None = None) -> int:
    """That version, or the live one where none is named; InputError where it is not at hand."""
    if name not in names(root):
        raise InputError(f"{name} is not in {root}: known: {', '.join(names(root)) or 'nothing yet'}")
    at_hand = versions(root, name)
    wanted = version or live_version(root, name)
    if wanted not in at_hand:
        raise InputError(f"{name} version {wanted} is not in {root}: known: {', '.join(map(str, at_hand)) or 'none'}")
    return wanted


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
        demand_signature(root, name, config, labels)


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


def labels_of(version_folder: Path) -> tuple[str, ...]:
    """The classes in a version's labels.txt."""
    return tuple((version_folder / LABELS).read_text(encoding="utf-8").removesuffix("\n").split("\n"))


def live_config(version_folder: Path, version: int) -> str:
    """The text of the config.pbtxt that makes this version live."""
    return model_config.to_text(model_config.pointed_at(model_config.read(version_folder / CONFIG), version))


def demand_signature(root: Path, name: str, config: "ModelConfig", labels: tuple[str, ...]) -> None:
    """SignatureError where the name is live with other inputs or outputs than the config's, or other labels."""
    live = live_version(root, name)
    if live is None:
        return
    advice = "clients of the one cannot ask the other; give another --release-name"
    tensors = model_config.signature(model_config.read(root / name / CONFIG)), model_config.signature(config)
    for kind, old, new in zip(("inputs", "outputs"), *tensors, strict=True):
        if old != new:
            raise SignatureError(f"{name} is live in {root} with {kind} {old}, and this model has {new}: {advice}")
    for index, (was, now) in enumerate(zip_longest(labels_of(root / name / str(live)), labels)):
        if was != now:
            raise SignatureError(f"{name} is live in {root} with label {index} {was!r}, here it is {now!r}: {advice}")


def _altered(path: Path) -> InputError:
    return InputError(f"{path} is not as it was released: restore it, or publish the model again")
