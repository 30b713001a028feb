"""A running Triton server, and the embedded one: NVIDIA's own binary from the nvidia-pytriton wheel.

Whatever runs the server, the process that is started here lives as long as its standard input is open:
so nothing outlives a killed program. Of the stock image's server that is `container`'s affair.

The wheel lies in a folder of its own, `<environment>/triton`, because only its unused Python package
has requirements. Its server carries only the Python backend; `backends/` takes the place of the
C++ ones. Everything runs under a guard process (see `guard.py`).
"""

import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ServerError
from pipeline.triton import guard, ports
from pipeline.triton.server_log import ServerLog

PACKAGE = Path(__file__).parent
WHEEL = Path(sys.prefix) / "triton"
TRITON = WHEEL / "pytriton" / "tritonserver"
BINARY = TRITON / "bin" / "tritonserver"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = TRITON / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
OLDEST_GLIBC = (2, 35)

# What it may take, beside the requests, to end the server and remove its files.
_SECONDS_TO_END = 5


@dataclass(frozen=True)
class ServerOptions:
    """What to serve and where: a folder, or s3://..., which Triton reads itself. `load` is for explicit control only.

    A port of 0 means a free one.
    Without a `log_file` the log has no name and ends with the server. At that end, requests that run
    may go on for `drain_seconds`; 0 kills the server at once.
    """

    repository: Path | str
    log_file: Path | None
    control: Literal["poll", "explicit"]
    exit_on_error: bool
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    poll_seconds: int = 1
    drain_seconds: int = 5
    load: tuple[str, ...] = ()

    @property
    def local_repository(self) -> str | None:
        """The folder's path, or None where it is no folder."""
        return None if "://" in str(self.repository) else str(Path(self.repository).resolve())


@dataclass(frozen=True)
class Server:
    """A running server. Its addresses are `host:port`, as Triton's clients want them."""

    http_url: str
    grpc_url: str
    metrics_url: str
    log: ServerLog
    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The id of the process that stands for the server: the guard's, or the container engine's."""
        return self._process.pid

    @property
    def version(self) -> str:
        """Triton's version, as a live server states it; ServerError if it does not answer."""
        body = self._get("/v2")
        if body is None:
            raise ServerError(f"Triton at {self.http_url} does not answer{self.log.where()}")
        return str(json.loads(body)["version"])

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> int | None:
        """The server's exit status, or None where it has not ended within so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_live(self, deadline: float) -> None:
        """Wait until the server answers, which is after it tried to load the models at its start.

        `deadline` is in `time.monotonic()` seconds. Raises ServerError when the server ends or the
        deadline passes.
        """
        while self._get("/v2/health/live") is None:
            if not self.is_alive():
                raise ServerError(
                    f"Triton stopped while starting (status {self._process.returncode}): "
                    f"{self.log.errors()}{self.log.where()}"
                )
            if time.monotonic() >= deadline:
                raise ServerError(f"Triton at {self.http_url} was not live in time{self.log.where()}")
            time.sleep(0.02)

    def _get(self, path: str) -> bytes | None:
        """The body of a good answer, else None."""
        host, _, port = self.http_url.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=2)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.read() if response.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def unavailable() -> str | None:
    """Why the embedded server cannot run on this machine, or None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the embedded Triton runs on Linux x86-64 only, this is {sys.platform} {platform.machine()}"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split("."))) < OLDEST_GLIBC:
        return f"the embedded Triton needs glibc 2.35 or newer, this is {libc or 'another C library'} {version}"
    if not BINARY.is_file():
        return f"the nvidia-pytriton wheel is not installed in {WHEEL}"
    if not STUB.is_file():
        return f"the nvidia-pytriton wheel has no Python stub for Python {PYTHON_VERSION}"
    # Without arguments the stub only complains about that, if the loader finds its libpython.
    probe = subprocess.run([STUB], env=_environment(), capture_output=True, text=True, check=False)
    if "error while loading shared libraries" in probe.stderr:
        missing = probe.stderr.strip().rpartition("libraries: ")[2]
        # Debian and Ubuntu have it in a package of its own, that python3 does not ask for.
        return (
            f"the Python stub of Triton cannot start: {missing}; install that library "
            f"(Debian, Ubuntu: package libpython{PYTHON_VERSION})"
        )
    return None


@contextmanager
def running(options: ServerOptions) -> Iterator[Server]:
    """Start an embedded server, and stop it at the end, whatever happens; it need not be live yet.

    Raises PortInUseError for a taken port, and ServerError where no server can run here.
    """
    if reason := unavailable():
        raise ServerError(f"{reason}; use the stock image of Triton there")
    chosen = choose_ports(options)
    command = [sys.executable, "-I", "-S", guard.__file__]
    folders = [tempfile.gettempdir(), TRITON / "backends" / "python", STUB, PACKAGE / "backends"]
    command += map(str, [*folders, options.drain_seconds, BINARY])
    command += arguments(options, options.local_repository or str(options.repository), options.host, chosen)
    with started(command, _environment(), options, chosen) as server:
        yield server


def choose_ports(options: ServerOptions) -> dict[str, int]:
    """The port for each of Triton's flags. PortInUseError for a taken one."""
    wanted = {
        "--http-port": options.http_port,
        "--grpc-port": options.grpc_port,
        "--metrics-port": options.metrics_port,
    }
    return ports.choose(options.host, wanted)


@contextmanager
def started(
    command: list[str], environment: dict[str, str], options: ServerOptions, chosen: dict[str, int]
) -> Iterator[Server]:
    """Run a command that is a server on these ports while its standard input is open; end it, whatever happens."""
    log = ServerLog.open(options.log_file)
    with log.file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log.file,
            stderr=log.file,
            env=environment,
            cwd="/",
            start_new_session=True,  # Ctrl-C in a terminal is for us; we stop the server
        )
        http_url, grpc_url, metrics_url = (f"{options.host}:{port}" for port in chosen.values())
        try:
            yield Server(http_url, grpc_url, metrics_url, log, process)
        finally:
            _stop(process, options.drain_seconds + _SECONDS_TO_END)


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    assert process.stdin is not None
    process.stdin.close()  # so it stops the server
    try:
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        finally:  # also at a second Ctrl-C, of one who does not want to wait for requests that run
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)
    finally:
        process.kill()
        process.wait()


def arguments(options: ServerOptions, repository: str, host: str, chosen: dict[str, int]) -> list[str]:
    """Triton's own arguments, with repository, address and ports as the server itself sees them."""
    arguments = [
        f"--model-repository={repository}",
        f"--model-control-mode={options.control}",
        "--disable-auto-complete-config",
        f"--exit-on-error={str(options.exit_on_error).lower()}",
        f"--exit-timeout-secs={options.drain_seconds}",
        *(f"--{service}-address={host}" for service in ("http", "grpc", "metrics")),
        *(f"{flag}={port}" for flag, port in chosen.items()),
    ]
    if options.control == "poll":
        arguments.append(f"--repository-poll-secs={options.poll_seconds}")
    if not has_gpu():
        arguments.append("--allow-gpu-metrics=false")
    return arguments + [f"--load-model={model}" for model in options.load]


def has_gpu() -> bool:
    """Whether NVIDIA's driver runs here."""
    return Path("/dev/nvidiactl").exists()


def _environment() -> dict[str, str]:
    """The server's environment: the stub takes its Python from PATH and the libraries from the wheel."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    libraries = [str(WHEEL / "nvidia_pytriton.libs"), f"{sys.base_prefix}/lib"]
    if inherited := environment.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    # A backend sets its own number of threads; these would only start more of them at import.
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
    return environment
