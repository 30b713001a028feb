"""An efficient capsule network: a fixed stem, convolutions, 16 capsules of 8, routing by agreement to one of 16 per
class."""

import torch
from torch import Tensor, nn

from pipeline.config import Criterion, Recipe
from pipeline.models._cnn import RECIPE, Block, features
from pipeline.models._cnn import accepts as accepts
from pipeline.specs import Capsules, Classifier

TITLE = "Capsule network"
DESCRIPTION = (
    "A fixed 5x5 stem with stride 2 (12 patterns of the cosine transform and their negatives), 3x3 convolutions to "
    "32, 64 and 128 channels with max pooling after the first, a depthwise convolution over the whole map that makes "
    "16 capsules of 8 dimensions, and three iterations of routing by agreement to one capsule of 16 dimensions per "
    "class, whose length says how sure it is."
)
REFERENCE = (
    "Sabour et al. 2017, Dynamic routing between capsules, arXiv:1710.09829; body and squash after Mazzia et al. 2021, "
    "Efficient-CapsNet, arXiv:2101.12491"
)

_PRIMARY, _PRIMARY_SIZE, _CLASS_SIZE = 16, 8, 16
_ITERATIONS = 3

_GENERAL = RECIPE.model_copy(
    update={"learning_rate": 0.005, "criteria": (Criterion(loss_id="capsule_loss_v1"),), "label_smoothing": None}
)
_BY_DATASET = {
    "digits_v1": _GENERAL.model_copy(
        update={"epochs": 15, "batch_size": 64, "validation_fraction": 0.1, "augmentation": "shift"}
    ),
    "mnist_v1": _GENERAL.model_copy(update={"epochs": 7, "augmentation": "shift", "hard_fraction": 0.2}),
    "fashion_mnist_v1": _GENERAL.model_copy(update={"epochs": 5, "augmentation": "flip"}),
}


def build(shape: tuple[int, int, int], classes: int) -> Classifier:
    return CapsuleNetwork(shape, classes)


def recipe(dataset_id: str) -> Recipe:
    return _BY_DATASET.get(dataset_id, _GENERAL)


class CapsuleNetwork(Capsules):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = _PRIMARY * _PRIMARY_SIZE
        layers, (_, height, width) = features(
            shape, patterns=12, blocks=(Block(32, pool=True, padding=0), Block(64), Block(channels, padding=0))
        )
        self.features = nn.Sequential(*layers)
        self.primary = nn.Conv2d(channels, channels, (height, width), groups=channels)
        # A matrix for each pair of a primary capsule and a class; deviation by He et al. 2015, arXiv:1502.01852.
        deviation = (2 / _PRIMARY_SIZE) ** 0.5
        self.transformation = nn.Parameter(torch.randn(_PRIMARY, classes, _PRIMARY_SIZE, _CLASS_SIZE) * deviation)

    def forward(self, images: Tensor) -> Tensor:
        primary = _squash(self.primary(self.features(images)).view(-1, _PRIMARY, _PRIMARY_SIZE))
        votes = torch.einsum("npi,pkio->npko", primary, self.transformation)
        lengths: Tensor = torch.linalg.vector_norm(_route(votes), dim=-1)
        return lengths


def _route(votes: Tensor) -> Tensor:
    """Class capsules [N, K, D] from the votes of primary capsules [N, P, K, D] (Sabour et al. 2017, procedure 1).

    Gradients go through the last iteration alone.
    """
    fixed = votes.detach()
    agreement = torch.zeros_like(fixed[..., 0])
    for _ in range(_ITERATIONS - 1):
        capsules = _gather(fixed, agreement)
        agreement = agreement + torch.einsum("npkd,nkd->npk", fixed, capsules)
    return _gather(votes, agreement)


def _gather(votes: Tensor, agreement: Tensor) -> Tensor:
    """Each primary capsule divides its votes among the classes by agreement [N, P, K]."""
    return _squash(torch.einsum("npk,npkd->nkd", agreement.softmax(dim=2), votes))


def _squash(vectors: Tensor) -> Tensor:
    """Keeps directions, and brings lengths into 0 to 1: 1 - exp(-|v|) (Mazzia et al. 2021)."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors * ((1 - torch.exp(-length)) / (length + 1e-7))
