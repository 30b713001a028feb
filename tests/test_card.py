"""The model card and its plots, from synthetic records."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from matplotlib.image import imread
from numpy.typing import NDArray
from tritonclient.http import InferenceServerClient

from pipeline.config import Criterion, GateConfig, RunConfig, TrainConfig
from pipeline.records import (
    BatchSeries,
    Benchmarked,
    BenchmarkedFile,
    ClassMetrics,
    CodeInfo,
    DataInfo,
    Epoch,
    Evaluated,
    Exported,
    ExportedFile,
    Format,
    Gate,
    Gated,
    Layer,
    Metrics,
    Trained,
    Verified,
    VerifiedFile,
)
from pipeline.stages.card import CardInputs, card

FORMATS: tuple[Format, ...] = ("pytorch", "onnx", "torchscript")
SECTIONS = (
    "Model Details",
    "Intended Use",
    "Factors",
    "Metrics",
    "Evaluation Data",
    "Training Data",
    "Quantitative Analyses",
    "Ethical Considerations",
    "Caveats and Recommendations",
)
PLOTS = {
    "confusion_matrix", "per_class_accuracy", "training_accuracy", "training_loss", "batch_metrics", "epoch_metrics",
}  # fmt: skip
LABELS = ("a|b", "$\\frac", "cat")
DEFAULT_GATES = GateConfig(
    min_test_accuracy=0.97, min_per_class_accuracy=0.9, max_model_size_mb=10.0, max_inference_time_ms=50.0
)


def make_metrics(labels: tuple[str, ...], wrong: int, empty: int | None) -> Metrics:
    """Fifty images of each class, `wrong` of them answered as the next class; none of class `empty`."""
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    for index in range(len(labels)):
        confusion[index, index] = 50 - wrong
        confusion[index, (index + 1) % len(labels)] = wrong
    if empty is not None:
        confusion[empty] = 0
    images = confusion.sum(axis=1).tolist()
    share = (50 - wrong) / 50
    return Metrics(
        images=sum(images),
        loss=0.0321 + wrong,
        accuracy=share,
        per_class=tuple(
            ClassMetrics(label=label, images=count, precision=share, recall=share, f1=share)
            if count
            else ClassMetrics(label=label, images=0, precision=None, recall=None, f1=None)
            for label, count in zip(labels, images, strict=True)
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def make_trained(epochs: int, *, validation: bool, hard: bool = False) -> Trained:
    count = 7 * epochs if epochs > 1 else 1
    steps = tuple((index + 1) * epochs / count for index in range(count))
    return Trained(
        model_id="mnist_cnn_v1",
        parameters=66426,
        layers=(Layer(name="0", kind="Conv2d", output_shape=(16, 14, 14), parameters=400),),
        device="cpu",
        epochs=tuple(
            Epoch(
                epoch=number,
                train_loss=1 / number,
                train_accuracy=1 - 0.3 / number,
                validation_loss=0.8 / number if validation else None,
                validation_accuracy=1 - 0.2 / number if validation else None,
                learning_rate=0.01,
                seconds=1.5,
                is_hard=hard and number % 2 == 0,
            )
            for number in range(1, epochs + 1)
        ),
        stopped_early=False,
        best_epoch=epochs if validation else None,
        batches=BatchSeries(
            epoch=steps,
            loss=tuple(math.exp(-step) for step in steps),
            accuracy=tuple(1 - math.exp(-step) for step in steps),
            learning_rate=(0.01,) * count,
            gradient_norm=(1.0,) * count,
        ),
        images_seen=1000 * epochs,
        seconds=1.5 * epochs,
        weights_sha256="f" * 64,
    )


def make_config(gates: GateConfig, epochs: int) -> RunConfig:
    return RunConfig(
        train=TrainConfig(
            model_id="mnist_cnn_v1",
            dataset_id="digits_v1",
            image_size=None,
            criteria=(Criterion(loss_id="nll"),),
            optimizer_id="adamw",
            scheduler_id="one_cycle",
            epochs=epochs,
            batch_size=64,
            learning_rate=0.01,
            weight_decay=0.05,
            betas=(0.9, 0.99),
            momentum=0.9,
            gamma=0.7,
            label_smoothing=0.1,
            gradient_clip_norm=0.0,
            augmentation="shift",
            validation_fraction=0.1,
            early_stopping_patience=0,
            seed=17,
        ),
        gates=gates,
        default_gates=DEFAULT_GATES,
        data_dir=Path("data"),
        output_dir=Path("output"),
        model_repository="repository",
        release_name="mnist_cnn_v1-digits_v1",
        devices=("cpu",),
        export_formats=FORMATS,
        served_format="onnx",
        test_batch_size=1000,
        log_interval=10,
        visualizations=True,
        export=True,
        publish=True,
        dry_run=False,
        save_model=True,
        resume=True,
        dataset_fallback=False,
        sources={"seed": "flag", "learning_rate": "recipe"},
    )


def make_gated(metrics: Metrics, gates: GateConfig) -> Gated:
    recalls = [entry.recall for entry in metrics.per_class if entry.recall is not None]
    worst = min(recalls) if len(recalls) == len(metrics.per_class) else math.nan
    judgements: list[dict[str, Any]] = [
        {"name": "test accuracy", "measured": metrics.accuracy, "relation": ">=", "unit": "",
         "threshold": gates.min_test_accuracy, "default_threshold": 0.97},
        {"name": "per-class accuracy", "measured": worst, "relation": ">=", "unit": "",
         "threshold": gates.min_per_class_accuracy, "default_threshold": 0.9},
        {"name": "model size", "measured": 0.27109, "relation": "<=", "unit": "MB",
         "threshold": gates.max_model_size_mb, "default_threshold": 10.0},
        {"name": "inference time", "measured": 0.12345, "relation": "<=", "unit": "ms",
         "threshold": gates.max_inference_time_ms, "default_threshold": 50.0},
    ]  # fmt: skip
    return Gated(
        served_format="onnx",
        gates=tuple(
            Gate(
                **judgement,
                detail="of a|b",
                passed=judgement["measured"] >= judgement["threshold"]
                if judgement["relation"] == ">="
                else judgement["measured"] <= judgement["threshold"],
            )
            for judgement in judgements
        ),
    )


def make_inputs(
    *,
    labels: tuple[str, ...] = LABELS,
    epochs: int = 3,
    validation: bool = True,
    empty: int | None = None,
    fallback: bool = False,
    hard: bool = False,
    gates: GateConfig = DEFAULT_GATES,
) -> CardInputs:
    """Records of a run whose ONNX file answers one image of 50 wrongly, and the other formats two."""
    served, other = make_metrics(labels, 1, empty), make_metrics(labels, 2, empty)
    return CardInputs(
        config=make_config(gates, epochs),
        code=CodeInfo(
            revision=None, modified=False, python="3.11.7", platform="Linux", cpu="A CPU", threads=2,
            libraries={"torch": "2.15.0"},
        ),
        data=DataInfo(
            dataset_id="digits_v1", short_name="digits", title="Digits", source="UCI", license="CC BY 4.0",
            shape=(1, 28, 28), labels=labels, train_images=1293, validation_images=144 if validation else 0,
            test_images=served.images, test_images_per_class=tuple(entry.images for entry in served.per_class),
            sha256="d" * 64, mean=(77.7,), std=(90.1,), fallback=fallback,
        ),
        trained=make_trained(epochs, validation=validation, hard=hard),
        evaluated=Evaluated(metrics=served, seconds=0.1),
        exported=Exported(
            files=tuple(
                ExportedFile(format=name, path=f"models/{name}", bytes=271090, sha256="e" * 64, details={"opset": 20})
                for name in FORMATS
            )
        ),
        verified=Verified(
            files=tuple(
                VerifiedFile(
                    format=name, metrics=served if name == "onnx" else other, largest_difference=1e-6, agreement=1.0,
                    batch_sizes=(1, 2, 3, 128), batch_difference=1e-7, finite=True,
                )
                for name in FORMATS
            )
        ),
        benchmarked=Benchmarked(
            files=tuple(
                BenchmarkedFile(
                    format=name, requests=100, p50_ms=0.1, p95_ms=0.12345, p99_ms=0.2, throughput=12345.6,
                    throughput_threads=2,
                )
                for name in FORMATS
            )
        ),
        gated=make_gated(served, gates),
        title="Small network",
        description="Some layers.",
        reference="LeCun 1998",
    )  # fmt: skip


def write(folder: Path, inputs: CardInputs, *, visualizations: bool = False) -> str:
    carded = card(inputs, folder, visualizations=visualizations)
    return (folder / carded.card).read_text(encoding="utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its line of dashes; all rows are of one length."""
    section = text.split(f"{heading}\n", 1)[1]
    lines = re.findall(r"^\|.*\|$", section.split("\n#", 1)[0], flags=re.MULTILINE)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert all(set(cell) <= set("-:") for cell in rows[1])
    return [rows[0], *rows[2:]]


