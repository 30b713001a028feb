"""A convolutional network for things whose mirror image is the same thing: it looks at both (299,194 parameters)."""

from pipeline.config import Recipe
from pipeline.models._cnn import RECIPE, Block, Cnn
from pipeline.models._cnn import REFERENCE as REFERENCE
from pipeline.models._cnn import accepts as accepts
from pipeline.specs import Classifier

TITLE = "Mirror-averaging convolutional network"
DESCRIPTION = (
    "A fixed 5x5 stem with stride 2 (24 patterns of the cosine transform and their negatives), then 3x3 convolutions "
    "to 64, 64, 128 and 128 channels with max pooling after the second and the last, each followed by batch "
    "normalisation and ReLU, and one linear layer. An answer is the mean over the picture and its mirror image, so it "
    "takes twice the time; not for letters and digits."
)

_RECIPE = RECIPE.model_copy(update={"epochs": 20, "augmentation": "flip_shift", "hard_fraction": 0.3})


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    blocks = (Block(64), Block(64, pool=True), Block(128), Block(128, pool=True))
    return Cnn(shape, classes, patterns=24, blocks=blocks, mirrored=True)


def recipe(dataset_id: str) -> Recipe:
    return _RECIPE
