"""Serve a model repository by the embedded Triton until told to stop."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import FolderError, ServerError
from pipeline.triton import client
from pipeline.triton.server import ServerOptions, running
from pipeline.triton.store import open_store

_SECONDS_TO_LIVE = 120


def serve(
    repository: str, *, host: str, ports: tuple[int, int, int], log_file: Path | None, say: Callable[[str], None]
) -> None:
    """Returns only by an exception: a signal's, or ServerError where the server stops by itself.

    `ports` are those of HTTP, gRPC and metrics; 0 takes a free one.
    """
    if "://" in repository:
        # Triton would say less of what is wrong there, or wait for ever.
        if not open_store(repository).folders():
            raise FolderError(f"{repository} holds no models: release one by bin/train, or name --model-repository")
    elif not Path(repository).is_dir():
        raise FolderError(f"{repository} is not a folder: release a model by bin/train, or name --model-repository")
    options = ServerOptions(
        repository=repository,
        log_file=log_file,
        control="poll",
        # One bad model must not keep the others from being served.
        exit_on_error=False,
        host=host,
        http_port=ports[0],
        grpc_port=ports[1],
        metrics_port=ports[2],
    )
    with running(options) as server:
        server.wait_live(time.monotonic() + _SECONDS_TO_LIVE)
        say(f"Triton {server.version} serves {repository}: HTTP {server.http_url}, gRPC {server.grpc_url}")
        models = client.models(server.http_url)
        for name, version, state, reason in models:
            say(f"  {name} version {version} {state}{reason and ': '}{reason}")
        if not models:
            say("  no models yet: a release by bin/train goes live within seconds")
        say(f"try: bin/infer --url {server.http_url} --model-repository {repository}     stop: Ctrl-C")
        status = server.wait()
        raise ServerError(f"Triton stopped by itself (status {status}): {server.log_tail(1)}")
