"""The training benchmark: the figures follow from the runs, both sides train, and what is missing is said."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment, run_command
from torchvision.datasets import MNIST

from pipeline.benchmarks import machine, reference, training
from pipeline.benchmarks.comparison import (
    Recipe,
    RecipeRun,
    Reference,
    ReferenceRun,
    TrainingBenchmark,
    compare,
    ratio_at,
    value_at,
)
from pipeline.benchmarks.table import table
from pipeline.commands import bench
from pipeline.config import DataOptions
from pipeline.datasets import digits_v1
from pipeline.errors import InputError
from pipeline.specs import Arrays

# A small network, trained for an epoch, in place of the recipes, and small matrices for the peak.
SMALL = """
from pipeline import cli
from pipeline.benchmarks import machine, training
from pipeline.models import mnist_fcn_v1
machine._SIDE_ON_A_CPU = 256
training.RECIPES = dict.fromkeys((0.3, 0.99), ("--model-id", "mnist_fcn_v1"))
mnist_fcn_v1.recipe = lambda dataset_id: mnist_fcn_v1.Recipe(epochs=1)
cli.main()
"""


def recipe(target: float, *ends: tuple[float, float]) -> Recipe:
    runs = tuple(
        RecipeRun(seed=seed, seconds=seconds, accuracy=accuracy, images_seen=1000)
        for seed, (seconds, accuracy) in enumerate(ends)
    )
    return Recipe(model_id="model", target=target, flops_per_image=50.0, runs=runs)


REFERENCE = Reference(
    basis="measured",
    method="",
    images_per_epoch=6000,
    flops_per_image=200.0,
    runs=tuple(
        ReferenceRun(seed=seed, epochs=(1, 2, 4), seconds=seconds, accuracy=accuracy)
        for seed, seconds, accuracy in (
            (1, (10, 20, 40), (0.97, 0.98, 0.99)),
            (2, (12, 24, 48), (0.98, 0.99, 0.995)),
            (3, (90, 99, 118), (0.99, 0.985, 0.991)),
        )
    ),
)


@pytest.mark.parametrize(
    ("target", "accuracy", "value"),
    [
        (0.99, (0.98, 0.985, 0.995), 25),
        (0.99, (0.98, 0.98, 0.99), 30),
        (0.99, (0.98, 0.985, 0.989), None),
        (0.99, (0.98, 1.0, 0.97), 15),
        (0.99, (0.97, 0.97, 1.0), 20 + 20 / 3),
        (0.9, (0.95, 0.96, 0.97), 10),
    ],
)
def test_a_series_reaches_a_target_between_two_points(
    target: float, accuracy: tuple[float, ...], value: float | None
) -> None:
    assert value_at(target, accuracy, (10, 20, 30)) == (value if value is None else pytest.approx(value))


def test_times_are_compared_where_the_means_over_seeds_reach_the_target() -> None:
    # Means of the reference are 0.98, 0.985 and 0.992, medians 12, 24 and 48 s, after 1, 2 and 4 epochs.
    comparison = compare(recipe(0.982, (1, 0.98), (3, 0.983), (2, 0.984)), REFERENCE, {"a": 1000.0, "b": 50000.0})
    ours, theirs = comparison.recipe.cost, comparison.reference.cost
    assert ours is not None
    assert theirs is not None
    assert (ours.seconds, ours.images_seen, ours.flops) == (2, 1000, 50000)
    assert ours.peak_share == pytest.approx(0.5)
    assert theirs.seconds == pytest.approx(12 + 0.4 * 12)
    assert theirs.images_seen == pytest.approx(1.4 * 6000)
    assert theirs.peak_share == pytest.approx(1.4 * 6000 * 200 / 16.8 / 50000)
    assert comparison.ratio == pytest.approx(8.4)
    assert ratio_at(0.982, [comparison]) == comparison.ratio
    assert ratio_at(0.99, [comparison]) is None


@pytest.mark.parametrize(("target", "end"), [(0.999, (1.0, 1.0)), (0.982, (1.0, 0.98))])
def test_a_side_that_does_not_get_there_leaves_no_ratio(target: float, end: tuple[float, float]) -> None:
    comparison = compare(recipe(target, end), REFERENCE, {"a": 1.0})
    assert comparison.ratio is None
    assert (comparison.recipe.cost is None) == (end[1] < target)
    assert (comparison.reference.cost is None) == (target > 0.992)
    assert comparison.reference.final_accuracy == pytest.approx(0.992)


def test_the_example_has_the_published_size_and_its_operations_are_counted() -> None:
    network = reference.Network()
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_199_882
    products = [26 * 26 * 32 * 9, 24 * 24 * 64 * 32 * 9, 9216 * 128, 128 * 10]
    # Forward, weights and inputs each take as many; nobody asks for the gradient of the pixels.
    assert machine.flops_per_image(network, reference.SHAPE) == 2 * (3 * sum(products) - products[0])


def test_the_example_reads_what_was_written_and_follows_its_schedule(tmp_path: Path) -> None:
    train, test, _ = digits_v1.load(DataOptions(Path(), None, 1))
    few = train.take(slice(150))
    reference.write(Arrays(few, test), tmp_path)
    read = MNIST(str(tmp_path))
    assert (read.data.numpy() == few.images(slice(None))[:, 0]).all()
    assert (read.targets.numpy() == few.labels).all()
    example = reference.Example(tmp_path, 1, torch.device("cpu"))
    before = example.accuracy(test)
    steps = [sum(1 for _ in example.epoch()) for _ in range(8)]
    assert steps == [3] * 8
    assert example._schedule.get_last_lr() == [pytest.approx(0.7**8)]
    assert example.accuracy(test) > max(0.5, before)


def test_a_run_ends_in_a_table_a_record_and_a_picture(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL, "bench", "training", "--dataset-id", "digits_v1", "--seeds", "2",
         "--epochs", "1", "--json", "new/bench.json", "--plot", "bench.png"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "seed 2 of 2" in done.stderr
    result = TrainingBenchmark.load(tmp_path / "new" / "bench.json")
    assert table(result) + "\n" == done.stdout
    assert (result.seeds, result.quick, result.reference.basis) == (2, False, "measured")
    assert [run.seed for run in result.reference.runs] == [1, 2]
    assert all(run.images_seen == 1293 for recipe in result.recipes for run in recipe.runs)
    reached, missed = result.comparisons
    assert reached.ratio is not None
    assert missed.ratio is None
    assert result.ratio_99 is None
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["30.0%", "mnist_fcn_v1"] in [line[:2] for line in lines]
    assert any(line[:1] == ["99.0%"] and line[-1] == "none" for line in lines)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "bench.png"}


def test_quick_times_steps_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PUBLISHED_ON", "digits_v1")
    monkeypatch.setattr(reference, "PUBLISHED", {1: 0.5, 2: 0.7, 4: 0.8})
    monkeypatch.setattr(machine, "_SIDE_ON_A_CPU", 256)
    monkeypatch.setattr(training, "_WARM_UP_STEPS", 1)
    monkeypatch.setattr(training, "_TIMED_STEPS", 3)
    config = bench.recipe(("--model-id", "mnist_fcn_v1"), "digits_v1", None)
    short = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 2})})
    result = training.benchmark({0.01: short, 0.75: short}, tmp_path, seeds=1, epochs=None)
    assert (result.quick, result.reference.basis) == (True, "extrapolated")
    (run,) = result.reference.runs
    assert (run.epochs, run.accuracy) == ((1, 2, 4), (0.5, 0.7, 0.8))
    assert run.seconds == pytest.approx([run.seconds[0] * epoch for epoch in (1, 2, 4)])
    cost = result.comparisons[1].reference.cost
    assert cost is not None
    assert cost.seconds == pytest.approx(3 * run.seconds[0])
    assert "extrapolated" in table(result)
    assert reference.PUBLISHED_IN in table(result)


@pytest.mark.parametrize("accuracies", [(0.99,) * 3, (0.9899, 0.99, 0.9901), (0.99,) * 10])
def test_a_mean_that_is_the_target_reaches_it(accuracies: tuple[float, ...]) -> None:
    runs = tuple(
        ReferenceRun(seed=seed, epochs=(1, 4), seconds=(50.0, 200.0), accuracy=(0.98, accuracy))
        for seed, accuracy in enumerate(accuracies)
    )
    example = Reference(basis="extrapolated", method="", images_per_epoch=60000, flops_per_image=1.0, runs=runs)
    ours = tuple(
        RecipeRun(seed=seed, seconds=2.0, images_seen=20000, accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    )
    recipe = Recipe(target=0.99, model_id="mnist_cnn_fast_v1", flops_per_image=1.0, runs=ours)
    assert compare(recipe, example, {"fp32": 1e9}).ratio == 100


def test_quick_has_nothing_to_extrapolate_from_on_other_data(tmp_path: Path) -> None:
    config = bench.recipe(("--model-id", "mnist_fcn_v1"), "digits_v1", None)
    with pytest.raises(InputError, match="leave out --quick"):
        training.benchmark({0.99: config}, tmp_path, seeds=1, epochs=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data-dir", "."], "cut off or altered"),
        (["--quick", "--epochs", "2"], "--epochs"),
        (["--json", "."], "directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"?")
    done = run_command("bench", "training", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", "bench", "training", "--dataset-id", "digits_v1", "--json", "bench.json"],
        cwd=tmp_path, env={**environment(), "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline() == "seed 1 of 10\n"
        assert list(tmp_path.iterdir()) != []
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("error: interrupted")
    assert list(tmp_path.iterdir()) == []
