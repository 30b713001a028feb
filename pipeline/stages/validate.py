"""Let a real Triton server load the assembled model, ask it, and hold its answers against the recorded ones."""

import logging
import time

import numpy as np

from pipeline.records import Assembled, Check, Validated
from pipeline.runfolder import RunFolder
from pipeline.specs import MAX_BATCH_SIZE, Images, Probabilities
from pipeline.triton import client
from pipeline.triton.server import Server, ServerOptions, running

_log = logging.getLogger(__name__)

_BATCH_SIZES = (1, 3, MAX_BATCH_SIZE)
_TOLERANCE = 1e-3  # of a probability: the same file on another runtime, not another network
_SECONDS_TO_LIVE = 120
_SECONDS_TO_LOAD = 60


def validate(assembled: Assembled, labels: tuple[str, ...], folder: RunFolder) -> Validated:
    """The verdict is a record, also a bad one. ServerError where no server can be had."""
    log_file = folder.root / "triton.log"
    options = ServerOptions(
        repository=folder.root / assembled.root,
        log_file=log_file,
        control="explicit",
        exit_on_error=False,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        load=(assembled.name,),
    )
    started = time.monotonic()
    with running(options) as server:
        server.wait_live(started + _SECONDS_TO_LIVE)
        loaded = _load_check(server, assembled)
        seconds = time.monotonic() - started
        checks = (loaded, *_answer_checks(server, assembled, labels, folder)) if loaded.passed else (loaded,)
        return Validated(
            name=assembled.name,
            version=assembled.version,
            server=f"Triton {server.version} (embedded)",
            seconds_to_ready=seconds,
            checks=checks,
            log_tail=() if all(check.passed for check in checks) else tuple(server.log_tail().splitlines()),
            hashes=assembled.hashes,
        )


def _load_check(server: Server, assembled: Assembled) -> Check:
    deadline = time.monotonic() + _SECONDS_TO_LOAD
    while True:
        states = {(name, version): (state, reason) for name, version, state, reason in client.models(server.http_url)}
        state, reason = states.get((assembled.name, str(assembled.version)), ("UNKNOWN", "not in the server's index"))
        if state != "LOADING" or time.monotonic() > deadline:
            return Check(name="loads", passed=state == "READY", detail=reason or state)
        time.sleep(0.05)


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
