"""How far a training has come."""

import copy
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

    def keep_best(self, network: nn.Module) -> None:
        """Remember the weights where the last epoch did best on the validation images so far.

        By accuracy, which is what a release is judged by; loss decides between equals.
        """
        results = [
            (epoch.validation_accuracy, -epoch.validation_loss)
            for epoch in self.epochs
            if epoch.validation_accuracy is not None and epoch.validation_loss is not None
        ]
        if results and results[-1] == max(results):
            self.best_epoch = len(self.epochs)
            self.best_weights = copy.deepcopy(network.state_dict())

    def epochs_since_best(self) -> int:
        return len(self.epochs) - (self.best_epoch or len(self.epochs))

    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        values = {name: value for name, value in vars(self).items() if name != "epochs"}
        return {**values, "epochs": [epoch.model_dump() for epoch in self.epochs]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(**{**state, "epochs": [Epoch.model_validate(epoch) for epoch in state["epochs"]]})
