"""Clients that ask a server without a pause, each a process, and hold every answer against the version that it names.

A client writes down in its own file whenever another version answers than before, and whatever was wrong.
"""

import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from conftest import environment, wait_until
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from pipeline.records import Record
from pipeline.triton import model_config, repository
from pipeline.triton.store import open_store

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]

Protocol = Literal["http", "grpc"]

TOLERANCE = 1e-4
# Of two cores the clients shall leave one, to the server's other work: a backend that starts takes one for seconds.
PAUSE_SECONDS = 0.02


class Line(Record):
    """`at` in seconds of `time.monotonic()`, which all processes share; `requests` so far."""

    at: float
    requests: int
    version: int | None = None
    wrong: str | None = None


class Clients:
    """Running clients, asked from outside."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def versions(self) -> list[list[int]]:
        """For each client the versions that answered, each as often as it followed another one."""
        return [[line.version for line in lines if line.version is not None] for lines in self._lines()]

    def wrong(self) -> list[str]:
        return [line.wrong for lines in self._lines() for line in lines if line.wrong is not None]

    def requests(self) -> int:
        """Of all clients that have ended."""
        return sum(lines[-1].requests for lines in self._lines())

    def wait_for(self, version: int, since: float, seconds: float) -> float:
        """Until this version answers all of them; the seconds that this took since a moment of `time.monotonic()`."""
        wait_until(
            lambda: all(versions[-1:] == [version] for versions in self.versions()),
            max(0, since + seconds - time.monotonic()),
            f"version {version} answers all clients, who have seen {self.versions()}, {self.wrong()}",
        )
        return max(lines[-1].at for lines in self._lines()) - since

    def _lines(self) -> list[list[Line]]:
        # The last one may be in the middle of being written.
        texts = [file.read_text(encoding="utf-8").rpartition("\n")[0] for file in self._files]
        return [[Line.model_validate_json(line) for line in text.splitlines()] for text in texts]


@contextmanager
def asking(location: str, name: str, urls: list[tuple[Protocol, str]], folder: Path) -> Iterator[Clients]:
    """One client for each protocol and address. At the end all have ended by themselves, or that is an error."""
    folder.mkdir()
    files = [folder / f"{number} {protocol}" for number, (protocol, _) in enumerate(urls)]
    processes = []
    try:
        for file, (protocol, url) in zip(files, urls, strict=True):
            with file.open("wb") as output:
                command = [sys.executable, __file__, protocol, url, location, name]
                processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment()))
        clients = Clients(files)
        wait_until(lambda: all(clients.versions()), 60, "all clients have their first answer")
        yield clients
        for process in processes:
            assert process.poll() is None, "a client has ended"
            process.terminate()
        assert [process.wait(30) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(protocol: str, url: str, location: str, name: str) -> None:
    """Ask until SIGTERM."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    triton = importlib.import_module(f"tritonclient.{protocol}")
    store, golden = open_store(location), dict[int, tuple[Images, Probabilities]]()
    rng, seen, requests = np.random.default_rng(0), 0, 0

    def known(version: int) -> tuple[Images, Probabilities]:
        if version not in golden:
            with np.load(BytesIO(store.read(f"{name}/{version}/golden.npz"))) as file:
                golden[version] = file["images"], file["probabilities"]
        return golden[version]

    def tell(version: int | None = None, wrong: str | None = None) -> None:
        line = Line(at=time.monotonic(), requests=requests, version=version, wrong=wrong)
        print(line.model_dump_json(), flush=True)

    # All versions were released with the same images.
    images, _ = known(min(repository.versions(store, name)))
    with triton.InferenceServerClient(url) as connection:
        while not ended:
            rows = rng.integers(len(images), size=rng.integers(1, 5))
            tensor = triton.InferInput(model_config.INPUT_NAME, [len(rows), *images.shape[1:]], "UINT8")
            tensor.set_data_from_numpy(images[rows])
            requests += 1
            try:
                answer = connection.infer(name, [tensor])
                version = int(_value(answer.get_response(), "model_version"))
                if not np.allclose(answer.as_numpy(model_config.OUTPUT_NAME), known(version)[1][rows], atol=TOLERANCE):
                    tell(wrong=f"not the answer of version {version}, which it names")
                elif version != seen:
                    seen = version
                    tell(version)
            except (InferenceServerException, OSError) as error:
                tell(wrong=f"{type(error).__name__}: {error}")
            time.sleep(PAUSE_SECONDS)
    tell()


def _value(response: Any, field: str) -> Any:
    """Of an answer by HTTP, which is a dict, or by gRPC."""
    return response[field] if isinstance(response, dict) else getattr(response, field)


if __name__ == "__main__":
    main(*sys.argv[1:])
