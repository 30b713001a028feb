"""torchvision's ResNet-18, for colour images and larger sizes (11.2 million parameters)."""

from torch import Tensor
from torchvision.models import resnet18

from pipeline.config import Criterion, Recipe
from pipeline.specs import Classifier

TITLE = "ResNet-18"
DESCRIPTION = "A residual network of 18 layers with four stages of 64 to 512 channels, trained from scratch."
REFERENCE = "He et al. 2016, Deep residual learning for image recognition, arXiv:1512.03385"

_RECIPE = Recipe(
    epochs=30,
    batch_size=64,
    learning_rate=0.002,
    optimizer_id="adamw",
    scheduler_id="one_cycle",
    criteria=(Criterion(loss_id="nll"),),
    weight_decay=0.05,
    label_smoothing=0.1,
    augmentation="flip",
)


def accepts(shape: tuple[int, int, int], classes: int) -> str | None:
    channels, height, width = shape
    # Five halvings lie before the last pooling, which takes any size.
    if channels == 3 and min(height, width) >= 32:
        return None
    return "3 channels and a height and width of 32 pixels or more"


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return ResNet18(classes)


def recipe(dataset_id: str) -> Recipe:
    return _RECIPE


class ResNet18(Classifier):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = resnet18(weights=None, num_classes=classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores
