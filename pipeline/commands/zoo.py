"""`bin/zoo`."""

from pathlib import Path

import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console
from pipeline.errors import InputError


@cloup.group("zoo", context_settings=CONTEXT)
def command() -> None:
    """Look after the released versions."""


@command.command("publish", context_settings=CONTEXT)
@cloup.option("--run", "run_folder", required=True, metavar="DIR", help="The folder of a run that was judged")
@options.model_repository
@options.quiet
@options.debug
@with_console
def _publish(quiet: bool, run_folder: str, model_repository: str | None) -> None:
    """Publish a run that was judged and validated before; it is validated now where it was not."""
    from pipeline import release, report, settings
    from pipeline.runfolder import RunFolder
    from pipeline.triton.store import open_store

    folder = RunFolder(Path(run_folder))
    if not folder.root.is_dir():
        raise InputError(f"{run_folder} is not a folder: give --run the output folder of a bin/train run")
    store = open_store(settings.model_repository(model_repository))
    with folder.open():
        published = release.publish_run(folder, store)
        published.save(folder.record("published"))
    if not quiet:
        print(report.published_lines(published))


@command.command("list", context_settings=CONTEXT)
@options.model_repository
@options.quiet
@options.debug
@with_console
def _list(quiet: bool, model_repository: str | None) -> None:
    """Names, live versions and all versions."""
    from pipeline import settings
    from pipeline.triton import repository
    from pipeline.triton.store import open_store

    store = open_store(settings.model_repository(model_repository))
    for name in repository.names(store):
        versions = ", ".join(map(str, repository.versions(store, name)))
        if not quiet:
            print(f"{name}  live {repository.live_version(store, name)}  versions {versions}")


@command.command("rollback", context_settings=CONTEXT)
@cloup.argument("name")
@options.model_repository
@options.quiet
@options.debug
@with_console
def _rollback(quiet: bool, name: str, model_repository: str | None) -> None:
    """Make the version live that was live before."""
    from pipeline import settings
    from pipeline.triton import publishing
    from pipeline.triton.store import open_store

    event = publishing.rollback(open_store(settings.model_repository(model_repository)), name)
    if not quiet:
        print(f"{name}: version {event.version} is live again, after version {event.previous}")
