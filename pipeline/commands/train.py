"""`bin/train`."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup
from click.core import ParameterSource

from pipeline import options
from pipeline.commands import CONTEXT, declares, with_console
from pipeline.errors import DataUnavailableError, InputError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.triton.signing import Signer

_log = logging.getLogger(__name__)


@cloup.command("train", context_settings=CONTEXT)
@declares(options.TRAIN)
@with_console
def command(quiet: bool, **flags: Any) -> None:
    """Train a classifier, export it, judge it, prove it on a real Triton server and publish it.

    \b
    Example: bin/train --model-id mnist_cnn_v1 --epochs 5
    """
    from pipeline import registry
    from pipeline.errors import UnknownIdError

    for folder, given, kind in (
        ("models", flags["model_id"], "model"),
        ("datasets", flags["dataset_id"] or "mnist_v1", "data set"),
    ):
        if given not in registry.ids(folder):
            raise UnknownIdError(kind, given, registry.ids(folder))
    source = click.get_current_context().get_parameter_source("model_id")
    flags["model_id_given"] = source is ParameterSource.COMMANDLINE

    from pipeline.config import is_torchrun_worker
    from pipeline.settings import configure

    started = time.localtime()
    config = configure(flags, flags["dataset_id"] or "mnist_v1", fallback=False, started=started)
    if config.train.trainer == "ddp" and not is_torchrun_worker():
        from pipeline.training import torchrun

        torchrun.launch([*sys.argv[2:], "--output-dir", str(config.output_dir)], config.num_processes)
    else:
        _release(config, flags, started, quiet=quiet)


def _release(config: "RunConfig", flags: dict[str, Any], started: time.struct_time, *, quiet: bool) -> None:
    from pipeline import console, release, report
    from pipeline.settings import configure
    from pipeline.training import group

    clock = time.perf_counter()
    processes = group.join() if config.train.trainer == "ddp" else group.ALONE
    if processes.rank > 0:
        quiet = True
        console.set_up(quiet=quiet)
    signer = _signer(config, flags["sign_key"])
    report.begin(config)
    outcome = release.Outcome(config)
    try:
        try:
            release.run(config, outcome, processes, signer)
        except DataUnavailableError as error:
            if flags["dataset_id"]:
                raise
            _log.info("MNIST is not to be had here: going on with the embedded digits_v1 (%s)", error)
            config = configure(flags, "digits_v1", fallback=True, started=started)
            report.begin(config)
            outcome = release.Outcome(config)
            release.run(config, outcome, processes, signer)
    finally:
        outcome.seconds["total"] = time.perf_counter() - clock
        text = report.end(outcome)
        _log.debug("%s", text)
        if not quiet:
            print(text)


def _signer(config: "RunConfig", key: Path | None) -> "Signer | None":
    """Made before all work, so that a key that cannot be used is said at once."""
    if key is None:
        return None
    if not config.publish:
        raise InputError("--sign-key signs what is published: leave it out here, and give it to bin/zoo publish --run")
    from pipeline.triton.signing import Signer

    return Signer(key)
