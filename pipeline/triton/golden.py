"""Hold the answers of a server against those that were recorded of the released file: a version's `golden.npz`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.errors import ServerError
from pipeline.records import Check
from pipeline.triton import client

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.specs import Images, Probabilities

FILE = "golden.npz"
_PROTOCOLS = {"http": "HTTP", "grpc": "gRPC"}
_TOLERANCE = 1e-3  # of a probability: the same file on another runtime, not another network


class Golden(NamedTuple):
    """Test images uint8 [N, C, H, W], and the probabilities float32 [N, K] that the released file gave them."""

    images: Images
    probabilities: Probabilities


def load(file: Path | IO[bytes]) -> Golden:
    with np.load(file) as recorded:
        return Golden(recorded["images"], recorded["probabilities"])


def check_load(url: str, name: str, version: int) -> Check:
    """Have a server under explicit control load a model, and see that it serves the version."""
    try:
        client.load_model(url, name)
    except ServerError as error:
        return Check(name="loads", passed=False, detail=str(error))
    ready = (name, str(version), "READY", "")
    return Check(name="loads", passed=ready in client.models(url), detail=f"version {version}")


def check_answers(url: str, name: str, version: int, golden: Golden, sizes: tuple[int, ...]) -> tuple[Check, ...]:
    """One check for each size of a batch; `url` as `client.connected` takes it."""
    protocol, _ = client.protocol_and_address(url)
    return tuple(
        _compare(
            f"{_PROTOCOLS[protocol]} batch {size}",
            client.classify(url, name, _rows(golden.images, size), version),
            _rows(golden.probabilities, size),
        )
        for size in sizes
    )


def check_labels(url: str, name: str, version: int, golden: Golden, labels: tuple[str, ...]) -> Check:
    """Whether the server calls each image by the label that the recorded probabilities give it."""
    answered = client.top_labels(url, name, golden.images, version)
    wanted = [labels[index] for index in golden.probabilities.argmax(axis=1)]
    agreeing = sum(one == other for one, other in zip(answered, wanted, strict=True))
    return Check(name="labels", passed=agreeing == len(wanted), detail=f"{agreeing} of {len(wanted)} agree")


def _compare(check: str, answers: Probabilities, expected: Probabilities) -> Check:
    same_shape = answers.shape == expected.shape
    difference = float(np.abs(answers - expected).max()) if same_shape else float("nan")
    return Check(
        name=check,
        passed=same_shape and difference <= _TOLERANCE,
        detail=f"largest difference {difference:.2g}" if same_shape else f"shape {answers.shape}",
    )


def _rows(rows: np.ndarray, size: int) -> np.ndarray:
    """`size` rows, going round where there are fewer."""
    return rows[np.arange(size) % len(rows)]
