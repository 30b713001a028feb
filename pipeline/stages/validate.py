"""Let a real Triton server load the assembled model, ask it, and hold its answers against the recorded ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.config import Engine
from pipeline.errors import InputError, ServerError
from pipeline.records import Assembled, Check, Validated
from pipeline.runfolder import RunFolder
from pipeline.specs import MAX_BATCH_SIZE
from pipeline.triton import container, golden, model_config, repository
from pipeline.triton.server import Server, ServerOptions, running, unavailable

_BATCH_SIZES = (1, 3, MAX_BATCH_SIZE)
_SECONDS_TO_LIVE = 120


class Judge(NamedTuple):
    """A server that is to say whether it serves the model, and what it runs in: `embedded`, or an image."""

    server: Server
    runs_in: str


@contextmanager
def starting_server(folder: RunFolder, engine: Engine) -> Iterator[Judge | None]:
    """A server without models that starts while other stages work; None where none can run here.

    ServerError where the stock image is wanted and cannot be had.
    """
    in_container = container.choose(engine)
    if not in_container and unavailable():
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
    with container.running(options, in_container) if in_container else running(options) as server:
        yield Judge(server, in_container.image if in_container else "embedded")


def validate(assembled: Assembled, labels: tuple[str, ...], folder: RunFolder, judge: Judge | None) -> Validated:
    """The verdict is a record, also a bad one. ServerError where no server can be had.

    InputError where the config.pbtxt that the server is to read is not that of the version.
    """
    if judge is None:
        raise ServerError(
            f"not validated and so not published: {unavailable()}; on a host that can, run "
            f"bin/zoo publish --run {folder.root}"
        )
    _demand_own_config(assembled, folder)
    server = judge.server
    server.wait_live(time.monotonic() + _SECONDS_TO_LIVE)
    started = time.monotonic()
    loaded = golden.check_load(server.http_url, assembled.name, assembled.version)
    seconds = time.monotonic() - started
    checks = (loaded, *_answer_checks(server, assembled, labels, folder)) if loaded.passed else (loaded,)
    return Validated(
        name=assembled.name,
        version=assembled.version,
        server=f"Triton {server.version} ({judge.runs_in})",
        seconds_to_load=seconds,
        checks=checks,
        log_tail=() if all(check.passed for check in checks) else tuple(server.log.tail(20).splitlines()),
        hashes=assembled.hashes,
    )


def _demand_own_config(assembled: Assembled, folder: RunFolder) -> None:
    """The one file of a candidate without a hash: a verdict on another one says nothing of what is published."""
    model = folder.root / assembled.root / assembled.name
    own = model_config.read(model / str(assembled.version) / repository.CONFIG)
    live = model / repository.CONFIG
    expected = repository.pointing_config(own, assembled.version)
    if not live.is_file() or live.read_bytes() != expected.encode():
        raise InputError(
            f"{live} is not that of version {assembled.version} beside it, so nothing was validated: "
            "run bin/train on this folder again"
        )


def _answer_checks(
    server: Server, assembled: Assembled, labels: tuple[str, ...], folder: RunFolder
) -> tuple[Check, ...]:
    name, version, recorded = assembled.name, assembled.version, golden.load(folder.golden)
    return (
        *golden.check_answers(server.http_url, name, version, recorded, _BATCH_SIZES),
        *golden.check_answers(f"grpc://{server.grpc_url}", name, version, recorded, _BATCH_SIZES),
        golden.check_labels(server.http_url, name, version, recorded, labels),
    )
