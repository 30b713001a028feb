"""Entries by id: the file `pipeline/<folder>/<id>.py` is the entry. Ids are only ever looked up in a listing."""

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

from pipeline.errors import UnknownIdError

if TYPE_CHECKING:
    from pipeline.specs import DatasetEntry, FormatEntry, LossEntry, ModelEntry, OptimizerEntry, ScheduleEntry

Folder = Literal["models", "datasets", "losses", "optimizers", "schedules", "formats"]

_KINDS: dict[Folder, str] = {
    "models": "model",
    "datasets": "data set",
    "losses": "loss",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "formats": "format",
}


@cache
def ids(folder: Folder) -> tuple[str, ...]:
    """All ids of a kind, sorted. Files that begin with an underscore are parts of entries, not entries."""
    files = (Path(__file__).parent / folder).glob("[!_]*.py")
    return tuple(sorted(file.stem for file in files))


def model(model_id: str) -> "ModelEntry":
    return cast("ModelEntry", _entry("models", model_id))


def dataset(dataset_id: str) -> "DatasetEntry":
    return cast("DatasetEntry", _entry("datasets", dataset_id))


def loss(loss_id: str) -> "LossEntry":
    return cast("LossEntry", _entry("losses", loss_id))


def optimizer(optimizer_id: str) -> "OptimizerEntry":
    return cast("OptimizerEntry", _entry("optimizers", optimizer_id))


def schedule(schedule_id: str) -> "ScheduleEntry":
    return cast("ScheduleEntry", _entry("schedules", schedule_id))


def file_format(format_id: str) -> "FormatEntry":
    return cast("FormatEntry", _entry("formats", format_id))


def _entry(folder: Folder, entry_id: str) -> ModuleType:
    # A path in place of an id is in no listing, so nothing outside the folder can be opened.
    if entry_id not in ids(folder):
        raise UnknownIdError(_KINDS[folder], entry_id, ids(folder))
    return importlib.import_module(f"pipeline.{folder}.{entry_id}")
