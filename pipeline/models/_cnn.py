"""The convolutional networks of the zoo: one shape, several widths and depths."""

from torch import Tensor, nn

from pipeline.specs import Classifier

REFERENCE = "LeCun et al. 1998, Gradient-based learning applied to document recognition, doi:10.1109/5.726791"


def accepts(shape: tuple[int, int, int], classes: int) -> str | None:
    channels, height, width = shape
    if channels in (1, 3) and 16 <= min(height, width) and max(height, width) <= 64:
        return None
    return "1 or 3 channels and a height and width of 16 to 64 pixels"


class Cnn(Classifier):
    """A 5x5 stem with stride 2, 3x3 convolutions with max pooling after two of them, one linear layer.

    `blocks` are the channels of each convolution after the stem, and whether it pools.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, stem: int, blocks: tuple[tuple[int, bool], ...]
    ) -> None:
        super().__init__()
        channels, height, width = shape
        # Without padding 28 pixels become 12, which halve twice without a rest, at 3/4 of the cost of 14.
        layers: list[nn.Module] = [*_block(channels, stem, kernel=5, stride=2, padding=0)]
        sides = [(side - 5) // 2 + 1 for side in (height, width)]
        inputs = stem
        for outputs, pool in blocks:
            layers += _block(inputs, outputs, pool=pool)
            sides = [side // 2 for side in sides] if pool else sides
            inputs = outputs
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Linear(inputs * sides[0] * sides[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(images))
        return scores


def _block(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, padding: int = 1, pool: bool = False
) -> list[nn.Module]:
    """Convolution, pooling, batch norm, ReLU: pooling before the norm leaves it a quarter of the work."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    return [convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
