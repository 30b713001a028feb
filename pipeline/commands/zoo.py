"""`bin/zoo`."""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloup

from pipeline import options
from pipeline.commands import CONTEXT, declares, with_console
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.records import Published, Record
    from pipeline.triton.history import Event
    from pipeline.triton.inspection import Chronicle, Difference, Listing, NameDetails, VersionDetails
    from pipeline.triton.store import Store
    from pipeline.triton.switching import Pruned
    from pipeline.triton.transfer import Exported, Pulled
    from pipeline.triton.verification import Verification

_json = cloup.option("--json", "as_json", is_flag=True, help="Answer as JSON, of a shape that stays")
_reason = cloup.option("-m", "--reason", default="", metavar="TEXT", help="Why, for the history")
_reload = cloup.option(
    "--reload",
    "urls",
    multiple=True,
    metavar="URL",
    help="A server under explicit control that is to load it; back to the version before, where it does not answer as "
    "recorded. May be repeated",
)
# For the history.
_UNPROVEN = "a server did not load it or did not answer as recorded"
_trust = cloup.option("--trust", is_flag=True, help="Also a release that makes Triton run code which it brings along")


@cloup.group("zoo", context_settings=CONTEXT)
def command() -> None:
    """Look after the released versions."""


def _answers(answer: Callable[..., "Record"], then: Callable[[Any], None] = lambda record: None) -> Callable[..., None]:
    """Gives the function the repository's store before its own values, and prints the record that it returns."""

    @declares((options.model_repository, _json, options.quiet, options.debug))
    @with_console
    @wraps(answer)
    def run(quiet: bool, as_json: bool, model_repository: str | None, **given: Any) -> None:
        from pipeline import settings
        from pipeline.triton.store import open_store

        record = answer(open_store(settings.model_repository(model_repository)), **given)
        if as_json:
            print(record.model_dump_json(indent=2))
        elif not quiet:
            from pipeline import zoo_report

            zoo_report.show(record)
        then(record)

    return run


def _first_of(told: list[str]) -> str:
    """An error is one line; the others are in the answer."""
    first, *more = told
    return f"{first}; and {len(more)} more" if more else first


def _demand_sound(verification: "Verification") -> None:
    if verification.problems:
        told = [f"{problem.name}: {problem.problem}" for problem in verification.problems]
        raise InputError(f"{verification.repository} has a problem: {_first_of(told)}")


@command.command("list", context_settings=CONTEXT)
@_answers
def _list(store: "Store") -> "Listing":
    """All names: the live version and what it is, and all versions."""
    from pipeline.triton import inspection

    return inspection.listing(store)


@command.command("show", context_settings=CONTEXT)
@cloup.argument("named", metavar="NAME[:V]", type=options.NAMED)
@_answers
def _show(store: "Store", named: options.Named) -> "NameDetails | VersionDetails":
    """A name's versions, or one version: what it is, who proved it, how it stood at the gates."""
    from pipeline.triton import inspection

    if named.version is None:
        return inspection.name_details(store, named.name)
    return inspection.version_details(store, named.name, named.version)


@command.command("verify", context_settings=CONTEXT)
@cloup.argument("named", metavar="[NAME[:V]]", type=options.NAMED, required=False)
@declares(options.SIGNATORIES)
@partial(_answers, then=_demand_sound)
def _verify(store: "Store", named: options.Named | None, **whom: Any) -> "Verification":
    """Hash every file, and hold configs and history against each other. Status 2 where something is wrong.

    With --key or --identity, each version must be signed so, too.
    """
    from pipeline.triton import signing, verification

    name, version = named or (None, None)
    found = verification.verify(store, name, version, signing.signatories(**whom))
    if not found.versions and not found.problems:
        # As where a mount is missing.
        raise InputError(f"{store.location} holds no models: expected a model repository; name --model-repository")
    return found


