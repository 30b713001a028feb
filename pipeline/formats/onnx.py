"""ONNX: one file that every ONNX Runtime in Triton's images since 24.10 loads, with a free batch size."""

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pipeline.errors import ZooError
from pipeline.specs import INPUT, OUTPUT, Images, Probabilities, Runner

SUFFIX = ".onnx"

# The newest that ONNX Runtime 1.19, in Triton's image 24.10, loads.
_HIGHEST_IR = 10
_HIGHEST_OPSET = 20


def export(served: nn.Module, example: Tensor, path: Path) -> dict[str, str | int]:
    """Traced, like TorchScript: the exporter by torch.export takes 30 times as long for the same graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            served,
            (example,),
            path,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=_HIGHEST_OPSET,
        )
    return _checked(path)


def open(path: Path, build: Callable[[], nn.Module]) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> Probabilities:
        probabilities: Probabilities = session.run([OUTPUT], {INPUT: images})[0]
        return probabilities

    return run


def _checked(path: Path) -> dict[str, str | int]:
    """Read the file itself back and look at what a strict server looks at."""
    model = onnx.load_model(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    values = (*model.graph.input, *model.graph.output)
    problems = [
        (model.ir_version > _HIGHEST_IR, f"IR version {model.ir_version} is above {_HIGHEST_IR}"),
        (opset > _HIGHEST_OPSET, f"opset {opset} is above {_HIGHEST_OPSET}"),
        ([value.name for value in values] != [INPUT, OUTPUT], "inputs and outputs have other names"),
        (not all(value.type.tensor_type.shape.dim[0].dim_param for value in values), "the batch size is fixed"),
        (any(tensor.external_data for tensor in model.graph.initializer), "weights lie in a side file"),
    ]
    for wrong, text in problems:
        if wrong:
            raise ZooError(f"{path} would not load in Triton: {text}; this is a fault of the exporter, report it")
    return {"ir_version": model.ir_version, "opset": opset, "onnx": onnx.__version__, "torch": str(torch.__version__)}
