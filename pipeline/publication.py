"""From a run that was judged to a version in a repository: the end of a release, and all of `bin/zoo publish`.

Without torch, whose import would take most of the time.
"""

from pipeline.config import RunConfig
from pipeline.errors import GateError, VerdictError
from pipeline.records import (
    Assembled,
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
from pipeline.stages.publish import ReleaseInputs, publish
from pipeline.triton.signing import Signer
from pipeline.triton.store import Store


def publish_run(folder: RunFolder, store: Store, reason: str = "", signer: Signer | None = None) -> Published:
    """Publish what a run folder holds; the server's verdict is asked for first where the run has none.

    InputError where the run did not get as far as `assemble`.
    """
    gated = Gated.load(folder.record("gated"))
    demand_gates(gated)
    assembled = Assembled.load(folder.record("assembled"))
    data = DataInfo.load(folder.record("data"))
    if not folder.record("validated").exists():
        from pipeline.stages.validate import starting_server, validate

        with starting_server(folder) as server:
            validate(assembled, data.labels, folder, server).save(folder.record("validated"))
    inputs = ReleaseInputs(
        config=RunConfig.load(folder.record("config")),
        code=CodeInfo.load(folder.record("code")),
        data=data,
        trained=Trained.load(folder.record("trained")),
        evaluated=Evaluated.load(folder.record("evaluated")),
        exported=Exported.load(folder.record("exported")),
        verified=Verified.load(folder.record("verified")),
        benchmarked=Benchmarked.load(folder.record("benchmarked")),
    )
    validated = Validated.load(folder.record("validated"))
    return publish(assembled, gated, validated, inputs, folder, store, reason, signer)


def demand_gates(gated: Gated) -> None:
    if not gated.passed:
        failed = "; ".join(gate.sentence() for gate in gated.failed)
        raise GateError(f"refused, nothing was published: {failed}")


def demand_verdict(validated: Validated) -> None:
    if not validated.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in validated.checks if not check.passed)
        raise VerdictError(f"refused by {validated.server}, nothing was published: {failed}; see triton.log in the run")
