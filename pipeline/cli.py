"""Ids, paths and flags in, exit status out. Nothing else in this project prints a result or exits."""

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
import cloup
from click.core import ParameterSource

from pipeline import options
from pipeline.errors import DataUnavailableError, InputError, StorageError, ZooError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

_log = logging.getLogger("pipeline")

_CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": False}


class Terminated(BaseException):
    """SIGTERM arrived; everything that was started is stopped on the way out."""


def main() -> NoReturn:
    """Run one command and exit: 0 done, 1 unexpected, 2 input, 3 refused, 4 service, 130 and 143 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(sys.argv[1:])
        _exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else error)
        _exit(2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "python -m pipeline"
        _end(2, f"{error.format_message()} See {path} --help")
    except ZooError as error:
        _end(error.exit_status, str(error))
    except (KeyboardInterrupt, click.exceptions.Abort):
        _end(130, "interrupted; everything that was started is stopped")
    except Terminated:
        _end(143, "terminated; everything that was started is stopped")
    except OSError as error:
        wrapped = StorageError(
            f"{error.filename or 'a file'}: {error.strerror}: check the disk and the folder's rights"
        )
        _end(wrapped.exit_status, str(wrapped))
    except Exception as error:
        _end(1, f"unexpected {type(error).__name__}: {error}; pipeline.log in the run's folder has the traceback")


def _run(arguments: list[str]) -> None:
    """Each command stands for itself, so that its usage reads as it is typed: `bin/train`."""
    command = _commands.commands.get(arguments[0]) if arguments else None
    if command is None:
        _commands.main(arguments, prog_name="python -m pipeline", standalone_mode=False)
    else:
        command.main(arguments[1:], prog_name=f"bin/{arguments[0]}", standalone_mode=False)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _end(status: int, message: str) -> NoReturn:
    _log.debug("ended with status %d: %s\n%s", status, message, traceback.format_exc())
    if "--debug" in sys.argv:
        traceback.print_exc()
    line = " ".join(message.split())
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if reply:  # torchrun tells it
        Path(reply).write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
    else:
        print(f"error: {line}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End at once: taking torch's modules apart one by one would take two seconds, for nothing."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@cloup.group(context_settings=_CONTEXT)
def _commands() -> None:
    """Train, release and serve image classifiers."""


def _with_console(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def run(quiet: bool, debug: bool, **flags: Any) -> Any:
        from pipeline import console

        console.set_up(quiet=quiet)
        return command(quiet=quiet, **flags)

    return run


def _apply(declared: tuple[options.Option, ...]) -> options.Option:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(declared):
            command = option(command)
        return command

    return decorate


@_commands.command("train", context_settings=_CONTEXT)
@_apply(options.TRAIN)
@_with_console
def _train(quiet: bool, **flags: Any) -> None:
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
    report.begin(config)
    outcome = release.Outcome(config)
    try:
        try:
            release.run(config, outcome, processes)
        except DataUnavailableError as error:
            if flags["dataset_id"]:
                raise
            _log.info("MNIST is not to be had here: going on with the embedded digits_v1 (%s)", error)
            config = configure(flags, "digits_v1", fallback=True, started=started)
            report.begin(config)
            outcome = release.Outcome(config)
            release.run(config, outcome, processes)
    finally:
        outcome.seconds["total"] = time.perf_counter() - clock
        text = report.end(outcome)
        _log.debug("%s", text)
        if not quiet:
            print(text)


@_commands.command("infer", context_settings=_CONTEXT)
@cloup.option("--name", help="Released name [default: the one published last]")
@options.model_repository
@options.data_dir
@cloup.option("--url", default="127.0.0.1:8000", show_default=True, help="HTTP address of a server to ask first")
@cloup.option("--count", type=options.COUNT, default=5, show_default=True, help="Test images to ask for")
@cloup.option("--seed", type=options.NOT_NEGATIVE_COUNT, help="Draw the same images again [default: others each time]")
@cloup.option("--results-dir", default="results", show_default=True, metavar="DIR", help="Where the pictures go")
@options.quiet
@options.debug
@_with_console
def _infer(
    quiet: bool,
    name: str | None,
    model_repository: str | None,
    data_dir: str | None,
    url: str,
    count: int,
    seed: int | None,
    results_dir: str,
) -> None:
    """Classify random test images by a running server or, where there is none, by the released file."""
    from pipeline import inference, settings

    answers = inference.infer(
        settings.folder(model_repository, "model_repository"),
        settings.folder(data_dir, "data_dir"),
        Path(results_dir),
        name=name,
        url=url,
        count=count,
        seed=seed,
    )
    if not quiet:
        print(answers)


@_commands.command("serve", context_settings=_CONTEXT)
@options.model_repository
@cloup.option("--engine", type=click.Choice(("embedded",)), default="embedded", show_default=True, help="Which Triton")
@cloup.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on")
@cloup.option("--http-port", type=options.PORT, default=8000, show_default=True, help="0: a free one")
@cloup.option("--grpc-port", type=options.PORT, default=8001, show_default=True, help="0: a free one")
@cloup.option("--metrics-port", type=options.PORT, default=8002, show_default=True, help="0: a free one")
@cloup.option("--log-file", metavar="FILE", help="Where Triton's log goes [default: it is not kept]")
@options.quiet
@options.debug
@_with_console
def _serve(
    quiet: bool,
    model_repository: str | None,
    engine: str,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    log_file: str | None,
) -> None:
    """Serve the model repository; a version published meanwhile is live within seconds."""
    from pipeline import serving, settings

    serving.serve(
        settings.folder(model_repository, "model_repository"),
        host=host,
        ports=(http_port, grpc_port, metrics_port),
        log_file=Path(log_file) if log_file else None,
        say=(lambda text: None) if quiet else (lambda text: print(text, flush=True)),
    )


@_commands.group("bench", context_settings=_CONTEXT)
def _bench() -> None:
    """Measure this project against what people use today."""


@_bench.command("training", context_settings=_CONTEXT)
@_apply(options.BENCH_TRAINING)
@_with_console
def _bench_training(
    quiet: bool,
    dataset_id: str,
    data_dir: str | None,
    seeds: int | None,
    epochs: int | None,
    quick: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Train this project's recipes and the usual PyTorch example in turns, and compare the times to an accuracy.

    \b
    Example: bin/bench training --quick --plot training.png
    """
    if quick and epochs:
        raise InputError("--quick trains the usual example for some steps only: leave out --quick or --epochs")
    for file in filter(None, (json_file, plot_file)):
        # Hours later would be too late to find that it cannot be.
        file.parent.mkdir(parents=True, exist_ok=True)

    from pipeline.benchmarks import plot, reference, training
    from pipeline.benchmarks.table import table

    configs = {target: _recipe(flags, dataset_id, data_dir) for target, flags in training.RECIPES.items()}
    with tempfile.TemporaryDirectory() as folder:
        result = training.benchmark(
            configs,
            Path(folder),
            seeds=seeds or (3 if quick else 10),
            epochs=None if quick else epochs or reference.EPOCHS,
        )
    if json_file:
        result.save(json_file)
    if plot_file:
        plot.draw(result, plot_file)
    if not quiet:
        print(table(result))


