"""What an entry of the zoo must provide. One file per entry; the file's name is its id."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.records import DataInfo, Format

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
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
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: Images
    labels: Labels


class Arrays(NamedTuple):
    train: Split
    test: Split


class Prepared(NamedTuple):
    """A data set as a run uses it; validation images are no longer among the training images."""

    info: DataInfo
    train: Split
    validation: Split
    test: Split


class DatasetEntry(Protocol):
    """A file in `pipeline/datasets`.

    `load` returns all images, decoded; DataError where they are missing, altered or not to be had.
    """

    SHORT_NAME: str
    TITLE: str
    SOURCE: str
    LICENSE: str
    SHAPE: tuple[int, int, int]
    LABELS: tuple[str, ...]

    def load(self, data_dir: Path) -> Arrays: ...


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

    `factor` gives what the learning rate is multiplied by at a step. `DEPENDS_ON_TOTAL`: the curve
    is another one where a run is made longer, so such a run cannot be continued past its end.
    """

    DEPENDS_ON_TOTAL: bool

    def factor(self, step: int, steps_per_epoch: int, total_steps: int, gamma: float) -> float: ...


Runner = Callable[[Images], Probabilities]


class FormatEntry(Protocol):
    """A file in `pipeline/formats`: how a network is written to a file and asked from that file alone.

    `export` writes the served network (uint8 [N, C, H, W] to probabilities [N, K]) and returns what
    is worth knowing of the file; `open` uses as many threads as torch does at that moment. `build`
    makes the network that a format without a graph of its own is read into.
    """

    FORMAT: Format
    SUFFIX: str

    def export(self, served: nn.Module, example: Tensor, path: Path) -> dict[str, str | int]: ...
    def open(self, path: Path, build: Callable[[], nn.Module]) -> Runner: ...


def batches(images: Images, size: int) -> Iterator[Images]:
    """Consecutive slices of at most `size` images."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
