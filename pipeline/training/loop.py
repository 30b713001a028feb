"""The training loop: epochs, metrics, the best weights, checkpoints."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline import console
from pipeline.config import TrainConfig
from pipeline.errors import CheckpointError, NonFiniteLossError
from pipeline.records import Epoch
from pipeline.specs import Classifier, Split
from pipeline.training import checkpoint, hogwild, precision
from pipeline.training.batches import Batches, Normalise
from pipeline.training.engine import Engine, Shard
from pipeline.training.group import ALONE, Group
from pipeline.training.progress import Progress
from pipeline.training.sampler import Sampler
from pipeline.training.validation import validate

_log = logging.getLogger(__name__)


def trained_weights(path: Path, identity: dict[str, Any]) -> dict[str, Tensor] | None:
    """The weights that a run up to its checkpoint has come to: of its best epoch, else of its last. None: no file."""
    state = checkpoint.load(path, identity)
    if state is None:
        return None
    weights: dict[str, Tensor] = state["progress"]["best_weights"] or state["network"]
    return weights


class Steps(Protocol):
    """Does the steps of an epoch: an engine, or processes that each have one."""

    def epoch(self, epoch: int, shards: Sequence[Shard]) -> Iterator[tuple[int, Tensor]]: ...
    def state(self) -> dict[str, Any]: ...


class Training:
    """One network being trained; each process of a group has one of these, and the first one writes.

    `num_processes` are those of Hogwild, each of which has an engine and none of this.
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
        num_processes: int = 1,
        group: Group = ALONE,
    ) -> None:
        train, self._validation = data
        self.config = config
        self.network = network.to(device).to(memory_format=torch.channels_last)
        batches = Batches(train, config.augmentation, device)
        sampler = Sampler(len(train), config.batch_size, config.hard_fraction, config.seed, device)
        self.engine = Engine(network, normalise.to(device), batches, sampler, config, device, batch_limit)
        self._steps: Steps = self.engine
        self._group = group
        self._num_processes = num_processes
        self._worker_states: Sequence[dict[str, Any]] = ()
        self.progress = Progress()
        self.checkpoint: Path | None = None
        self._log_interval = log_interval
        self._batch_limit = batch_limit

    def run(self, after_epoch: Callable[[], None]) -> Progress:
        """Train up to `config.epochs` or `config.max_steps`; each process calls `after_epoch`.

        Ends with the weights that `Progress.keep_best` keeps, or the last ones where there are no validation images.
        NonFiniteLossError where a number is none any more; WorkerError where a process of Hogwild is lost.
        """
        progress = self.progress
        if not progress.epochs:
            choose = partial(precision.choose, self.config.precision, self.engine)
            self.engine.set_precision(self._group.from_first(choose))
        if not self._is_done():
            self.engine.distribute(self._group)
            if self.config.trainer == "hogwild":
                with hogwild.workers(self.engine, self._num_processes, self._worker_states) as self._steps:
                    self._run_epochs(after_epoch)
            else:
                self._run_epochs(after_epoch)
        if progress.best_weights is not None:
            self.network.load_state_dict(progress.best_weights)
        return progress

    def _is_done(self) -> bool:
        epochs = len(self.progress.epochs)
        return self.progress.stopped_early or epochs >= self.config.epochs or self.engine.steps(epochs) == 0

    def _run_epochs(self, after_epoch: Callable[[], None]) -> None:
        progress, patience = self.progress, self.config.early_stopping_patience
        while not self._is_done():
            progress.epochs.append(self._epoch(len(progress.epochs)))
            progress.keep_best(self.network, len(self._validation))
            if patience and progress.epochs_without_better() >= patience:
                progress.stopped_early = True
                _log.info("stopped: no better accuracy on the validation images for %d epochs", patience)
            after_epoch()

    def _epoch(self, epoch: int) -> Epoch:
        started = time.perf_counter()
        steps = self.engine.steps(epoch)
        images = self.engine.sampler.batches(epoch)[:steps]
        shards = [Shard.of(batch, chosen, self._group) for batch, chosen in enumerate(images)]
        rows: list[Tensor] = []
        first = len(self.progress.batches)
        with console.progress(f"epoch {epoch + 1}/{self.config.epochs}", steps) as advance:
            for batch, row in self._steps.epoch(epoch, shards):
                rows.append(row)
                if (batch + 1) % self._log_interval == 0 or batch + 1 == steps:
                    advance(len(rows), self._read(rows, epoch, batch))
                    rows.clear()
        self.progress.images_seen += images[-1].stop
        return self._summary(epoch, first, time.perf_counter() - started)

    def _read(self, rows: list[Tensor], epoch: int, batch: int) -> str:
        """Bring the metrics of some batches to the host: the only wait for the device inside an epoch."""
        steps = self.engine.whole_steps(epoch)
        values_by_batch = self._group.total(torch.stack(rows)).tolist()
        for number, values in enumerate(values_by_batch, start=batch + 2 - len(rows)):
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
        validation_loss, validation_accuracy = validate(self.engine, self._validation, self._batch_limit, self._group)
        record = Epoch(
            epoch=epoch + 1,
            train_loss=sum(row[1] for row in rows) / len(rows),
            train_accuracy=sum(row[2] for row in rows) / len(rows),
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rows[-1][3],
            seconds=seconds,
            is_hard=self.engine.sampler.is_hard(epoch),
        )
        images = "train on the hardest" if record.is_hard else "train"
        line = (
            f"epoch {epoch + 1:3d}/{self.config.epochs}  {images} {record.train_loss:.4f} {record.train_accuracy:.2%}"
        )
        if validation_loss is not None:
            self._demand_finite(validation_loss, f"the validation loss became {validation_loss} in epoch {epoch + 1}")
            line += f"  validation {validation_loss:.4f} {validation_accuracy:.2%}"
        _log.info("%s  %.1f s", line, seconds)
        return record

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint of the whole training; the first process does it, and each can name the file."""
        if self._group.rank == 0:
            checkpoint.save(
                path,
                {
                    "identity": json.dumps(identity),
                    "total_epochs": self.config.epochs,
                    "precision": self.engine.precision,
                    "network": self.network.state_dict(),
                    "steps": self._steps.state(),
                    "progress": self.progress.state(),
                },
            )
        self.checkpoint = path

    def restore(self, path: Path, identity: dict[str, Any]) -> bool:
        """Go on from a checkpoint; False where there is none."""
        state = self._group.from_first(partial(checkpoint.load, path, identity))
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
        if self.config.trainer == "hogwild":
            self._worker_states = state["steps"]["workers"]
        else:
            self.engine.load_state(state["steps"])
        self.progress, self.checkpoint = progress, path
        return True
