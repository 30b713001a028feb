"""The pictures of a model card, drawn from records."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.records import Epoch, Metrics, Trained

# From Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_DPI = 100
# More class names than this lie on top of each other; more counts do not fit into their cells.
_MOST_NAMES, _MOST_COUNTS = 30, 20
_LONGEST_NAME = 18
# Agg gives up on one line of a great many jagged points.
_MOST_POINTS = 4000


def draw(folder: Path, title: str, metrics: Metrics, trained: Trained, threshold: float) -> tuple[str, ...]:
    """Six PNG files in `folder`, which is made; returns their names.

    `title` says what was trained on what; `metrics` are those of the file that is judged;
    `threshold` is that of the per-class gate, 0 to 1.
    """
    pictures: dict[str, tuple[str, Callable[[Figure], None]]] = {
        "confusion_matrix": ("Test images by class and answer", lambda figure: _confusion(figure, metrics)),
        "per_class_accuracy": ("Accuracy by class", lambda figure: _per_class(figure, metrics, threshold)),
        "training_accuracy": ("Accuracy by epoch", lambda figure: _training(figure, trained.epochs, "accuracy")),
        "training_loss": ("Loss by epoch", lambda figure: _training(figure, trained.epochs, "loss")),
        "batch_metrics": ("Loss and accuracy by batch", lambda figure: _batches(figure, trained)),
        "epoch_metrics": ("Loss and accuracy by epoch", lambda figure: _epochs(figure, trained.epochs)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (heading, picture) in pictures.items():
        figure = Figure(figsize=(7.5, 6.5) if name == "confusion_matrix" else (7.5, 4.5))
        picture(figure)
        figure.suptitle(f"{heading}: {title}", fontsize=11, parse_math=False)
        figure.savefig(folder / f"{name}.png", dpi=_DPI, metadata={"Software": None})
    return tuple(f"{name}.png" for name in pictures)


def _confusion(figure: Figure, metrics: Metrics) -> None:
    """Right answers in blue, errors in orange on a logarithmic scale, so that a single error is seen."""
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    axes = _measured_axes(figure)
    axes.imshow(np.ma.masked_where(~right, shares), cmap="Blues", vmin=0, vmax=1.5)
    errors = axes.imshow(
        np.ma.masked_where(right | (counts == 0), shares), cmap="Oranges", norm=LogNorm(vmin=1e-4, vmax=1)
    )
    _name_classes(axes, metrics)
    if len(counts) <= _MOST_COUNTS:
        size = 8 if len(counts) <= 12 else 6
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > (0.8 if row == column else 0.15) else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    bar = figure.colorbar(errors, shrink=0.8, format=FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    bar.minorticks_off()
    bar.set_label("errors: share of the true class's test images")


def _per_class(figure: Figure, metrics: Metrics, threshold: float) -> None:
    """Recall by class, with the gate; the axis begins a little below the lowest of all."""
    axes = _measured_axes(figure)
    recalls = [entry.recall for entry in metrics.per_class]
    lowest = min([threshold, metrics.accuracy, *(recall for recall in recalls if recall is not None)])
    # An axis from 0 hides the differences between classes that are all near 1.
    bottom = max(0.0, 1 - 1.25 * (1 - lowest) - 0.01) if lowest > 0.5 else 0.0
    colours = [_BLUE if recall is not None and recall >= threshold else _ORANGE for recall in recalls]
    axes.bar(range(len(recalls)), [bottom if recall is None else recall for recall in recalls], color=colours)
    if len(recalls) <= _MOST_NAMES:
        # At the foot of the bars: at their ends the lines would run through the figures.
        size, rotation = (8, 0) if len(recalls) <= 12 else (7, 90)
        for place, recall in enumerate(recalls):
            text, colour = ("no images", "black") if recall is None else (f"{100 * recall:.1f}", "white")
            height = bottom + 0.02 * (1 - bottom)
            axes.text(place, height, text, ha="center", va="bottom", color=colour, fontsize=size, rotation=rotation)
    axes.axhline(threshold, color=_ORANGE, linestyle="--", label=f"gate for the worst class, {threshold:.1%}")
    axes.axhline(metrics.accuracy, color="black", linestyle=":", label=f"all test images, {metrics.accuracy:.2%}")
    axes.set_ylim(bottom, 1 + 0.1 * (1 - bottom))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _name_classes(axes, metrics, rows=False)
    axes.set_xlabel("true class" if bottom == 0 else f"true class (the other axis begins at {bottom:.1%})")
    axes.set_ylabel("accuracy (recall)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _measured_axes(figure: Figure) -> Axes:
    """Class names are of any length, so matplotlib measures them; that doubles the time of a picture."""
    figure.set_layout_engine("constrained")
    return figure.subplots()


def _name_classes(axes: Axes, metrics: Metrics, *, rows: bool = True) -> None:
    """Names at the ticks, on both axes unless `rows` is False; numbers where there are too many."""
    names = [
        label if len(label) <= _LONGEST_NAME else f"{label[: _LONGEST_NAME - 1]}…"
        for label in (entry.label for entry in metrics.per_class)
    ]
    if len(names) > _MOST_NAMES:
        return
    upright = max(map(len, names)) <= 3
    rotation, align = (0, "center") if upright else (45, "right")
    axes.set_xticks(range(len(names)), names, rotation=rotation, ha=align, rotation_mode="anchor", parse_math=False)
    if upright:
        axes.tick_params("x", pad=8)
    if rows:
        axes.set_yticks(range(len(names)), names, parse_math=False)


def _training(figure: Figure, epochs: Sequence[Epoch], what: str) -> None:
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.12, top=0.92)
    axes = figure.subplots()
    _epoch_lines(axes, epochs, "train", what, _BLUE, "-")
    _epoch_lines(axes, epochs, "validation", what, _ORANGE, "--")
    _epoch_axis(axes, epochs)
    axes.set_ylabel(what)
    if what == "loss":
        axes.set_ylim(bottom=0)
    axes.legend()


def _epochs(figure: Figure, epochs: Sequence[Epoch]) -> None:
    left, right = _two_axes(figure)
    for kind, style in (("train", "-"), ("validation", "--")):
        _epoch_lines(left, epochs, kind, "loss", _ORANGE, style)
        _epoch_lines(right, epochs, kind, "accuracy", _BLUE, style)
    _epoch_axis(left, epochs)
    left.set_ylim(bottom=0)
    figure.legend(loc="lower center", ncols=4, frameon=False, fontsize=9)


def _epoch_lines(axes: Axes, epochs: Sequence[Epoch], kind: str, what: str, colour: str, style: str) -> None:
    # What is hard has a loss and an accuracy of its own: no point of the same line.
    shown = [epoch for epoch in epochs if kind != "train" or not epoch.is_hard]
    values = [getattr(epoch, f"{kind}_{what}") for epoch in shown]
    if None in values:
        return
    name = f"{'training' if kind == 'train' else kind} {what}"
    # Many markers on one line hide it.
    marker = "o" if len(epochs) <= 40 else ""
    axes.plot([epoch.epoch for epoch in shown], values, style, color=colour, label=name, marker=marker, markersize=4)
    if what == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _epoch_axis(axes: Axes, epochs: Sequence[Epoch]) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(epochs[0].epoch - 0.5, epochs[-1].epoch + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.grid(alpha=0.3)


def _batches(figure: Figure, trained: Trained) -> None:
    """Batches as a light line, the running mean as a strong one; epochs of hard images in grey."""
    series = trained.batches
    left, right = _two_axes(figure)
    hard = [epoch.epoch for epoch in trained.epochs if epoch.is_hard]
    for number in hard:
        label = "hardest images only" if number == hard[0] else None
        left.axvspan(number - 1, min(number, series.epoch[-1]), color="0.9", label=label)
    count = len(series.epoch)
    width, step = max(1, count // 50), -(-count // _MOST_POINTS)
    # A line through one point is not seen.
    marker = "o" if count == 1 else ""
    for axes, values, colour, name in (
        (left, series.loss, _ORANGE, "loss"),
        (right, series.accuracy, _BLUE, "accuracy"),
    ):
        axes.plot(series.epoch[::step], values[::step], color=colour, alpha=0.25, linewidth=0.8)
        sums = np.cumsum([0.0, *values])
        mean = (sums[width:] - sums[:-width]) / width
        label = f"{name}, mean of {width} batches" if width > 1 else name
        axes.plot(series.epoch[width - 1 :: step], mean[::step], color=colour, label=label, marker=marker)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    left.set_xlabel("epoch")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=3, frameon=False)


def _two_axes(figure: Figure) -> tuple[Axes, Axes]:
    figure.subplots_adjust(left=0.1, right=0.86, bottom=0.19, top=0.92)
    left = figure.subplots()
    right = left.twinx()
    left.set_ylabel("loss", color=_ORANGE)
    right.set_ylabel("accuracy", color=_BLUE)
    return left, right
