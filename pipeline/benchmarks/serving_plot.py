"""The serving benchmark's picture: throughput and p99 over concurrency."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.benchmarks.serving import ServingBenchmark, Side
from pipeline.records import write_atomically

# From Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_DPI = 100


def draw(result: ServingBenchmark, path: Path) -> None:
    """A PNG file: each round as a light point, medians as lines."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    throughput, p99 = figure.subplots(1, 2)
    for axes, field, label in ((throughput, "throughput", "requests per second"), (p99, "p99_ms", "p99 in ms")):
        servers, in_process = [point.server for point in result.points], [point.in_process for point in result.points]
        concurrencies = list(result.settings.concurrencies)
        _series(axes, concurrencies, servers, field, _BLUE, f"{result.server}, {result.settings.protocol}")
        _series(axes, concurrencies, in_process, field, _ORANGE, "ONNX Runtime in process")
        axes.set_xscale("log")
        axes.set_xticks(concurrencies, [str(each) for each in concurrencies])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests at once")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    handles, labels = throughput.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    title = (
        f"{result.name} version {result.version}, {result.settings.batch_size} to a request, "
        f"{result.code.cpu}, {result.cores} cores"
    )
    figure.suptitle(title, fontsize=11, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _series(axes: Axes, concurrencies: list[int], sides: list[Side], field: str, colour: str, label: str) -> None:
    for concurrency, side in zip(concurrencies, sides, strict=True):
        values = [getattr(each, field) for each in side.rounds]
        axes.plot([concurrency] * len(values), values, "o", color=colour, alpha=0.3, markersize=4)
    axes.plot(concurrencies, [getattr(side.median, field) for side in sides], "D-", color=colour, label=label)
