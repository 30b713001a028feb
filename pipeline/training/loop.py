"""The training loop."""

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import console, registry
from pipeline.config import TrainConfig
from pipeline.errors import CheckpointError, NonFiniteLossError
from pipeline.records import BatchSeries, Epoch
from pipeline.specs import Classifier, OptimizerOptions, ParameterGroups, Split
from pipeline.training import checkpoint
from pipeline.training.batches import Batches, Normalise

_log = logging.getLogger(__name__)

_VALIDATION_BATCH = 1000
# Columns of the batch metrics, in the order of BatchSeries.
_COLUMNS = ("epoch", "loss", "accuracy", "learning_rate", "gradient_norm")


@dataclass
class Progress:
    """What a run has done so far: with the weights and the optimizer, all that a checkpoint needs."""

    epochs: list[Epoch] = field(default_factory=list)
    batches: list[list[float]] = field(default_factory=list)
    images_seen: int = 0
    best_epoch: int | None = None
    best_weights: dict[str, Tensor] | None = None
    stopped_early: bool = False

    def series(self) -> BatchSeries:
        columns = zip(*self.batches, strict=True) if self.batches else ((),) * len(_COLUMNS)
        return BatchSeries(**dict(zip(_COLUMNS, map(tuple, columns), strict=True)))


