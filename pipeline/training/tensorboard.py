"""A run's metrics in TensorBoard's format."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.training.progress import COLUMNS, Progress


@contextmanager
def log(folder: Path) -> Iterator[Callable[[Progress], None]]:
    """Gives what to call after each epoch. Needs the package tensorboard.

    The log is always written from the first batch on, so that a resumed run has all of it once.
    """
    from torch.utils.tensorboard import SummaryWriter

    batches = epochs = 0
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:

        def write(progress: Progress) -> None:
            nonlocal batches, epochs
            for step, row in enumerate(progress.batches[batches:], start=batches + 1):
                for name, value in zip(COLUMNS[1:], row[1:], strict=True):
                    writer.add_scalar(f"batch/{name}", value, step)
            for epoch in progress.epochs[epochs:]:
                for name, value in epoch.model_dump(exclude={"epoch"}, exclude_none=True).items():
                    writer.add_scalar(f"epoch/{name}", value, epoch.epoch)
            writer.flush()
            batches, epochs = len(progress.batches), len(progress.epochs)

        yield write