@command.command("publish", context_settings=CONTEXT)
@cloup.option("--run", "run_folder", required=True, metavar="DIR", help="The folder of a run that was judged")
@cloup.option(
    "--no-promote", is_flag=True, help="What is live stays so, until bin/zoo promote; a first version goes live anyway"
)
@options.sign_key
@_reload
@_reason
@_answers
def _publish(
    store: "Store", run_folder: str, no_promote: bool, sign_key: Path | None, urls: tuple[str, ...], reason: str
) -> "Published":
    """Publish a run that was judged and validated before; it is validated now where it was not."""
    if no_promote and urls:
        raise InputError("--no-promote leaves nothing to --reload: give that to bin/zoo promote")
    from pipeline.publication import publish_run
    from pipeline.runfolder import RunFolder
    from pipeline.triton import reload, switching
    from pipeline.triton.signing import Signer

    folder = RunFolder(Path(run_folder))
    if not folder.root.is_dir():
        raise InputError(f"{run_folder} is not a folder: give --run the output folder of a bin/train run")
    signer = Signer(sign_key) if sign_key else None
    with folder.open():
        published = reload.switch(
            store,
            urls,
            change=lambda: publish_run(folder, store, reason, signer, promote=not no_promote),
            back=lambda published: switching.rollback(store, published.name, reason=_UNPROVEN),
        )
        published.save(folder.record("published"))
    return published


def _proven(store: "Store", urls: tuple[str, ...], name: str, change: Callable[[], "Event"]) -> "Event":
    """A promotion or a roll-back; where a server fails, all that was loaded before is so again."""
    from pipeline.triton import reload, repository, switching

    loaded = repository.loaded_versions(store, name)
    return reload.switch(store, urls, change, back=lambda event: switching.undo(store, event, loaded, reason=_UNPROVEN))


@command.command("promote", context_settings=CONTEXT)
@cloup.argument("chosen", metavar="NAME:V", type=options.VERSION)
@cloup.option("--keep-live", is_flag=True, help="The version that is live now stays loaded, until bin/zoo finish")
@_reload
@_reason
@_answers
def _promote(
    store: "Store", chosen: options.Version, keep_live: bool, urls: tuple[str, ...], reason: str
) -> "Event | Published":
    """Make a version live; with --reload also one that is live already, for servers that have not loaded it yet.

    With --keep-live both are loaded: who names no version is answered by the new one, which must be the higher
    one and have the same config, and who names the other one by that.
    """
    from pipeline.triton import reload, switching

    if urls and not keep_live and (live := switching.already_live(store, *chosen)):
        proven = reload.switch(
            store,
            urls,
            change=lambda: live,
            back=lambda live: switching.rollback(store, live.name, reason=_UNPROVEN),
        )
        # It said where the roll-back would have led; as nothing was changed, this version was live before.
        return proven.model_copy(update={"previous": proven.version})
    return _proven(
        store, urls, chosen.name, lambda: switching.promote(store, *chosen, keep_live=keep_live, reason=reason)
    )


@command.command("finish", context_settings=CONTEXT)
@cloup.argument("name", metavar="NAME", type=options.NAME)
@_reload
@_reason
@_answers
def _finish(store: "Store", name: str, urls: tuple[str, ...], reason: str) -> "Event":
    """End --keep-live: only the live version stays loaded."""
    from pipeline.triton import reload, switching

    return reload.switch(store, urls, change=lambda: switching.finish(store, name, reason=reason), back=None)


@command.command("rollback", context_settings=CONTEXT)
@cloup.argument("name", metavar="NAME", type=options.NAME)
@_reload
@_reason
@_answers
def _rollback(store: "Store", name: str, urls: tuple[str, ...], reason: str) -> "Event":
    """Make the version live that was live before."""
    from pipeline.triton import switching

    return _proven(store, urls, name, lambda: switching.rollback(store, name, reason=reason))


@command.command("retire", context_settings=CONTEXT)
@cloup.argument("chosen", metavar="NAME:V", type=options.VERSION)
@cloup.option("--force", is_flag=True, help="Also the version that the next roll-back goes to")
@_reason
@_answers
def _retire(store: "Store", chosen: options.Version, force: bool, reason: str) -> "Event":
    """Remove a version that is not loaded. Its number is not used again."""
    from pipeline.triton import switching

    return switching.retire(store, *chosen, force=force, reason=reason)


