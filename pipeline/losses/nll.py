"""Negative log-likelihood of the right class, with optional label smoothing (Szegedy et al. 2016, arXiv:1512.00567)."""

from torch import Tensor
from torch.nn import functional

from pipeline.specs import Classifier


def accepts(network: Classifier) -> str | None:
    return None


def loss(scores: Tensor, log_probabilities: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    likelihood = functional.nll_loss(log_probabilities, targets)
    if label_smoothing == 0:
        return likelihood
    uniform = -log_probabilities.mean()
    return (1 - label_smoothing) * likelihood + label_smoothing * uniform
