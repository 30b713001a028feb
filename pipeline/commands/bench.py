"""`bin/bench`."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cloup

from pipeline import options
from pipeline.commands import CONTEXT, declares, train, with_console
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.benchmarks.load import Protocol
    from pipeline.config import RunConfig


@cloup.group("bench", context_settings=CONTEXT)
def command() -> None:
    """Measure this project against what people use today."""


@command.command("training", context_settings=CONTEXT)
@declares(options.BENCH_TRAINING)
@with_console
def _training(
    quiet: bool,
    dataset_id: str,
    data_dir: str | None,
    seeds: int | None,
    epochs: int | None,
    quick: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Train this project's recipes and the usual PyTorch example in turns, and compare the times to an accuracy.

    \b
    Example: bin/bench training --quick --plot training.png
    """
    if quick and epochs:
        raise InputError("--quick trains the usual example for some steps only: leave out --quick or --epochs")
    _make_folders(json_file, plot_file)

    from pipeline.benchmarks import plot, reference, training
    from pipeline.benchmarks.table import table

    configs = {target: recipe(flags, dataset_id, data_dir) for target, flags in training.RECIPES.items()}
    with tempfile.TemporaryDirectory() as folder:
        result = training.benchmark(
            configs,
            Path(folder),
            seeds=seeds or (3 if quick else 10),
            epochs=None if quick else epochs or reference.EPOCHS,
        )
    if json_file:
        result.save(json_file)
    if plot_file:
        plot.draw(result, plot_file)
    if not quiet:
        print(table(result))


@command.command("serving", context_settings=CONTEXT)
@declares(options.BENCH_SERVING)
@with_console
def _serving(
    quiet: bool,
    name: str | None,
    model_repository: str | None,
    url: str | None,
    protocol: "Protocol | None",
    concurrency: tuple[int, ...],
    batch_size: int,
    seconds: float,
    rounds: int,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Ask a server and ONNX Runtime in process in turns, by more and more requests at once.

    \b
    Example: bin/bench serving --plot serving.png
    """
    if url and protocol:
        raise InputError("--protocol is of a server that is started: write --url grpc://HOST:PORT, or leave out --url")
    _make_folders(json_file, plot_file)

    from pipeline import settings
    from pipeline.benchmarks import serving, serving_plot
    from pipeline.benchmarks.serving_table import table
    from pipeline.triton.client import protocol_and_address
    from pipeline.triton.store import open_store

    result = serving.benchmark(
        open_store(settings.model_repository(model_repository)),
        name,
        url,
        serving.Settings(
            protocol=protocol_and_address(url)[0] if url else protocol or "http",
            concurrencies=tuple(sorted(set(concurrency))) or (1, 2, 4, 8, 16),
            batch_size=batch_size,
            seconds=seconds,
            rounds=rounds,
        ),
    )
    if json_file:
        result.save(json_file)
    if plot_file:
        serving_plot.draw(result, plot_file)
    if not quiet:
        print(table(result))


def _make_folders(*files: Path | None) -> None:
    """Hours later would be too late to find that one cannot be."""
    for file in filter(None, files):
        file.parent.mkdir(parents=True, exist_ok=True)


def recipe(chosen: tuple[str, ...], dataset_id: str, data_dir: str | None) -> "RunConfig":
    """What `bin/train` would make of these flags and a data set."""
    from pipeline.settings import configure

    typed = [*chosen, "--dataset-id", dataset_id, "--no-save-model", "--no-resume"]
    typed += ["--data-dir", data_dir] if data_dir else []
    context = train.command.make_context("bin/train", typed)
    flags = {**context.params, "typed": train.typed(context)}
    return configure(flags, dataset_id, fallback=False, started=time.localtime())
