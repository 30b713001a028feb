"""In which number format a network's forward pass is computed; weights, loss and update are always fp32."""

import logging
import time
from typing import TYPE_CHECKING

import torch

from pipeline.config import Autocast, Precision
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.training.engine import Engine

_log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIAL_STEPS = 8
# What bf16 must gain: more than the noise between two short measurements.
_GAIN = 1.2


def choose(wanted: Precision, engine: "Engine") -> Autocast:
    """The precision to train in; InputError where the device has not the one that is wanted.

    `auto` is fp32, or bf16 where the device computes in it and some steps of this very network are faster so:
    small convolutions can be slower.
    """
    if wanted != "auto":
        if not _is_supported(wanted, engine.device):
            raise InputError(f"--precision {wanted} is not to be had on {engine.device}: use --precision auto or fp32")
        return wanted
    return _faster(engine) if computes_in_bf16(engine.device) else "fp32"


def _faster(engine: "Engine") -> Autocast:
    """fp32 or bf16, by some steps of each on copies of the network, in turn."""
    trials: dict[Autocast, Engine] = {"fp32": engine.copy("fp32"), "bf16": engine.copy("bf16")}
    fastest = dict.fromkeys(trials, float("inf"))
    batch = engine.batches.draw(engine.sampler.order(0)[: engine.config.batch_size], torch.Generator())
    for step in range(_TRIAL_STEPS):
        for name, trial in trials.items():
            started = time.perf_counter()
            trial.step(*batch, 0, step)[1].tolist()  # waits for the device
            fastest[name] = min(fastest[name], time.perf_counter() - started)
    chosen: Autocast = "bf16" if fastest["bf16"] * _GAIN < fastest["fp32"] else "fp32"
    _log.info(
        "precision %s: a step takes %.2f ms in fp32, %.2f ms in bf16", chosen, *(1000 * fastest[n] for n in trials)
    )
    return chosen


def _is_supported(precision: Autocast, device: torch.device) -> bool:
    if precision == "fp16":
        return device.type == "cuda"
    if precision == "bf16":
        return device.type == "cpu" or computes_in_bf16(device)
    return True


def computes_in_bf16(device: torch.device) -> bool:
    """In hardware: an emulated bf16 is never faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
