"""The table of contents: every stage of a release, in order, each record saved in the run's folder."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from pipeline import console, provenance, registry
from pipeline.config import RunConfig
from pipeline.publication import as_released, demand_gates, demand_verdict, publish_run, release_time
from pipeline.records import (
    Benchmarked,
    Evaluated,
    Gated,
    ModelMetrics,
    Published,
    Record,
    Trained,
    Validated,
    Verified,
)
from pipeline.runfolder import RunFolder
from pipeline.specs import Prepared
from pipeline.stages.assemble import assemble
from pipeline.stages.benchmark import benchmark
from pipeline.stages.card import CardInputs, card
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.gate import gate
from pipeline.stages.prepare import check_fit, describe, prepare
from pipeline.stages.train import train
from pipeline.stages.validate import starting_server, validate
from pipeline.stages.verify import verify
from pipeline.training.group import ALONE, Group
from pipeline.triton import container, repository
from pipeline.triton.signing import Signer
from pipeline.triton.store import open_store

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R", bound=Record)


@dataclass
class Outcome:
    """What a run came to. Records of stages that it did not reach are None; `seconds` are by stage."""

    config: RunConfig
    evaluated: Evaluated | None = None
    verified: Verified | None = None
    benchmarked: Benchmarked | None = None
    gated: Gated | None = None
    validated: Validated | None = None
    published: Published | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        _log.debug("stage %s begins", name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started
            _log.debug("stage %s took %.2f s", name, self.seconds[name])


def run(config: RunConfig, outcome: Outcome, group: Group = ALONE, signer: Signer | None = None) -> None:
    """From a configuration to a published version. What was reached is in `outcome`, also after an error.

    Of a group, all processes train; the first one does everything else, and alone writes.
    GateError and VerdictError (exit status 3) where the candidate is refused: nothing was published.
    """
    description = describe(config.train, config.data_dir)
    check_fit(config.train, description)
    folder = RunFolder(config.output_dir)
    if group.rank > 0:
        train(_prepare(config, group), config, folder, group)
        return
    if config.export and not config.dry_run:
        container.choose(config.validate_with)  # what is missing is said before the training, not after it
    if config.publish:
        release_time()  # what is wrong with it is said now, too
        store = open_store(config.model_repository)
        store.check_writable()
        repository.check_signature(store, config.release_name, description.shape, description.labels)
    with folder.open():
        console.log_to(folder.log)
        _log.debug("configuration: %s", config.model_dump_json())
        _run(config, folder, outcome, group, signer)


def _prepare(config: RunConfig, group: Group) -> Prepared:
    return group.in_turn(lambda: prepare(config.train, config.data_dir, fallback=config.dataset_fallback))


def _run(config: RunConfig, folder: RunFolder, outcome: Outcome, group: Group, signer: Signer | None) -> None:
    def keep(name: str, record: R) -> R:
        record.save(folder.record(name))
        return record

    def step(stage: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """The record of a stage, which is timed under its own name, and kept under that of the record's class."""
        with outcome.stage(stage.__name__):
            record = stage(*arguments, **options)
            return keep(type(record).__name__.lower(), record)

    def begin() -> None:
        """Nothing can refuse this run any more: its records take the place of an earlier one's."""
        folder.clear_records()
        keep("data", data)
        keep("code", code)
        keep("config", config)

    with outcome.stage("prepare"):
        prepared = _prepare(config, group)
        data, code = prepared.info, provenance.describe()
        test = prepared.test.spread(config.test_batch_size) if config.dry_run else prepared.test
    with outcome.stage("train"):
        trained, served = train(prepared, config, folder, group, begin)
        keep("trained", trained)
    evaluated = outcome.evaluated = step(evaluate, served, test, data.labels, config.test_batch_size, folder)
    if not config.export:
        _save_metrics(folder, trained, evaluated, None, None)
        return
    model_id, judged_format = config.train.model_id, config.judged_format
    exported = step(export, served, data, config.export_formats, folder)
    verified = outcome.verified = step(verify, exported, model_id, data, test, judged_format, folder)
    benchmarked = outcome.benchmarked = step(benchmark, exported, model_id, data, test, folder)
    _save_metrics(folder, trained, evaluated, verified, benchmarked)
    if config.dry_run:
        return
    gated = outcome.gated = step(
        gate, exported, verified, benchmarked, judged_format, config.gates, config.default_gates
    )
    # The server starts while the card is drawn.
    wanted = gated.passed and judged_format == config.served_format
    with starting_server(folder, config.validate_with) if wanted else nullcontext() as judge:
        entry = registry.model(model_id)
        inputs = CardInputs(
            config, code, data, as_released(trained), evaluated, exported, verified, as_released(benchmarked),
            as_released(gated),
            entry.TITLE, entry.DESCRIPTION, entry.REFERENCE,
        )  # fmt: skip
        carded = step(card, inputs, folder.root, visualizations=config.visualizations)
        demand_gates(gated)
        if not wanted:
            return
        assembled = step(assemble, config, data, exported, carded, folder)
        validated = outcome.validated = step(validate, assembled, data.labels, folder, judge)
    demand_verdict(validated)
    if config.publish:
        with outcome.stage("publish"):
            store = open_store(config.model_repository)
            outcome.published = keep("published", publish_run(folder, store, signer=signer))


def _save_metrics(
    folder: RunFolder,
    trained: Trained,
    evaluated: Evaluated,
    verified: Verified | None,
    benchmarked: Benchmarked | None,
) -> None:
    metrics = ModelMetrics(
        model_id=trained.model_id,
        parameters=trained.parameters,
        epochs=trained.epochs,
        batches=trained.batches,
        test=evaluated.metrics,
        verified=verified,
        benchmarked=benchmarked,
    )
    as_released(metrics).save(folder.metrics)
