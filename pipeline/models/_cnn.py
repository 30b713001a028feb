"""The convolutional networks of the zoo: one shape, several widths and depths."""

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import Criterion, Recipe
from pipeline.specs import Classifier

Shape = tuple[int, int, int]

# Of the stem's patterns, in pixels.
_SIDE = 5

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

# Of the few small digits, more of a smaller batch.
DIGITS = RECIPE.model_copy(update={"epochs": 10, "batch_size": 64, "validation_fraction": 0.1, "augmentation": "shift"})


class Block(NamedTuple):
    """A 3x3 convolution to so many channels, batch norm and ReLU; pooling, where wanted, before the norm.

    Without padding the map loses a pixel on each side.
    """

    channels: int
    pool: bool = False
    padding: int = 1


def accepts(shape: Shape, classes: int) -> str | None:
    channels, height, width = shape
    if channels in (1, 3) and 20 <= min(height, width) and max(height, width) <= 64:
        return None
    return "1 or 3 channels and a height and width of 20 to 64 pixels"


class Cnn(Classifier):
    """Convolutions and one linear layer; `patterns` and `blocks` as for `features`.

    `mirrored`: once trained, the scores are the mean of those of a picture and its mirror image.
    """

    def __init__(
        self, shape: Shape, classes: int, *, patterns: int, blocks: tuple[Block, ...], mirrored: bool = False
    ) -> None:
        super().__init__()
        self._mirrored = mirrored
        layers, maps = features(shape, patterns=patterns, blocks=blocks)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(math.prod(maps), classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(images))
        if self._mirrored and not self.training:
            scores = (scores + self.classifier(self.features(images.flip(3)))) / 2
        return scores


def features(shape: Shape, *, patterns: int, blocks: tuple[Block, ...]) -> tuple[list[nn.Module], Shape]:
    """Layers, and the shape of the maps (channels, height, width) that they make of images of `shape`.

    A fixed stem of so many patterns and their negatives, divided among the channels of colour images; then `blocks`.
    """
    channels, height, width = shape
    stem = _stem(channels, patterns // channels)
    # Without padding 28 pixels become 12.
    channels, height, width = stem.out_channels, (height - 5) // 2 + 1, (width - 5) // 2 + 1
    layers: list[nn.Module] = [stem, nn.ReLU(inplace=True)]
    for block in blocks:
        layers.append(nn.Conv2d(channels, block.channels, 3, padding=block.padding, bias=False))
        channels, height, width = (block.channels, *(side - 2 + 2 * block.padding for side in (height, width)))
        if block.pool:
            # Before the norm, which then has a quarter of the work.
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return layers, (channels, height, width)


def _stem(channels: int, patterns: int) -> nn.Conv2d:
    """A 5x5 convolution with stride 2 that is not learned: for each channel the smoothest patterns of the cosine
    transform (Ahmed et al. 1974, doi:10.1109/T-C.1974.223784) and their negatives.

    Nothing before the first learned layer needs a gradient, which is a third of a step of a small network; nor a norm,
    since each pattern is weighted for answers of about unit deviation where pixels have it.
    """
    order = sorted(product(range(_SIDE), repeat=2), key=lambda frequencies: (sum(frequencies), frequencies))
    waves = torch.tensor([[_cosine(frequency, place) for place in range(_SIDE)] for frequency in range(_SIDE)])
    positive = torch.stack([torch.outer(waves[v], waves[h]) / _deviation(v + h) for v, h in order[:patterns]])
    convolution = nn.Conv2d(channels, 2 * channels * patterns, _SIDE, stride=2, groups=channels, bias=False)
    convolution.weight.requires_grad_(False)
    convolution.weight.copy_(torch.cat([positive, -positive]).repeat(channels, 1, 1).unsqueeze(1))
    return convolution


def _cosine(frequency: int, place: int) -> float:
    """Orthonormal DCT-II of `_SIDE` places."""
    return math.sqrt((1 + (frequency > 0)) / _SIDE) * math.cos(math.pi * (place + 0.5) * frequency / _SIDE)


def _deviation(frequency: int) -> float:
    """About that of a pattern's answers, by the sum of its two frequencies.

    Amplitudes in pictures fall with the frequency (Field 1987, doi:10.1364/JOSAA.4.002379). The power is between what
    MNIST and Fashion-MNIST have.
    """
    return float(_SIDE / (1 + frequency) ** 1.5)
