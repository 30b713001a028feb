"""The training benchmark's result: raw series, and from them the time to a target on both sides.

Units: seconds of training, shares between 0 and 1, FLOP and FLOP/s.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from pipeline.records import CodeInfo, Record

Basis = Literal["measured", "extrapolated"]


class RecipeRun(Record):
    """One whole training: the accuracy is that at its end, over the test set."""

    seed: int
    seconds: float
    accuracy: float
    images_seen: int


class Recipe(Record):
    """A model's own recipe, and the accuracy that it is made for."""

    model_id: str
    target: float
    flops_per_image: float
    runs: tuple[RecipeRun, ...]


class ReferenceRun(Record):
    """Seconds since the start and accuracy over the test set, after each of some epochs."""

    seed: int
    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]


class Reference(Record):
    """`basis` is "extrapolated" where only steps were timed; `method` says how the series came about."""

    basis: Basis
    method: str
    images_per_epoch: int
    flops_per_image: float
    runs: tuple[ReferenceRun, ...]

    @property
    def mean_accuracy(self) -> tuple[float, ...]:
        """After each of the epochs, over seeds."""
        return tuple(map(mean_accuracy, zip(*(run.accuracy for run in self.runs), strict=True)))

    @property
    def median_seconds(self) -> tuple[float, ...]:
        """After each of the epochs, over seeds."""
        return tuple(map(median, zip(*(run.seconds for run in self.runs), strict=True)))


class Cost(Record):
    """What it took to reach a target. `peak_share`: of the machine's measured peak."""

    seconds: float
    images_seen: float
    flops: float
    peak_share: float


class Side(Record):
    """`final_accuracy`: mean over seeds at the end of the runs; `cost` is None where the target is not reached."""

    final_accuracy: float
    cost: Cost | None


class Comparison(Record):
    """`ratio`: seconds of the reference by seconds of the recipe; None where one of them does not get there."""

    target: float
    model_id: str
    recipe: Side
    reference: Side
    ratio: float | None


class TrainingBenchmark(Record):
    """`ratio_99` is the ratio at 99.0 %; `peak_flops` by type, of products of square matrices in the same run."""

    dataset_id: str
    seeds: int
    quick: bool
    device: str
    machine: str
    code: CodeInfo
    peak_flops: dict[str, float]
    ratio_99: float | None
    comparisons: tuple[Comparison, ...]
    recipes: tuple[Recipe, ...]
    reference: Reference


def mean_accuracy(accuracies: Sequence[float]) -> float:
    """Without the rounding of sums: the mean of three times 0.99 is not less than 0.99."""
    return round(fmean(accuracies), 12)


def compare(recipe: Recipe, reference: Reference, peak_flops: Mapping[str, float]) -> Comparison:
    """Seconds are medians over seeds, accuracies means; shares are of the largest peak, for both sides."""
    peak = max(peak_flops.values())
    ours, theirs = _recipe_side(recipe, peak), _reference_side(reference, recipe.target, peak)
    ratio = theirs.cost.seconds / ours.cost.seconds if theirs.cost and ours.cost else None
    return Comparison(target=recipe.target, model_id=recipe.model_id, recipe=ours, reference=theirs, ratio=ratio)


def ratio_at(target: float, comparisons: Sequence[Comparison]) -> float | None:
    return next((comparison.ratio for comparison in comparisons if comparison.target == target), None)


def value_at(target: float, accuracy: Sequence[float], values: Sequence[float]) -> float | None:
    """Of values that belong to accuracies, the one at which the target is first reached; None where it never is.

    Linear between two of them. Nothing is known before the first, so it is the first one where that
    accuracy is above the target.
    """
    if accuracy[0] >= target:
        return values[0]
    for (before, after), (low, high) in zip(pairwise(accuracy), pairwise(values), strict=True):
        if after >= target:
            return low + (target - before) / (after - before) * (high - low)
    return None


def _recipe_side(recipe: Recipe, peak: float) -> Side:
    accuracy = mean_accuracy([run.accuracy for run in recipe.runs])
    seconds, images = median(run.seconds for run in recipe.runs), fmean(run.images_seen for run in recipe.runs)
    cost = _cost(seconds, images, recipe.flops_per_image, peak) if accuracy >= recipe.target else None
    return Side(final_accuracy=accuracy, cost=cost)


def _reference_side(reference: Reference, target: float, peak: float) -> Side:
    accuracy = reference.mean_accuracy
    epochs = value_at(target, accuracy, reference.runs[0].epochs)
    seconds = value_at(target, accuracy, reference.median_seconds)
    if epochs is None or seconds is None:
        return Side(final_accuracy=accuracy[-1], cost=None)
    cost = _cost(seconds, epochs * reference.images_per_epoch, reference.flops_per_image, peak)
    return Side(final_accuracy=accuracy[-1], cost=cost)


def _cost(seconds: float, images: float, flops_per_image: float, peak: float) -> Cost:
    flops = images * flops_per_image
    return Cost(seconds=seconds, images_seen=images, flops=flops, peak_share=flops / seconds / peak)
