"""Which device a run uses."""

from collections.abc import Sequence

import torch

from pipeline.config import Device
from pipeline.errors import InputError


def choose(allowed: Sequence[Device]) -> torch.device:
    """The first of the allowed devices that this machine has; InputError where it has none of them."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    for name in allowed:
        if available[name]:
            return torch.device(name)
    raise InputError(f"device {' or '.join(allowed)} is not available here: use --device auto or --device cpu")
