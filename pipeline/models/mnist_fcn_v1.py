"""A fully connected network: 784-128-256-512-128-10 with ReLU."""

import itertools
import math

from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.specs import Classifier

TITLE = "Fully connected network"
DESCRIPTION = "Four hidden linear layers of 128, 256, 512 and 128 units with ReLU on the flattened image."
REFERENCE = (
    "Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors, doi:10.1038/323533a0"
)

_HIDDEN = (128, 256, 512, 128)
_BY_DATASET = {"digits_v1": Recipe(epochs=30, learning_rate=0.002, scheduler_id="one_cycle", augmentation="shift")}


def accepts(shape: tuple[int, int, int], classes: int) -> str | None:
    return None if math.prod(shape) <= 4096 else "at most 4096 values per image (channels x height x width)"


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return FullyConnected(shape, classes)


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, Recipe(scheduler_id="one_cycle", learning_rate=0.002))


class FullyConnected(Classifier):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        widths = (math.prod(shape), *_HIDDEN)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores
