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
    flags["typed"] = typed(click.get_current_context())

    if flags["add_epochs"] is not None and flags["epochs"] is not None:
        raise click.UsageError("--epochs is the total, --add-epochs what comes on top: give one of them.")

    from pipeline.config import is_torchrun_worker

    started = time.localtime()
    config = _configure(flags, flags["dataset_id"] or "mnist_v1", fallback=False, started=started)
    if config.train.trainer == "ddp" and not is_torchrun_worker():
        from pipeline.training import torchrun

        torchrun.launch([*sys.argv[2:], "--output-dir", str(config.output_dir)], config.num_processes)
    else:
        _release(config, flags, started, quiet=quiet)


def typed(context: click.Context) -> frozenset[str]:
    """The names of the flags that were given on the command line."""
    return frozenset(
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )


def _configure(flags: dict[str, Any], dataset_id: str, *, fallback: bool, started: time.struct_time) -> "RunConfig":
    """With --add-epochs the checkpoint decides on the total, and where that stays so, on the steps."""
    from pipeline.settings import configure

    config = configure(flags, dataset_id, fallback=fallback, started=started)
    if flags["add_epochs"] is None:
        return config
    if config.train.trainer == "ddp":
        raise InputError("--add-epochs: torchrun starts processes again, when the checkpoint has more: give --epochs")

    from pipeline.runfolder import RunFolder
    from pipeline.training import checkpoint

    path = config.checkpoint or RunFolder(config.output_dir).checkpoint
    epochs = flags["add_epochs"] + (checkpoint.epochs(path) if config.resume else 0)
    if not epochs:
        raise InputError(f"--add-epochs 0: there is no checkpoint at {path} to go on from: train first")
    steps = flags["max_steps"] or (None if flags["add_epochs"] else checkpoint.origin(path).config.max_steps)
    flags = {**flags, "epochs": epochs, "max_steps": steps}
    return configure(flags, dataset_id, fallback=fallback, started=started)


def _release(config: "RunConfig", flags: dict[str, Any], started: time.struct_time, *, quiet: bool) -> None:
    from pipeline import console, release, report
    from pipeline.training import group

    clock = time.perf_counter()
    processes = group.join() if config.train.trainer == "ddp" else group.ALONE
    if processes.rank > 0:
        quiet = True
        console.set_up(quiet=quiet)
    signer = _signer(config, flags["sign_key"]) if processes.rank == 0 else None
    report.begin(config)
    outcome = release.Outcome(config)
    try:
        try:
            release.run(config, outcome, processes, signer)
        except DataUnavailableError as error:
            # Under a name of the user's own, a network of other data would take the place of the one that is live.
            if flags["dataset_id"] or flags["release_name"]:
                raise
            _log.info("MNIST is not to be had here: going on with the embedded digits_v1 (%s)", error)
            config = _configure(flags, "digits_v1", fallback=True, started=started)
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
