"""PyTorch: a state dict of the served network, read back with `weights_only`."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.specs import Images, Probabilities, Runner

SUFFIX = ".pth"


def export(served: nn.Module, example: Tensor, path: Path) -> dict[str, str | int]:
    saved = BytesIO()
    torch.save(served.state_dict(), saved)
    path.write_bytes(saved.getvalue())  # torch itself does not say by an OSError that the disk is full
    return {"torch": str(torch.__version__)}


def open(path: Path, build: Callable[[], nn.Module]) -> Runner:
    served = build().eval()
    served.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @torch.inference_mode()
    def run(images: Images) -> Probabilities:
        probabilities: Probabilities = served(torch.from_numpy(images)).numpy()
        return probabilities

    return run
