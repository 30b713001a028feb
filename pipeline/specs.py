"""What an entry of the zoo must provide. One file per entry; the file's name is its id."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import DataOptions, Recipe
from pipeline.records import DataInfo

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]
Probabilities = NDArray[np.float32]

# Names of the served tensors, alike in all formats; TorchScript asks for the "__0".
INPUT, OUTPUT = "image", "probabilities__0"
# The largest batch that a server makes of single requests.
MAX_BATCH_SIZE = 128


class Classifier(nn.Module):
    """Base of all networks: normalised float images [N, C, H, W] to scores [N, K].

    Scores are logits unless the network says otherwise by its own `log_probabilities`.
    """

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Scores [N, K] to log-probabilities [N, K]; the exponentials of a row sum to 1."""
        return torch.log_softmax(scores, dim=1)


class Capsules(Classifier):
    """Base of capsule networks: scores are the lengths of class capsules, 0 to 1."""

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Of lengths over their sum."""
        lengths = scores + 1e-7
        return torch.log(lengths / lengths.sum(dim=1, keepdim=True))


class ModelEntry(Protocol):
    """A file in `pipeline/models`.

    `accepts` returns None where a network can be built for images of this shape (channels, height,
    width) and number of classes, else what it needs; `recipe` is the model's own for a data set.
    """

    TITLE: str
    DESCRIPTION: str
    REFERENCE: str

    def accepts(self, shape: tuple[int, int, int], classes: int) -> str | None: ...
    def build(self, shape: tuple[int, int, int], classes: int) -> Classifier: ...
    def recipe(self, dataset_id: str) -> Recipe: ...


@dataclass(frozen=True)
class Split:
    """Some images of an array, and their labels.

    `array` uint8 [M, C, H, W] may be mapped from a file larger than memory: nobody copies it whole.
    `rows` int64 [N] are the places of this split's images in it, `labels` int64 [N] their classes.
    """

    array: Images
    rows: Rows
    labels: Labels

    @classmethod
    def whole(cls, array: Images, labels: Labels) -> "Split":
        return cls(array, np.arange(len(array)), labels)

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, chosen: slice | Rows) -> Images:
        """A copy of some of the N images, [n, C, H, W]."""
        return self.array[self.rows[chosen]]

    def take(self, chosen: slice | Rows) -> "Split":
        """A split of some of the N images; none is read for it."""
        return Split(self.array, self.rows[chosen], self.labels[chosen])

    def spread(self, count: int) -> "Split":
        """At most so many of the images, from all over: those of an image folder are sorted by class."""
        count = min(count, len(self))
        return self.take(np.arange(count) * len(self) // count)

    def batches(self, size: int) -> Iterator[Images]:
        """All images in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.images(slice(start, start + size))


class Arrays(NamedTuple):
    """All images of a data set, and the SHA-256 of its content where `load` knows it."""

    train: Split
    test: Split
    sha256: str | None = None


@dataclass(frozen=True)
class Description:
    """What is known of a data set before its images are read.

    `shape` (channels, height, width) is that of the images as they are loaded. `release_name` stands in
    for the id in the names of releases where the data are the user's own.
    """

    short_name: str
    title: str
    source: str
    license: str
    shape: tuple[int, int, int]
    labels: tuple[str, ...]
    release_name: str | None = None


class Prepared(NamedTuple):
    """A data set as a run uses it; validation images are no longer among the training images."""

    info: DataInfo
    train: Split
    validation: Split
    test: Split


class DatasetEntry(Protocol):
    """A file in `pipeline/datasets`.

    `load` returns all images, decoded, in the shape that `describe` promises for the same options; both
    raise DataError where the data are missing, altered or not to be had.
    """

    def describe(self, options: DataOptions) -> Description: ...
    def load(self, options: DataOptions) -> Arrays: ...


class LossEntry(Protocol):
    """A file in `pipeline/losses`: mean loss over a batch, as a scalar tensor.

    `scores` [N, K] as the network gave them, `log_probabilities` [N, K], `targets` int64 [N]. `accepts`
    returns None where the loss has a meaning for this network's scores, else what it needs.
    """

    def accepts(self, network: Classifier) -> str | None: ...
    def loss(self, scores: Tensor, log_probabilities: Tensor, targets: Tensor, label_smoothing: float) -> Tensor: ...


ParameterGroups = list[dict[str, Any]]


class OptimizerOptions(NamedTuple):
    betas: tuple[float, float]
    momentum: float


class OptimizerEntry(Protocol):
    """A file in `pipeline/optimizers`."""

    def build(
        self, parameters: ParameterGroups, learning_rate: float, options: OptimizerOptions
    ) -> torch.optim.Optimizer: ...


class ScheduleEntry(Protocol):
    """A file in `pipeline/schedules`.

    `factor` gives what the learning rate is multiplied by at a step of an epoch, both counted from 0 in the whole
    run. `DEPENDS_ON_TOTAL`: the curve
    is another one where a run is made longer, so such a run cannot be continued past its end.
    """

    DEPENDS_ON_TOTAL: bool

    def factor(self, step: int, epoch: int, total_steps: int, gamma: float) -> float: ...


Runner = Callable[[Images], Probabilities]


class FormatEntry(Protocol):
    """A file in `pipeline/formats`: how a network is written to a file and asked from that file alone.

    `export` writes the served network (uint8 [N, C, H, W] to probabilities [N, K]) and returns what
    is worth knowing of the file; `open` uses as many threads as torch does at that moment. `build`
    makes the network that a format without a graph of its own is read into.
    """

    SUFFIX: str

    def export(self, served: nn.Module, example: Tensor, path: Path) -> dict[str, str | int]: ...
    def open(self, path: Path, build: Callable[[], nn.Module]) -> Runner: ...
