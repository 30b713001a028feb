"""Which of the versions at hand is live, and which are not needed any more. No file of a version changes."""

from typing import NamedTuple

from pipeline.errors import ConflictError, InputError
from pipeline.records import Published, Record
from pipeline.triton import history, journal, repository
from pipeline.triton.history import Action, Event
from pipeline.triton.publishing import kept_beside
from pipeline.triton.store import Store


def promote(store: Store, name: str, version: int, *, keep_live: bool = False, reason: str = "") -> Event:
    """Make a version live; with `keep_live` the one that is live now stays loaded, for who asks for it by number.

    InputError where there is no such version, it is live already or was altered, or Triton cannot load both.
    """
    repository.demand_version(store, name, version)
    with store.exclusive():
        state = _settled(store, name)
        if version == state.live:
            raise InputError(f"{name} version {version} is live already; bin/zoo finish ends --keep-live")
        wanted = state.kept | {state.live} if keep_live else state.kept
        return _switched(store, "promote", name, version, state, wanted - {version}, reason)


def already_live(store: Store, name: str, version: int) -> Published | None:
    """A version that is live, and the one that the next roll-back goes to; None where another one is live."""
    if repository.live_version(store, name) != version:
        return None
    previous = history.next_rollback(store.events(), name)
    return Published(name=name, version=version, previous=previous, repository=store.location, new=False)


def rollback(store: Store, name: str, *, reason: str = "") -> Event:
    """Make the version live that was live before; its own config comes back with it.

    Versions that cannot stay loaded beside it are not. InputError where there is nothing before or it was altered.
    """
    _state(store, name)  # nothing is made for a name that is not there
    with store.exclusive():
        state, target = _settled(store, name), history.next_rollback(store.events(), name)
        if target is None:
            raise InputError(f"{name} has no version before {state.live}: there is nothing to roll back to")
        return _switched(store, "rollback", name, target, state, state.kept - {target}, reason)


def undo(store: Store, event: Event, loaded: tuple[int, ...], *, reason: str) -> Event:
    """Take back a promotion or a roll-back: the versions that were loaded before it are again."""
    live = event.previous
    assert live is not None
    kept = frozenset(version for version in loaded if version < live)
    action: Action = "promote" if event.action == "rollback" else "rollback"
    with store.exclusive():
        return _switched(store, action, event.name, live, _settled(store, event.name), kept, reason)


def finish(store: Store, name: str, *, reason: str = "") -> Event:
    """Let go of the versions that were kept loaded beside the live one; InputError where there are none."""
    _state(store, name)  # nothing is made for a name that is not there
    with store.exclusive():
        state = _settled(store, name)
        if not state.kept:
            raise InputError(f"{name} has version {state.live} loaded and no other: there is nothing to finish")
        return _switched(store, "finish", name, state.live, state, frozenset(), reason)


def retire(store: Store, name: str, version: int, *, force: bool = False, reason: str = "") -> Event:
    """Remove a version for good; its number is not used again.

    InputError where it is loaded, or is what the next roll-back goes to and `force` is not given.
    """
    repository.demand_version(store, name, version)
    with store.exclusive():
        state = _settled(store, name)
        if version == state.live:
            raise InputError(f"{name} version {version} is live: promote another one or roll back before you retire it")
        if version in state.kept:
            raise InputError(f"{name} version {version} is kept loaded: run bin/zoo finish {name} before you retire it")
        if version == history.next_rollback(store.events(), name) and not force:
            raise InputError(f"{name} version {version} is what the next roll-back goes to: give --force to retire it")
        return _retired(store, name, version, state.live, reason)


class Pruned(Record):
    retired: tuple[Event, ...]


def prune(store: Store, name: str | None, keep: int, *, reason: str = "") -> Pruned:
    """Retire all but the newest `keep` versions of a name, or of each; never one that `retire` would refuse.

    InputError where a config.pbtxt is damaged; then nothing is retired.
    """
    if name is not None:
        _state(store, name)
    chosen = []
    with store.exclusive():
        journal.settle(store)
        # Where there is no lock, others may be at work.
        open_intents = history.open_intents(store.events())
        events = journal.settled(store)
        for pruned in repository.names(store) if name is None else [name]:
            state, known = _state(store, pruned), repository.versions(store, pruned)
            busy = {event.version for event in open_intents if event.name == pruned}
            spared = {*known[-keep:], *state.kept, state.live, history.next_rollback(events, pruned), *busy}
            chosen += [(pruned, version, state.live) for version in known if version not in spared]
        return Pruned(retired=tuple(_retired(store, *one, reason) for one in chosen))


class _State(NamedTuple):
    """What is loaded now, and the config.pbtxt that says so."""

    config: bytes
    kept: frozenset[int]
    live: int


def _state(store: Store, name: str) -> _State:
    config = repository.live_config(store, name)
    if config is None:
        raise repository.unknown_name(store, name)
    *kept, live = repository.loaded_in(store, name, config)
    return _State(config, frozenset(kept), live)


def _settled(store: Store, name: str) -> _State:
    """What is loaded, with a history that says so. Be exclusive."""
    journal.settle(store)
    state = _state(store, name)
    journal.confirm(store, name, state.live)
    return state


def _switched(
    store: Store, action: Action, name: str, version: int, state: _State, wanted: frozenset[int], reason: str
) -> Event:
    """Point config.pbtxt at a version, with the wanted ones beside it; of a roll-back, those that can stay so."""
    repository.verify_version(store, name, version)
    own = repository.own_config(store, name, version)
    kept = kept_beside(store, name, wanted, version, own, strict=action != "rollback")
    release_json = repository.read(store, name, version, repository.RELEASE)
    event = history.intent(action, name, version, state.live, repository.sha256(release_json), kept=kept, reason=reason)

    def act() -> Event:
        store.point(name, repository.pointing_config(own, version, kept), state.config)
        return event.ended("done")

    return journal.carried_out(store, event, act)


def _retired(store: Store, name: str, version: int, live: int, reason: str) -> Event:
    # Also one that has lost its release.json can go.
    found = store.files(f"{name}/{version}")
    content = repository.read(store, name, version, repository.RELEASE) if repository.RELEASE in found else b""

    def act() -> Event:
        # Where there is no lock, it may have gone live before the intent was written; after it, it cannot.
        if version in repository.loaded_versions(store, name):
            raise ConflictError(f"{name} version {version} has just been made live: nothing was removed")
        store.remove(name, version)
        return event.ended("done")

    event = history.intent("retire", name, version, live, repository.sha256(content), reason=reason)
    return journal.carried_out(store, event, act)
