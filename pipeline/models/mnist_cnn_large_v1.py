"""The most accurate of the convolutional networks: a fixed stem, four convolutions, one linear layer (289,578
parameters)."""

from pipeline.config import Recipe
from pipeline.models._cnn import DIGITS, RECIPE, Block, Cnn
from pipeline.models._cnn import REFERENCE as REFERENCE
from pipeline.models._cnn import accepts as accepts
from pipeline.specs import Classifier

TITLE = "Large convolutional network"
DESCRIPTION = (
    "A fixed 5x5 stem with stride 2 (16 patterns of the cosine transform and their negatives), then 3x3 convolutions "
    "to 64, 64, 128 and 128 channels with max pooling after the second and the last, each followed by batch "
    "normalisation and ReLU, and one linear layer."
)

_GENERAL = RECIPE.model_copy(update={"epochs": 8})
_BY_DATASET = {
    "digits_v1": DIGITS,
    "mnist_v1": _GENERAL.model_copy(update={"epochs": 11, "augmentation": "affine", "hard_fraction": 0.2}),
    "fashion_mnist_v1": _GENERAL.model_copy(update={"augmentation": "flip"}),
}


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return Cnn(shape, classes, patterns=16, blocks=(Block(64), Block(64, pool=True), Block(128), Block(128, pool=True)))


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, _GENERAL)
