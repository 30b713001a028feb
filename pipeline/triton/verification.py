"""Whether a repository is as its history says: every hash, every config, every number. Nothing is changed."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.records import Record
from pipeline.triton import history, journal, model_config, repository
from pipeline.triton.history import Event, State
from pipeline.triton.signing import Signatories
from pipeline.triton.store import Store

_HAPPENED: tuple[State, ...] = ("done", "superseded")


class Problem(Record):
    """`version` is None where it is not of one version."""

    name: str
    version: int | None
    problem: str


class Verification(Record):
    """`versions`: how many were read in full."""

    repository: str
    versions: int
    problems: tuple[Problem, ...]


def verify(
    store: Store, name: str | None = None, version: int | None = None, signatories: Signatories | None = None
) -> Verification:
    """All names, or one name, or one version of it. InputError where there is no such name or version.

    Where signatories are given, a version that they have not signed is a problem, too.

    What a killed publisher has left is no problem: the next one finishes or removes it. Nor is what is changed
    meanwhile: then only what is found a second time counts.
    """
    before = _state(store)
    first = _verified(store, before, name, version, signatories)
    if not first.problems or (now := _state(store)) == before:
        return first
    second = _verified(store, now, name, version, signatories)
    problems = tuple(problem for problem in second.problems if problem in first.problems)
    return second.model_copy(update={"problems": problems})


class _State(NamedTuple):
    """What every change of the repository changes. `configs`: each name's config.pbtxt, None where it has none."""

    events: list[Event]
    configs: dict[str, bytes | None]


def _state(store: Store) -> _State:
    # In this order: of a version that comes between, the history knows nothing yet, and nothing is missed.
    events = store.events()
    return _State(events, {name: repository.live_config(store, name) for name in store.folders()})


def _verified(
    store: Store, state: _State, name: str | None, version: int | None, signatories: Signatories | None
) -> Verification:
    events = list(state.events)
    # Also names of which nothing is left.
    names = sorted({*state.configs, *(event.name for event in events if event.state in _HAPPENED)})
    if name is not None and name not in names:
        raise repository.unknown_name(store, name)
    if name is not None and version is not None:
        repository.demand_version(store, name, version)
    problems: list[Problem] = []
    # Versions of killed publishers, which the next one will remove.
    unfinished = set()
    for intent in history.open_intents(events):
        try:
            ended = journal.outcome(store, intent)
        except InputError:  # of config.pbtxt, of which more is said below
            if name in (None, intent.name) and version in (None, intent.version):
                text = f"{intent.action} is open in the history, and config.pbtxt, which tells how it ended, is damaged"
                problems.append(Problem(name=intent.name, version=intent.version, problem=text))
            continue
        events.append(ended)
        if journal.leaves_a_rest(ended):
            unfinished.add((ended.name, ended.version))
    count = 0
    for one in names if name is None else [name]:
        at_hand = repository.versions(store, one)
        known = [number for number in at_hand if (one, number) not in unfinished]
        numbers = known if version is None else [version]
        count += len(numbers)
        problems += [
            Problem(name=one, version=number, problem=text)
            for number, text in _altered(store, one, numbers, events, signatories)
        ]
        if version is None:
            expected = bool(at_hand) or one not in state.configs or one in {name for name, _ in unfinished}
            texts = (
                *_about_config(store, one, known, history.promotions(events, one)),
                *_against_history(one, known, events),
                *_strays(store, one, expected=expected),
            )
            problems += [Problem(name=one, version=None, problem=text) for text in texts]
    return Verification(repository=store.location, versions=count, problems=tuple(problems))


def _altered(
    store: Store, name: str, versions: list[int], events: list[Event], signatories: Signatories | None
) -> Iterator[tuple[int, str]]:
    for version in versions:
        try:
            if signatories:
                signatories.demand_signed(store, name, version, events)
            else:
                repository.verify_version(store, name, version, events)
        except InputError as error:
            yield version, str(error)


def _about_config(store: Store, name: str, known: list[int], promoted: list[int]) -> Iterator[str]:
    """Whether config.pbtxt is that of the version promoted last, and all that it names are there."""
    config = repository.live_config(store, name)
    if config is None:
        if known:
            yield "has versions and no config.pbtxt, so it is not served: publish it again"
        return
    try:
        *kept, live = loaded = repository.loaded_in(store, name, config)
        if promoted and promoted[-1] != live:
            yield f"config.pbtxt has version {live} live, the history version {promoted[-1]}: promote the right one"
        missing = [version for version in loaded if version not in known]
        if missing:
            yield f"config.pbtxt names version {', '.join(map(str, missing))}, which is not there: roll back"
            return
        own = repository.own_config(store, name, live)
        if model_config.parse(config, repository.CONFIG) != model_config.pointed_at(own, live, kept):
            yield f"config.pbtxt is not the one of version {live}: promote another version and this one again"
        for version in kept:
            if repository.own_config(store, name, version) != own:
                yield f"version {version} is loaded under the configuration of version {live}: run bin/zoo finish"
    except InputError as error:
        yield str(error)


def _against_history(name: str, known: list[int], events: list[Event]) -> Iterator[str]:
    """Nothing is said of versions that the history does not know, as where a repository was copied without it."""
    done = [event for event in events if event.name == name and event.state in _HAPPENED]
    retired = {event.version for event in done if event.action == "retire"}
    for version in sorted({event.version for event in done if event.brings_in} - retired - {*known}):
        yield f"version {version} was published and is not there: restore it"
    for version in sorted(retired & {*known}):
        yield f"version {version} was retired and is there: remove its folder"


def _strays(store: Store, name: str, *, expected: bool) -> Iterator[str]:
    """What Triton takes for a model, or what makes it load one again whenever it changes."""
    if not expected:
        yield "is a folder with no version in it: remove it"
    files = {path for path in store.files(name) if "/" not in path} - {repository.CONFIG}
    folders = {folder for folder in store.folders(name) if not folder.isdecimal()}
    for stray in sorted(files | folders):
        yield f"{stray} is neither config.pbtxt nor a version: remove it"
