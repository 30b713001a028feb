"""Triton's `config.pbtxt`, made with Triton's own protobuf.

A version's own config does not contain the version's number; the live one, in the model's folder,
is that config *pointed at* a version. tritonclient is imported late: it takes 0.3 s.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import InputError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

Backend = Literal["onnxruntime", "pytorch"]
TensorSignature = tuple[str, str, tuple[int, ...]]

INPUT_NAME = "image"
OUTPUT_NAME = "probabilities__0"
LABELS_FILE = "labels.txt"

# As `to_text` prints it; a nested or quoted one cannot begin a line. Read so, a hundred configs take no time.
_PRINTED_POLICY = re.compile(rb"^version_policy \{\n  specific \{\n((?:    versions: \d+\n)+)  \}\n\}$", re.MULTILINE)

# What `build` sets.
_FIELDS = {
    "backend",
    "dynamic_batching",
    "input",
    "instance_group",
    "max_batch_size",
    "model_warmup",
    "name",
    "output",
    "parameters",
}

# Small networks: more threads per request only wait for each other when requests come together.
THREADS = {
    "onnxruntime": {"intra_op_thread_count": "1", "inter_op_thread_count": "1"},
    "pytorch": {"INTRA_OP_THREAD_COUNT": "1", "INTER_OP_THREAD_COUNT": "1"},
}


def build(
    *, name: str, backend: Backend, shape: tuple[int, int, int], classes: int, max_batch_size: int
) -> ModelConfig:
    """The config of a classifier of uint8 images of `shape` (channels, height, width).

    It serves FP32 probabilities, one per class, in batches of up to `max_batch_size` images.

    How many instances run is left to Triton: one on each GPU, else on the CPU two of an ONNX model and
    one of a TorchScript. Each runs on one thread, so the second is what puts a second core to use: on
    two cores batches of 128 were answered 1.5 times as fast, single images alike. In the embedded
    server an instance is a process, of 83 MB for ONNX; in the stock image it is a thread.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    return pb.ModelConfig(
        name=name,
        backend=backend,
        platform="pytorch_libtorch" if backend == "pytorch" else "",
        max_batch_size=max_batch_size,
        input=[pb.ModelInput(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=shape)],
        output=[pb.ModelOutput(name=OUTPUT_NAME, data_type=pb.TYPE_FP32, dims=[classes], label_filename=LABELS_FILE)],
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_AUTO)],
        dynamic_batching=pb.ModelDynamicBatching(),
        parameters={key: pb.ModelParameter(string_value=value) for key, value in THREADS[backend].items()},
        model_warmup=[
            pb.ModelWarmup(
                name=f"batch {rows}",
                batch_size=rows,
                inputs={INPUT_NAME: pb.ModelWarmup.Input(data_type=pb.TYPE_UINT8, dims=shape, zero_data=True)},
            )
            for rows in (1, max_batch_size)
        ],
    )


def pointed_at(config: ModelConfig, version: int, kept: Collection[int] = ()) -> ModelConfig:
    """A copy of a version's own config that makes this version live; lower ones may be kept loaded beside it."""
    live = type(config)()
    live.CopyFrom(config)
    live.version_policy.specific.versions[:] = sorted({*kept, version})
    for output in live.output:
        output.label_filename = f"{version}/{LABELS_FILE}"
    return live


def loaded_versions(content: bytes, path: str) -> tuple[int, ...]:
    """The versions that a live config has Triton load, ascending; InputError, which names the path, if it names none.

    The last one is live: Triton answers a request that names no version by the highest one that is loaded.
    """
    printed = _PRINTED_POLICY.search(content)
    if printed:
        versions = [int(number) for number in re.findall(rb"\d+", printed[1])]
    else:
        versions = list(parse(content, path).version_policy.specific.versions)
    if not versions:
        raise InputError(
            f"{path} names no version in version_policy.specific: restore it, or remove it and publish again"
        )
    return tuple(sorted(versions))


def code_in(config: ModelConfig) -> str | None:
    """What in a version's own config makes Triton run code that came with the version, or None.

    An ONNX model is data. TorchScript is code, and so is whatever a setting that `build` never makes may name: a
    library of operators, an environment, a model of another backend.
    """
    if config.backend != "onnxruntime":
        return f"backend {config.backend!r}"
    foreign = {field.name for field, _ in config.ListFields()} - _FIELDS
    foreign |= config.parameters.keys() - THREADS["onnxruntime"].keys()
    return ", ".join(sorted(foreign)) or None


def to_text(config: ModelConfig) -> str:
    """The text of a `config.pbtxt`, the same for equal configs."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def read(path: Path) -> ModelConfig:
    """The config in a `config.pbtxt`; InputError if it cannot be read or parsed."""
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a config.pbtxt") from error


def parse(content: bytes, path: str) -> ModelConfig:
    """The config in the content of a `config.pbtxt`; InputError, which names the path, if it cannot be parsed."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(content.decode(), ModelConfig())
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(f"{path} is not a Triton model config: {error}") from error


def signature(config: ModelConfig) -> tuple[tuple[TensorSignature, ...], tuple[TensorSignature, ...]]:
    """Inputs and outputs as (name, data type, dims), for comparing one version's with another's."""
    from tritonclient.grpc.model_config_pb2 import DataType

    inputs, outputs = (
        tuple((entry.name, DataType.Name(entry.data_type), tuple(entry.dims)) for entry in entries)
        for entries in (config.input, config.output)
    )
    return inputs, outputs
