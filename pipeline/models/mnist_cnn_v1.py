"""A small fast convolutional network: a fixed stem, three convolutions, one linear layer (68,898 parameters)."""

from pipeline.config import Recipe
from pipeline.models._cnn import DIGITS, RECIPE, Block, Cnn
from pipeline.models._cnn import REFERENCE as REFERENCE
from pipeline.models._cnn import accepts as accepts
from pipeline.specs import Classifier

TITLE = "Small convolutional network"
DESCRIPTION = (
    "A fixed 5x5 stem with stride 2 (12 patterns of the cosine transform and their negatives), then 3x3 convolutions "
    "to 32, 64 and 64 channels with max pooling after the first, each followed by batch normalisation and ReLU, and "
    "one linear layer."
)

_BY_DATASET = {
    "digits_v1": DIGITS,
    "mnist_v1": RECIPE.model_copy(
        update={
            "epochs": 7,
            "learning_rate": 0.02,
            "betas": (0.8, 0.95),
            "weight_decay": 0.2,
            "augmentation": "shift",
            "hard_fraction": 0.2,
        }
    ),
    "fashion_mnist_v1": RECIPE.model_copy(update={"epochs": 5, "augmentation": "flip"}),
}


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return Cnn(shape, classes, patterns=12, blocks=(Block(32, pool=True, padding=0), Block(64), Block(64, padding=0)))


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, RECIPE)
