"""What the stand-ins for Triton's C++ backends share: the contract in config.pbtxt, and batches.

Tensors go through DLPack both ways. Triton's stub was compiled against numpy 1, and its own
conversions are silently wrong under numpy 2: an output is sent empty, and every row of an input
batch becomes the first one.
"""

import ctypes
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from pipeline.triton.guard import BUSY_FILE

Array = NDArray[Any]
Infer = Callable[[list[Array]], list[Array]]

# The DLPack specification's name for a capsule whose tensor has been taken over.
_CONSUMED = b"used_dltensor"
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


class Tensor(NamedTuple):
    """An input or output: its name, Triton's data type, and all its dimensions, -1 where free."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.data_type} {list(self.dims)}"


class Contract:
    """What config.pbtxt promises of a model; `args` is what Triton gives a backend's initialize()."""

    def __init__(self, args: dict[str, str], default_file: str) -> None:
        config = json.loads(args["model_config"])
        name = config["default_model_filename"] or default_file
        self.file = Path(args["model_repository"], args["model_version"], name)
        if not self.file.is_file():
            refuse(f"{self.file} is missing: config.pbtxt needs it in the version's folder")
        self.batched = config["max_batch_size"] > 0
        self.inputs = [self._tensor(entry) for entry in config["input"]]
        self.outputs = [self._tensor(entry) for entry in config["output"]]
        self.parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self._lock = os.open(os.environ[BUSY_FILE], os.O_RDONLY)

    def _tensor(self, entry: dict[str, Any]) -> Tensor:
        # With batches, the first dimension is free and config.pbtxt leaves it out.
        return Tensor(entry["name"], entry["data_type"], (-1,) * self.batched + tuple(entry["dims"]))

    def integer(self, parameter: str) -> int | None:
        """The parameter's value, None where config.pbtxt does not set it."""
        value = self.parameters.get(parameter)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError:
            refuse(f"parameter {parameter} in config.pbtxt is {value!r}: expected an integer")

    def compare(self, kind: str, found: list[Tensor]) -> None:
        """Refuse a file whose inputs or outputs (`kind`) are not exactly those of config.pbtxt."""
        expected = self.inputs if kind == "input" else self.outputs
        if sorted(expected) != sorted(found):
            refuse(
                f"{self.file} and config.pbtxt disagree on {kind}s: the file has "
                f"{', '.join(map(str, found))}, config.pbtxt has {', '.join(map(str, expected))}"
            )

    def answer(self, requests: list[Any], infer: Infer) -> list[Any]:
        """One response per request; `infer` maps arrays, in the config's order, inputs to outputs.

        Requests that Triton handed over together run as one batch.
        """
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # tells the guard that requests run
        try:
            if self.batched:
                return self._answer_batch(requests, infer)
            return [self._respond(infer(self._arrays(request))) for request in requests]
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _answer_batch(self, requests: list[Any], infer: Infer) -> list[Any]:
        arrays = [self._arrays(request) for request in requests]
        outputs = infer([np.concatenate(parts) for parts in zip(*arrays, strict=True)])
        responses, start = [], 0
        for first, *_ in arrays:
            stop = start + len(first)
            responses.append(self._respond([output[start:stop] for output in outputs]))
            start = stop
        return responses

    def _arrays(self, request: Any) -> list[Array]:
        given = {tensor.name(): tensor for tensor in request.inputs()}
        return [np.from_dlpack(_Lent(given[tensor.name])) for tensor in self.inputs]

    def _respond(self, outputs: list[Array]) -> Any:
        return pb_utils.InferenceResponse(
            [_triton_tensor(tensor.name, output) for tensor, output in zip(self.outputs, outputs, strict=True)]
        )


class _Lent:
    """A Triton tensor for numpy, which asks with arguments that the stub does not know.

    The stub would refuse them, and be asked again without: each refusal costs it a long message.
    """

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return self._tensor.to_dlpack()

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def refuse(reason: str) -> NoReturn:
    """Make Triton report that the model failed to load, for this reason."""
    raise pb_utils.TritonModelException(reason)


def _triton_tensor(name: str, array: Array) -> Any:
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The stub takes the tensor over but marks the capsule by another name than the specification's,
    # at which numpy's capsule complains on stderr, once per tensor.
    _set_name(capsule, _CONSUMED)
    return tensor
