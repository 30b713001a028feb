"""The textbook network: two convolutions with max pooling, dropout, two linear layers, log-softmax."""

from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.specs import Classifier

TITLE = "Two-convolution network"
DESCRIPTION = (
    "Two 5x5 convolutions to 10 and 20 channels, each with 2x2 max pooling and ReLU, dropout, linear layers of "
    "50 units and one unit per class, log-softmax."
)
REFERENCE = "LeCun et al. 1998, Gradient-based learning applied to document recognition, doi:10.1109/5.726791"

_BY_DATASET = {
    "digits_v1": Recipe(epochs=60, batch_size=32, learning_rate=0.01, scheduler_id="one_cycle", augmentation="shift"),
    "mnist_v1": Recipe(learning_rate=0.003, scheduler_id="one_cycle"),
}


def accepts(shape: tuple[int, int, int], classes: int) -> str | None:
    channels, height, width = shape
    if channels in (1, 3) and 16 <= min(height, width) and max(height, width) <= 64:
        return None
    return "1 or 3 channels and a height and width of 16 to 64 pixels"


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return ConvNet(shape, classes)


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, Recipe(learning_rate=0.003, scheduler_id="one_cycle"))


class ConvNet(Classifier):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        # Each unpadded 5x5 convolution takes 4 pixels off, each pooling halves.
        sides = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),
            nn.Dropout2d(0.25),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20 * sides[0] * sides[1], 50),
            nn.ReLU(),
            nn.Dropout(0.25),
            nn.Linear(50, classes),
            nn.LogSoftmax(dim=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        log_probabilities: Tensor = self.layers(images)
        return log_probabilities

    def log_probabilities(self, scores: Tensor) -> Tensor:
        return scores
