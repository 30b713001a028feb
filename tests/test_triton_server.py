"""A real embedded Triton: what it answers, what it refuses, and what it leaves when its owner is killed.

The models are tiny: one matrix, so that a row's answer says which row was asked.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from conftest import STUB, assert_nothing_left, processes, shared_memory, wait_until
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import PortInUseError, ServerError
from pipeline.specs import Images, Probabilities
from pipeline.triton import client, guard, model_config, ports, server_log
from pipeline.triton.server import Server, ServerOptions, running, started
from pipeline.triton.server_log import ServerLog

SHAPE = (2, 3, 4)
# What a naive reader of "<value>:<index>:<label>" or of a path would trip over.
LABELS = ("cat", "T-shirt/top", "a:b", "nuit d'été", "five six")
MATRIX = np.random.default_rng(0).normal(0, 0.004, (24, len(LABELS))).astype(np.float32)
MATRIX -= MATRIX.mean(axis=0)  # or one class would win for all images
GOOD = ("by-onnxruntime", "by-pytorch")


ModelFile = onnx.ModelProto | torch.nn.Module


class Expected(NamedTuple):
    """The input and output of a model's file, where they are not those of its config.pbtxt."""

    input: str = "image"
    output: str = "probabilities__0"
    batch: str | int = "batch"
    classes: int = len(LABELS)


AGREEING = Expected()


def images(rows: int, seed: int = 1) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (rows, *SHAPE), dtype=np.uint8)


def expected(batch: Images, matrix: np.ndarray = MATRIX) -> Probabilities:
    scores = batch.reshape(len(batch), -1).astype(np.float64) @ matrix.astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    answer: Probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return answer


def onnx_model(
    matrix: np.ndarray = MATRIX, names: Expected = AGREEING, ir_version: int = 10, opset: int = 20
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [names.input], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
            helper.make_node("Softmax", ["scores"], [names.output]),
        ],
        "tiny",
        [helper.make_tensor_value_info(names.input, TensorProto.UINT8, [names.batch, *SHAPE])],
        [helper.make_tensor_value_info(names.output, TensorProto.FLOAT, [names.batch, names.classes])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


class Tiny(torch.nn.Module):
    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.from_numpy(matrix))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(image.flatten(1).float() @ self.matrix, dim=1)


class OtherName(Tiny):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return super().forward(picture)