def test_metadata_is_read_by_the_hub(tmp_path: Path) -> None:
    text = write(tmp_path, make_inputs())
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert isinstance(data, ModelCardData)
    assert data.license == "mit"
    assert data.pipeline_tag == "image-classification"
    assert {"image-classification", "triton", "onnx"} <= set(data.tags or [])
    (result,) = data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.98)
    assert data.model_name == "mnist_cnn_v1-digits_v1"
    assert "model-index:" in text.split("---")[1]


def test_all_sections_and_nothing_unfilled(tmp_path: Path) -> None:
    text = write(tmp_path, make_inputs())
    places = [text.index(f"\n## {section}\n") for section in SECTIONS]
    assert places == sorted(places)
    assert not re.search(r"\{\{|\{%|\b(None|nan|inf|TODO)\b", text)


def test_gates_table_holds_every_number_and_marks_what_was_lowered(tmp_path: Path) -> None:
    lowered = DEFAULT_GATES.model_copy(update={"min_test_accuracy": 0.9125, "max_model_size_mb": 12.5})
    inputs = make_inputs(gates=lowered)
    rows = table(write(tmp_path, inputs), "### Gates")[1:]
    for gate, (name, measured, threshold, verdict, detail) in zip(inputs.gated.gates, rows, strict=True):
        assert name == gate.name
        assert float(measured.split()[0]) == pytest.approx(gate.measured)
        assert float(threshold.split()[1]) == gate.threshold
        assert verdict.startswith("passed" if gate.passed else "**failed**")
        assert ("threshold lowered" in verdict) == (name in ("test accuracy", "model size"))
        assert detail == "of a\\|b"


