"""What one process does with a batch: forward, loss, backward, update."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from pipeline import registry
from pipeline.config import Autocast, TrainConfig
from pipeline.specs import Classifier, OptimizerOptions, ParameterGroups
from pipeline.training import seeds
from pipeline.training.batches import Batches, Normalise
from pipeline.training.group import ALONE, Group
from pipeline.training.precision import DTYPES
from pipeline.training.sampler import Sampler


class Shard(NamedTuple):
    """A process's part of one batch: the batch's number in the epoch, which images, what share of the batch."""

    batch: int
    images: slice
    share: float = 1.0

    @classmethod
    def of(cls, batch: int, images: slice, group: Group) -> Self:
        """The part of this process; parts differ by one image at most.

        A batch with fewer than two images for each goes to all of them as a whole: a process cannot do without.
        """
        count = images.stop - images.start
        if count < 2 * group.size:
            return cls(batch, images, 1 / group.size)
        start, stop = (count * rank // group.size for rank in (group.rank, group.rank + 1))
        return cls(batch, slice(images.start + start, images.start + stop), (stop - start) / count)


class Engine:
    """A network, its optimizer and the training images on one device.

    In another process that it is sent to, an engine has the same network, images and sampler, in shared memory, and
    an optimizer without a history.
    """

    def __init__(
        self,
        network: Classifier,
        normalise: Normalise,
        batches: Batches,
        sampler: Sampler,
        config: TrainConfig,
        device: torch.device,
        batch_limit: int | None = None,
        precision: Autocast = "fp32",
    ) -> None:
        self.config = config
        self.device = device
        self.network = network
        self.normalise = normalise
        self.batches = batches
        self.sampler = sampler
        self.rank = 0
        self._group = ALONE
        self._batch_limit = batch_limit
        # Of each epoch its first step, and at last the end of the run.
        ends = accumulate(self.whole_steps(epoch) for epoch in range(config.epochs))
        self._first_steps = tuple(min(end, config.max_steps or end) for end in (0, *ends))
        self.schedule = registry.schedule(config.scheduler_id)
        self.losses = [(registry.loss(criterion.loss_id).loss, criterion.weight) for criterion in config.criteria]
        self.optimizer = registry.optimizer(config.optimizer_id).build(
            _parameter_groups(network, config.weight_decay),
            config.learning_rate,
            OptimizerOptions(betas=config.betas, momentum=config.momentum),
        )
        self.forward: Callable[[Tensor], Tensor] = network
        self.set_precision(precision)

    def set_precision(self, precision: Autocast) -> None:
        """What forward passes are computed in from now on; weights, losses and updates stay in fp32."""
        self.precision: Autocast = precision
        # fp16 alone has so few exponents that gradients must be scaled.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def _parts(self, network: Classifier, precision: Autocast) -> tuple[Any, ...]:
        engine = self.batches, self.sampler, self.config, self.device, self._batch_limit
        return network, self.normalise, *engine, precision

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), self._parts(self.network, self.precision)

    def copy(self, precision: Autocast) -> Self:
        """The same images, a copy of the network, and an optimizer without a history."""
        return type(self)(*self._parts(copy.deepcopy(self.network), precision))

    def distribute(self, group: Group) -> None:
        """From now on the gradients are the means over all processes of the group."""
        self.rank, self._group = group.rank, group
        if group.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.network, devices)

    @property
    def total_steps(self) -> int:
        return self._first_steps[-1]

    def whole_steps(self, epoch: int) -> int:
        """How many the epoch has where the run does not end within it."""
        steps = self.sampler.steps(epoch)
        return min(steps, self._batch_limit or steps)

    def steps(self, epoch: int) -> int:
        """How many the epoch has; 0: the run ends before it."""
        return self._first_steps[epoch + 1] - self._first_steps[epoch]

    def epoch(self, epoch: int, shards: Sequence[Shard]) -> Iterator[tuple[int, Tensor]]:
        """Train on the shards; yields each batch's number and its metrics, as `step` returns them."""
        seed, rank = self.config.seed, self.rank
        order = self.sampler.order(epoch).to(self.device)
        # All processes have one order, and each its own augmentation and dropout.
        augmenting = seeds.generator(seed, epoch, "augmentation", rank)
        torch.manual_seed(seeds.seed_of(seed, epoch, "network", rank))
        is_choosing = self.sampler.is_hard(epoch + 1)
        if is_choosing and self._group.size > 1:
            self.sampler.losses.zero_()
        self.network.train()
        for shard in shards:
            chosen = order[shard.images]
            images, labels = self.batches.draw(chosen, augmenting)
            scores, metrics = self.step(images, labels, epoch, shard.batch, shard.share)
            if is_choosing:
                log_probabilities = self.network.log_probabilities(scores)
                self.sampler.losses[chosen] = functional.nll_loss(log_probabilities, labels, reduction="none")
            yield shard.batch, metrics
        if is_choosing:
            # Each process has those of its shards.
            self._group.total(self.sampler.losses)

    def step(self, images: Tensor, labels: Tensor, epoch: int, batch: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """One update. Returns scores [B, K], and loss, accuracy, learning rate and gradient norm [4], on the device.

        Where the images are a share of the batch these four are that share of the batch's means.
        """
        config = self.config
        learning_rate = config.learning_rate * self.schedule.factor(
            self._first_steps[epoch] + batch, epoch, self.total_steps, config.gamma
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            scores = self.forward(self.pixels(images))
        scores = scores.float()
        loss = self.loss(scores, labels, config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        # The mean over the batch's images, where processes with unequal shares take the mean of their gradients.
        self.scaler.scale(loss * (share * self._group.size)).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if config.gradient_clip_norm:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), config.gradient_clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        scores = scores.detach()
        accuracy = (scores.argmax(1) == labels).float().mean()
        return scores, torch.stack([loss.detach(), accuracy, torch.full_like(norm, learning_rate), norm]) * share

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
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.sampler.losses,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.sampler.losses.copy_(state["losses"])


def _parameter_groups(network: nn.Module, weight_decay: float) -> ParameterGroups:
    """What is learned; biases and normalisation weights, the 1-D parameters, are not decayed."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
