"""From what the user typed, the environment and a model's recipe to a `RunConfig`."""

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import registry
from pipeline.config import (
    RELEASE_NAME,
    Criterion,
    Device,
    GateConfig,
    RunConfig,
    Source,
    TrainConfig,
    Trainer,
    Value,
    is_torchrun_worker,
    read_dotenv,
    resolve,
)
from pipeline.errors import InputError
from pipeline.options import DEFAULTS, FORMATS
from pipeline.records import Format

# Where each trainer can work, best first.
_DEVICES: dict[Trainer, tuple[Device, ...]] = {
    "single": ("cuda", "mps", "cpu"),
    "hogwild": ("cpu",),
    "ddp": ("cuda", "cpu"),
}


# Values that only flags set, and which flags.
_FLAGS = {
    "model_id": {"model_id"},
    "dataset_id": {"dataset_id"},
    "devices": {"device", "no_cuda", "no_mps"},
    "num_processes": {"num_processes"},
    "export_formats": {"export_formats"},
    "served_format": {"served_format"},
    "release_name": {"release_name"},
    "validate_with": {"validate_with"},
}


def configure(flags: Mapping[str, Any], dataset_id: str, *, fallback: bool, started: time.struct_time) -> RunConfig:
    """The values a run works with. UnknownIdError or InputError where one cannot be used.

    `flags` as typed, None where not given, and under `typed` the names of those that were. `fallback` says that
    `dataset_id` stands in for another.
    """
    model = registry.model(flags["model_id"])
    registry.dataset(dataset_id)
    recipe = model.recipe(dataset_id).model_dump(exclude_none=True)
    if flags["epochs"] is not None:
        recipe.pop("max_steps", None)
    given = {**flags, "criteria": tuple(flags["criterion_id"]) or None}
    values = resolve(given, recipe, DEFAULTS, read_dotenv(Path(".env")))
    criteria = _criteria(values["criteria"].value)
    for criterion in criteria:
        registry.loss(criterion.loss_id)
    registry.optimizer(str(values["optimizer_id"].value))
    registry.schedule(str(values["scheduler_id"].value))
    plain: dict[str, Any] = {name: value.value for name, value in values.items()}
    train = TrainConfig.model_validate(
        {
            **{name: plain[name] for name in TrainConfig.model_fields if name in plain},
            "model_id": flags["model_id"],
            "dataset_id": dataset_id,
            "criteria": criteria,
        }
    )
    if train.early_stopping_patience and not train.validation_fraction:
        raise InputError("--early-stopping-patience needs validation images: give a --validation-fraction above 0")
    if flags["tensorboard"] and find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs the package tensorboard: run "
            "bin/python -m pip install --require-hashes -r requirements-tensorboard.lock"
        )
    data_dir = _path(values["data_dir"])
    data = registry.dataset(dataset_id).describe(train.data_options(data_dir))
    formats = _formats(flags)
    return RunConfig(
        train=train,
        gates=GateConfig.model_validate({name: plain[name] for name in GateConfig.model_fields}),
        default_gates=GateConfig.model_validate({name: DEFAULTS[name] for name in GateConfig.model_fields}),
        data_dir=data_dir,
        output_dir=_path(values["output_dir"])
        if plain["output_dir"]
        else Path(time.strftime("output_%Y%m%d_%H%M%S", started)),
        model_repository=_location(values["model_repository"]),
        release_name=_release_name(flags["release_name"], f"{flags['model_id']}-{data.release_name or dataset_id}"),
        devices=_devices(flags, train.trainer),
        num_processes=_num_processes(flags["num_processes"], train),
        export_formats=formats,
        served_format=flags["served_format"],
        test_batch_size=plain["test_batch_size"],
        log_interval=plain["log_interval"],
        visualizations=not flags["skip_visualizations"],
        export=not flags["skip_export"],
        publish=not (flags["no_publish"] or flags["dry_run"] or flags["skip_export"]),
        dry_run=flags["dry_run"],
        checkpoint=flags["checkpoint"],
        save_model=flags["save_model"],
        resume=flags["resume"],
        dataset_fallback=fallback,
        tensorboard=flags["tensorboard"],
        validate_with=flags["validate_with"],
        sources=_sources(values, flags["typed"], fallback),
    )


