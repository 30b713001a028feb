"""The training benchmark's picture: accuracy over seconds of training."""

import io
from pathlib import Path
from statistics import fmean, median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from pipeline.benchmarks.comparison import Comparison, Recipe, Reference, TrainingBenchmark
from pipeline.records import write_atomically

# From Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_DPI = 100


def draw(result: TrainingBenchmark, path: Path) -> None:
    """A PNG file: each run in a light colour, the mean over seeds in a strong one, the targets as lines."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    _recipes(axes, result.recipes)
    _reference(axes, result.reference)
    for comparison in result.comparisons:
        _target(axes, comparison)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=2))
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("accuracy over the test set")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False)
    title = f"{result.dataset_id} on {result.machine}, {result.device}, seeds 1 to {result.seeds}"
    axes.set_title(title, fontsize=11, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _recipes(axes: Axes, recipes: tuple[Recipe, ...]) -> None:
    """A recipe is only worth something at its end, so the curve leads from recipe to recipe."""
    ends = []
    for recipe in recipes:
        seconds, accuracy = [run.seconds for run in recipe.runs], [run.accuracy for run in recipe.runs]
        axes.plot(seconds, accuracy, "o", color=_BLUE, alpha=0.3, markersize=4)
        ends.append((median(seconds), fmean(accuracy), recipe.model_id))
    medians, means, names = zip(*sorted(ends), strict=True)
    axes.plot(medians, means, "D-", color=_BLUE, label=f"this project, recipes at their end: {', '.join(names)}")


def _reference(axes: Axes, reference: Reference) -> None:
    measured = reference.basis == "measured"
    for run in reference.runs:
        axes.plot(run.seconds, run.accuracy, "-" if measured else "--", color=_ORANGE, alpha=0.25, linewidth=0.8)
    axes.plot(
        reference.median_seconds,
        reference.mean_accuracy,
        "D-" if measured else "D--",
        color=_ORANGE,
        label="usual PyTorch example, epoch by epoch" + ("" if measured else " (extrapolated)"),
    )


def _target(axes: Axes, comparison: Comparison) -> None:
    axes.axhline(comparison.target, color="black", linestyle=":", linewidth=0.8)
    ours, theirs = comparison.recipe.cost, comparison.reference.cost
    if comparison.ratio is None or ours is None or theirs is None:
        return
    ends = (ours.seconds, comparison.target), (theirs.seconds, comparison.target)
    axes.annotate("", *ends, arrowprops={"arrowstyle": "<->"})
    middle = (ours.seconds * theirs.seconds) ** 0.5
    text = f"{comparison.target:.1%}: {comparison.ratio:.0f} times as fast"
    axes.annotate(text, (middle, comparison.target), xytext=(0, -14), textcoords="offset points", ha="center")
