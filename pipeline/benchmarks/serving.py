"""A Triton server and ONNX Runtime in process, asked in turns, with more and more requests at once.

In process the same file answers the same images, one thread for each request, as many at once as there are
cores at most. What the server lacks to that is what serving costs.
"""

import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np
import onnxruntime

from pipeline import console, provenance
from pipeline.benchmarks import load
from pipeline.benchmarks.load import Load, Protocol, Target
from pipeline.errors import InputError
from pipeline.records import CodeInfo, Record
from pipeline.specs import INPUT, OUTPUT, Images
from pipeline.triton import client, golden, repository
from pipeline.triton.server import ServerOptions, running
from pipeline.triton.store import Store

_log = logging.getLogger(__name__)

_SECONDS_TO_LIVE = 120

# So many requests at once, for so many seconds.
Ask = Callable[[int, float], Load]


class Settings(Record):
    """What is measured: `seconds` of each side at each concurrency in each round."""

    protocol: Protocol
    concurrencies: tuple[int, ...]
    batch_size: int
    seconds: float
    rounds: int


class Side(Record):
    """One side at one concurrency: its rounds, and the median of each figure over them."""

    median: Load
    rounds: tuple[Load, ...]


class Point(Record):
    concurrency: int
    server: Side
    in_process: Side


class ServingBenchmark(Record):
    """`server` is a version and where it ran; `client` is what asked it; `cores` they and ONNX Runtime had to share."""

    name: str
    version: int
    settings: Settings
    server: str
    client: str
    cores: int
    code: CodeInfo
    points: tuple[Point, ...]


def benchmark(store: Store, name: str | None, url: str | None, settings: Settings) -> ServingBenchmark:
    """Of the live version under `name`, else of the name published last; without a `url` a server is started.

    InputError where the repository lacks it or the server answers otherwise; ServerError where none answers.
    """
    name = name or repository.newest(store)
    version = repository.find(store, name)
    repository.verify_version(store, name, version)
    with _server(store, name, url, settings.protocol) as (address, server):
        target = _target(store, name, version, address, settings)
        program = shutil.which("perf_analyzer")
        sides = (
            partial(load.ask_by_perf_analyzer, program, target) if program else partial(load.ask, target),
            _in_process(store, name, version, target.images),
        )
        points = _measure(sides, settings)
    return ServingBenchmark(
        name=name,
        version=version,
        settings=settings,
        server=server,
        client="perf_analyzer" if program else "its own",
        cores=len(os.sched_getaffinity(0)),
        code=provenance.describe(),
        points=points,
    )


@contextmanager
def _server(store: Store, name: str, url: str | None, protocol: Protocol) -> Iterator[tuple[str, str]]:
    """The `host:port` to ask, and which server that is."""
    if url:
        _, address = client.protocol_and_address(url)
        yield address, f"the server at {address}"
        return
    options = ServerOptions(
        repository=store.location,
        log_file=None,
        control="explicit",
        exit_on_error=True,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        drain_seconds=0,
        load=(name,),
    )
    with running(options) as server:
        server.wait_live(time.monotonic() + _SECONDS_TO_LIVE)
        address = server.http_url if protocol == "http" else server.grpc_url
        yield address, f"Triton {server.version} (embedded)"


def _target(store: Store, name: str, version: int, address: str, settings: Settings) -> Target:
    """The version's recorded images, when the server has given the recorded answers to them."""
    recorded = golden.load(io.BytesIO(repository.read(store, name, version, golden.FILE)))
    size = settings.batch_size
    (check,) = golden.check_answers(f"{settings.protocol}://{address}", name, version, recorded, (size,))
    if not check.passed:
        raise InputError(
            f"the server at {address} does not give the answers of {name}:{version} in {store.location} "
            f"({check.detail}): name the --model-repository that it serves"
        )
    return Target(settings.protocol, address, name, recorded.images[np.arange(size) % len(recorded.images)])


def _in_process(store: Store, name: str, version: int, images: Images) -> Ask:
    file = repository.MODEL_FILES["onnx"]
    if file not in store.files(f"{name}/{version}"):
        raise InputError(f"{name}:{version} has no {file} to compare with: release it with --export-format all")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = repository.read(store, name, version, file)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def answer(deadline: float) -> list[float]:
        latencies, now = [], 0.0
        while now < deadline:
            started = time.perf_counter()
            session.run([OUTPUT], {INPUT: images})
            now = time.perf_counter()
            latencies.append(now - started)
        return latencies

    def ask(concurrency: int, seconds: float) -> Load:
        threads = min(concurrency, len(os.sched_getaffinity(0)))
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            latencies = [each for some in pool.map(answer, [started + seconds] * threads) for each in some]
        return load.summarize(latencies, time.perf_counter() - started)

    return ask


def _measure(sides: tuple[Ask, Ask], settings: Settings) -> tuple[Point, ...]:
    """In each round both sides at each concurrency, one after the other; a short first one is not counted."""
    for concurrency in settings.concurrencies:
        for ask in sides:
            ask(concurrency, min(settings.seconds, 0.3))
    rounds = []
    with console.progress("rounds", settings.rounds) as advance:
        for number in range(1, settings.rounds + 1):
            _log.info("round %d of %d", number, settings.rounds)
            rounds.append([[ask(each, settings.seconds) for ask in sides] for each in settings.concurrencies])
            advance(1)
    return tuple(
        Point(concurrency=concurrency, server=_side(server), in_process=_side(in_process))
        for concurrency, pairs in zip(settings.concurrencies, zip(*rounds, strict=True), strict=True)
        for server, in_process in [zip(*pairs, strict=True)]
    )


def _side(rounds: Sequence[Load]) -> Side:
    figures = {name: [getattr(each, name) for each in rounds] for name in Load.model_fields}
    medians = {name: median(values) for name, values in figures.items() if None not in values}
    return Side(median=Load(**medians), rounds=tuple(rounds))
