"""Serves `backend: "pytorch"` (TorchScript) in the embedded Triton, as strictly as the stock image."""

import sys
from pathlib import Path
from typing import Any

import torch

# The stub knows nothing of this package; this file is reached by a link from the backend folder.
sys.path.append(str(Path(__file__).resolve().parents[4]))

from pipeline.triton.backends.exchange import Array, Contract, Tensor, refuse

TRITON_TYPES = {
    torch.bool: "TYPE_BOOL",
    torch.uint8: "TYPE_UINT8",
    torch.int8: "TYPE_INT8",
    torch.int16: "TYPE_INT16",
    torch.int32: "TYPE_INT32",
    torch.int64: "TYPE_INT64",
    torch.float16: "TYPE_FP16",
    torch.float32: "TYPE_FP32",
    torch.float64: "TYPE_FP64",
}
TORCH_TYPES = {name: dtype for dtype, name in TRITON_TYPES.items()}


class TritonPythonModel:
    """One instance of a served TorchScript model, on the GPU that Triton chose or on the CPU."""

    def initialize(self, args: dict[str, str]) -> None:
        self.contract = Contract(args, "model.pt")
        if (threads := self.contract.integer("INTRA_OP_THREAD_COUNT")) is not None:
            torch.set_num_threads(threads)
        if (threads := self.contract.integer("INTER_OP_THREAD_COUNT")) is not None:
            torch.set_num_interop_threads(threads)
        on_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        self.module = torch.jit.load(self.contract.file, map_location=self.device).eval()
        self.input_names = [tensor.name for tensor in self.contract.inputs]
        self.output_indices = [_output_index(tensor.name) for tensor in self.contract.outputs]
        self._check_names()
        if all(dim > 0 for tensor in self.contract.inputs for dim in tensor.dims[self.contract.batched :]):
            self._check_outputs()

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.contract.answer(requests, self._infer)

    def _infer(self, arrays: list[Array]) -> list[Array]:
        outputs = self._forward([torch.from_numpy(array) for array in arrays])
        return [output.contiguous().cpu().numpy() for output in outputs]

    @torch.inference_mode()
    def _forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Inputs and outputs are in the config's order."""
        named = {name: tensor.to(self.device) for name, tensor in zip(self.input_names, tensors, strict=True)}
        result = self.module(**named)
        outputs = (result,) if isinstance(result, torch.Tensor) else result
        return [outputs[index] for index in self.output_indices]

    def _check_names(self) -> None:
        arguments = [argument.name for argument in self.module.forward.schema.arguments[1:]]
        if sorted(arguments) != sorted(self.input_names):
            refuse(
                f"{self.contract.file} and config.pbtxt disagree on inputs: forward() takes "
                f"{', '.join(arguments)}, config.pbtxt has {', '.join(self.input_names)}"
            )
        if sorted(self.output_indices) != list(range(len(self.output_indices))):
            refuse("config.pbtxt must number its outputs <name>__0, <name>__1, ..., each number once")

    def _check_outputs(self) -> None:
        """TorchScript states no types or dimensions, so two runs show them."""
        for rows in (1, 2):
            zeros = [
                torch.zeros((rows, *tensor.dims[1:]) if self.contract.batched else tensor.dims).to(
                    TORCH_TYPES[tensor.data_type]
                )
                for tensor in self.contract.inputs
            ]
            outputs = zip(self.contract.outputs, self._forward(zeros), strict=True)
            self.contract.compare("output", [self._tensor(t.name, output, rows) for t, output in outputs])

    def _tensor(self, name: str, output: torch.Tensor, rows: int) -> Tensor:
        dims = tuple(output.shape)
        if self.contract.batched and dims[:1] == (rows,):
            dims = (-1, *dims[1:])
        return Tensor(name, TRITON_TYPES.get(output.dtype, str(output.dtype)), dims)


def _output_index(name: str) -> int:
    index = name.rpartition("__")[2]
    if not index.isdecimal():
        refuse(f"the output {name!r} in config.pbtxt must be named <name>__<index>, as TorchScript has no names")
    return int(index)