class Training:
    """One network being trained on one device.

    Randomness is drawn from (seed, epoch) alone, so a run that goes on from the checkpoint of any
    epoch does what an uninterrupted one does.
    """

    def __init__(
        self,
        network: Classifier,
        normalise: Normalise,
        data: tuple[Split, Split],
        config: TrainConfig,
        device: torch.device,
        *,
        log_interval: int,
        batch_limit: int | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.normalise = normalise.to(device)
        train, self.validation = data
        self.batches = Batches(train, config.augmentation, config.batch_size, device)
        self.log_interval = log_interval
        self.batch_limit = batch_limit
        self.steps_per_epoch = min(len(self.batches), batch_limit or len(self.batches))
        whole = self.steps_per_epoch * config.epochs
        self.total_steps = min(whole, config.max_steps or whole)
        self.optimizer = registry.optimizer(config.optimizer_id).build(
            _parameter_groups(network, config.weight_decay),
            config.learning_rate,
            OptimizerOptions(betas=config.betas, momentum=config.momentum),
        )
        self.schedule = registry.schedule(config.scheduler_id)
        self.losses = [(registry.loss(criterion.loss_id).loss, criterion.weight) for criterion in config.criteria]
        self.progress = Progress()

    def run(self, save: Callable[[], None]) -> Progress:
        """Train up to `config.epochs` or `config.max_steps`, calling `save` after each epoch."""
        progress = self.progress
        while len(progress.epochs) * self.steps_per_epoch < self.total_steps and not progress.stopped_early:
            progress.epochs.append(self._epoch(len(progress.epochs)))
            self._keep_best()
            save()
        if progress.best_weights is not None:
            self.network.load_state_dict(progress.best_weights)
        return progress

    def _epoch(self, epoch: int) -> Epoch:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(_seed(self.config.seed, epoch, stream=0))
        torch.manual_seed(_seed(self.config.seed, epoch, stream=1))  # dropout
        self.network.train()
        rows: list[Tensor] = []
        first = len(self.progress.batches)
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        with console.progress(f"epoch {epoch + 1}/{self.config.epochs}", steps) as advance:
            for index, (images, labels) in enumerate(self.batches.epoch(generator)):
                if index == steps:
                    break
                rows.append(self._step(images, labels, epoch * self.steps_per_epoch + index))
                self.progress.images_seen += len(labels)
                if (index + 1) % self.log_interval == 0 or index + 1 == steps:
                    text = self._read(rows, epoch, index)
                    advance(len(rows), text)
                    rows.clear()
        return self._summary(epoch, first, time.perf_counter() - started)

    def _step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """One update. Returns loss, accuracy, learning rate and gradient norm, still on the device."""
        config = self.config
        learning_rate = config.learning_rate * self.schedule.factor(
            step, self.steps_per_epoch, self.total_steps, config.gamma
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        scores = self.network(self.normalise(images).contiguous(memory_format=torch.channels_last))
        loss = self._loss(scores, labels, config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip_norm or math.inf)
        self.optimizer.step()
        accuracy = (scores.detach().argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), accuracy, norm.new_tensor(learning_rate), norm])

    def _loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        log_probabilities = self.network.log_probabilities(scores)
        parts = [weight * loss(scores, log_probabilities, labels, label_smoothing) for loss, weight in self.losses]
        return torch.stack(parts).sum()

    def _read(self, rows: list[Tensor], epoch: int, index: int) -> str:
        """Bring the metrics of some batches to the host: the only wait for the device inside an epoch."""
        first = index + 1 - len(rows)
        for offset, values in enumerate(torch.stack(rows).tolist()):
            if not math.isfinite(values[0]):
                raise NonFiniteLossError(
                    f"the loss became {values[0]} in batch {first + offset + 1} of epoch {epoch + 1}: "
                    f"the last good state is that of epoch {epoch}; try a smaller --learning-rate or "
                    "--gradient-clip-norm 1"
                )
            self.progress.batches.append([epoch + (first + offset + 1) / self.steps_per_epoch, *values])
        loss, accuracy, learning_rate, _ = self.progress.batches[-1][1:]
        text = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
        _log.debug("epoch %d batch %d/%d: %s  lr %.3g", epoch + 1, index + 1, self.steps_per_epoch, text, learning_rate)
        return text

    def _summary(self, epoch: int, first: int, seconds: float) -> Epoch:
        rows = self.progress.batches[first:]
        validation_loss, validation_accuracy = self._validate()
        record = Epoch(
            epoch=epoch + 1,
            train_loss=sum(row[1] for row in rows) / len(rows),
            train_accuracy=sum(row[2] for row in rows) / len(rows),
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rows[-1][3],
            seconds=seconds,
        )
        line = f"epoch {epoch + 1:3d}/{self.config.epochs}  train {record.train_loss:.4f} {record.train_accuracy:.2%}"
        if validation_loss is not None:
            line += f"  validation {validation_loss:.4f} {validation_accuracy:.2%}"
        _log.info("%s  %.1f s", line, seconds)
        return record

    @torch.no_grad()
    def _validate(self) -> tuple[float | None, float | None]:
        """Loss, without label smoothing, and accuracy over the images that were set aside."""
        count = len(self.validation.labels)
        if count == 0:
            return None, None
        self.network.eval()
        total = torch.zeros(2, device=self.device)
        limit = count if self.batch_limit is None else _VALIDATION_BATCH * self.batch_limit
        for start in range(0, min(count, limit), _VALIDATION_BATCH):
            chosen = slice(start, start + _VALIDATION_BATCH)
            images = torch.from_numpy(self.validation.images(chosen)).to(self.device)
            labels = torch.from_numpy(self.validation.labels[chosen]).to(self.device)
            scores = self.network(self.normalise(images).contiguous(memory_format=torch.channels_last))
            correct = (scores.argmax(1) == labels).sum()
            total += torch.stack([self._loss(scores, labels, 0.0) * len(labels), correct])
        loss, accuracy = (total / min(count, limit)).tolist()
        return loss, accuracy

    def _keep_best(self) -> None:
        """With early stopping: remember the weights of the epoch with the least validation loss."""
        patience, progress = self.config.early_stopping_patience, self.progress
        if not patience:
            return
        losses = [epoch.validation_loss for epoch in progress.epochs if epoch.validation_loss is not None]
        best = losses.index(min(losses)) + 1
        if best == len(losses):
            progress.best_epoch = best
            progress.best_weights = copy.deepcopy(self.network.state_dict())
        elif len(losses) - best >= patience:
            progress.stopped_early = True
            _log.info("stopped: validation loss has not fallen for %d epochs; best was epoch %d", patience, best)

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint of the whole training."""
        progress = self.progress
        checkpoint.save(
            path,
            {
                "identity": json.dumps(identity),
                "total_epochs": self.config.epochs,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epochs": [epoch.model_dump() for epoch in progress.epochs],
                "batches": progress.batches,
                "images_seen": progress.images_seen,
                "best_epoch": progress.best_epoch,
                "best_weights": progress.best_weights,
                "stopped_early": progress.stopped_early,
            },
        )

    def restore(self, path: Path, identity: dict[str, Any]) -> bool:
        """Go on from a checkpoint; False where there is none."""
        state = checkpoint.load(path, identity)
        if state is None:
            return False
        done, before, now = len(state["epochs"]), state["total_epochs"], self.config.epochs
        if now < done or (now != before and self.schedule.DEPENDS_ON_TOTAL):
            raise CheckpointError(
                f"{path} is of a run of {before} epochs, {done} of them done, and schedule "
                f"{self.config.scheduler_id!r}: it cannot be made one of {now}; use --epochs {before}, another "
                "--output-dir, or begin anew with --no-resume"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(
            epochs=[Epoch.model_validate(epoch) for epoch in state["epochs"]],
            batches=state["batches"],
            images_seen=state["images_seen"],
            best_epoch=state["best_epoch"],
            best_weights=state["best_weights"],
            stopped_early=state["stopped_early"],
        )
        return True


def _parameter_groups(network: nn.Module, weight_decay: float) -> ParameterGroups:
    """Biases and normalisation weights, the 1-D parameters, are not decayed."""
    parameters = list(network.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _seed(seed: int, epoch: int, stream: int) -> int:
    """Seeds that differ for each (seed, epoch, stream) and fit 63 bits."""
    return (seed * 1_000_003 + epoch) * 2 + stream
