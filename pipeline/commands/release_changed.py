"""`bin/release-changed`."""

import json

import cloup

from pipeline import options
from pipeline.commands import CONTEXT, with_console
from pipeline.errors import InputError


@cloup.command("release-changed", context_settings=CONTEXT)
@options.model_repository
@cloup.option("--since", metavar="REF", help="Compare with this commit [default: that of each name's last release]")
@cloup.option("--all", "everything", is_flag=True, help="Also what has not changed")
@cloup.option("--json", "as_json", is_flag=True, help="Answer as JSON in one line, as a workflow's matrix takes it")
@options.quiet
@options.debug
@with_console
def command(quiet: bool, model_repository: str | None, since: str | None, everything: bool, as_json: bool) -> None:
    """List the releases in releases.toml that are to be made again: model, data set, lock file or flags have changed.

    Compared is with the newest version in the repository that ever went live, so that what failed is listed again. A
    name is left out where that version was made of a later commit than this checkout's.
    """
    from pipeline import changes, settings
    from pipeline.triton.store import open_store

    if everything and since:
        raise InputError("--all compares nothing: give it or --since")
    if since:
        found = changes.since(since)
    else:
        store = open_store(settings.model_repository(model_repository))
        found = changes.since_release(store, everything=everything)
    if as_json:
        print(json.dumps([change.model_dump() for change in found]))
    elif not quiet:
        for change in found:
            print(f"{change.name}: {change.why}")
