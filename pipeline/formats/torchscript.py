"""TorchScript: a traced graph that libtorch runs without Python. The batch size stays free."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.specs import Images, Probabilities, Runner

FORMAT = "torchscript"
SUFFIX = ".pt"


def export(served: nn.Module, example: Tensor, path: Path) -> dict[str, str | int]:
    with warnings.catch_warnings():
        # Triton's PyTorch backend loads TorchScript, and tracing still makes it.
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        # Its own check of the trace takes a second, and asks less than `verify` does of the file.
        traced = torch.jit.trace(served, example, check_trace=False)
        torch.jit.save(traced, path)
    return {"torch": str(torch.__version__)}


def open(path: Path, build: Callable[[], nn.Module]) -> Runner:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        served = torch.jit.load(path, map_location="cpu")

    @torch.inference_mode()
    def run(images: Images) -> Probabilities:
        probabilities: Probabilities = served(torch.from_numpy(images)).numpy()
        return probabilities

    return run
