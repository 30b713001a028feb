"""How well a run's network, a released version or a running server answers a whole test set."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from pipeline import console, metrics, predictors
from pipeline.errors import InputError
from pipeline.options import DEFAULTS, Named
from pipeline.predictors import Predictor, TestSet
from pipeline.records import EvalResults
from pipeline.triton import repository
from pipeline.triton.store import Store

_log = logging.getLogger(__name__)


def evaluate(
    store: Store,
    *,
    target: Named | None,
    run: Path | None,
    checkpoint: Path | None,
    url: str | None,
    dataset_id: str | None,
    data_dir: Path,
    seed: int | None,
) -> EvalResults:
    """Of a run's folder, of a checkpoint, of a server's model, or of a released version where none is given.

    `target` is None for what was published last in `store`. Data set and seed are those of the training
    where none is given. InputError where something named is not there or does not fit; ServerError where the server
    fails.
    """
    file = predictors.of_checkpoint(checkpoint, data_dir) if checkpoint else predictors.of_run(run) if run else None
    with nullcontext(file) if file else _predictor(store, target, url) as predictor:
        origin = predictor.origin or predictors.local_origin(store, predictor.name, predictor.version)
        if origin:
            dataset_id = dataset_id or origin.config.dataset_id
        if dataset_id is None:
            raise InputError(
                f"what {predictor.name} version {predictor.version} was trained on is not known in {store.location}: "
                "name its test set by --dataset-id, or the repository by --model-repository"
            )
        if seed is None:
            seed = origin.config.seed if origin else DEFAULTS["seed"]
        test = predictors.load_test_set(predictor, dataset_id, data_dir, seed)
        if origin and origin.config.dataset_id == dataset_id and origin.data.sha256 != test.sha256:
            _log.warning("these are other data than %s was trained and measured on", predictor.name)
        return _evaluate(predictor, test)


def table(results: EvalResults) -> str:
    """A few lines for a person."""
    shares = {label: share for label, share in results.per_class_accuracy.items() if share is not None}
    worst = min(shares, key=lambda label: shares[label])
    version = "" if results.version is None else f" version {results.version}"
    classes = len(results.per_class_accuracy)
    return "\n".join(
        [
            f"{results.model}{version}, answered by {results.answered_by}",
            f"  test set    {results.dataset_id}: {results.images:,} images in {classes} classes",
            f"  loss        {results.test_loss:.4f}",
            f"  accuracy    {results.accuracy:.2%}",
            f"  worst class {worst}: {shares[worst]:.2%}",
        ]
    )


@contextmanager
def _predictor(store: Store, target: Named | None, url: str | None) -> Iterator[Predictor]:
    name, version = target or Named(repository.newest(store), None)
    if url:
        with predictors.of_server(url, name, version) as predictor:
            yield predictor
    else:
        yield predictors.of_release(store, name, repository.find(store, name, version))


def _evaluate(predictor: Predictor, test: TestSet) -> EvalResults:
    parts = []
    with console.progress("evaluate", len(test.split)) as advance:
        for images in test.split.batches(predictor.batch_size):
            parts.append(predictor.ask(images))
            advance(len(images))
    measured = metrics.measure(np.concatenate(parts), test.split.labels, test.labels)
    return EvalResults(
        model=predictor.name,
        version=predictor.version,
        answered_by=predictor.answered_by,
        file_sha256=predictor.file_sha256,
        dataset_id=test.dataset_id,
        data_sha256=test.sha256,
        images=measured.images,
        test_loss=measured.loss,
        accuracy=measured.accuracy,
        per_class_accuracy={entry.label: entry.recall for entry in measured.per_class},
    )
