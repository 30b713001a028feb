"""A checkpoint is one file, replaced in one step; it is read without running code from it."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from pipeline.config import TrainConfig
from pipeline.errors import CheckpointError, unwritable
from pipeline.records import DataInfo, write_atomically

_DIGEST_BYTES = 32


def identity_of(config: TrainConfig, data: DataInfo) -> dict[str, Any]:
    """What must be equal for a run to go on; the number of epochs is judged by the schedule."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude={"epochs"})
    return {**values, "data_sha256": data.sha256}


def save(path: Path, state: dict[str, Any]) -> None:
    """Tensors, numbers, strings, lists and dicts, behind their SHA-256.

    FolderError where it cannot be written, StorageError where the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    try:
        write_atomically(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        raise unwritable(error)(
            f"{path} cannot be written ({error.strerror}): free space or use another --output-dir"
        ) from None


class Origin(NamedTuple):
    """What a checkpoint's network was trained with, and the SHA-256 of its data."""

    config: TrainConfig
    data_sha256: str


def origin(path: Path) -> Origin:
    """CheckpointError where the file is missing, damaged or of another version of this program."""
    state = _read(path)
    if state is None:
        raise CheckpointError(f"{path} is missing: expected a checkpoint of bin/train; train first")
    identity = json.loads(state["identity"])
    data_sha256 = identity.pop("data_sha256")
    try:
        return Origin(TrainConfig.model_validate({**identity, "epochs": state["total_epochs"]}), data_sha256)
    except ValidationError:
        raise CheckpointError(f"{path} was made by another version of this program: train anew") from None


def epochs(path: Path) -> int:
    """How many a checkpoint has behind it; 0 where there is no file. CheckpointError where it is damaged."""
    state = _read(path)
    return len(state["progress"]["epochs"]) if state else 0


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state that was saved, on the CPU, or None where there is no file.

    CheckpointError where the file is damaged, or was made by a run of another `identity`: names the
    first difference.
    """
    state = _read(path)
    if state is None:
        return None
    difference = first_difference(json.loads(state["identity"]), identity)
    if difference is not None:
        raise CheckpointError(
            f"{path} belongs to another run: {difference}; use the same values, another --output-dir, or begin anew "
            "with --no-resume"
        )
    return state


def _read(path: Path) -> dict[str, Any] | None:
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(f"{path} is damaged: remove it, or begin anew with --no-resume")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Names the value that differs, in words; None where all are equal."""
    # Of another model or data set the recipe is another one, too.
    for name in ("model_id", "dataset_id", *sorted(before.keys() | now.keys())):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
    return None


def weights_sha256(network: nn.Module) -> str:
    """Over names and values of all weights and buffers, independent of how they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
