"""Margin loss on the lengths of class capsules (Sabour et al. 2017, arXiv:1710.09829, equation 4)."""

from torch import Tensor
from torch.nn import functional

from pipeline.specs import Capsules, Classifier

_PRESENT, _ABSENT, _WEIGHT_OF_ABSENT = 0.9, 0.1, 0.5


def accepts(network: Classifier) -> str | None:
    return None if isinstance(network, Capsules) else "a network of capsules, as mnist_capsule_v1"


def loss(scores: Tensor, log_probabilities: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Label smoothing weighs the two margins of each class as it weighs present and absent."""
    classes = scores.shape[1]
    wanted = functional.one_hot(targets, classes).to(scores.dtype) * (1 - label_smoothing) + label_smoothing / classes
    present = functional.relu(_PRESENT - scores).square()
    absent = functional.relu(scores - _ABSENT).square()
    return (wanted * present + _WEIGHT_OF_ABSENT * (1 - wanted) * absent).sum(dim=1).mean()
