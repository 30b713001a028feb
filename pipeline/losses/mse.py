"""Mean squared error between probabilities and the one-hot target (Brier 1950, here averaged over classes too)."""

from torch import Tensor
from torch.nn import functional

from pipeline.specs import Classifier


def accepts(network: Classifier) -> str | None:
    return None


def loss(scores: Tensor, log_probabilities: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    classes = scores.shape[1]
    wanted = functional.one_hot(targets, classes).to(scores.dtype) * (1 - label_smoothing) + label_smoothing / classes
    return functional.mse_loss(log_probabilities.exp(), wanted)
