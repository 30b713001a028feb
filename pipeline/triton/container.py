"""Triton's stock image in Docker or Podman, as an embedded server runs: on loopback, and no longer than its program."""

import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.config import Engine
from pipeline.errors import ServerError
from pipeline.triton.server import Server, ServerOptions, arguments, choose_ports, has_gpu, started

# The only place that says which; doc/Design.md says why.
IMAGE = "nvcr.io/nvidia/tritonserver:25.12-py3"
ENGINES = ("docker", "podman")

_log = logging.getLogger(__name__)

_MOUNT = "/models"
_PORTS = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
# `triton-server` in the image. Published files are readable by all.
_USER = "1000:1000"
_SECONDS_TO_ANSWER = 10

# Runs in the container. Its standard input closes when this program ends or is killed, as the engine's client passes
# that on; and with Docker also when the client is killed. `read` ends then: nothing is ever written to it. A first
# SIGTERM lets requests that run go on, as Triton does; the second, for one who does not want to wait, does not.
_LIFE_LINE = """
exec 3<&0
signal=TERM
"$@" 3<&- &
server=$!
trap 'kill -"$signal" "$server"; signal=KILL' TERM
(read -r _ <&3; kill -TERM "$$") &
line=$!
wait "$server"
status=$?
while kill -0 "$server" 2>/dev/null; do
  wait "$server"
  status=$?
done
# A signal may have ended the last wait just as the server ended, whose own status is then still to be had.
wait "$server"
last=$?
[ "$last" = 127 ] || status=$last
kill "$line" 2>/dev/null
exit "$status"
"""


@dataclass(frozen=True)
class Container:
    """What runs the server: the engine's program, an image that it has, and limits, where there are any.

    `memory` is written as engines do, 4g for 4 GiB; `cpus` is how many processors' time it may use.
    """

    engine: str
    image: str
    memory: str | None = None
    cpus: float | None = None


def choose(engine: Engine, image: str = IMAGE) -> Container | None:
    """What runs a server; None for the embedded one. `auto` is the stock image where it lies on this machine.

    ServerError where `docker` is wanted and cannot be had.
    """
    if engine == "embedded":
        return None
    try:
        return Container(find(image), image)
    except ServerError as error:
        if engine == "docker":
            raise
        _log.debug("embedded, as %s", error)
        return None


def find(image: str) -> str:
    """The program of the engine that has the image; ServerError says why there is none."""
    reasons = {}
    for engine in filter(shutil.which, ENGINES):
        reasons[engine] = lacks(engine, image)
        if reasons[engine] is None:
            return engine
    if not reasons:
        raise ServerError("no container engine is installed: install Docker or Podman")
    raise ServerError("; ".join(filter(None, reasons.values())))


def lacks(engine: str, image: str) -> str | None:
    """Why the engine cannot run the image, or None where it can. Never pulls."""
    try:
        done = subprocess.run(
            [engine, "images", "--quiet", image],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS_TO_ANSWER,
        )
    except subprocess.TimeoutExpired:
        return f"{engine} does not answer within {_SECONDS_TO_ANSWER} s"
    if done.returncode:
        return f"{engine} does not answer ({' '.join(done.stderr.split())})"
    return None if done.stdout.strip() else f"{engine} has no image {image}: run {engine} pull {image}"


@contextmanager
def running(options: ServerOptions, container: Container) -> Iterator[Server]:
    """Start the stock image's server, and stop and remove its container at the end; it need not be live yet.

    PortInUseError for a taken port.
    """
    chosen = choose_ports(options)
    name = f"zoo-triton-{os.getpid()}-{time.time_ns()}"
    command = [container.engine, "run", *_flags(options, container, name, chosen), container.image]
    repository = _MOUNT if options.local_repository else str(options.repository)
    command += ["sh", "-c", _LIFE_LINE, "sh", "tritonserver", *arguments(options, repository, "0.0.0.0", _PORTS)]
    try:
        with started(command, dict(os.environ), options, chosen) as server:
            yield server
    finally:
        # Gone by now, but where the engine's client was killed, as by one who did not want to wait for requests.
        subprocess.run([container.engine, "rm", "--force", name], capture_output=True, check=False)


def _flags(options: ServerOptions, container: Container, name: str, chosen: dict[str, int]) -> list[str]:
    address = socket.gethostbyname(options.host)
    flags = [
        f"--name={name}",
        "--rm",
        "--interactive",
        "--pull=never",
        "--log-driver=none",  # we have the log
        f"--user={_USER}",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        *(f"--publish={address}:{chosen[flag]}:{port}" for flag, port in _PORTS.items()),
    ]
    if options.local_repository:
        source = options.local_repository.replace('"', '""')
        flags.append(f'--mount=type=bind,"source={source}",target={_MOUNT},readonly')
    else:  # the engine takes the values from our environment, so that no list of processes shows them
        flags += [f"--env={name}" for name in sorted(os.environ) if name.startswith("AWS_")]
    if container.memory:
        flags.append(f"--memory={container.memory}")
    if container.cpus:
        flags.append(f"--cpus={container.cpus:g}")
    if has_gpu():
        flags.append("--device=nvidia.com/gpu=all" if container.engine == "podman" else "--gpus=all")
    return flags
