"""What each stage returns: frozen records that go to JSON and back, and reject what they do not know.

Units: seconds, milliseconds where a name ends in `_ms`, bytes, shares between 0 and 1. Paths are
relative to the run's folder, so that a run folder can be moved.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError

_BY_A_CLOCK = "by a clock"
# None in a release that is to be the same bytes whenever it is made.
Clocked = Annotated[float | None, _BY_A_CLOCK]

Format = Literal["pytorch", "onnx", "torchscript"]
ServedFormat = Literal["onnx", "torchscript"]


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record back; InputError where the file is missing, cut off or of another shape."""
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise InputError(f"{path} is missing: expected a {cls.__name__} record; run the stage before") from None

    @classmethod
    def parse(cls, content: bytes, path: str) -> Self:
        """Read a record back from its JSON; InputError, which names the path, where it has another shape."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{path} is not a {cls.__name__} record: {where}: {first['msg']}") from None

    def save(self, path: Path) -> None:
        """Write the record so that a reader sees the old file or the whole new one."""
        write_atomically(path, self.model_dump_json(indent=2).encode() + b"\n")

    def without_times(self) -> Self:
        """The same, with None for whatever a clock has measured."""
        fields = type(self).model_fields.items()
        update = {
            name: None if _BY_A_CLOCK in info.metadata else _without_times(getattr(self, name)) for name, info in fields
        }
        return self.model_copy(update=update)


def _without_times(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_without_times, value))
    return value.without_times() if isinstance(value, Record) else value


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step that survives a crash of the machine.

    For one writer at a time: what a killed one left has the same name, and is overwritten by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class CodeInfo(Record):
    """Where the code, the libraries and the machine of a run came from."""

    revision: str | None
    modified: bool
    python: str
    platform: str
    cpu: str
    threads: int
    libraries: dict[str, str]
    cpu_capability: str | None = None


class DataInfo(Record):
    """A data set as it was used.

    `sha256` is over the raw arrays, in a fixed order; of an image folder, over the names and contents of its files.
    """

    dataset_id: str
    short_name: str
    title: str
    source: str
    license: str
    shape: tuple[int, int, int]
    labels: tuple[str, ...]
    train_images: int
    validation_images: int
    test_images: int
    test_images_per_class: tuple[int, ...]
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fallback: bool


class Epoch(Record):
    """Means over one epoch. Validation values are None where no images were set aside.

    `is_hard`: it had only the images of the highest losses.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: Clocked
    is_hard: bool = False


class Layer(Record):
    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int


class BatchSeries(Record):
    """One value per logged batch; `epoch` is a fraction, so that series of all lengths share an axis."""

    epoch: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    learning_rate: tuple[float, ...]
    gradient_norm: tuple[float, ...]


class Trained(Record):
    """`seconds` counts the training loop only; `images_seen` counts repetitions.

    `precision` is the one that was used. `reproducible_with`: what must be equal, beside the configuration, for the
    same seed to give the same weights; None where they differ from run to run.
    """

    model_id: str
    parameters: int
    layers: tuple[Layer, ...]
    device: str
    epochs: tuple[Epoch, ...]
    stopped_early: bool
    best_epoch: int | None
    batches: BatchSeries
    images_seen: int
    seconds: Clocked
    weights_sha256: str
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    trainer: Literal["single", "hogwild", "ddp"] = "single"
    processes: int = 1
    reproducible_with: dict[str, str] | None = None


class ClassMetrics(Record):
    """Recall is the per-class accuracy that is gated. None where the class has no test images."""

    label: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


class Metrics(Record):
    """Over the whole test set. `confusion[i][j]` counts images of class i that were answered as j."""

    images: int
    loss: float
    accuracy: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]


class Evaluated(Record):
    """The trained network in PyTorch, before any export: the reference of `verify`."""

    metrics: Metrics
    seconds: Clocked