def _recipe(chosen: tuple[str, ...], dataset_id: str, data_dir: str | None) -> "RunConfig":
    """What `bin/train` would make of these flags and a data set."""
    from pipeline.settings import configure

    typed = [*chosen, "--dataset-id", dataset_id, "--no-save-model", "--no-resume"]
    typed += ["--data-dir", data_dir] if data_dir else []
    flags = _train.make_context("bin/train", typed).params
    return configure({**flags, "model_id_given": True}, dataset_id, fallback=False, started=time.localtime())


@_commands.group("zoo", context_settings=_CONTEXT)
def _zoo() -> None:
    """Look after the released versions."""


@_zoo.command("publish", context_settings=_CONTEXT)
@cloup.option("--run", "run_folder", required=True, metavar="DIR", help="The folder of a run that was judged")
@options.model_repository
@options.quiet
@options.debug
@_with_console
def _publish(quiet: bool, run_folder: str, model_repository: str | None) -> None:
    """Publish a run that was judged and validated before; it is validated now where it was not."""
    from pipeline import release, report, settings
    from pipeline.runfolder import RunFolder

    folder = RunFolder(Path(run_folder))
    if not folder.root.is_dir():
        raise InputError(f"{run_folder} is not a folder: give --run the output folder of a bin/train run")
    repository = settings.folder(model_repository, "model_repository")
    with folder.open():
        published = release.publish_run(folder, repository)
        published.save(folder.record("published"))
    if not quiet:
        print(report.published_lines(published))


@_zoo.command("list", context_settings=_CONTEXT)
@options.model_repository
@options.quiet
@options.debug
@_with_console
def _list(quiet: bool, model_repository: str | None) -> None:
    """Names, live versions and all versions."""
    from pipeline import settings
    from pipeline.triton import repository

    root = settings.folder(model_repository, "model_repository")
    for name in repository.names(root):
        versions = ", ".join(map(str, repository.versions(root, name)))
        if not quiet:
            print(f"{name}  live {repository.live_version(root, name)}  versions {versions}")


@_zoo.command("rollback", context_settings=_CONTEXT)
@cloup.argument("name")
@options.model_repository
@options.quiet
@options.debug
@_with_console
def _rollback(quiet: bool, name: str, model_repository: str | None) -> None:
    """Make the version live that was live before."""
    from pipeline import settings
    from pipeline.triton import publishing

    before, now = publishing.rollback(settings.folder(model_repository, "model_repository"), name)
    if not quiet:
        print(f"{name}: version {now} is live again, after version {before}")


@_commands.command("docs", hidden=True, context_settings=_CONTEXT)
@cloup.option("--check", is_flag=True, help="Fail where the file differs")
def _docs(check: bool) -> None:
    """Write the reference of the command line, doc/Cli.md."""
    path = Path(__file__).parent.parent / "doc" / "Cli.md"
    text = _reference()
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path} is out of date: run bin/python -m pipeline docs")


def _reference() -> str:
    sections = ["# Command line\n\nMade by `bin/python -m pipeline docs`.\n"]
    for name, command in _visible(_commands, "bin/"):
        context = command.context_class(command, info_name=name, terminal_width=110, **_CONTEXT)
        sections.append(f"## `{name}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def _visible(group: click.Group, prefix: str) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += _visible(command, f"{prefix}{name} ")
        elif not command.hidden:
            found.append((f"{prefix}{name}", command))
    return found
