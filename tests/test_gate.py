"""What is judged, and above all that no number which is none gets past a gate."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import GateConfig
from pipeline.records import (
    Benchmarked,
    BenchmarkedFile,
    ClassMetrics,
    DataInfo,
    Exported,
    ExportedFile,
    Gated,
    Metrics,
    Verified,
    VerifiedFile,
)
from pipeline.runfolder import RunFolder
from pipeline.specs import Split
from pipeline.stages.gate import gate
from pipeline.stages.verify import verify

GATES = GateConfig(min_test_accuracy=0.97, min_per_class_accuracy=0.9, max_model_size_mb=1.0, max_inference_time_ms=5.0)
SHAPE = (1, 2, 2)
LABELS = ("dark", "bright")
DATA = DataInfo(
    dataset_id="brightness_v1",
    short_name="brightness",
    title="",
    source="",
    license="",
    shape=SHAPE,
    labels=LABELS,
    train_images=0,
    validation_images=0,
    test_images=301,
    test_images_per_class=(151, 150),
    sha256="",
    mean=(0.0,),
    std=(1.0,),
    fallback=False,
)


def metrics(accuracy: float = 0.99, recalls: tuple[float | None, ...] = (0.98, 1.0)) -> Metrics:
    return Metrics(
        images=100,
        loss=0.1,
        accuracy=accuracy,
        per_class=tuple(
            ClassMetrics(label=label, images=50, precision=0.99, recall=recall, f1=0.99)
            for label, recall in zip(LABELS, recalls, strict=True)
        ),
        confusion=(),
    )


GOOD = VerifiedFile(
    format="onnx",
    metrics=metrics(),
    largest_difference=0.0,
    agreement=1.0,
    batch_sizes=(1, 2),
    batch_difference=0.0,
    finite=True,
)


def judge(file: VerifiedFile = GOOD, *, size: int = 1000, p95_ms: float = 1.0) -> Gated:
    exported = ExportedFile(format="onnx", path="models/m.onnx", bytes=size, sha256="0", details={})
    timed = BenchmarkedFile(
        format="onnx", requests=1, p50_ms=1.0, p95_ms=p95_ms, p99_ms=1.0, throughput=1.0, throughput_threads=1
    )
    return gate(Exported(files=(exported,)), Verified(files=(file,)), Benchmarked(files=(timed,)), "onnx", GATES, GATES)


def changed(**values: object) -> VerifiedFile:
    return GOOD.model_copy(update=values)


def test_thresholds_are_inclusive() -> None:
    assert judge(changed(metrics=metrics(0.97, (0.9, 1.0))), size=10**6, p95_ms=5.0).passed
    beyond = judge(changed(metrics=metrics(0.969, (1.0, 0.899))), size=10**6 + 1, p95_ms=5.01)
    assert [gate.name for gate in beyond.failed] == [
        "test accuracy",
        "per-class accuracy",
        "model size",
        "inference time",
    ]
    assert "worst class: bright" in beyond.failed[1].detail


@pytest.mark.parametrize(
    ("name", "judged"),
    [
        ("test accuracy", lambda: judge(changed(metrics=metrics(accuracy=math.nan)))),
        ("per-class accuracy", lambda: judge(changed(metrics=metrics(recalls=(math.nan, 1.0))))),
        ("per-class accuracy", lambda: judge(changed(metrics=metrics(recalls=(0.95, math.nan))))),
        ("inference time", lambda: judge(p95_ms=math.nan)),
        ("agreement with PyTorch", lambda: judge(changed(agreement=math.nan))),
        ("difference between batch sizes", lambda: judge(changed(batch_difference=math.nan))),
    ],
)
def test_a_measurement_that_is_not_a_number_fails_its_gate_and_says_so(name: str, judged: Callable[[], Gated]) -> None:
    (failed,) = judged().failed
    assert failed.name == name
    assert failed.sentence().startswith(f"{name} is not a number (NaN), must be at ")


def test_a_class_without_test_images_fails_and_is_named() -> None:
    (failed,) = judge(changed(metrics=metrics(recalls=(1.0, None)))).failed
    assert failed.sentence() == (
        "per-class accuracy is not a number (NaN), must be at least 0.9 (no test images of class bright)"
    )


def classifier(*where_nan: onnx.NodeProto) -> onnx.ModelProto:
    """Dark or bright; NaN where `bad` is true, which the nodes make of `image` and of `sum`, one for each image."""
    constants = {
        "pixels": np.array([1]),
        "slope": np.array([[-0.01, 0.01]], np.float32),
        "middle": np.array([5.1, -5.1], np.float32),
        "nan": np.array(math.nan, np.float32),
        "three": np.array([3]),
        "28": np.array(28, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"]),
            helper.make_node("ReduceSum", ["flat", "pixels"], ["sum"]),
            helper.make_node("MatMul", ["sum", "slope"], ["product"]),
            helper.make_node("Add", ["product", "middle"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["sound"]),
            *where_nan,
            helper.make_node("Where", ["bad", "nan", "sound"], ["probabilities__0"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("probabilities__0", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


NEVER = (helper.make_node("Equal", ["sum", "nan"], ["bad"]),)
IN_THREES = (
    helper.make_node("Shape", ["image"], ["rows"], start=0, end=1),
    helper.make_node("Equal", ["rows", "three"], ["bad"]),
)
FOR_THE_LAST_IMAGE = (helper.make_node("Equal", ["sum", "28"], ["bad"]),)


@pytest.mark.parametrize(
    ("where_nan", "failed"),
    [
        (NEVER, []),
        (IN_THREES, ["difference between batch sizes"]),
        # Its first class, which an answer of NaN counts as, is the right one.
        (FOR_THE_LAST_IMAGE, ["sound answers"]),
    ],
    ids=["never", "in batches of three", "for the last image"],
)
def test_nan_among_the_answers_of_a_file_fails(
    where_nan: tuple[onnx.NodeProto, ...], failed: list[str], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    onnx.save_model(classifier(*where_nan), tmp_path / "m.onnx")
    # More images than are asked at several batch sizes; all four pixels of one are alike.
    brightness = np.append(np.tile([20, 90, 160, 250], 75), 7)
    labels = (brightness > 127).astype(np.int64)
    images = brightness.astype(np.uint8).repeat(4).reshape(-1, *SHAPE)
    folder.reference.parent.mkdir()
    np.save(folder.reference, np.eye(2, dtype=np.float32)[labels])
    exported = ExportedFile(format="onnx", path="m.onnx", bytes=1000, sha256="0", details={})
    verified = verify(Exported(files=(exported,)), "none", DATA, Split.whole(images, labels), "onnx", folder)
    assert [gate.name for gate in judge(verified.files[0]).failed] == failed
