"""What a device can do, and when it has done it."""

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Side of the square matrices: large enough for the full speed of a device, small enough for a fraction of a second.
_SIDE_ON_A_CPU, _SIDE_ELSEWHERE = 2048, 8192
_PRODUCTS = 6
_BATCH = 64


def clock(device: torch.device) -> float:
    """Seconds, read when the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def peak_flops(device: torch.device) -> dict[str, float]:
    """FLOP/s by type: the fastest of some products of square matrices."""
    side = _SIDE_ON_A_CPU if device.type == "cpu" else _SIDE_ELSEWHERE
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {
        name: 2 * side**3 / min(_seconds_of_product(*torch.rand(2, side, side, device=device).to(dtype)))
        for name, dtype in types.items()
    }


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> list[float]:
    seconds = []
    for _ in range(_PRODUCTS):
        started = clock(left.device)
        torch.mm(left, right)
        seconds.append(clock(left.device) - started)
    return seconds


def flops_per_image(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Forward and backward through a network on the CPU; products and convolutions only, as PyTorch counts them."""
    network.train()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(_BATCH, *shape)).sum().backward()
    return float(counter.get_total_flops() / _BATCH)


def name(device: torch.device, cpu: str) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
