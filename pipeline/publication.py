"""From a run that was judged to a version in a repository: the last stage of a release, and all of `bin/zoo publish`.

Without torch, whose import would take most of the time.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pipeline.config import RunConfig
from pipeline.errors import GateError, InputError, VerdictError
from pipeline.records import (
    Assembled,
    BatchSeries,
    Benchmarked,
    CodeInfo,
    DataInfo,
    Evaluated,
    Exported,
    Gated,
    Published,
    Record,
    Trained,
    Validated,
    Verified,
)
from pipeline.runfolder import RunFolder
from pipeline.triton import publishing, repository
from pipeline.triton.signing import Signer
from pipeline.triton.store import Store

# Who makes a release again and wants the same bytes sets it: https://reproducible-builds.org/specs/source-date-epoch/.
_EPOCH = "SOURCE_DATE_EPOCH"

R = TypeVar("R", bound=Record)


def publish_run(
    folder: RunFolder, store: Store, reason: str = "", signer: Signer | None = None, *, promote: bool = True
) -> Published:
    """A run's candidate as a new version in the repository, signed where a signer is given, live if it is promoted.

    A server is asked first where the run has no verdict of one. GateError or VerdictError names what failed, and
    nothing was changed; InputError where the run did not get as far as `assemble`, or a file is not the one that was
    validated; SignatureError where the name is live with other inputs, outputs or labels.
    """
    gated = Gated.load(folder.record("gated"))
    demand_gates(gated)
    config, data = RunConfig.load(folder.record("config")), DataInfo.load(folder.record("data"))
    assembled = Assembled.load(folder.record("assembled"))
    if not folder.record("validated").exists():
        from pipeline.stages.validate import starting_server, validate

        with starting_server(folder, config.validate_with) as judge:
            validate(assembled, data.labels, folder, judge).save(folder.record("validated"))
    validated = Validated.load(folder.record("validated"))
    demand_verdict(validated)
    source = folder.root / assembled.root / assembled.name / str(assembled.version)
    _demand_same_files(source, assembled, validated)
    release = repository.Release(
        name=assembled.name,
        created=release_time().isoformat(timespec="seconds"),
        config=_without_places(config),
        code=CodeInfo.load(folder.record("code")),
        data=data,
        trained=_without_series(Trained.load(folder.record("trained"))),
        evaluated=Evaluated.load(folder.record("evaluated")),
        exported=Exported.load(folder.record("exported")),
        verified=Verified.load(folder.record("verified")),
        benchmarked=Benchmarked.load(folder.record("benchmarked")),
        gated=gated,
        validated=validated,
        hashes=assembled.hashes,
    )
    content = as_released(release).model_dump_json(indent=2).encode() + b"\n"
    return publishing.publish_version(store, assembled.name, source, content, reason, signer, promote=promote)


def as_released(record: R) -> R:
    """A record as a version's files have it: without what a clock has measured, where SOURCE_DATE_EPOCH is set."""
    return record.without_times() if os.environ.get(_EPOCH) else record


def demand_gates(gated: Gated) -> None:
    """GateError names the gates that have failed."""
    if not gated.passed:
        failed = "; ".join(gate.sentence() for gate in gated.failed)
        raise GateError(f"refused, nothing was published: {failed}")


def demand_verdict(validated: Validated) -> None:
    """VerdictError names the checks that have failed."""
    if not validated.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in validated.checks if not check.passed)
        raise VerdictError(f"refused by {validated.server}, nothing was published: {failed}; see triton.log in the run")


def _demand_same_files(source: Path, assembled: Assembled, validated: Validated) -> None:
    found = repository.hashes(source)
    for path in sorted(found.keys() | assembled.hashes.keys() | validated.hashes.keys()):
        if not found.get(path) == assembled.hashes.get(path) == validated.hashes.get(path):
            raise InputError(f"{source / path} is not the file that was validated: run bin/train on this folder again")


def release_time() -> datetime:
    """Now, or what SOURCE_DATE_EPOCH says; InputError where that is no time."""
    given = os.environ.get(_EPOCH)
    if not given:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(f"{_EPOCH}={given!r}: expected seconds since 1970, as 1700000000") from None


def _without_places(config: RunConfig) -> RunConfig:
    """A release is the same wherever its run lay, and does not tell its maker's folders."""
    places = {"data_dir": Path(), "output_dir": Path(), "model_repository": "", "checkpoint": None}
    sources = {name: source for name, source in config.sources.items() if name not in places}
    return config.model_copy(update={**places, "sources": sources})


def _without_series(trained: Trained) -> Trained:
    """The long series are in metrics.json."""
    empty = BatchSeries(epoch=(), loss=(), accuracy=(), learning_rate=(), gradient_norm=())
    return trained.model_copy(update={"batches": empty})
