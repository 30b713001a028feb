"""Time each exported file in process: latency of one image on one thread, throughput in batches."""

import time

import numpy as np
import torch

from pipeline.records import Benchmarked, BenchmarkedFile, DataInfo, Exported, ExportedFile
from pipeline.runfolder import RunFolder
from pipeline.served import open_file
from pipeline.specs import Runner, Split

_WARM_UP, _REQUESTS = 30, 300
_BATCH, _BATCHES = 64, 16


def benchmark(exported: Exported, model_id: str, data: DataInfo, test: Split, folder: RunFolder) -> Benchmarked:
    """Each file is loaded from disk, once with one thread and once with all."""
    return Benchmarked(files=tuple(_benchmark(file, model_id, data, test, folder) for file in exported.files))


def _benchmark(file: ExportedFile, model_id: str, data: DataInfo, test: Split, folder: RunFolder) -> BenchmarkedFile:
    path = folder.root / file.path
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        latencies_ms = _latencies_ms(open_file(path, file.format, model_id, data), test)
    finally:
        torch.set_num_threads(threads)
    throughput = _throughput(open_file(path, file.format, model_id, data), test)
    p50, p95, p99 = np.percentile(latencies_ms, (50, 95, 99))
    return BenchmarkedFile(
        format=file.format,
        requests=_REQUESTS,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        throughput=throughput,
        throughput_threads=threads,
    )


def _latencies_ms(run: Runner, test: Split) -> list[float]:
    images = [test.images(slice(index, index + 1)) for index in range(min(100, len(test)))]
    latencies = []
    for request in range(_WARM_UP + _REQUESTS):
        started = time.perf_counter()
        run(images[request % len(images)])
        latencies.append((time.perf_counter() - started) * 1e3)
    return latencies[_WARM_UP:]


def _throughput(run: Runner, test: Split) -> float:
    images = test.images(np.arange(_BATCH) % len(test))
    for _ in range(2):
        run(images)
    started = time.perf_counter()
    for _ in range(_BATCHES):
        run(images)
    return _BATCH * _BATCHES / (time.perf_counter() - started)
