"""The training benchmark's result for a person."""

from pipeline.benchmarks.comparison import Comparison, Side, TrainingBenchmark

_ROW = "{:8}{:29}{:>10}{:>13}{:>12}{:>8}{:>9}{:>8}"


def table(result: TrainingBenchmark) -> str:
    """One pair of lines for each target, between what was measured on what, and how."""
    peaks = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in result.peak_flops.items())
    extrapolated = result.reference.basis == "extrapolated"
    return "\n".join(
        [
            f"{result.dataset_id} on {result.machine} ({result.device}, threads: {result.code.threads}), "
            f"seeds 1 to {result.seeds}; peak {peaks}",
            "",
            _ROW.format("target", "", "accuracy", "seconds", "images", "TFLOP", "of peak", "ratio"),
            *(line for comparison in result.comparisons for line in _lines(comparison, extrapolated)),
            "",
            "accuracy: mean over seeds at the end of the runs; seconds: median, of training up to the target",
            f"usual example: {result.reference.method}",
        ]
    )


def _lines(comparison: Comparison, extrapolated: bool) -> tuple[str, str]:
    ratio = "none" if comparison.ratio is None else f"{comparison.ratio:.1f}"
    example, without = ("usual example, extrapolated", "unknown") if extrapolated else ("usual example", "not reached")
    return (
        _ROW.format(
            f"{comparison.target:.1%}", comparison.model_id, *_figures(comparison.recipe, "not reached"), ratio
        ),
        _ROW.format("", example, *_figures(comparison.reference, without), "").rstrip(),
    )


def _figures(side: Side, without: str) -> tuple[str, ...]:
    """Accuracy, seconds, images, TFLOP and share of the peak; one word where there is no cost."""
    accuracy, cost = f"{side.final_accuracy:.2%}", side.cost
    if cost is None:
        return (accuracy, without, "", "", "")
    return (
        accuracy,
        f"{cost.seconds:,.2f}",
        f"{cost.images_seen:,.0f}",
        f"{cost.flops / 1e12:,.2f}",
        f"{cost.peak_share:.1%}",
    )
