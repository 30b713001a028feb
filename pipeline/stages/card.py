"""Write the model card, and draw its plots, from records alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from pipeline.config import RunConfig
from pipeline.records import (
    Benchmarked,
    Carded,
    CodeInfo,
    DataInfo,
    Evaluated,
    Exported,
    Gate,
    Gated,
    Metrics,
    Trained,
    Verified,
    VerifiedFile,
)
from pipeline.specs import INPUT, MAX_BATCH_SIZE, OUTPUT

_TEMPLATES = Path(__file__).parent.parent / "templates"
_MOST_CONFUSIONS = 10
# Fewer test images than this leave an interval that is wider than what models usually differ by.
_SMALL_TEST_SET = 2000
_UNKNOWN = "not measurable"
_LEFT_OUT = "not recorded"


class CardInputs(NamedTuple):
    """The records of a run; `title`, `description` and `reference` are the model entry's own."""

    config: RunConfig
    code: CodeInfo
    data: DataInfo
    trained: Trained
    evaluated: Evaluated
    exported: Exported
    verified: Verified
    benchmarked: Benchmarked
    gated: Gated
    title: str
    description: str
    reference: str


def card(inputs: CardInputs, folder: Path, *, visualizations: bool) -> Carded:
    """`model_card/<data set>_model_card.md` and `model_card/plots/*.png` in the run's folder.

    The sections are those of Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
    """
    judged = next(file for file in inputs.verified.files if file.format == inputs.gated.served_format)
    plots: tuple[str, ...] = ()
    if visualizations:
        from pipeline.plots import draw  # half a second, and matplotlib's own word where it may keep no list of fonts

        plots = draw(
            folder / "model_card" / "plots",
            f"{inputs.trained.model_id} on {inputs.data.dataset_id}",
            judged.metrics,
            inputs.trained,
            inputs.config.gates.min_per_class_accuracy,
        )
    path = folder / "model_card" / f"{inputs.data.short_name}_model_card.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(inputs, judged, plots), encoding="utf-8")
    return Carded(card=path.relative_to(folder).as_posix(), plots=tuple(f"model_card/plots/{name}" for name in plots))


def _text(inputs: CardInputs, judged: VerifiedFile, plots: Sequence[str]) -> str:
    metrics = judged.metrics
    verified = {file.format: file for file in inputs.verified.files}
    benchmarked = {file.format: file for file in inputs.benchmarked.files}
    return (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            **inputs._asdict(),
            metadata=_metadata(inputs, metrics),
            judged=judged,
            is_served=judged.format == inputs.config.served_format,
            metrics=metrics,
            settings=inputs.config.train.readable(),
            plots=plots,
            interval=_wilson_interval(metrics.accuracy, metrics.images),
            small_test_set=_SMALL_TEST_SET,
            smallest=min((entry.images for entry in metrics.per_class if entry.images), default=0),
            empty=[entry.label for entry in metrics.per_class if not entry.images],
            confusions=_confusions(metrics),
            files=[(file, verified[file.format], benchmarked[file.format]) for file in inputs.exported.files],
            input=INPUT,
            output=OUTPUT,
            max_batch_size=MAX_BATCH_SIZE,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The card is Markdown, not HTML.
        autoescape=False,
    )
    environment.filters.update(cell=_cell, number=_number, percent=_percent, significant=_significant)
    environment.filters["clocked"] = _clocked
    environment.tests["lowered"] = _is_lowered
    return environment


def _metadata(inputs: CardInputs, metrics: Metrics) -> str:
    """The YAML that the Hugging Face Hub reads."""
    return ModelCardData(
        license="mit",
        library_name="triton",
        pipeline_tag="image-classification",
        tags=["image-classification", "triton", *inputs.config.export_formats],
        datasets=[inputs.data.short_name],
        metrics=["accuracy"],
        model_name=inputs.config.release_name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=inputs.data.short_name,
                dataset_name=inputs.data.title,
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Test accuracy",
                metric_value=metrics.accuracy,
            )
        ],
    ).to_yaml()


def _wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    z = 1.959964
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - half) / scale, (centre + half) / scale


def _confusions(metrics: Metrics) -> Sequence[tuple[str, str, int]]:
    """True class, answer and count, of the most frequent errors."""
    labels = [entry.label for entry in metrics.per_class]
    errors = [
        (labels[row], labels[column], count)
        for row, counts in enumerate(metrics.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(errors, key=lambda error: -error[2])[:_MOST_CONFUSIONS]


def _is_lowered(gate: Gate) -> bool:
    """Whether the gate lets more through than it would by default."""
    if gate.relation == ">=":
        return gate.threshold < gate.default_threshold
    return gate.threshold > gate.default_threshold


def _cell(value: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, digits: int) -> str:
    return _UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _clocked(value: float | None, digits: int) -> str:
    return _LEFT_OUT if value is None else _number(value, digits)


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None or not math.isfinite(share) else f"{100 * share:.2f} %"


def _significant(value: float | None) -> str:
    """Enough digits to see on which side of a threshold a value lies."""
    if value is None:
        return _LEFT_OUT
    return f"{value:.6g}" if math.isfinite(value) else _UNKNOWN
