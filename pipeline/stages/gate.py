"""Judge what was measured of the file that will be served. Nothing is measured here."""

import math
from typing import Literal

from pipeline.config import GateConfig
from pipeline.records import Benchmarked, Exported, Format, Gate, Gated, Metrics, Verified

# An export is the trained network only if it answers like it: these two are no matter of taste.
_MIN_AGREEMENT = 0.999
_MAX_DIFFERENCE = 0.01


def gate(
    exported: Exported,
    verified: Verified,
    benchmarked: Benchmarked,
    served_format: Format,
    gates: GateConfig,
    defaults: GateConfig,
) -> Gated:
    """Every gate is judged, also after one has failed. Thresholds are inclusive; NaN fails.

    MB are 10^6 bytes of the served file; latency is its p95; per-class accuracy is the recall of the
    worst class, and a class without test images fails.
    """
    size = next(file.bytes for file in exported.files if file.format == served_format) / 1e6
    file = next(file for file in verified.files if file.format == served_format)
    latency = next(timed.p95_ms for timed in benchmarked.files if timed.format == served_format)
    assert latency is not None  # a run's own records have it
    worst, detail = _worst_class(file.metrics)
    return Gated(
        served_format=served_format,
        gates=(
            _judge("test accuracy", file.metrics.accuracy, ">=", gates.min_test_accuracy, "",
                   defaults.min_test_accuracy, f"{file.metrics.images} test images"),
            _judge("per-class accuracy", worst, ">=", gates.min_per_class_accuracy, "",
                   defaults.min_per_class_accuracy, detail),
            _judge("model size", size, "<=", gates.max_model_size_mb, "MB",
                   defaults.max_model_size_mb, f"the {served_format} file"),
            _judge("inference time", latency, "<=", gates.max_inference_time_ms, "ms",
                   defaults.max_inference_time_ms, "p95 of one image on one thread"),
            _judge("agreement with PyTorch", file.agreement, ">=", _MIN_AGREEMENT, "", _MIN_AGREEMENT,
                   f"largest difference of a probability {file.largest_difference:.2g}"),
            _judge("difference between batch sizes", file.batch_difference, "<=", _MAX_DIFFERENCE, "", _MAX_DIFFERENCE,
                   f"batches of {', '.join(map(str, file.batch_sizes))} images"),
            _judge("sound answers", float(file.finite), ">=", 1.0, "", 1.0,
                   "finite and summing to 1 for all test images, zeros, ones and noise"),
        ),
    )  # fmt: skip


def _judge(
    name: str, measured: float, relation: Literal[">=", "<="], threshold: float, unit: str, default: float, detail: str
) -> Gate:
    # Comparisons with NaN are False, so NaN fails both ways.
    passed = measured >= threshold if relation == ">=" else measured <= threshold
    return Gate(
        name=name,
        measured=measured,
        relation=relation,
        threshold=threshold,
        unit=unit,
        default_threshold=default,
        passed=passed,
        detail=detail,
    )


def _worst_class(metrics: Metrics) -> tuple[float, str]:
    empty = [entry.label for entry in metrics.per_class if entry.recall is None]
    if empty:
        return math.nan, f"no test images of class {', '.join(empty)}"
    recalls = [(entry.recall, entry.label) for entry in metrics.per_class if entry.recall is not None]
    # Python's min() alone passes over a NaN.
    recall, label = min(recalls, key=lambda pair: (not math.isnan(pair[0]), pair[0]))
    return recall, f"worst class: {label}"
