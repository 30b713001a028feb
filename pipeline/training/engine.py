"""What one process does with a batch: forward, loss, backward, update."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.config import Autocast, TrainConfig
from pipeline.specs import Classifier, OptimizerOptions, ParameterGroups, Split
from pipeline.training.batches import Batches, Normalise
from pipeline.training.precision import DTYPES


class Shard(NamedTuple):
    """A process's part of one batch: the batch's number in the epoch, which images, what share of the batch."""

    batch: int
    images: slice
    share: float = 1.0


class Engine:
    """A network, its optimizer and the training images on one device.

    Randomness is drawn from (seed, epoch, rank) alone, so a run that goes on after any epoch does what
    an uninterrupted one does.
    """

    def __init__(
        self,
        network: Classifier,
        normalise: Normalise,
        train: Split,
        config: TrainConfig,
        device: torch.device,
        *,
        batch_limit: int | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.normalise = normalise.to(device)
        self.batches = Batches(train, config.augmentation, config.batch_size, device)
        self.steps_per_epoch = min(len(self.batches), batch_limit or len(self.batches))
        whole = self.steps_per_epoch * config.epochs
        self.total_steps = min(whole, config.max_steps or whole)
        self.schedule = registry.schedule(config.scheduler_id)
        self.losses = [(registry.loss(criterion.loss_id).loss, criterion.weight) for criterion in config.criteria]
        self.optimizer = self._new_optimizer()
        self.forward: Callable[[Tensor], Tensor] = self.network
        self.set_precision("fp32")

    def _new_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return registry.optimizer(config.optimizer_id).build(
            _parameter_groups(self.network, config.weight_decay),
            config.learning_rate,
            OptimizerOptions(betas=config.betas, momentum=config.momentum),
        )

    def set_precision(self, precision: Autocast) -> None:
        """What forward passes are computed in from now on; weights, losses and updates stay in fp32."""
        self.precision: Autocast = precision
        # fp16 alone has so few exponents that gradients must be scaled.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def copy(self, precision: Autocast) -> Self:
        """The same images, a copy of the network, and an optimizer without a history."""
        other = copy.copy(self)
        other.network = other.forward = copy.deepcopy(self.network)
        other.optimizer = other._new_optimizer()
        other.set_precision(precision)
        return other

    def epoch(self, epoch: int, shards: Sequence[Shard], rank: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Train on the shards; yields each batch's number and its metrics, as `step` returns them."""
        generator = torch.Generator().manual_seed(_seed(self.config.seed, epoch, stream=0))
        torch.manual_seed(_seed(self.config.seed, epoch, stream=1, rank=rank))  # dropout
        self.network.train()
        drawn = self.batches.epoch(generator, [shard.images for shard in shards])
        for shard, (images, labels) in zip(shards, drawn, strict=True):
            yield shard.batch, self.step(images, labels, epoch * self.steps_per_epoch + shard.batch)

    def step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """One update. Returns loss, accuracy, learning rate and gradient norm [4], still on the device."""
        config = self.config
        learning_rate = config.learning_rate * self.schedule.factor(
            step, self.steps_per_epoch, self.total_steps, config.gamma
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            scores = self.forward(self.pixels(images))
        scores = scores.float()
        loss = self.loss(scores, labels, config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        accuracy = (scores.detach().argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy, norm.new_tensor(learning_rate), norm])

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to what the network takes."""
        normalised: Tensor = self.normalise(images)
        return normalised.contiguous(memory_format=torch.channels_last)

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        log_probabilities = self.network.log_probabilities(scores)
        parts = [weight * loss(scores, log_probabilities, labels, label_smoothing) for loss, weight in self.losses]
        return torch.stack(parts).sum()

    def state(self) -> dict[str, Any]:
        """Beside the network's weights, all that the next step depends on."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _parameter_groups(network: nn.Module, weight_decay: float) -> ParameterGroups:
    """Biases and normalisation weights, the 1-D parameters, are not decayed."""
    parameters = list(network.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _seed(seed: int, epoch: int, stream: int, rank: int = 0) -> int:
    """Seeds that differ for each (seed, epoch, stream, rank), in 63 bits."""
    return ((seed * 1_000_003 + epoch) * 2 + stream + (rank << 48)) % 2**63