def test_a_raised_threshold_is_not_marked(tmp_path: Path) -> None:
    raised = DEFAULT_GATES.model_copy(update={"min_test_accuracy": 0.975, "max_model_size_mb": 5.0})
    assert "lowered" not in write(tmp_path, make_inputs(gates=raised))


def test_a_refused_candidate_says_so(tmp_path: Path) -> None:
    strict = DEFAULT_GATES.model_copy(update={"min_test_accuracy": 0.99})
    assert "failed test accuracy and was not published" in write(tmp_path, make_inputs(gates=strict))
    assert "Refused" not in write(tmp_path, make_inputs())


def test_tables(tmp_path: Path) -> None:
    text = write(tmp_path, make_inputs())
    by_format = {row[0]: row for row in table(text, "## Quantitative Analyses")}
    assert by_format["onnx (served)"][1:8] == ["98.00 %", "1.0321", "0.271", "0.100", "0.123", "0.200", "12,346 (2)"]
    assert by_format["pytorch"][1] == "96.00 %"
    assert table(text, "### By Class")[1] == ["0", "a\\|b", "50", "0.9800", "0.9800", "0.9800"]
    assert table(text, "### Most Frequent Confusions")[1] == ["a\\|b", "$\\frac", "1"]
    settings = {row[0]: row[1:] for row in table(text, "### Training Procedure")}
    assert settings["learning_rate"] == ["0.01", "recipe"]
    assert settings["criteria"][0] == "nll:1"
    origin = dict(table(text, "## Reproducibility"))
    assert origin["seed"] == "17"
    assert origin["SHA-256 of the data"] == "d" * 64
    assert origin["SHA-256 of the onnx file"] == f"{'e' * 64} (opset 20)"