class Slow(Tiny):
    """Takes as long as an image's pixels are bright, and no time for the zeros that it is loaded with."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores = image.flatten(1).float() @ self.matrix
        zeros = torch.zeros(256, 256)
        for _ in range(int(image.sum()) // 2):
            zeros = zeros @ zeros
        return torch.softmax(scores + zeros.sum(), dim=1)


def save_torchscript(module: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit")  # deprecated, and what Triton wants
        if isinstance(module, Slow):  # tracing would unroll its loop
            script = torch.jit.script(module.eval())
        else:
            script = torch.jit.trace(module.eval(), torch.from_numpy(images(2)))
        torch.jit.save(script, path)


def add_version(
    model: Path, version: int, backend: Literal["onnxruntime", "pytorch"], file: ModelFile | None, instances: int = 0
) -> None:
    """A version's folder, with its own config.pbtxt; without a model's file where that is None.

    Zero instances means as many as Triton wants, which is two.
    """
    folder = model / str(version)
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    own = model_config.build(name=model.name, backend=backend, shape=SHAPE, classes=len(LABELS), max_batch_size=128)
    if instances:
        own.instance_group[0].count = instances
    (folder / "config.pbtxt").write_text(model_config.to_text(own), encoding="utf-8")
    if isinstance(file, onnx.ModelProto):
        onnx.save_model(file, folder / "model.onnx")
    elif file is not None:
        save_torchscript(file, folder / "model.pt")


def point_at(model: Path, version: int) -> None:
    """As the repository does: a whole file beside the models, then one rename."""
    own = model_config.read(model / str(version) / "config.pbtxt")
    temporary = model.parent / ".config.pbtxt"
    temporary.write_text(model_config.to_text(model_config.pointed_at(own, version)), encoding="utf-8")
    os.replace(temporary, model / "config.pbtxt")  # noqa: PTH105


def options(repository: Path, control: Literal["poll", "explicit"], *load: str) -> ServerOptions:
    return ServerOptions(
        repository=repository,
        log_file=repository.with_suffix(".log"),
        control=control,
        exit_on_error=False,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        load=load,
    )


# What the file of each bad model has, and what must stand in the server's reason.
BAD: dict[str, tuple[ModelFile | None, tuple[str, ...]]] = {
    "wrong-dims": (
        onnx_model(np.zeros((24, 7), np.float32), Expected(classes=7)),
        ("disagree on outputs", "TYPE_FP32 [-1, 7]", "TYPE_FP32 [-1, 5]"),
    ),
    "fixed-batch": (onnx_model(names=Expected(batch=1)), ("disagree on inputs", "[1, 2, 3, 4]", "[-1, 2, 3, 4]")),
    "wrong-input": (onnx_model(names=Expected(input="x")), ("disagree on inputs", "x TYPE_UINT8", "image TYPE_UINT8")),
    "wrong-output": (
        onnx_model(names=Expected(output="y")),
        ("disagree on outputs", "y TYPE_FP32", "probabilities__0"),
    ),
    "no-file": (None, ("model.onnx is missing",)),
    "new-ir": (onnx_model(ir_version=11), ("ONNX IR version 11: expected at most 10",)),
    "new-opset": (onnx_model(opset=22), ("ONNX opset 22: expected at most 21",)),
    "torch-wrong-input": (OtherName(MATRIX), ("disagree on inputs", "picture", "image")),
    "torch-wrong-dims": (Tiny(np.zeros((24, 7), np.float32)), ("disagree on outputs", "[-1, 7]", "[-1, 5]")),
}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Good and bad models in one repository, under one server; in folders whose paths no shell takes as one word."""
    folder = tmp_path_factory.mktemp("triton")
    repository, temporary = (folder / f"{name}; of $HOME 'and' more" for name in ("models", "temporary"))
    temporary.mkdir()
    add_version(repository / "by-onnxruntime", 3, "onnxruntime", onnx_model())
    add_version(repository / "by-pytorch", 3, "pytorch", Tiny(MATRIX))
    for name, (file, _) in BAD.items():
        add_version(repository / name, 3, "pytorch" if name.startswith("torch") else "onnxruntime", file, instances=1)
    for model in repository.iterdir():
        point_at(model, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        with running(options(repository, "explicit", *GOOD, *BAD)) as started:
            started.wait_live(time.monotonic() + 120)
            yield started
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 3, 128])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", GOOD)
def test_each_row_is_answered_by_its_own_probabilities(triton: Server, model: str, protocol: str, rows: int) -> None:
    batch = images(rows)
    wanted = expected(batch)
    assert len(np.unique(wanted.round(3), axis=0)) == rows  # or a mixed-up answer would pass
    if protocol == "http":
        answer = client.classify(triton.http_url, model, batch)
    else:
        answer = client.classify(f"grpc://{triton.grpc_url}", model, batch, version=3)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, wanted, atol=1e-5)


@pytest.mark.parametrize("model", GOOD)
def test_requests_that_come_together_are_not_mixed_up(triton: Server, model: str) -> None:
    batches = [images(1 + number % 4, seed=number) for number in range(48)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda batch: client.classify(triton.http_url, model, batch), batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, expected(batch), atol=1e-5)


@pytest.mark.parametrize("model", GOOD)
def test_labels_come_from_the_versions_own_file(triton: Server, model: str) -> None:
    batch = images(64)
    wanted = [LABELS[index] for index in expected(batch).argmax(axis=1)]
    assert set(wanted) == set(LABELS)
    assert client.top_labels(triton.http_url, model, batch) == wanted


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", GOOD)
def test_a_request_that_does_not_fit_is_refused(triton: Server, model: str, protocol: str) -> None:
    url = triton.http_url if protocol == "http" else f"grpc://{triton.grpc_url}"
    for batch in (images(129), images(2)[:, :1]):
        with pytest.raises(ServerError, match=f"refused a request for {model}"):
            client.classify(url, model, batch)
    with pytest.raises(ServerError, match="refused"):
        client.classify(url, model, images(1), version=4)
    np.testing.assert_allclose(client.classify(url, model, images(2)), expected(images(2)), atol=1e-5)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_refused_by_name_and_reason(triton: Server, name: str) -> None:
    states = {model.name: model for model in client.models(triton.http_url)}
    assert states.keys() == {*GOOD, *BAD}
    bad = states[name]
    assert (bad.version, bad.state) == ("3", "UNAVAILABLE")
    for part in BAD[name][1]:
        assert part in bad.reason
    # The others are served all the same.
    assert [states[good].state for good in GOOD] == ["READY", "READY"]


