"""Clients that ask a Triton server, each again as soon as it is answered, and note how long that took.

They share the cores with the server, so they must be cheap: all run in one thread and send the same
bytes, made once. tritonclient, which makes and reads each message anew, takes several times as long.
"""

import asyncio
import csv
import json
import selectors
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple, Self, cast

import numpy as np

from pipeline.errors import ServerError
from pipeline.records import Record
from pipeline.specs import INPUT, OUTPUT, Images

Protocol = Literal["http", "grpc"]

_TIMEOUT_SECONDS = 60


class Load(Record):
    """Requests per second, latencies, and what the client itself took of a core for each request, where known."""

    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    client_us: float | None = None


class Target(NamedTuple):
    """Whom to ask for what."""

    protocol: Protocol
    url: str
    model: str
    images: Images


def summarize(seconds_each: list[float], elapsed: float, client_us: float | None = None) -> Load:
    """Of the seconds that each request took, all answered within `elapsed` seconds."""
    p50, p95, p99 = (1e3 * np.percentile(seconds_each, (50, 95, 99))).tolist()
    return Load(throughput=len(seconds_each) / elapsed, p50_ms=p50, p95_ms=p95, p99_ms=p99, client_us=client_us)


def ask(target: Target, concurrency: int, seconds: float) -> Load:
    """By the clients of this module; ServerError where the server refuses a request or goes away."""
    cpu, started = time.process_time(), time.perf_counter()
    if target.protocol == "http":
        latencies = _ask_http(target, concurrency, seconds)
    else:
        latencies = asyncio.run(_ask_grpc(target, concurrency, seconds))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return summarize(latencies, elapsed, 1e6 * cpu / len(latencies))


def ask_by_perf_analyzer(program: str, target: Target, concurrency: int, seconds: float) -> Load:
    """By NVIDIA's load generator, with images of its own; ServerError where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.csv")
        command = [program, "-m", target.model, "-u", target.url, "-i", target.protocol, "-f", str(report)]
        command += ["-b", str(len(target.images)), "--input-data", "random", "--concurrency-range", str(concurrency)]
        # It takes three windows at least; with this tolerance it is content with them.
        command += ["-p", str(max(1, round(1e3 * seconds / 3))), "-s", "999", "-r", "3"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not report.exists():
            reason = (done.stderr or done.stdout).strip() or "it says nothing"
            raise ServerError(f"{program} failed against {target.url} (status {done.returncode}): {reason}")
        return read_report(report.read_text(), len(target.images))


def read_report(text: str, batch_size: int) -> Load:
    """The one line of perf_analyzer's CSV report; it counts images, in microseconds."""
    (row,) = csv.DictReader(text.splitlines())
    return Load(
        throughput=float(row["Inferences/Second"]) / batch_size,
        **{f"p{share}_ms": float(row[f"p{share} latency"]) / 1e3 for share in (50, 95, 99)},
    )


def _ask_http(target: Target, concurrency: int, seconds: float) -> list[float]:
    message, latencies = _http_message(target), []
    try:
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            clients = [stack.enter_context(_HttpClient(target.url, message)) for _ in range(concurrency)]
            deadline = time.perf_counter() + seconds
            for client in clients:
                selector.register(client, selectors.EVENT_READ)
                client.send()
            while selector.get_map():
                ready = selector.select(_TIMEOUT_SECONDS)
                if not ready:
                    raise TimeoutError(f"silent for {_TIMEOUT_SECONDS} s")
                for key, _ in ready:
                    client = cast(_HttpClient, key.fileobj)
                    if client.receive():
                        now = time.perf_counter()
                        latencies.append(now - client.sent)
                        if now < deadline:
                            client.send()
                        else:
                            selector.unregister(client)
    except OSError as error:
        raise ServerError(f"no Triton server answers at {target.url} ({error}): start bin/serve") from None
    return latencies


class _HttpClient:
    """One connection, for one request at a time; `sent` is when the last one was."""

    def __init__(self, url: str, message: bytes) -> None:
        host, _, port = url.rpartition(":")
        self._connection = socket.create_connection((host, int(port)), _TIMEOUT_SECONDS)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message = message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self) -> None:
        self._received, self.sent = b"", time.perf_counter()
        self._connection.sendall(self._message)

    def receive(self) -> bool:
        """Take what has come; whether that makes the answer whole. ServerError where it is a refusal."""
        data = self._connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError("it closed the connection")
        self._received += data
        head, end_of_head, body = self._received.partition(b"\r\n\r\n")
        if not end_of_head or len(body) < _content_length(head):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise ServerError(f"the server refused a request: {body.decode(errors='replace')}")
        return True


def _http_message(target: Target) -> bytes:
    pixels = target.images.tobytes()
    tensor = {"name": INPUT, "shape": target.images.shape, "datatype": "UINT8"}
    header = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(pixels)}}],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }
    ).encode()
    lines = (
        f"POST /v2/models/{target.model}/infer HTTP/1.1",
        f"Host: {target.url}",
        f"Inference-Header-Content-Length: {len(header)}",
        f"Content-Length: {len(header) + len(pixels)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + header + pixels


def _content_length(head: bytes) -> int:
    (value,) = (line[16:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: "))
    return int(value)


async def _ask_grpc(target: Target, concurrency: int, seconds: float) -> list[float]:
    import grpc.aio

    message, deadline = _grpc_message(target), time.perf_counter() + seconds
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(target.url) as channel:
        # Without a serializer bytes are sent, and received, as they are.
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def client() -> None:
            now = 0.0
            while now < deadline:
                sent = time.perf_counter()
                await infer(message, timeout=seconds + _TIMEOUT_SECONDS)
                now = time.perf_counter()
                latencies.append(now - sent)

        try:
            await asyncio.gather(*(client() for _ in range(concurrency)))
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"the server at {target.url} did not answer a request: {error.details()}") from None
    return latencies


def _grpc_message(target: Target) -> bytes:
    from tritonclient.grpc import service_pb2 as messages

    request = messages.ModelInferRequest(
        model_name=target.model,
        inputs=[{"name": INPUT, "datatype": "UINT8", "shape": target.images.shape}],
        outputs=[{"name": OUTPUT}],
        raw_input_contents=[target.images.tobytes()],
    )
    return bytes(request.SerializeToString())
