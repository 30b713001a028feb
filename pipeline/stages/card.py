"""Write the model card, and draw its plots, from records alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from pipeline.config import RunConfig
from pipeline.plots import draw
from pipeline.records import (
    Benchmarked,
    Carded,
    CodeInfo,
    DataInfo,
    Evaluated,
    Exported,
    Gated,
    Metrics,
    Trained,
    Verified,
)
from pipeline.specs import INPUT, MAX_BATCH_SIZE, OUTPUT

_TEMPLATES = Path(__file__).parent.parent / "templates"
_MOST_CONFUSIONS = 10


class CardInputs(NamedTuple):
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
    metrics = next(file.metrics for file in inputs.verified.files if file.format == inputs.gated.served_format)
    plots: tuple[str, ...] = ()
    if visualizations:
        plots = draw(
            folder / "model_card" / "plots",
            f"{inputs.trained.model_id} on {inputs.data.dataset_id}",
            metrics,
            inputs.trained,
            inputs.config.gates.min_per_class_accuracy,
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["cell"] = _cell
    text = environment.get_template("model_card.md.jinja").render(
        **inputs._asdict(),
        metadata=_metadata(inputs, metrics),
        metrics=metrics,
        settings=inputs.config.train.readable(),
        plots=[f"plots/{name}" for name in plots],
        interval=_wilson_interval(metrics.accuracy, metrics.images),
        confusions=_confusions(metrics),
        files=list(zip(inputs.exported.files, inputs.verified.files, inputs.benchmarked.files, strict=True)),
        tensor={"input": INPUT, "output": OUTPUT, "max_batch_size": MAX_BATCH_SIZE},
    )
    path = folder / "model_card" / f"{inputs.data.short_name}_model_card.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return Carded(card=path.relative_to(folder).as_posix(), plots=tuple(f"model_card/plots/{name}" for name in plots))


def _metadata(inputs: CardInputs, metrics: Metrics) -> str:
    """The YAML that the Hugging Face Hub reads."""
    return ModelCardData(
        license="mit",
        library_name="triton",
        pipeline_tag="image-classification",
        tags=["image-classification", "triton", "onnx", "pytorch"],
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


def _cell(value: Any) -> str:
    """Text for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