def test_version_and_life(triton: Server) -> None:
    assert triton.version.split(".")[0] == "2"
    assert triton.is_alive()


@pytest.mark.parametrize("port", ["http_port", "grpc_port", "metrics_port"])
def test_a_taken_port_is_named(tmp_path: Path, port: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        wanted = {"http_port": 0, "grpc_port": 0, "metrics_port": 0} | {port: number}
        log = tmp_path / "triton.log"
        with (
            pytest.raises(PortInUseError, match=rf"port {number} .*--{port.replace('_', '-')}"),
            running(ServerOptions(tmp_path, log, "explicit", True, **wanted)),
        ):
            pass
    assert not log.exists()


def test_a_port_that_was_chosen_stays_free_for_the_server() -> None:
    chosen = ports.choose("127.0.0.1", {"--http-port": 0, "--grpc-port": 0})
    assert len(set(chosen.values())) == 2
    for port in chosen.values():
        # To the kernel it is in use, but not to a server.
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()


def test_no_server_is_said_to_be_not_there() -> None:
    with socket.socket() as listener:  # bound but not listening: refused, and nobody else takes it
        listener.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match="start bin/serve"):
            client.models(url)
        with pytest.raises(ServerError):
            client.classify(f"grpc://{url}", "digits", images(1))


@pytest.mark.parametrize("content", [b"<html>", b"", b"\xff", b"{}"])
def test_what_is_no_triton_is_said_to_be_none(content: bytes) -> None:
    """As a web server in development, which answers every path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        url = f"127.0.0.1:{other.server_port}"
        try:
            with client.connected(url) as connection, pytest.raises(ServerError, match="digits is no Triton server"):
                connection.describe("digits")
        finally:
            other.shutdown()
            thread.join()


def test_polling_goes_live_after_one_rename_and_no_request_fails(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    other = -MATRIX
    add_version(repository / "digits", 1, "onnxruntime", onnx_model())
    point_at(repository / "digits", 1)
    batch = images(3)
    before, after = expected(batch), expected(batch, other)
    assert np.abs(before - after).max() > 0.1
    with running(options(repository, "poll")) as started:
        started.wait_live(time.monotonic() + 60)

        def live() -> int:
            answer = client.classify(started.http_url, "digits", batch)
            for version, wanted in ((1, before), (2, after)):
                if np.allclose(answer, wanted, atol=1e-5):
                    return version
            raise AssertionError("an answer of neither version")

        wait_until(lambda: "READY" in {m.state for m in client.models(started.http_url)}, 30, "version 1 ready")
        assert live() == 1
        # More than one period: a version that is only there is not served.
        add_version(repository / "digits", 2, "onnxruntime", onnx_model(other))
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert live() == 1
        point_at(repository / "digits", 2)
        wait_until(lambda: live() == 2, 30, "version 2 live")
        assert client.top_labels(started.http_url, "digits", batch) == [LABELS[i] for i in after.argmax(axis=1)]


def test_a_stub_without_a_processor_answers_late_and_right(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python backend as it comes fails the request after a second, and does not survive the late answer."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running(options(models, "explicit", "digits")) as started, ThreadPoolExecutor() as pool:
        started.wait_live(time.monotonic() + 60)
        stubs = processes(tmp_path, STUB)
        assert stubs
        for stub in stubs:
            os.kill(stub, signal.SIGSTOP)
        batches = [images(3, seed) for seed in range(4)]
        answers = [pool.submit(client.classify, started.http_url, "digits", batch) for batch in batches]
        time.sleep(2.5)
        assert not any(answer.done() for answer in answers)
        for stub in stubs:
            os.kill(stub, signal.SIGCONT)
        for batch, answer in zip(batches, answers, strict=True):
            assert np.allclose(answer.result(), expected(batch), atol=1e-5)


# Takes what looks like a lock in a stub's shared memory, and ends with it.
LOCKER = """
import ctypes, mmap, os, struct, sys

