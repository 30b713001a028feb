"""A small fast convolutional network: a strided stem, three convolutions, one linear layer (66,426 parameters)."""

from torch import Tensor, nn

from pipeline.config import Criterion, Recipe
from pipeline.specs import Classifier

TITLE = "Small convolutional network"
DESCRIPTION = (
    "A 5x5 stem with stride 2 to 16 channels, then 3x3 convolutions to 32, 64 and 64 channels with two max "
    "poolings in between, each followed by batch normalisation and ReLU, and one linear layer."
)
REFERENCE = "LeCun et al. 1998, Gradient-based learning applied to document recognition, doi:10.1109/5.726791"

_GENERAL = Recipe(
    batch_size=128,
    learning_rate=0.01,
    optimizer_id="adamw",
    scheduler_id="one_cycle",
    criteria=(Criterion(loss_id="nll"),),
    weight_decay=0.05,
    betas=(0.9, 0.99),
    label_smoothing=0.1,
    validation_fraction=0.02,
)
_BY_DATASET = {
    "digits_v1": _GENERAL.model_copy(
        update={"epochs": 10, "batch_size": 64, "validation_fraction": 0.1, "augmentation": "shift"}
    ),
    "mnist_v1": _GENERAL.model_copy(update={"epochs": 5, "augmentation": "shift"}),
    "fashion_mnist_v1": _GENERAL.model_copy(update={"epochs": 5, "augmentation": "flip"}),
}


def accepts(shape: tuple[int, int, int], classes: int) -> str | None:
    channels, height, width = shape
    if channels in (1, 3) and 16 <= min(height, width) and max(height, width) <= 64:
        return None
    return "1 or 3 channels and a height and width of 16 to 64 pixels"


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return SmallCnn(shape, classes)


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, _GENERAL)


class SmallCnn(Classifier):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            *_block(16, 32, pool=True),
            *_block(32, 64),
            *_block(64, 64, pool=True),
            nn.Flatten(),
        )
        # The stem leaves 12 of 28 pixels, which halve twice without a rest; each pooling rounds down.
        sides = [((side - 5) // 2 + 1) // 2 // 2 for side in (height, width)]
        self.classifier = nn.Linear(64 * sides[0] * sides[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(images))
        return scores


def _block(inputs: int, outputs: int, *, pool: bool = False) -> list[nn.Module]:
    """Convolution, pooling, batch norm, ReLU: pooling before the norm leaves it a quarter of the work."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    return [convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