class EvalResults(Record):
    """The content of `eval_results.json`: how well a run's network, a released version or a server answers a test set.

    `accuracy` and those of the classes are shares of the test images, None for a class without one; `test_loss` is the
    mean negative log-likelihood. `version`: None of a run. `file_sha256`: None of a server.
    """

    model: str
    version: int | None
    answered_by: str
    file_sha256: str | None
    dataset_id: str
    data_sha256: str
    images: int
    test_loss: float
    accuracy: float
    per_class_accuracy: dict[str, float | None]


class ExportedFile(Record):
    format: Format
    path: str
    bytes: int
    sha256: str
    details: dict[str, str | int]


class Exported(Record):
    files: tuple[ExportedFile, ...]


class VerifiedFile(Record):
    """One exported file, loaded from disk and asked.

    `largest_difference`: of any probability, to PyTorch, over the whole test set;
    `agreement`: share of test images with the same answer;
    `batch_difference`: largest difference between answers at batches 1, 2, 3 and the maximum;
    `finite`: answers to test images, zeros, ones and noise are finite and each row sums to 1.
    """

    format: Format
    metrics: Metrics
    largest_difference: float
    agreement: float
    batch_sizes: tuple[int, ...]
    batch_difference: float
    finite: bool


class Verified(Record):
    files: tuple[VerifiedFile, ...]


class BenchmarkedFile(Record):
    """Latency: one image, one thread, in process, after warm-up. Throughput: images/s at batch 64."""

    format: Format
    requests: int
    p50_ms: Clocked
    p95_ms: Clocked
    p99_ms: Clocked
    throughput: Clocked
    throughput_threads: int


class Benchmarked(Record):
    files: tuple[BenchmarkedFile, ...]


class ModelMetrics(Record):
    """The summary in `logs/metrics.json`, with all series. None where nothing was exported."""

    model_id: str
    parameters: int
    epochs: tuple[Epoch, ...]
    batches: BatchSeries
    test: Metrics
    verified: Verified | None
    benchmarked: Benchmarked | None


class Gate(Record):
    """One judgement: `measured` stands `relation` `threshold`, or it failed. Thresholds are inclusive.

    `measured` is None where it would be `Clocked`, and the release has none.
    """

    name: str
    measured: float | None
    relation: Literal[">=", "<="]
    threshold: float
    unit: str
    default_threshold: float
    passed: bool
    detail: str

    def sentence(self) -> str:
        """What was measured against what, for a person."""
        unit = f" {self.unit}" if self.unit else ""
        wanted = "at least" if self.relation == ">=" else "at most"
        assert self.measured is not None  # that only a release can lack
        measured = "not a number (NaN)" if math.isnan(self.measured) else f"{self.measured:.4g}{unit}"
        return f"{self.name} is {measured}, must be {wanted} {self.threshold:g}{unit} ({self.detail})"

    def without_times(self) -> Self:
        return self.model_copy(update={"measured": None}) if self.unit == "ms" else self


class Gated(Record):
    served_format: Format
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return bool(self.gates) and all(gate.passed for gate in self.gates)

    @property
    def failed(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)


class Carded(Record):
    card: str
    plots: tuple[str, ...]


class Assembled(Record):
    """A complete Triton repository with one model in one version, in the run's folder.

    `hashes`: SHA-256 by path, relative to the version's folder, of all files in it.
    """

    name: str
    version: int
    root: str
    served_format: ServedFormat
    hashes: dict[str, str]


class Check(Record):
    name: str
    passed: bool
    detail: str


class Validated(Record):
    """The verdict of a real Triton server on the assembled model."""

    name: str
    version: int
    server: str
    seconds_to_load: Clocked
    checks: tuple[Check, ...]
    log_tail: tuple[str, ...]
    hashes: dict[str, str]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


class Published(Record):
    """`previous` is the version that was live before; where this one is not live now, the one that stayed so.

    `new` is false of a version that was there already.
    """

    name: str
    version: int
    previous: int | None
    repository: str
    live: bool = True
    new: bool = True