def test_interval_is_wilsons(tmp_path: Path) -> None:
    # scipy.stats.binomtest(147, 150).proportion_ci(method="wilson")
    assert "94.29 % to 99.32 %" in write(tmp_path, make_inputs())


def test_epochs_of_hard_images_are_said(tmp_path: Path) -> None:
    text = write(tmp_path, make_inputs(epochs=2, hard=True), visualizations=True)
    assert "Every second epoch had only the hardest images" in text
    assert "Last epoch, of the hardest images: training loss" in text
    assert "hardest" not in write(tmp_path, make_inputs(epochs=2))


def test_fallback_is_said(tmp_path: Path) -> None:
    assert "embedded digits because MNIST was not at hand" in write(tmp_path, make_inputs(fallback=True))
    assert "embedded digits" not in write(tmp_path, make_inputs())


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Answer:
        def as_numpy(self, name: str) -> NDArray[np.float32]:
            assert name == "probabilities__0"
            return np.eye(1, 3, dtype=np.float32)

    def infer(client: object, model: str, inputs: list[Any]) -> Answer:
        asked.append((model, inputs[0].name(), inputs[0].datatype(), tuple(inputs[0].shape())))
        return Answer()

    monkeypatch.setattr(InferenceServerClient, "infer", infer)
    (example,) = re.findall(r"```python\n(.*?)```", write(tmp_path, make_inputs()), flags=re.DOTALL)
    exec(compile(example, "example", "exec"), {})
    assert asked == [("mnist_cnn_v1-digits_v1", "image", "UINT8", (1, 1, 28, 28))]


HUNDRED = tuple(f"class number {index}" for index in range(100))


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"epochs": 1},
        {"epochs": 1, "validation": False},
        {"empty": 1},
        {"labels": HUNDRED},
        {"labels": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")},
    ],
    ids=["usual", "one epoch", "no validation", "class without images", "100 classes", "26 classes"],
)
def test_plots(tmp_path: Path, case: dict[str, Any]) -> None:
    carded = card(make_inputs(**case), tmp_path, visualizations=True)
    assert {Path(plot).stem for plot in carded.plots} == PLOTS
    for plot in carded.plots:
        picture = imread(tmp_path / plot)
        height, width, _ = picture.shape
        assert 400 <= height <= 1000
        assert 400 <= width <= 1000
        assert 0.01 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.95
    text = (tmp_path / carded.card).read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert [f"model_card/{link}" for link in linked] == list(carded.plots)
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    text = write(tmp_path, make_inputs(empty=2))
    assert "**No test images** of: cat." in text
    assert table(text, "### By Class")[3][2:] == ["0", *["not measurable"] * 3]
    assert table(text, "### Gates")[2][1] == "not measurable"


def test_plots_are_left_out(tmp_path: Path) -> None:
    carded = card(make_inputs(), tmp_path, visualizations=False)
    assert carded.plots == ()
    assert not (tmp_path / "model_card" / "plots").exists()
    assert "plots/" not in (tmp_path / carded.card).read_text(encoding="utf-8")
