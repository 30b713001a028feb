"""Measures of a classifier over a test set, all from probabilities and labels."""

import numpy as np

from pipeline.records import ClassMetrics, Metrics
from pipeline.specs import Labels, Probabilities

_SMALLEST = np.finfo(np.float32).tiny


def measure(probabilities: Probabilities, labels: Labels, names: tuple[str, ...]) -> Metrics:
    """Probabilities [N, K] and labels [N] to accuracy, mean negative log-likelihood and per-class measures.

    A row that holds a NaN counts as an answer of the first class that is NaN. Precision, recall and
    F1 as in van Rijsbergen 1979, chapter 7.
    """
    classes = len(names)
    answers = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
    of_the_label = np.maximum(probabilities[np.arange(len(labels)), labels], _SMALLEST)
    right, images, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    per_class = tuple(
        ClassMetrics(
            label=name,
            images=int(images[index]),
            precision=_share(right[index], answered[index]) if images[index] else None,
            recall=_share(right[index], images[index]) if images[index] else None,
            f1=_share(2 * right[index], images[index] + answered[index]) if images[index] else None,
        )
        for index, name in enumerate(names)
    )
    return Metrics(
        images=len(labels),
        loss=float(-np.log(of_the_label).mean()),
        accuracy=float(right.sum() / len(labels)),
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _share(part: int, whole: int) -> float:
    """0 where nothing was counted: a class that is never answered has precision 0."""
    return float(part / whole) if whole else 0.0
