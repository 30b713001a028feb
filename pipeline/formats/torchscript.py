"""TorchScript: a traced graph that libtorch runs without Python. The batch size stays free."""

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.specs import Images, Probabilities, Runner

SUFFIX = ".pt"


def export(served: nn.Module, example: Tensor, path: Path) -> dict[str, str | int]:
    with warnings.catch_warnings():
        # Triton's PyTorch backend loads TorchScript, and tracing still makes it.
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        # Its own check of the trace takes a second, and asks less than `verify` does of the file.
        traced = torch.jit.trace(served, example, check_trace=False)
        saved = BytesIO()
        torch.jit.save(traced, saved)
    path.write_bytes(_without_source_paths(saved))
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


def _without_source_paths(saved: BytesIO) -> bytes:
    """The same archive without what names the lines of source that were traced, by the paths of this checkout."""
    saved.seek(0)
    reader, target = torch._C.PyTorchFileReader(saved), BytesIO()
    writer = torch._C.PyTorchFileWriter(target)
    for name in reader.get_all_records():
        # The writer adds the last two itself.
        if not name.endswith((".debug_pkl", "version", ".data/serialization_id")):
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return target.getvalue()
