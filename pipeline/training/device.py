"""Which device a run uses."""

from collections.abc import Sequence

import torch

from pipeline.config import Device
from pipeline.errors import InputError


def choose(allowed: Sequence[Device], local_rank: int = 0) -> torch.device:
    """The first of the allowed kinds of devices that this machine has; the process `local_rank` gets one of its own.

    InputError where the machine has none of them, or fewer CUDA devices than processes.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    for name in allowed:
        if available[name]:
            if name == "cuda" and local_rank >= torch.cuda.device_count():
                raise InputError(
                    f"--num-processes: each process needs a CUDA device of its own, and this host has "
                    f"{torch.cuda.device_count()}; use fewer processes or --device cpu"
                )
            return torch.device(name, local_rank) if local_rank else torch.device(name)
    raise InputError(f"device {' or '.join(allowed)} is not available here: use --device auto or --device cpu")
