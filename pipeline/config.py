"""The values a run works with, and where each came from. Plain data; nothing here imports torch."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from pipeline.errors import InputError
from pipeline.records import Format, Record, ServedFormat

Source = Literal["flag", "environment", ".env", "recipe", "default", "fallback"]
Augmentation = Literal["none", "shift", "flip", "flip_shift", "affine"]
Device = Literal["cpu", "cuda", "mps"]
Autocast = Literal["fp32", "bf16", "fp16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Trainer = Literal["single", "hogwild", "ddp"]
Engine = Literal["auto", "embedded", "docker"]

RELEASE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ENVIRONMENT = {"data_dir": "DATA_DIR", "output_dir": "OUTPUT_DIR", "model_repository": "MODEL_REPOSITORY"}


def is_torchrun_worker() -> bool:
    """Whether torchrun has started this process; its variables then say which one of how many it is."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Criterion(Record):
    """A loss and its weight in the sum."""

    loss_id: str
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Recipe(Record):
    """How a model is best trained on a data set: these take the place of the general defaults.

    Betas and momentum belong to the optimizer.
    """

    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    criteria: tuple[Criterion, ...] | None = None
    optimizer_id: str | None = None
    scheduler_id: str | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    validation_fraction: float | None = None
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    augmentation: Augmentation | None = None
    hard_fraction: float | None = None


class DataOptions(NamedTuple):
    """What a data set may depend on. `image_size` is None where the user asked for none."""

    data_dir: Path
    image_size: int | None
    seed: int


class TrainConfig(Record):
    """Everything that decides what a run's weights are; a run folder is resumed only with an equal one.

    `epochs` is the total, `batch_size` the global batch; `max_steps` ends the run earlier, also within an epoch.
    Every second epoch has only the `hard_fraction` of the images that were hardest.
    """

    model_id: str
    dataset_id: str
    image_size: int | None
    criteria: tuple[Criterion, ...]
    optimizer_id: str
    scheduler_id: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    momentum: float
    gamma: float
    label_smoothing: float
    gradient_clip_norm: float
    augmentation: Augmentation
    validation_fraction: float
    early_stopping_patience: int
    seed: int
    max_steps: int | None = None
    hard_fraction: float = 1.0
    precision: Precision = "fp32"
    trainer: Trainer = "single"

    def data_options(self, data_dir: Path) -> DataOptions:
        return DataOptions(data_dir, self.image_size, self.seed)

    def readable(self) -> dict[str, str]:
        """Each value that is set, as a person would write it."""
        values = {name: value for name, value in self if value is not None}
        values["criteria"] = " ".join(f"{criterion.loss_id}:{criterion.weight:g}" for criterion in self.criteria)
        values["betas"] = " ".join(map(str, self.betas))
        return {name: str(value) for name, value in values.items()}


class GateConfig(Record):
    min_test_accuracy: float
    min_per_class_accuracy: float
    max_model_size_mb: float
    max_inference_time_ms: float


class RunConfig(Record):
    """What one `bin/train` was asked to do.

    `model_repository` is a folder, or where else one lies; `devices` are those that may be used, best first;
    `num_processes` those that train on this host; `checkpoint` is None where it lies in the run's folder. `sources`
    names for each value where it came from.
    """

    train: TrainConfig
    gates: GateConfig
    default_gates: GateConfig
    data_dir: Path
    output_dir: Path
    model_repository: str
    release_name: str
    devices: tuple[Device, ...]
    export_formats: tuple[Format, ...]
    served_format: ServedFormat
    test_batch_size: int
    log_interval: int
    visualizations: bool
    export: bool
    publish: bool
    dry_run: bool
    save_model: bool
    resume: bool
    dataset_fallback: bool
    num_processes: int = 1
    checkpoint: Path | None = None
    tensorboard: bool = False
    validate_with: Engine = "embedded"
    sources: dict[str, Source]

    @property
    def judged_format(self) -> Format:
        """The file that the gates judge: the served one, or the first where it is not exported."""
        return self.served_format if self.served_format in self.export_formats else self.export_formats[0]


class Value(NamedTuple):
    value: object
    source: Source


def read_dotenv(path: Path) -> dict[str, str]:
    """`NAME=value` lines of a `.env` file; quotes around a value are taken off. {} where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected NAME=value lines; mend or remove it") from None
    values = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"{path} line {number}: expected NAME=value, got {text!r}; mend or remove the line")
        values[name.strip()] = value.strip().strip("\"'")
    return values


def resolve(
    flags: Mapping[str, object], recipe: Mapping[str, object], defaults: Mapping[str, object], dotenv: Mapping[str, str]
) -> dict[str, Value]:
    """One value for each name of `defaults`: flag, then environment, then .env, then recipe, then default.

    A flag that was not given is None.
    """

    def one(name: str) -> Value:
        variable = ENVIRONMENT.get(name, "")
        if flags.get(name) is not None:
            return Value(flags[name], "flag")
        if os.environ.get(variable):
            return Value(os.environ[variable], "environment")
        if dotenv.get(variable):
            return Value(dotenv[variable], ".env")
        if recipe.get(name) is not None:
            return Value(recipe[name], "recipe")
        return Value(defaults[name], "default")

    return {name: one(name) for name in defaults}
