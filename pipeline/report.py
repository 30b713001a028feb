"""What a run tells a person: the values it begins with, and what it came to."""

import logging
import shlex

from pipeline import zoo_report
from pipeline.config import RunConfig
from pipeline.release import Outcome

_log = logging.getLogger(__name__)


# Values of a run that are neither of the training nor of the gates.
_OTHERS = (
    *("data_dir", "model_repository", "release_name", "served_format", "validate_with"),
    *("test_batch_size", "log_interval", "num_processes"),
)


def begin(config: RunConfig) -> None:
    """Log each effective value and where it came from."""
    if config.dataset_fallback:
        _log.info("training on the embedded digits_v1 in place of MNIST")
    _log.info("run folder %s", config.output_dir)
    values = {
        **config.train.readable(),
        **config.gates.model_dump(),
        **{name: getattr(config, name) for name in _OTHERS},
        "devices": " ".join(config.devices),
        "export_formats": " ".join(config.export_formats),
    }
    for name in sorted(values):
        source = config.sources.get(name, "default")
        _log.info("  %-24s %-28s %s", name, values[name], source)


def end(outcome: Outcome) -> str:
    """A few lines: released or not and why, what was measured, where it lies, how to serve and to ask it."""
    lines = [_verdict(outcome)]
    if outcome.gated and outcome.verified and outcome.benchmarked:
        served = outcome.gated.served_format
        metrics = next(file.metrics for file in outcome.verified.files if file.format == served)
        timed = next(file for file in outcome.benchmarked.files if file.format == served)
        size = next(gate.measured for gate in outcome.gated.gates if gate.name == "model size")
        lines.append(
            f"  measured    {served}: accuracy {metrics.accuracy:.2%}, {size:.2f} MB, latency "
            f"p50 {timed.p50_ms:.2f} ms, p95 {timed.p95_ms:.2f} ms"
        )
        lines += [f"  failed      {gate.sentence()}" for gate in outcome.gated.failed]
    elif outcome.evaluated:
        lines.append(f"  measured    PyTorch: accuracy {outcome.evaluated.metrics.accuracy:.2%}")
    lines.append(f"  run         {outcome.config.output_dir}")
    if outcome.published:
        lines.append(zoo_report.published(outcome.published))
    elif outcome.validated and outcome.validated.passed:
        lines.append(f"  publish     bin/zoo publish --run {shlex.quote(str(outcome.config.output_dir))}")
    lines.append("  seconds     " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.seconds.items()))
    if outcome.config.dataset_fallback:
        lines.append(
            "  note        trained on the embedded digits_v1: MNIST was neither at hand nor to be fetched; "
            "give its folder by --data-dir"
        )
    return "\n".join(lines)


def _verdict(outcome: Outcome) -> str:
    name = outcome.config.release_name
    if outcome.published:
        return f"released {name} version {outcome.published.version}"
    if outcome.gated and not outcome.gated.passed:
        return f"refused {name}: {', '.join(gate.name for gate in outcome.gated.failed)}"
    if outcome.validated and not outcome.validated.passed:
        failed = ", ".join(check.name for check in outcome.validated.checks if not check.passed)
        return f"refused {name} by the server: {failed}"
    if outcome.config.dry_run:
        return "dry run: nothing was judged or published"
    if not outcome.config.export:
        return "export skipped: nothing was judged or published"
    if outcome.validated:
        return f"passed {name}: not published"
    if outcome.gated and outcome.config.judged_format != outcome.config.served_format:
        return f"passed the gates {name}: no server was asked, as {outcome.config.judged_format} is not what is served"
    return (
        f"stopped before a verdict on {name}; to go on: the same command with --output-dir {outcome.config.output_dir}"
    )