def _sources(values: Mapping[str, Value], typed: frozenset[str], fallback: bool) -> dict[str, Source]:
    sources: dict[str, Source] = {name: value.source for name, value in values.items()}
    for name, flags in _FLAGS.items():
        sources[name] = "flag" if typed & flags else "default"
    if fallback:
        sources["dataset_id"] = "fallback"
    return sources


def folder(given: str | None, name: str) -> Path:
    """The folder that `name` stands for: flag, environment, .env, default."""
    return _path(resolve({name: given}, {}, {name: DEFAULTS[name]}, read_dotenv(Path(".env")))[name])


def model_repository(given: str | None) -> str:
    """Where the model repository lies: flag, environment, .env, default."""
    name = "model_repository"
    return _location(resolve({name: given}, {}, {name: DEFAULTS[name]}, read_dotenv(Path(".env")))[name])


def _location(value: Value) -> str:
    location = str(value.value)
    return location if "://" in location else str(_path(value))


def _path(value: Value) -> Path:
    return Path(os.path.expanduser(str(value.value)))  # noqa: PTH111 - pathlib's fails where there is no such user


def _criteria(typed: Any) -> tuple[Criterion, ...]:
    """`nll` or `nll:0.5`, or what a recipe holds already."""
    return tuple(_criterion(item) if isinstance(item, str) else Criterion.model_validate(item) for item in typed)


def _criterion(text: str) -> Criterion:
    loss_id, _, weight = text.partition(":")
    try:
        return Criterion.model_validate({"loss_id": loss_id, "weight": weight or 1.0})
    except ValidationError:
        raise InputError(f"--criterion-id {text!r}: the weight must be a number above 0, as in nll:1.0") from None


def _formats(flags: Mapping[str, Any]) -> tuple[Format, ...]:
    typed = flags["export_formats"]
    formats = FORMATS if not typed or "all" in typed else tuple(name for name in FORMATS if name in typed)
    if flags["served_format"] not in formats and not (flags["no_publish"] or flags["skip_export"] or flags["dry_run"]):
        raise InputError(
            f"--export-format leaves out {flags['served_format']}, which is to be served: "
            f"add --export-format {flags['served_format']}, or give --no-publish"
        )
    return formats


def _release_name(given: str | None, default: str) -> str:
    name = given if given is not None else default
    if not RELEASE_NAME.fullmatch(name):
        raise InputError(
            f"--release-name {name!r}: expected 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"
        )
    return name


def _devices(flags: Mapping[str, Any], trainer: Trainer) -> tuple[Device, ...]:
    excluded = {name for name in ("cuda", "mps") if flags[f"no_{name}"]}
    wanted = _DEVICES[trainer] if flags["device"] == "auto" else (flags["device"],)
    if not set(wanted) <= set(_DEVICES[trainer]):
        raise InputError(
            f"--trainer {trainer} trains on {' or '.join(_DEVICES[trainer])}: use --device auto or --trainer single"
        )
    left = tuple(name for name in wanted if name not in excluded)
    if not left:
        raise InputError(f"--device {flags['device']} and --no-{flags['device']} exclude each other: give one of them")
    return left


def _num_processes(given: int | None, train: TrainConfig) -> int:
    if train.trainer == "single":
        if given not in (None, 1):
            raise InputError(f"--num-processes {given} needs --trainer hogwild or ddp: --trainer single is one process")
        return 1
    processes = in_all = given or 2
    if train.trainer == "ddp" and is_torchrun_worker():
        processes, in_all = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if given not in (None, processes):
            raise InputError(
                f"--num-processes {given}: torchrun has started {processes} on this host; leave the flag out, or give "
                "torchrun the same number by --nproc-per-node"
            )
    if train.trainer == "ddp" and in_all > train.batch_size:
        raise InputError(
            f"--num-processes: {in_all} in all are more than the {train.batch_size} images of a batch, which they "
            "share; use fewer processes or a larger --batch-size"
        )
    return processes
