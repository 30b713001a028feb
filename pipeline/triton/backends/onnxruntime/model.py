"""Serves `backend: "onnxruntime"` in the embedded Triton, as strictly as the stock image's backend."""

import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from google.protobuf.message import DecodeError

# The stub knows nothing of this package; this file is reached by a link from the backend folder.
sys.path.append(str(Path(__file__).resolve().parents[4]))

from pipeline.triton.backends.exchange import Array, Contract, Tensor, refuse

# What ONNX Runtime 1.19 reads, the one in the oldest stock image that must load the same file.
NEWEST_IR = 10
NEWEST_OPSET = 21

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


class TritonPythonModel:
    """One instance of a served ONNX model, on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        self.contract = Contract(args, "model.onnx")
        _check_versions(self.contract)
        self.session = onnxruntime.InferenceSession(
            self.contract.file, _session_options(self.contract), providers=["CPUExecutionProvider"]
        )
        self.contract.compare("input", [_tensor(node) for node in self.session.get_inputs()])
        self.contract.compare("output", [_tensor(node) for node in self.session.get_outputs()])
        self.input_names = [tensor.name for tensor in self.contract.inputs]
        self.output_names = [tensor.name for tensor in self.contract.outputs]

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.contract.answer(requests, self._infer)

    def _infer(self, arrays: list[Array]) -> list[Array]:
        inputs = dict(zip(self.input_names, arrays, strict=True))
        return list(self.session.run(self.output_names, inputs))


def _check_versions(contract: Contract) -> None:
    try:
        model = onnx.load(contract.file, load_external_data=False)
    except DecodeError as error:
        refuse(f"{contract.file} is not a whole ONNX file: {error}")
    if model.ir_version > NEWEST_IR:
        refuse(f"{contract.file} has ONNX IR version {model.ir_version}: expected at most {NEWEST_IR}")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > NEWEST_OPSET:
        refuse(f"{contract.file} has ONNX opset {opset}: expected at most {NEWEST_OPSET}")


def _session_options(contract: Contract) -> onnxruntime.SessionOptions:
    """The parameters of Triton's own ONNX Runtime backend that bear on a CPU."""
    options = onnxruntime.SessionOptions()
    if (threads := contract.integer("intra_op_thread_count")) is not None:
        options.intra_op_num_threads = threads
    if (threads := contract.integer("inter_op_thread_count")) is not None:
        options.inter_op_num_threads = threads
    if contract.integer("execution_mode") == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    return options


def _tensor(node: onnxruntime.NodeArg) -> Tensor:
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
    return Tensor(node.name, TRITON_TYPES.get(node.type, node.type), dims)
