"""Publish a candidate that both the gates and the server have passed."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

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
    Trained,
    Validated,
    Verified,
)
from pipeline.runfolder import RunFolder
from pipeline.triton import publishing, repository
from pipeline.triton.signing import Signer
from pipeline.triton.store import Store


class ReleaseInputs(NamedTuple):
    """The records that go into release.json beside the verdicts."""

    config: RunConfig
    code: CodeInfo
    data: DataInfo
    trained: Trained
    evaluated: Evaluated
    exported: Exported
    verified: Verified
    benchmarked: Benchmarked


def publish(
    assembled: Assembled,
    gated: Gated,
    validated: Validated,
    inputs: ReleaseInputs,
    folder: RunFolder,
    store: Store,
    reason: str = "",
    signer: Signer | None = None,
    *,
    promote: bool = True,
) -> Published:
    """A new version in the repository, signed where a signer is given, live if it is to be promoted.

    Refused verdicts change nothing there.

    GateError or VerdictError names what failed; InputError names a file that is not the one that was
    validated; SignatureError where the name is live with other inputs, outputs or labels.
    """
    if not gated.passed:
        failed = "; ".join(gate.sentence() for gate in gated.failed)
        raise GateError(f"{assembled.name} is not published: {failed}; train a better model")
    if not validated.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in validated.checks if not check.passed)
        raise VerdictError(f"{assembled.name} is not published: {validated.server} refused it: {failed or 'no checks'}")
    source = folder.root / assembled.root / assembled.name / str(assembled.version)
    _demand_same_files(source, assembled, validated)
    release = repository.Release(
        name=assembled.name,
        created=_now().isoformat(timespec="seconds"),
        gated=gated,
        validated=validated,
        hashes=assembled.hashes,
        # The long series are in metrics.json.
        **{**inputs._asdict(), "config": _without_places(inputs.config), "trained": _without_series(inputs.trained)},
    )
    content = release.model_dump_json(indent=2).encode() + b"\n"
    return publishing.publish_version(store, assembled.name, source, content, reason, signer, promote=promote)


def _demand_same_files(source: Path, assembled: Assembled, validated: Validated) -> None:
    found = repository.hashes(source)
    for path in sorted(found.keys() | assembled.hashes.keys() | validated.hashes.keys()):
        if not found.get(path) == assembled.hashes.get(path) == validated.hashes.get(path):
            raise InputError(f"{source / path} is not the file that was validated: run bin/train on this folder again")


def _now() -> datetime:
    """Or what SOURCE_DATE_EPOCH says, for who builds the same bytes again: https://reproducible-builds.org/specs/."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if not given:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(f"SOURCE_DATE_EPOCH={given!r}: expected seconds since 1970, as 1700000000") from None


def _without_places(config: RunConfig) -> RunConfig:
    """A release is the same wherever its run lay, and does not tell its maker's folders."""
    places = {"data_dir": Path(), "output_dir": Path(), "model_repository": "", "checkpoint": None}
    return config.model_copy(update=places)


def _without_series(trained: Trained) -> Trained:
    empty = BatchSeries(epoch=(), loss=(), accuracy=(), learning_rate=(), gradient_norm=())
    return trained.model_copy(update={"batches": empty})
