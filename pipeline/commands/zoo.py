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

    folder = RunFolder(Path(run_folder))
    if not folder.root.is_dir():
        raise InputError(f"{run_folder} is not a folder: give --run the output folder of a bin/train run")
    repository = settings.folder(model_repository, "model_repository")
    with folder.open():
        published = release.publish_run(folder, repository)
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

    root = settings.folder(model_repository, "model_repository")
    for name in repository.names(root):
        versions = ", ".join(map(str, repository.versions(root, name)))
        if not quiet:
            print(f"{name}  live {repository.live_version(root, name)}  versions {versions}")


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

    before, now = publishing.rollback(settings.folder(model_repository, "model_repository"), name)
    if not quiet:
        print(f"{name}: version {now} is live again, after version {before}")
