"""Where randomness comes from: a run that goes on after any epoch draws what an uninterrupted one does."""

from typing import Literal

import torch

Stream = Literal["order", "augmentation", "network"]

_STREAMS: tuple[Stream, ...] = ("order", "augmentation", "network")


def seed_of(seed: int, epoch: int, stream: Stream, rank: int = 0) -> int:
    """Another one, of 63 bits, for each run's seed, epoch, use and process."""
    return ((seed * 1_000_003 + epoch) * len(_STREAMS) + _STREAMS.index(stream) + (rank << 48)) % 2**63


def generator(seed: int, epoch: int, stream: Stream, rank: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, epoch, stream, rank))