with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
locked = 0
for offset in range(0, len(memory) - 40, 4):
    # The GNU C library's free mutex: 40 bytes of zeros but for its kind, in which 128 says that processes share it.
    (kind,) = struct.unpack_from("i", memory, offset + 16)
    if 128 <= kind < 256 and memory[offset : offset + 40] == struct.pack("16xi20x", kind):
        locked += ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(start + offset)) == 0
print(locked, flush=True)
os._exit(0)  # or the memory would be given back first, and the kernel not find what is locked
"""


def test_locks_of_a_killed_stub_do_not_stop_the_server(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python backend itself kills a stub that had no processor for a second, whatever that holds."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    add_version(models / "digits", 2, "onnxruntime", onnx_model(-MATRIX), instances=1)
    batch = images(3)
    with running(options(models, "explicit", "digits")) as started:
        started.wait_live(time.monotonic() + 60)
        for stub in processes(tmp_path, STUB):
            os.kill(stub, signal.SIGSTOP)
        for region in shared_memory([started.pid]):
            locks = subprocess.run([sys.executable, "-c", LOCKER, region], capture_output=True, text=True, check=True)
            assert int(locks.stdout) > 0
        for version, matrix in ((2, -MATRIX), (1, MATRIX)):
            point_at(models / "digits", version)
            client.load_model(started.http_url, "digits")
            assert started.wait(1.5) is None
            assert np.allclose(client.classify(started.http_url, "digits", batch), expected(batch, matrix), atol=1e-5)


# The moments at which it says something are its server's start and the end of that.
OWNER = """
import sys, time
from pathlib import Path
from pipeline.triton.server import ServerOptions, running

options = ServerOptions(
    Path(sys.argv[1]), None, "explicit", False, "127.0.0.1", 0, 0, 0, drain_seconds=int(sys.argv[2]), load=("digits",)
)
with running(options) as server:
    print(server.pid, flush=True)
    server.wait_live(time.monotonic() + 60)
    print(server.http_url, flush=True)
    time.sleep(600)
"""


@dataclass(frozen=True)
class Owner:
    """A process that runs a server, and all that this server has: it lies in the owner's temporary folder."""

    process: subprocess.Popen[str]
    guard: int
    temporary: Path

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def processes(self, program: str) -> list[int]:
        return processes(self.temporary, program)

    def assert_nothing_left(self) -> None:
        assert_nothing_left(self.temporary, [self.guard])


