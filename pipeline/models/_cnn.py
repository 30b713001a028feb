"""The convolutional networks of the zoo: one shape, several widths and depths."""

import math

from torch import Tensor, nn

from pipeline.config import Criterion, Recipe
from pipeline.specs import Classifier

Shape = tuple[int, int, int]

REFERENCE = "LeCun et al. 1998, Gradient-based learning applied to document recognition, doi:10.1109/5.726791"

# What networks on these layers learn well with where a run is longer than a few seconds.
RECIPE = Recipe(
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


def accepts(shape: Shape, classes: int) -> str | None:
    channels, height, width = shape
    if channels in (1, 3) and 16 <= min(height, width) and max(height, width) <= 64:
        return None
    return "1 or 3 channels and a height and width of 16 to 64 pixels"


class Cnn(Classifier):
    """Convolutions and one linear layer; `stem` and `blocks` as for `features`."""

    def __init__(self, shape: Shape, classes: int, *, stem: int, blocks: tuple[tuple[int, bool], ...]) -> None:
        super().__init__()
        layers, maps = features(shape, stem=stem, blocks=blocks)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(math.prod(maps), classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(images))
        return scores


def features(shape: Shape, *, stem: int, blocks: tuple[tuple[int, bool], ...]) -> tuple[list[nn.Module], Shape]:
    """Layers, and the shape of the maps (channels, height, width) that they make of images of `shape`.

    A 5x5 convolution with stride 2 to `stem` channels, then 3x3 ones; `blocks` are the channels of each, and
    whether it pools.
    """
    channels, height, width = shape
    # Without padding 28 pixels become 12, which halve twice without a rest, at 3/4 of the cost of 14.
    layers = _block(channels, stem, kernel=5, stride=2, padding=0)
    height, width = ((side - 5) // 2 + 1 for side in (height, width))
    channels = stem
    for outputs, pool in blocks:
        layers += _block(channels, outputs, pool=pool)
        channels = outputs
        if pool:
            height, width = height // 2, width // 2
    return layers, (channels, height, width)


def _block(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, padding: int = 1, pool: bool = False
) -> list[nn.Module]:
    """Convolution, pooling, batch norm, ReLU: pooling before the norm leaves it a quarter of the work."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    return [convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
