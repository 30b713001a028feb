"""Hogwild: processes train one network in shared memory, without locks (Recht et al. 2011, arXiv:1106.5730)."""

import io
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError, StorageError, WorkerError
from pipeline.training import host
from pipeline.training.engine import Engine, Shard

# Longer than a batch takes. A process that is silent for so long will not come back.
_SILENCE_SECONDS = 600


@contextmanager
def workers(engine: Engine, count: int, states: Sequence[dict[str, Any]]) -> Iterator["Workers"]:
    """Start `count` processes on the engine's network and images; they end with the block.

    `states`: those of the workers of an earlier run, or none. InputError where there are fewer batches than processes.
    """
    batches = engine.sampler.steps(0)
    if count > batches:
        raise InputError(
            f"--num-processes {count} is more than the {batches} batches of an epoch: use fewer processes "
            "or a smaller --batch-size"
        )
    started: list[_Worker] = []
    try:
        with _sigint_blocked():
            for rank in range(count):
                started.append(_Worker(engine, rank, count, states[rank % len(states)] if states else None))
        for worker in started:
            worker.receive()  # it is ready
        yield Workers(started)
    finally:
        for worker in started:
            worker.stop()


class Workers:
    """Each trains on every n-th batch of an epoch: what it sees is fixed, the order of the updates is not."""

    def __init__(self, started: Sequence["_Worker"]) -> None:
        self._workers = started

    def epoch(self, epoch: int, shards: Sequence[Shard]) -> Iterator[tuple[int, Tensor]]:
        """Train on the shards; yields each batch's number and its metrics, as `Engine.step` returns them, in order.

        WorkerError where a process is lost.
        """
        for rank, worker in enumerate(self._workers):
            worker.send((epoch, shards[rank :: len(self._workers)]))
        arrived: dict[int, list[float]] = {}
        for shard in shards:
            while shard.batch not in arrived:
                arrived.update(self._receive_some())
            yield shard.batch, torch.tensor(arrived.pop(shard.batch))

    def _receive_some(self) -> Iterator[tuple[int, list[float]]]:
        ready = wait([worker.connection for worker in self._workers], _SILENCE_SECONDS)
        if not ready:
            raise WorkerError("the training processes hang: all are stopped; run the same command again to go on")
        for worker in self._workers:
            if worker.connection in ready:
                yield worker.receive()

    def state(self) -> dict[str, Any]:
        for worker in self._workers:
            worker.send(None)
        states = [torch.load(io.BytesIO(worker.receive()), weights_only=True) for worker in self._workers]
        return {"workers": states}


class _Worker:
    """The parent's end of one process."""

    def __init__(self, engine: Engine, rank: int, count: int, state: dict[str, Any] | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = f"training process {rank + 1} of {count}"
        self.connection, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // count)
        self._process = context.Process(target=_work, args=(theirs, rank, threads, engine, _packed(state)))
        try:
            self._process.start()
        except RuntimeError as error:
            raise StorageError(
                f"{error}: Hogwild keeps the network and the training images in shared memory; give it more (docker: "
                "--shm-size, Kubernetes: a Memory volume at /dev/shm) or use --trainer ddp"
            ) from None
        # Theirs alone must keep it open: where they end, this end is told.
        theirs.close()

    def send(self, order: tuple[int, Sequence[Shard]] | None) -> None:
        try:
            self.connection.send(order)
        except OSError:
            raise self._lost() from None

    def receive(self) -> Any:
        """WorkerError where the process failed, was lost or says nothing."""
        if not self.connection.poll(_SILENCE_SECONDS):
            raise WorkerError(f"{self._name} hangs: all are stopped; run the same command again to go on")
        try:
            failure, value = self.connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if failure:
            raise WorkerError(f"{self._name} failed: {failure}; run the same command again to go on, or use fewer")
        return value

    def _lost(self) -> WorkerError:
        self._process.join(5)
        code = self._process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return WorkerError(
            f"{self._name} {how}: all are stopped; run the same command again to go on from the last checkpoint"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _work(connection: Connection, rank: int, threads: int, engine: Engine, state: bytes) -> None:
    """Do what the parent asks until it has gone: an epoch's shards, or to tell this worker's own state."""
    host.set_up()
    torch.set_num_threads(threads)
    engine.rank = rank
    own = torch.load(io.BytesIO(state), weights_only=True)
    if own is not None:
        engine.load_state(own)
    try:
        connection.send((None, None))
        while True:
            order = connection.recv()
            if order is None:
                connection.send((None, _packed(engine.state())))
                continue
            for batch, row in engine.epoch(*order):
                connection.send((None, (batch, row.tolist())))
    except (EOFError, OSError):
        return
    except Exception as error:
        connection.send((f"{type(error).__name__}: {error}", None))


def _packed(state: dict[str, Any] | None) -> bytes:
    """Bytes travel through a pipe; tensors would take shared memory and a file descriptor each."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes that are started in the block never see a Ctrl-C: the parent does, and stops them."""
    resource_tracker.ensure_running()  # else it starts with the first process, and ends the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
