"""As accurate a convolutional network as less than 100,000 parameters allow: one wider layer (90,274 parameters)."""

from pipeline.config import Recipe
from pipeline.models._cnn import DIGITS, RECIPE, Block, Cnn
from pipeline.models._cnn import REFERENCE as REFERENCE
from pipeline.models._cnn import accepts as accepts
from pipeline.specs import Classifier

TITLE = "Medium convolutional network"
DESCRIPTION = (
    "A fixed 5x5 stem with stride 2 (12 patterns of the cosine transform and their negatives), then 3x3 convolutions "
    "to 32, 64 and 96 channels with max pooling after the first, each followed by batch normalisation and ReLU, and "
    "one linear layer."
)

_GENERAL = RECIPE.model_copy(update={"epochs": 8})
_BY_DATASET = {
    "digits_v1": DIGITS,
    "mnist_v1": _GENERAL.model_copy(
        update={"epochs": 60, "augmentation": "affine", "hard_fraction": 0.2, "validation_fraction": 0.0}
    ),
    "fashion_mnist_v1": _GENERAL.model_copy(update={"augmentation": "flip"}),
}


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return Cnn(shape, classes, patterns=12, blocks=(Block(32, pool=True, padding=0), Block(64), Block(96, padding=0)))


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, _GENERAL)
