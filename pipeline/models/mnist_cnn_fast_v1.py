"""The smallest of the convolutional networks, for 99 % within seconds: a fixed stem, two convolutions, one linear
layer (31,906 parameters)."""

from pipeline.config import Criterion, Recipe
from pipeline.models._cnn import REFERENCE as REFERENCE
from pipeline.models._cnn import Block, Cnn
from pipeline.models._cnn import accepts as accepts
from pipeline.specs import Classifier

TITLE = "Fast convolutional network"
DESCRIPTION = (
    "A fixed 5x5 stem with stride 2 (12 patterns of the cosine transform and their negatives), then 3x3 convolutions "
    "to 32 channels with max pooling and to 64, each followed by batch normalisation and ReLU, and one linear layer."
)

_GENERAL = Recipe(
    epochs=1,
    batch_size=128,
    learning_rate=0.01,
    optimizer_id="adamw",
    scheduler_id="one_cycle",
    criteria=(Criterion(loss_id="nll"),),
    betas=(0.7, 0.9),
    label_smoothing=0.1,
    # So short a run has no use for a curve, and every use for the images.
    validation_fraction=0.0,
)
_BY_DATASET = {
    "digits_v1": _GENERAL.model_copy(
        update={"epochs": 15, "batch_size": 64, "validation_fraction": 0.1, "augmentation": "shift"}
    ),
    # A third of the 469 batches.
    "mnist_v1": _GENERAL.model_copy(update={"max_steps": 162, "learning_rate": 0.03}),
}


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return Cnn(shape, classes, patterns=12, blocks=(Block(32, pool=True, padding=0), Block(64, padding=0)))


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, _GENERAL)
