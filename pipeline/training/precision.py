"""In which number format a network's forward pass is computed; weights, loss and update are always fp32."""

import hashlib
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline import cache, provenance
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
    """fp32 or bf16, as was measured when such a network was first trained on this machine.

    Where both take about as long, another measurement may say otherwise, and a seed not give the same weights again.
    """
    path = cache.folder() / f"precision-{_machine_and_network(engine)}"
    if kept := _kept(path):
        _log.info("precision %s, as %s has it; remove that file to measure again", kept, path)
        return kept
    return _keep(path, _measured(engine))


def _machine_and_network(engine: "Engine") -> str:
    device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else provenance.cpu()
    machine = device, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.__version__
    network = engine.config.model_id, engine.batches.shape, engine.config.batch_size
    return hashlib.sha256(repr((machine, network)).encode()).hexdigest()[:16]


def _kept(path: Path) -> Autocast | None:
    with suppress(OSError):
        content = path.read_bytes()
        if content == b"fp32":
            return "fp32"
        if content == b"bf16":
            return "bf16"
        path.unlink()  # damaged
    return None


def _keep(path: Path, chosen: Autocast) -> Autocast:
    """What runs that measure at the same time all take: what the first of them has found."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):  # without a cache each run measures for itself
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(chosen, encoding="utf-8")
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return _kept(path) or chosen


def _measured(engine: "Engine") -> Autocast:
    """By some steps of each on copies of the network, in turn."""
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