@command.command("prune", context_settings=CONTEXT)
@cloup.argument("name", metavar="[NAME]", type=options.NAME, required=False)
@cloup.option("--keep", type=options.COUNT, required=True, help="How many of the newest versions stay")
@_reason
@_answers
def _prune(store: "Store", name: str | None, keep: int, reason: str) -> "Pruned":
    """Remove old versions of a name, or of all; loaded ones and what the next roll-back goes to stay too."""
    from pipeline.triton import switching

    return switching.prune(store, name, keep, reason=reason)


@command.command("history", context_settings=CONTEXT)
@cloup.argument("name", metavar="NAME", type=options.NAME)
@_answers
def _history(store: "Store", name: str) -> "Chronicle":
    """What happened to a name, when, by whom and why."""
    from pipeline.triton import inspection

    return inspection.chronicle(store, name)


@command.command("diff", context_settings=CONTEXT)
@cloup.argument("before", metavar="NAME:V", type=options.VERSION)
@cloup.argument("after", metavar="NAME:W", type=options.VERSION)
@_answers
def _diff(store: "Store", before: options.Version, after: options.Version) -> "Difference":
    """How two versions differ: metrics, recall of each class, configuration, data."""
    from pipeline.triton import inspection

    if before.name != after.name:
        raise InputError(f"{before.name} and {after.name} are two names: expected two versions of one")
    return inspection.difference(store, before.name, before.number, after.number)


@command.command("push", context_settings=CONTEXT)
@cloup.argument("named", metavar="NAME[:V]", type=options.NAMED)
@cloup.argument("location")
@_reason
@_answers
def _push(store: "Store", named: options.Named, location: str, reason: str) -> "Published":
    """Publish a version, or the live one, in the repository at LOCATION too.

    It may get another number there. One that is there already is left as it is.
    """
    from pipeline.triton import transfer
    from pipeline.triton.store import open_store

    # Who may write there is trusted there.
    return transfer.copy(store, open_store(location), named.name, named.version, trust=True, reason=reason)


def _demand_all_taken(answer: "Published | Pulled") -> None:
    from pipeline.triton.transfer import Pulled

    if isinstance(answer, Pulled) and answer.refused:
        raise InputError(_first_of([f"{one.name} was not taken: {one.reason}" for one in answer.refused]))


@command.command("pull", context_settings=CONTEXT)
@cloup.argument("named", metavar="[NAME[:V]]", type=options.NAMED, nargs=-1)
@cloup.argument("location")
@_trust
@_reason
@partial(_answers, then=_demand_all_taken)
def _pull(
    store: "Store", named: tuple[options.Named, ...], location: str, trust: bool, reason: str
) -> "Published | Pulled":
    """Make live here what is live in the repository at LOCATION, of one name or of all; or publish one version here.

    It may get another number here. What is here already is not fetched again; and a version that is named by its number
    is then left as it is, live or not. Of all names, one that is refused keeps no other from coming.
    """
    from pipeline.triton import transfer
    from pipeline.triton.store import open_store

    source = open_store(location)
    if not named:
        return transfer.follow_all(source, store, trust=trust, reason=reason)
    if len(named) > 1:
        raise InputError(f"{len(named)} names are given: name one, or none for all")
    name, version = named[0]
    if version is not None:
        return transfer.copy(source, store, name, version, trust=trust, reason=reason)
    return transfer.follow(source, store, name, trust=trust, reason=reason)


@command.command("export", context_settings=CONTEXT)
@cloup.argument("chosen", metavar="NAME:V", type=options.VERSION)
@cloup.argument("file", metavar="FILE.tar", type=options.FILE)
@_answers
def _export(store: "Store", chosen: options.Version, file: Path) -> "Exported":
    """Write a version to a tar file, the same bytes each time."""
    from pipeline.triton import transfer

    return transfer.export(store, *chosen, file)


@command.command("install", context_settings=CONTEXT)
@cloup.argument("file", metavar="FILE.tar", type=options.OLD_FILE)
@_trust
@_reason
@_answers
def _install(store: "Store", file: Path, trust: bool, reason: str) -> "Published":
    """Publish the version in a tar file of bin/zoo export."""
    from pipeline.triton import transfer

    return transfer.install(store, file, trust=trust, reason=reason)
