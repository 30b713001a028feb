"""Starts torchrun's agent for `bin/train --trainer ddp`, and lost processes again."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.errors import RemoteError, WorkerError

_log = logging.getLogger(__name__)

_RESTARTS = 3
# What a process ends with that knows why: to start it again would not help.
_FINAL = (2, 3, 4)
_READER_GONE = 141  # as `pipeline.cli` has it


def launch(arguments: Sequence[str], processes: int) -> None:
    """Do `bin/train` with these arguments in so many processes on this host.

    Where one is lost, all are started again and go on from the last checkpoint, at most three times; then it is a
    WorkerError. RemoteError is an error that a process had.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for attempt in range(1 + _RESTARTS):
        try:
            _run([*arguments, "--resume"] if attempt else arguments, processes)
            return
        except ChildFailedError as error:
            lost = _lost(error.failures, processes)
        _log.info("%s: starting again from the last checkpoint", lost)
    raise WorkerError(f"{lost}, and so {1 + _RESTARTS} times: run the same command again to go on, or with fewer")


def _run(arguments: Sequence[str], processes: int) -> None:
    with TemporaryDirectory(prefix="torchrun_") as folder, _own_signals():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="train",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,  # torchrun's own restarts would repeat a refused gate, too
            logs_specs=DefaultLogsSpecs(folder),
            shutdown_timeout=10,
        )
        elastic_launch(config, sys.executable)("-m", "pipeline", "train", *arguments)


def _lost(failures: dict[int, ProcessFailure], processes: int) -> str:
    """What happened to the process that ended first; RemoteError where one has ended of its own accord.

    BrokenPipeError where that was because nobody reads its output, and so ours.
    """
    for failure in failures.values():
        if failure.exitcode == _READER_GONE:
            raise BrokenPipeError
        if failure.exitcode in _FINAL:
            raise RemoteError(failure.exitcode, failure.message)
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    how = f"was killed by signal {-first.exitcode}" if first.exitcode < 0 else f"failed: {first.message}"
    return f"training process {rank + 1} of {processes} {how}"


@contextmanager
def _own_signals() -> Iterator[None]:
    """The agent handles signals its own way and keeps doing so after its end; here they mean what they meant before.

    Its log tells what is told here in one line.
    """
    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.propagate = False
    elastic.addHandler(logging.NullHandler())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    received = None
    try:
        yield
    except SignalException as error:
        received = error.sigval
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received is not None:
        signal.raise_signal(received)
