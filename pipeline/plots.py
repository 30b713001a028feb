"""The pictures of a model card, drawn from records."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.records import BatchSeries, Epoch, Metrics

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC3311", "#999999"
_DPI = 110
_MOST_LABELS = 30


def draw(
    folder: Path, title: str, metrics: Metrics, epochs: tuple[Epoch, ...], series: BatchSeries, threshold: float
) -> tuple[str, ...]:
    """Six PNG files in `folder`; returns their names. `threshold` is that of the per-class gate."""
    pictures: dict[str, Callable[[Figure], None]] = {
        "confusion_matrix": lambda figure: _confusion(figure, metrics),
        "per_class_accuracy": lambda figure: _per_class(figure, metrics, threshold),
        "training_accuracy": lambda figure: _training(figure, epochs, "accuracy"),
        "training_loss": lambda figure: _training(figure, epochs, "loss"),
        "batch_metrics": lambda figure: _batches(figure, series),
        "epoch_metrics": lambda figure: _epochs(figure, epochs),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        figure = Figure(figsize=(8, 7) if name == "confusion_matrix" else (8, 4.5), layout="constrained")
        picture(figure)
        figure.suptitle(f"{name.replace('_', ' ').capitalize()} - {title}", fontsize=11)
        figure.savefig(folder / f"{name}.png", dpi=_DPI, metadata={"Software": None})
    return tuple(f"{name}.png" for name in pictures)


def _confusion(figure: Figure, metrics: Metrics) -> None:
    """Shares of each true class; errors stand out because the colour follows the square root."""
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = figure.subplots()
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    labels = [entry.label for entry in metrics.per_class]
    if len(labels) <= _MOST_LABELS:
        rotation = 0 if max(map(len, labels)) <= 3 else 45
        axes.set_xticks(range(len(labels)), labels, rotation=rotation, ha="center" if rotation == 0 else "right")
        axes.set_yticks(range(len(labels)), labels)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.3 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    bar = figure.colorbar(image, shrink=0.8, ticks=np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]))
    bar.ax.set_yticklabels(["0 %", "1 %", "10 %", "25 %", "50 %", "100 %"])
    bar.set_label("share of the true class")


def _per_class(figure: Figure, metrics: Metrics, threshold: float) -> None:
    """Recall by class, with the gate; the axis begins below the lowest of both."""
    axes = figure.subplots()
    recalls = [entry.recall if entry.recall is not None else 0.0 for entry in metrics.per_class]
    labels = [entry.label for entry in metrics.per_class]
    colours = [_BLUE if recall >= threshold else _RED for recall in recalls]
    bars = axes.bar(range(len(labels)), recalls, color=colours)
    lowest = min(threshold, *recalls)
    axes.set_ylim(max(0.0, lowest - 0.25 * (1.02 - lowest)), 1.0 + 0.06 * (1.02 - lowest))
    axes.axhline(threshold, color=_ORANGE, linestyle="--", label=f"gate {threshold:.1%}")
    axes.axhline(metrics.accuracy, color=_GREY, linestyle=":", label=f"all classes {metrics.accuracy:.2%}")
    if len(labels) <= _MOST_LABELS:
        long = max(map(len, labels)) > 5
        axes.set_xticks(range(len(labels)), labels, rotation=30 if long else 0, ha="right" if long else "center")
        axes.bar_label(bars, [f"{recall:.1%}" for recall in recalls], fontsize=8, padding=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel("class")
    axes.set_ylabel("accuracy (recall)")
    axes.legend(loc="lower right")
    axes.margins(y=0.1)


def _training(figure: Figure, epochs: tuple[Epoch, ...], what: str) -> None:
    axes = figure.subplots()
    _epoch_lines(axes, epochs, what, (_BLUE, _ORANGE), ("-", "-"))
    _epoch_axis(axes)
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    axes.legend()


def _epochs(figure: Figure, epochs: tuple[Epoch, ...]) -> None:
    left = figure.subplots()
    right = left.twinx()
    _epoch_lines(left, epochs, "loss", (_ORANGE, _ORANGE), ("-", "--"))
    _epoch_lines(right, epochs, "accuracy", (_BLUE, _BLUE), ("-", "--"))
    _epoch_axis(left)
    _two_axes(figure, left, right)


def _epoch_lines(
    axes: Axes, epochs: tuple[Epoch, ...], what: str, colours: tuple[str, str], styles: tuple[str, str]
) -> None:
    numbers = [epoch.epoch for epoch in epochs]
    for kind, colour, style in zip(("train", "validation"), colours, styles, strict=True):
        values = [getattr(epoch, f"{kind}_{what}") for epoch in epochs]
        if None not in values:
            name = "training" if kind == "train" else kind
            axes.plot(
                numbers,
                values,
                color=colour,
                linestyle=style,
                label=f"{name} {what}",
                linewidth=2,
                marker="o",
                markersize=5,
            )
    if what == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _batches(figure: Figure, series: BatchSeries) -> None:
    """Each batch as a light line, the mean of its neighbours as a strong one."""
    left = figure.subplots()
    right = left.twinx()
    for axes, values, colour, name in (
        (left, series.loss, _ORANGE, "loss"),
        (right, series.accuracy, _BLUE, "accuracy"),
    ):
        width = max(1, len(values) // 50)
        axes.plot(series.epoch, values, color=colour, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(
            series.epoch[width - 1 :], smooth, color=colour, linewidth=1.8, label=f"{name}, mean of {width} batches"
        )
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    left.set_xlabel("epoch")
    _two_axes(figure, left, right)


def _two_axes(figure: Figure, left: Axes, right: Axes) -> None:
    left.set_ylabel("loss", color=_ORANGE)
    right.set_ylabel("accuracy", color=_BLUE)
    left.grid(alpha=0.3)
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    right.legend(handles=handles, loc="center right")
