"""How far a training has come."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn

from pipeline.records import BatchSeries, Epoch

# Columns of the batch metrics, in the order of BatchSeries.
COLUMNS = ("epoch", "loss", "accuracy", "learning_rate", "gradient_norm")


@dataclass
class Progress:
    """With the weights and the optimizers, all that a checkpoint needs. `batches`: rows of BatchSeries."""

    epochs: list[Epoch] = field(default_factory=list)
    batches: list[list[float]] = field(default_factory=list)
    images_seen: int = 0
    best_epoch: int | None = None
    best_weights: dict[str, Tensor] | None = None
    stopped_early: bool = False

    def series(self) -> BatchSeries:
        columns = zip(*self.batches, strict=True) if self.batches else ((),) * len(COLUMNS)
        return BatchSeries(**dict(zip(COLUMNS, map(tuple, columns), strict=True)))

    def keep_best(self, network: nn.Module, images: int) -> None:
        """Remember the weights of this epoch where none before it did better on so many validation images.

        Better by more than the standard error of the difference of two such accuracies, sqrt(2 a (1 - a) / images)
        with a the best one: less is chance, and where the learning rate falls the later epoch is the better one (as
        Breiman et al. 1984, Classification and Regression Trees, section 3.4.3, choose among trees).
        """
        accuracies = self._accuracies()
        if not accuracies:
            return
        best = max(accuracies)
        if accuracies[-1] >= best - math.sqrt(2 * best * (1 - best) / images):
            self.best_epoch = len(self.epochs)
            self.best_weights = copy.deepcopy(network.state_dict())

    def epochs_without_better(self) -> int:
        """Since the first one of the highest validation accuracy."""
        accuracies = self._accuracies()
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0

    def _accuracies(self) -> list[float]:
        return [epoch.validation_accuracy for epoch in self.epochs if epoch.validation_accuracy is not None]

    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        values = {name: value for name, value in vars(self).items() if name != "epochs"}
        return {**values, "epochs": [epoch.model_dump() for epoch in self.epochs]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(**{**state, "epochs": [Epoch.model_validate(epoch) for epoch in state["epochs"]]})
