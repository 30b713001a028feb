"""The serving benchmark's result for a person."""

from pipeline.benchmarks.load import Load
from pipeline.benchmarks.serving import Point, ServingBenchmark

_ROW = "{:>8}{:>13}{:>9}{:>9}{:>9}{:>14}{:>9}{:>9}{:>9}{:>9}"


def table(result: ServingBenchmark) -> str:
    """One line for each concurrency, between what was asked and how."""
    settings = result.settings
    costs = [point.server.median.client_us for point in result.points]
    cost = ", ".join(f"{us:.0f}" for us in costs if us is not None)
    return "\n".join(
        [
            f"{result.name} version {result.version}, {settings.batch_size} to a request, by {settings.protocol} from "
            f"{result.server}; {result.code.cpu}, {result.cores} cores",
            "",
            _ROW.format("", "", "server", "", "", "in process", "", "", "", "").rstrip(),
            _ROW.format("at once", "requests/s", *("p50", "p95", "p99"), "requests/s", *("p50", "p95", "p99"), "share"),
            *map(_line, result.points),
            "",
            f"milliseconds; medians of {settings.rounds} rounds of {settings.seconds:g} s; in process: ONNX Runtime, "
            "one thread for each request, one on each core at most",
            f"the client ({result.client}) has its part of the same cores, unless the server runs elsewhere"
            + (f": {cost} microseconds for each request" if cost else ""),
        ]
    )


def _line(point: Point) -> str:
    server, in_process = point.server.median, point.in_process.median
    share = f"{server.throughput / in_process.throughput:.0%}"
    return _ROW.format(point.concurrency, *_figures(server), *_figures(in_process), share)


def _figures(load: Load) -> tuple[str, ...]:
    return (f"{load.throughput:,.0f}", *(f"{value:.2f}" for value in (load.p50_ms, load.p95_ms, load.p99_ms)))
