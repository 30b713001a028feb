"""The training loop: epochs, metrics, the best weights, checkpoints."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import console
from pipeline.config import TrainConfig
from pipeline.errors import CheckpointError, NonFiniteLossError
from pipeline.records import Epoch
from pipeline.specs import Classifier, Split
from pipeline.training import checkpoint, precision
from pipeline.training.batches import Normalise
from pipeline.training.engine import Engine, Shard
from pipeline.training.progress import Progress
from pipeline.training.validation import validate

_log = logging.getLogger(__name__)


class Training:
    """One network being trained."""

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
        train, self._validation = data
        self.config = config
        self.engine = Engine(network, normalise, train, config, device, batch_limit=batch_limit)
        self.network = network
        self.progress = Progress()
        self.checkpoint: Path | None = None
        self._log_interval = log_interval
        self._batch_limit = batch_limit

    def run(self, after_epoch: Callable[[], None]) -> Progress:
        """Train up to `config.epochs` or `config.max_steps`; ends with the weights of the epoch with the least validation loss.

        Without validation images these are the last ones. NonFiniteLossError where a number is none any more.
        """
        progress, patience = self.progress, self.config.early_stopping_patience
        if not progress.epochs:
            self.engine.set_precision(precision.choose(self.config.precision, self.engine))
        while len(progress.epochs) * self.engine.steps_per_epoch < self.engine.total_steps and not progress.stopped_early:
            progress.epochs.append(self._epoch(len(progress.epochs)))
            progress.keep_best(self.network)
            if patience and progress.epochs_since_best() >= patience:
                progress.stopped_early = True
                _log.info("stopped: validation loss has not fallen for %d epochs", patience)
            after_epoch()
        if progress.best_weights is not None:
            self.network.load_state_dict(progress.best_weights)
        return progress

    def _epoch(self, epoch: int) -> Epoch:
        started = time.perf_counter()
        steps = min(self.engine.steps_per_epoch, self.engine.total_steps - epoch * self.engine.steps_per_epoch)
        shards = [Shard(batch, images) for batch, images in enumerate(self.engine.batches.slices[:steps])]
        rows: list[Tensor] = []
        first = len(self.progress.batches)
        with console.progress(f"epoch {epoch + 1}/{self.config.epochs}", steps) as advance:
            for batch, row in self.engine.epoch(epoch, shards):
                rows.append(row)
                if (batch + 1) % self._log_interval == 0 or batch + 1 == steps:
                    advance(len(rows), self._read(rows, epoch, batch))
                    rows.clear()
        self.progress.images_seen += shards[-1].images.stop
        return self._summary(epoch, first, time.perf_counter() - started)

    def _read(self, rows: list[Tensor], epoch: int, batch: int) -> str:
        """Bring the metrics of some batches to the host: the only wait for the device inside an epoch."""
        steps = self.engine.steps_per_epoch
        for number, values in enumerate(torch.stack(rows).tolist(), start=batch + 2 - len(rows)):
            loss, accuracy, learning_rate, norm = values
            where = f"in batch {number} of epoch {epoch + 1}"
            self._demand_finite(loss, f"the loss became {loss} {where}")
            # A step whose scaled fp16 gradients overflow is left out, and the scale halved.
            if self.engine.precision != "fp16":
                self._demand_finite(norm, f"the gradient's norm became {norm} {where}")
            self.progress.batches.append([epoch + number / steps, *values])
        text = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
        _log.debug("epoch %d batch %d/%d: %s  lr %.3g", epoch + 1, batch + 1, steps, text, learning_rate)
        return text

    def _demand_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        good = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"{what}: expected a finite number; {good}; try a smaller --learning-rate or --gradient-clip-norm 1"
        )

    def _summary(self, epoch: int, first: int, seconds: float) -> Epoch:
        rows = self.progress.batches[first:]
        validation_loss, validation_accuracy = validate(self.engine, self._validation, self._batch_limit)
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
            self._demand_finite(validation_loss, f"the validation loss became {validation_loss} in epoch {epoch + 1}")
            line += f"  validation {validation_loss:.4f} {validation_accuracy:.2%}"
        _log.info("%s  %.1f s", line, seconds)
        return record

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint of the whole training."""
        checkpoint.save(
            path,
            {
                "identity": json.dumps(identity),
                "total_epochs": self.config.epochs,
                "precision": self.engine.precision,
                "network": self.network.state_dict(),
                "engine": self.engine.state(),
                "progress": self.progress.state(),
            },
        )
        self.checkpoint = path

    def restore(self, path: Path, identity: dict[str, Any]) -> bool:
        """Go on from a checkpoint; False where there is none."""
        state = checkpoint.load(path, identity)
        if state is None:
            return False
        progress = Progress.from_state(state["progress"])
        done, before, now = len(progress.epochs), state["total_epochs"], self.config.epochs
        if now < done or (now != before and self.engine.schedule.DEPENDS_ON_TOTAL):
            raise CheckpointError(
                f"{path} is of a run of {before} epochs, {done} of them done, and schedule "
                f"{self.config.scheduler_id!r}: it cannot be made one of {now}; use --epochs {before}, another "
                "--output-dir, or begin anew with --no-resume"
            )
        self.network.load_state_dict(state["network"])
        # What `auto` once measured holds for the whole run.
        self.engine.set_precision(precision.choose(state["precision"], self.engine))
        self.engine.load_state(state["engine"])
        self.progress, self.checkpoint = progress, path
        return True
