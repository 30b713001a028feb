"""Let a real Triton server load the assembled model, ask it, and hold its answers against the recorded ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipeline.errors import ServerError
from pipeline.records import Assembled, Check, Validated
from pipeline.runfolder import RunFolder
from pipeline.specs import MAX_BATCH_SIZE, Images, Probabilities
from pipeline.triton import client
from pipeline.triton.server import Server, ServerOptions, running, unavailable

_BATCH_SIZES = (1, 3, MAX_BATCH_SIZE)
_TOLERANCE = 1e-3  # of a probability: the same file on another runtime, not another network
_SECONDS_TO_LIVE = 120


@contextmanager
def starting_server(folder: RunFolder) -> Iterator[Server | None]:
    """A server without models that starts while other stages work; None where none can run here."""
    if unavailable():
        yield None
        return
    root = folder.candidate
    root.mkdir(exist_ok=True)
    options = ServerOptions(
        repository=root,
        log_file=folder.root / "triton.log",
        control="explicit",
        exit_on_error=False,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        drain_seconds=0,
    )
    with running(options) as server:
        yield server


def validate(assembled: Assembled, labels: tuple[str, ...], folder: RunFolder, server: Server | None) -> Validated:
    """The verdict is a record, also a bad one. ServerError where no server can be had."""
    if server is None:
        raise ServerError(
            f"not validated and so not published: {unavailable()}; on a host that can, run "
            f"bin/zoo publish --run {folder.root}"
        )
    server.wait_live(time.monotonic() + _SECONDS_TO_LIVE)
    started = time.monotonic()
    loaded = _load_check(server, assembled)
    seconds = time.monotonic() - started
    checks = (loaded, *_answer_checks(server, assembled, labels, folder)) if loaded.passed else (loaded,)
    return Validated(
        name=assembled.name,
        version=assembled.version,
        server=f"Triton {server.version} (embedded)",
        seconds_to_load=seconds,
        checks=checks,
        log_tail=() if all(check.passed for check in checks) else tuple(server.log.tail(20).splitlines()),
        hashes=assembled.hashes,
    )


def _load_check(server: Server, assembled: Assembled) -> Check:
    try:
        client.load_model(server.http_url, assembled.name)
    except ServerError as error:
        return Check(name="loads", passed=False, detail=str(error))
    ready = (assembled.name, str(assembled.version), "READY", "")
    index = client.models(server.http_url)
    return Check(name="loads", passed=ready in index, detail=f"version {assembled.version}")


def _answer_checks(
    server: Server, assembled: Assembled, labels: tuple[str, ...], folder: RunFolder
) -> tuple[Check, ...]:
    with np.load(folder.golden) as golden:
        images, expected = golden["images"], golden["probabilities"]
    checks = [
        _compare(protocol, ask, url, assembled, _rows(images, size), _rows(expected, size))
        for protocol, ask, url in (
            ("HTTP", client.classify_http, server.http_url),
            ("gRPC", client.classify_grpc, server.grpc_url),
        )
        for size in _BATCH_SIZES
    ]
    answered = client.top_labels(server.http_url, assembled.name, images)
    wanted = [labels[index] for index in expected.argmax(axis=1)]
    wrong = sum(one != other for one, other in zip(answered, wanted, strict=True))
    checks.append(Check(name="labels", passed=wrong == 0, detail=f"{len(wanted) - wrong} of {len(wanted)} agree"))
    return tuple(checks)


def _compare(
    protocol: str, ask: client.Classify, url: str, assembled: Assembled, images: Images, expected: Probabilities
) -> Check:
    answers = ask(url, assembled.name, images, assembled.version)
    same_shape = answers.shape == expected.shape
    difference = float(np.abs(answers - expected).max()) if same_shape else float("nan")
    return Check(
        name=f"{protocol} batch {len(images)}",
        passed=same_shape and difference <= _TOLERANCE,
        detail=f"largest difference {difference:.2g}" if same_shape else f"shape {answers.shape}",
    )


def _rows(rows: np.ndarray, size: int) -> np.ndarray:
    """`size` rows, going round where there are fewer."""
    return rows[np.arange(size) % len(rows)]
