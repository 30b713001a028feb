"""Serve a model repository until told to stop, and say what becomes of its models."""

import ipaddress
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from pipeline.config import Engine
from pipeline.errors import FolderError, InputError, ServerError
from pipeline.triton import client, container, server
from pipeline.triton.container import Container
from pipeline.triton.server import Server, ServerOptions
from pipeline.triton.signing import Signatories
from pipeline.triton.store import open_store
from pipeline.triton.verified_copy import VerifiedCopy, verified_copy

Say = Callable[[str], None]


def serve(
    options: ServerOptions,
    in_container: Container | None,
    ready_seconds: float,
    say: Say,
    signatories: Signatories | None = None,
) -> None:
    """Returns only by an exception: a signal's, or ServerError where the server stops by itself.

    ServerError also where the server does not answer within `ready_seconds`. What is left of them is given to models
    that are still loading, before it is said how to ask; what becomes of one that takes longer is said later. Where
    signatories are given, the server has only what they have signed.
    """
    repository = str(options.repository)
    if repository.startswith("github:"):
        raise InputError(f"no Triton reads from GitHub: run bin/zoo pull {repository}, and serve the folder it goes to")
    if "://" in repository:
        # Triton would say less of what is wrong there, or wait for ever.
        if not open_store(repository).folders():
            raise FolderError(f"{repository} holds no models: release one by bin/train, or name --model-repository")
    elif not Path(repository).is_dir():
        raise FolderError(f"{repository} is not a folder: release a model by bin/train, or name --model-repository")
    if options.control == "explicit" and not _is_loopback(options.host):
        # A load request may carry files, and so code.
        raise InputError(
            f"--control explicit lets all who reach {options.host} load what they like: "
            "use --control poll, or --host 127.0.0.1"
        )
    with ExitStack() as held:
        copy = None
        if signatories:
            if options.control == "explicit":
                raise InputError(
                    "--control explicit loads what the repository holds, signed or not: leave it out, as with "
                    "--require-signature bin/serve itself takes up what is published"
                )
            copy = held.enter_context(verified_copy(open_store(repository), signatories))
            copy.update()
            options = replace(options, repository=copy.root)
        deadline = time.monotonic() + ready_seconds
        triton = held.enter_context(_running(options, in_container))
        triton.wait_live(deadline)
        where = f"in {in_container.image}" if in_container else "embedded"
        say(
            f"Triton {triton.version} ({where}) serves {repository}: HTTP {triton.http_url}, gRPC {triton.grpc_url}, "
            f"metrics {triton.metrics_url}"
        )
        told = _tell({}, triton, copy, say)
        while "loading" in told.values() and time.monotonic() < deadline:
            time.sleep(0.1)
            told = _tell(told, triton, copy, say)
        if not told:
            say("  no models yet: a release by bin/train goes live " + _how(options, triton))
        say(f"try: bin/infer --url {triton.http_url} --model-repository {shlex.quote(repository)}     stop: Ctrl-C")
        while (status := triton.wait(options.poll_seconds)) is None:
            with suppress(ServerError):  # busy, or just ended
                told = _tell(told, triton, copy, say)
            triton.log.empty_if_large()
        raise ServerError(f"Triton stopped by itself (status {status}): {triton.log.tail(1)}")


def choose(engine: Engine, image: str, memory: str | None, cpus: float | None) -> Container | None:
    """What runs the server, as `container.choose` has it; InputError for limits that the embedded one has not."""
    try:
        chosen = container.choose(engine, image)
    except ServerError as error:
        raise ServerError(f"{error}; or use --engine embedded") from None
    if chosen:
        return replace(chosen, memory=memory, cpus=cpus)
    if memory or cpus:
        raise InputError(
            "--memory and --cpus are for --engine docker; the embedded server takes them from systemd: "
            "systemd-run --user --scope -p MemoryMax=4G -p CPUQuota=200% bin/serve"
        )
    return None


def _running(options: ServerOptions, in_container: Container | None) -> AbstractContextManager[Server]:
    return container.running(options, in_container) if in_container else server.running(options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:  # no such host, which is said when its ports are chosen
        return True


def _how(options: ServerOptions, triton: Server) -> str:
    if options.control == "poll":
        return "within seconds"
    return f"by bin/zoo promote NAME:VERSION --reload {triton.http_url}"


def _tell(told: dict[str, str], triton: Server, copy: VerifiedCopy | None, say: Say) -> dict[str, str]:
    """Say what is new of each version, `told` before: that it is ready, or by what reason it was refused."""
    refused = copy.update() if copy else {}
    now = _states(triton) | refused
    for what, state in now.items():
        if state == "loading":
            now[what] = told.get(what, state)  # again: a server that polls tries a bad one each time
        elif state != told.get(what):
            say(f"  {what} {state}")
    return now


def _states(triton: Server) -> dict[str, str]:
    found = {}
    for name, version, state, reason in client.models(triton.http_url):
        if state in ("READY", "LOADING"):
            found[f"{name} version {version}"] = state.lower()
        elif state == "UNAVAILABLE" and reason != "unloaded":
            found[f"{name} version {version}"] = f"refused: {reason}"
    # The index does not say why a model has no version at all.
    return found | {name: f"refused: {reason}" for name, reason in triton.log.models_not_tried().items()}
