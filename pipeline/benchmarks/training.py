"""This project's recipes and the usual PyTorch example, trained in turns.

Counted on both sides are the seconds from the first batch, drawn from images that are in memory, to
the last update; not counted are imports, reading the files, building the network, tests and checkpoints.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline import console, provenance, registry
from pipeline.benchmarks import machine, reference
from pipeline.benchmarks.comparison import (
    Recipe,
    RecipeRun,
    Reference,
    ReferenceRun,
    TrainingBenchmark,
    compare,
    ratio_at,
)
from pipeline.config import RunConfig
from pipeline.errors import InputError
from pipeline.runfolder import RunFolder
from pipeline.specs import Split
from pipeline.stages.evaluate import evaluate
from pipeline.stages.prepare import describe, prepare
from pipeline.stages.train import train
from pipeline.training import device as devices

_log = logging.getLogger(__name__)

# The flags of `bin/train` that reach an accuracy soonest.
RECIPES = {
    0.99: ("--model-id", "mnist_cnn_fast_v1"),
    0.995: (
        *("--model-id", "mnist_cnn_v1", "--epochs", "2"),
        *("--hard-fraction", "0.15", "--validation-fraction", "0"),
    ),
}

_WARM_UP_STEPS, _TIMED_STEPS = 20, 100
# As often as the example itself writes a line.
_STEPS_BETWEEN_SIGNS = 10


class Turn(NamedTuple):
    """What was measured with one seed; `recipes` by target."""

    peak_flops: dict[str, float]
    recipes: dict[float, RecipeRun]
    reference: ReferenceRun


def benchmark(configs: Mapping[float, RunConfig], folder: Path, *, seeds: int, epochs: int | None) -> TrainingBenchmark:
    """Train each recipe and the example with seeds 1, 2, ...; `configs` are the recipes' by target.

    The example is trained for `epochs`; where that is None only some of its steps are timed.
    `folder` is for passing files. InputError where the example cannot take the data set.
    """
    config = next(iter(configs.values()))
    _check(config, quick=epochs is None)
    device = devices.choose(config.devices)
    arrays = registry.dataset(config.train.dataset_id).load(config.train.data_options(config.data_dir))
    reference.write(arrays, folder)
    turns = []
    with _silent_stages():
        _warm_up(configs, folder, reference.Example(folder, 0, device))
        for seed in range(1, seeds + 1):
            _log.info("seed %d of %d", seed, seeds)
            peak_flops = machine.peak_flops(device)
            runs = {target: _train(recipe, seed, folder) for target, recipe in configs.items()}
            example = reference.Example(folder, seed, device)
            usual_run = _follow(example, arrays.test, epochs) if epochs else _time_steps(example)
            turns.append(Turn(peak_flops, runs, usual_run))
    peak = {name: max(turn.peak_flops[name] for turn in turns) for name in turns[0].peak_flops}
    recipes = tuple(_recipe(configs[target], target, [turn.recipes[target] for turn in turns]) for target in configs)
    usual = _reference(len(arrays.train), [turn.reference for turn in turns], epochs)
    comparisons = tuple(compare(recipe, usual, peak) for recipe in recipes)
    code = provenance.describe()
    return TrainingBenchmark(
        dataset_id=config.train.dataset_id,
        seeds=seeds,
        quick=epochs is None,
        device=str(device),
        machine=machine.name(device, code.cpu),
        code=code,
        peak_flops=peak,
        ratio_99=ratio_at(0.99, comparisons),
        comparisons=comparisons,
        recipes=recipes,
        reference=usual,
    )


def _check(config: RunConfig, *, quick: bool) -> None:
    dataset_id, data = config.train.dataset_id, describe(config.train, config.data_dir)
    if reference.SHAPE != data.shape or len(data.labels) != reference.CLASSES:
        raise InputError(
            f"{dataset_id} has images of {data.shape} in {len(data.labels)} classes, but the usual example takes "
            f"{reference.SHAPE} in {reference.CLASSES}: use --dataset-id mnist_v1"
        )
    if quick and dataset_id != reference.PUBLISHED_ON:
        raise InputError(
            f"--quick extrapolates from accuracies on {reference.PUBLISHED_ON}, which say nothing of {dataset_id}: "
            "leave out --quick or --dataset-id"
        )


@contextmanager
def _silent_stages() -> Iterator[None]:
    """What the stages tell of one run, nobody wants of thirty."""
    loggers = [logging.getLogger(f"pipeline.{package}") for package in ("stages", "training")]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)


def _warm_up(configs: Mapping[float, RunConfig], folder: Path, example: reference.Example) -> None:
    """What only the first steps of a process wait for, late imports above all, is counted for neither side."""
    for config in configs.values():
        dry = config.model_copy(update={"dry_run": True})
        train(prepare(dry.train, dry.data_dir, fallback=False), dry, RunFolder(folder))
    _seconds(example, islice(example.epoch(), 2), 2, "usual example, warm-up")


def _train(config: RunConfig, seed: int, folder: Path) -> RecipeRun:
    seeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    prepared = prepare(seeded.train, seeded.data_dir, fallback=False)
    run = RunFolder(folder)
    trained, served = train(prepared, seeded, run)
    accuracy = evaluate(served, prepared.test, prepared.info.labels, config.test_batch_size, run).metrics.accuracy
    assert trained.seconds is not None
    _log.info("  %-28s %.2f %% in %.2f s", trained.model_id, 100 * accuracy, trained.seconds)
    return RecipeRun(seed=seed, seconds=trained.seconds, accuracy=accuracy, images_seen=trained.images_seen)


def _follow(example: reference.Example, test: Split, epochs: int) -> ReferenceRun:
    """The clock stands still while the example is tested."""
    seconds, accuracies = [0.0], []
    for epoch in range(1, epochs + 1):
        title = f"usual example, epoch {epoch}/{epochs}"
        seconds.append(seconds[-1] + _seconds(example, example.epoch(), example.steps_per_epoch, title))
        accuracies.append(example.accuracy(test))
        _log.info("  %-28s %.2f %% in %.2f s", title, 100 * accuracies[-1], seconds[-1])
    return ReferenceRun(
        seed=example.seed,
        epochs=tuple(range(1, epochs + 1)),
        seconds=tuple(seconds[1:]),
        accuracy=tuple(accuracies),
    )


def _time_steps(example: reference.Example) -> ReferenceRun:
    """The seconds of some steps, and what they come to in whole epochs."""
    steps = example.epoch()
    _seconds(example, islice(steps, _WARM_UP_STEPS), _WARM_UP_STEPS, "usual example, warm-up")
    per_step = _seconds(example, islice(steps, _TIMED_STEPS), _TIMED_STEPS, "usual example") / _TIMED_STEPS
    _log.info("  %-28s %.1f ms a step", "usual example", 1000 * per_step)
    return ReferenceRun(
        seed=example.seed,
        epochs=tuple(reference.PUBLISHED),
        seconds=tuple(epoch * example.steps_per_epoch * per_step for epoch in reference.PUBLISHED),
        accuracy=tuple(reference.PUBLISHED.values()),
    )


def _seconds(example: reference.Example, steps: Iterator[None], count: int, title: str) -> float:
    """What the steps take, `count` of them."""
    started = machine.clock(example.device)
    with console.progress(title, count) as advance:
        for step, _ in enumerate(steps, start=1):
            if step % _STEPS_BETWEEN_SIGNS == 0:
                advance(_STEPS_BETWEEN_SIGNS)
    return machine.clock(example.device) - started


def _recipe(config: RunConfig, target: float, runs: Sequence[RecipeRun]) -> Recipe:
    entry = registry.model(config.train.model_id)
    network = entry.build(reference.SHAPE, reference.CLASSES)
    return Recipe(
        model_id=config.train.model_id,
        target=target,
        flops_per_image=machine.flops_per_image(network, reference.SHAPE),
        runs=tuple(runs),
    )


def _reference(images: int, runs: Sequence[ReferenceRun], epochs: int | None) -> Reference:
    method = (
        f"all of {epochs} epochs timed and tested"
        if epochs
        else f"extrapolated from {_TIMED_STEPS} steps of each seed; {reference.PUBLISHED_IN}"
    )
    return Reference(
        basis="measured" if epochs else "extrapolated",
        method=method,
        images_per_epoch=images,
        flops_per_image=machine.flops_per_image(reference.Network(), reference.SHAPE),
        runs=tuple(runs),
    )
