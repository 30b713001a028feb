"""The processes that train copies of one network together, as torchrun started and numbered them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from pipeline.errors import InputError, ZooError

T = TypeVar("T")

# Longer than the first process of a host takes to fetch and decode a data set. A process that is silent for so
# long will not come back; one that has ended is noticed at once.
_SILENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """This process among `size` on all hosts; the one of `rank` 0 writes and prints. By default it is alone.

    All processes call the methods in the same order. `restarts`: how often torchrun has started them again.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes those of the first one."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes; its ZooError is raised in all."""
        if self.size == 1:
            return compute()
        box: list[Any] = [_attempt(compute) if self.rank == 0 else None]
        distributed.broadcast_object_list(box)
        value, error = box[0]
        if error is not None:
            raise error
        result: T = value
        return result

    def in_turn(self, compute: Callable[[], T]) -> T:
        """What each process computes, the first one of each host before the others; a ZooError of one is raised in all.

        So a host fetches and decodes a data set only once.
        """
        if self.size == 1:
            return compute()
        value: Any = None
        for is_turn in (self.local_rank == 0, self.local_rank > 0):
            error = None
            if is_turn:
                value, error = _attempt(compute)
            errors: list[ZooError | None] = [None] * self.size
            distributed.all_gather_object(errors, error)
            for found in filter(None, errors):
                raise found
        result: T = value
        return result

    def leave(self) -> None:
        """The others may end now."""
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = Group()


def join() -> Group:
    """The group that torchrun has started this process in; it ends with torchrun's agent.

    InputError where torchrun would start lost processes again in a way that cannot succeed.
    """
    _end_with(os.getppid())
    _demand_new_stores()
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    distributed.init_process_group(backend, timeout=_SILENCE)
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    return Group(distributed.get_rank(), distributed.get_world_size(), local_rank, restarts)


def _demand_new_stores() -> None:
    """By default torchrun's agent keeps one store for all that it starts, in which new processes find the addresses of
    lost ones and wait for them (PyTorch issue 135712)."""
    restarts = os.environ["TORCHELASTIC_MAX_RESTARTS"]
    if restarts != "0" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        raise InputError(
            f"torchrun --max-restarts {restarts} would start processes that wait for lost ones: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each host and use --rdzv-backend c10d, or, for a "
            "fixed number of hosts, --max-restarts 0"
        )


def _attempt(compute: Callable[[], T]) -> tuple[T | None, ZooError | None]:
    try:
        return compute(), None
    except ZooError as error:
        return None, error


def _end_with(parent: int) -> None:
    """The agent starts each process in a session of its own; nothing else would stop it where the agent was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