@contextmanager
def owner(tmp_path: Path, drain_seconds: int = 5) -> Iterator[Owner]:
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "models"), str(drain_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # KeyboardInterrupt's traceback
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    with process:
        try:
            assert process.stdout is not None
            yield Owner(process, int(process.stdout.readline()), tmp_path / "tmp")
        finally:
            process.kill()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the one model `digits`."""
    add_version(tmp_path / "models" / "digits", 1, "onnxruntime", onnx_model())
    point_at(tmp_path / "models" / "digits", 1)
    return tmp_path / "models"


@pytest.fixture
def live_owner(tmp_path: Path, models: Path) -> Iterator[Owner]:
    with owner(tmp_path) as started:
        assert started.says()
        # Or the tests would look for the wrong things.
        assert len(started.processes("--backend-directory=")) == 1
        assert started.processes(STUB)
        assert list(started.temporary.rglob("python_env_*"))
        assert shared_memory([started.guard])
        yield started
    # Where a test failed, the next ones shall not find this.
    for path in shared_memory([started.guard]):
        path.unlink()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_nothing_outlives_an_owner_that_is_killed(live_owner: Owner, how: signal.Signals) -> None:
    live_owner.process.send_signal(how)
    live_owner.process.wait(10)
    live_owner.assert_nothing_left()


@pytest.mark.parametrize("drain_seconds", [0, 5])
@pytest.mark.parametrize("program", ["guard.py", "--backend-directory=", STUB])
@pytest.mark.usefixtures("models")
def test_nothing_outlives_an_owner_that_is_killed_while_its_server_starts(
    tmp_path: Path, program: str, drain_seconds: int
) -> None:
    with owner(tmp_path, drain_seconds) as started:
        wait_until(lambda: started.processes(program) != [], 10, f"{program} runs")
        started.process.kill()
        started.process.wait()
        started.assert_nothing_left()


def test_nothing_outlives_a_server_that_is_killed(live_owner: Owner) -> None:
    (tritonserver,) = live_owner.processes("--backend-directory=")
    os.kill(tritonserver, signal.SIGKILL)
    wait_until(lambda: live_owner.processes("") == [live_owner.process.pid], 10, "only the owner runs")
    live_owner.process.kill()
    live_owner.process.wait(10)
    live_owner.assert_nothing_left()


def test_what_a_killed_guard_left_is_removed_by_the_next(
    live_owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(live_owner.guard, signal.SIGKILL)
    wait_until(lambda: live_owner.processes("") == [live_owner.process.pid], 10, "server and stubs have ended")
    live_owner.process.kill()
    live_owner.process.wait(10)
    assert list(live_owner.temporary.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(live_owner.temporary))
    (tmp_path / "empty").mkdir()
    with running(options(tmp_path / "empty", "explicit")) as started:
        started.wait_live(time.monotonic() + 60)
    live_owner.assert_nothing_left()


@pytest.fixture
def slow_models(tmp_path: Path) -> Path:
    """A repository with the one model `digits`, which takes about a second for two images."""
    add_version(tmp_path / "models" / "digits", 1, "pytorch", Slow(MATRIX))
    point_at(tmp_path / "models" / "digits", 1)
    return tmp_path / "models"


def is_busy(temporary: Path) -> bool:
    (path,) = temporary.glob("zoo-triton-*/busy")
    with path.open() as file:
        return guard.is_locked(file.fileno())


def test_an_idle_server_ends_at_once_though_a_client_is_connected(models: Path) -> None:
    with running(options(models, "poll")) as started:
        started.wait_live(time.monotonic() + 60)
        connected = http.client.HTTPConnection(started.http_url)
        connected.request("GET", "/v2")
        assert connected.getresponse().read()
        client.classify(started.http_url, "digits", images(2))
        begin = time.monotonic()
    assert time.monotonic() - begin < 1.5
    connected.close()


def test_a_log_without_a_name_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_log, "_MOST_BYTES", 100_000)
    log = ServerLog.open(None)
    with log.file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log.file, text=True) as writer:
        assert writer.stdin is not None
        writer.stdin.write("line\n" * 24_000 + "first\n")
        writer.stdin.flush()
        wait_until(lambda: log.tail(1) == "first")
        assert log.tail(24_000).count("line") < 14_000  # only a recent part is read
        log.empty_if_large()
        writer.stdin.write("second\n")
        writer.stdin.flush()
        wait_until(lambda: log.tail(1) == "second")
        log.empty_if_large()
        assert os.fstat(log.file.fileno()).st_size == len("second\n")
        writer.stdin.close()


def test_a_server_that_does_not_end_is_killed_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.triton.server._SECONDS_TO_END", 0.2)
    options = ServerOptions(tmp_path, log_file=None, control="poll", exit_on_error=False, drain_seconds=0)
    deaf = ["/bin/sh", "-c", "trap '' TERM; echo deaf; exec sleep 60"]
    chosen = {"--http-port": 1, "--grpc-port": 2, "--metrics-port": 3}
    with started(deaf, dict(os.environ), options, chosen) as ended:
        wait_until(lambda: ended.log.tail(1) == "deaf")
    assert not ended.is_alive()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_requests_that_run_are_answered_before_the_end(
    tmp_path: Path, slow_models: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    batch = images(2)
    with ThreadPoolExecutor(1) as pool:
        with running(replace(options(slow_models, "explicit", "digits"), drain_seconds=30)) as started:
            started.wait_live(time.monotonic() + 60)
            url = started.http_url if protocol == "http" else f"grpc://{started.grpc_url}"
            answer = pool.submit(client.classify, url, "digits", batch)
            wait_until(lambda: is_busy(tmp_path / "tmp"), 10, "the request runs")
        np.testing.assert_allclose(answer.result(), expected(batch), atol=1e-5)


def test_one_who_asks_twice_does_not_wait_for_requests_that_run(tmp_path: Path, slow_models: Path) -> None:
    with ThreadPoolExecutor(1) as pool, owner(tmp_path, drain_seconds=50) as started:
        # So many take a minute.
        answer = pool.submit(client.classify, started.says(), "digits", images(128))
        wait_until(lambda: is_busy(tmp_path / "tmp"), 10, "the request runs")
        started.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            started.process.wait(1)
        started.process.send_signal(signal.SIGINT)
        started.process.wait(5)
        started.assert_nothing_left()
        with pytest.raises(ServerError):
            answer.result()
