"""An intent is in the history before a change of the repository, and how it ended after: killed anywhere, it heals."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

from pipeline.errors import ConflictError, InputError, StorageError
from pipeline.triton import history, repository
from pipeline.triton.history import Event
from pipeline.triton.store import Store


def carried_out(store: Store, event: Event, act: Callable[[], Event]) -> Event:
    """Write the intent down, act, and write down how it ended, which `act` returns; also if it failed."""
    store.append(event)
    try:
        ended = act()
    except ConflictError:
        with suppress(OSError, StorageError):
            store.append(event.ended("abandoned"))
        raise
    except BaseException:
        # In an object store, a change that got no answer may still come.
        if store.is_abandoned(event):
            with suppress(OSError, StorageError):
                _conclude(store, outcome(store, event))
        raise
    # Where the disk takes no more, the intent stays open for the next writer, who sees what is live.
    with nullcontext() if ended.state == "superseded" else suppress(OSError, StorageError):
        store.append(ended)
    return ended


def settle(store: Store) -> None:
    """Say of each intent that nobody is at work on what became of it, and finish or remove what it left."""
    abandoned = [event for event in history.open_intents(store.events()) if store.is_abandoned(event)]
    for ended in _outcomes(store, abandoned):
        _conclude(store, ended)


def confirm(store: Store, name: str, live: int) -> None:
    """Say who made this version live, if he was killed before he said so: after the next switch nobody could tell.

    Call it before each switch, when the config.pbtxt that it replaces is known. Be exclusive.
    """
    for event in reversed(history.open_intents(store.events())):
        if (event.name, event.version) == (name, live) and event.action in history.PROMOTIONS:
            ended = outcome(store, event)
            if ended.state == "done":
                store.append(ended)
            return


def settled(store: Store) -> list[Event]:
    """The history as `settle` would leave it, without writing."""
    events = store.events()
    return [*events, *_outcomes(store, history.open_intents(events))]


def outcome(store: Store, event: Event) -> Event:
    """How an open intent ended, or would if nobody went on with it. Only config.pbtxt tells what is live."""
    loaded = repository.loaded_versions(store, event.name)
    if event.action == "retire":
        happened = event.version not in loaded
    elif event.action == "finish":
        happened = loaded == (event.version,)
    else:
        # Where another one is known to have made it live, this one has not.
        known = history.promotions(store.events(), event.name)[-1:] == [event.version]
        happened = loaded[-1:] == (event.version,) and not known
    return event.ended("done" if happened else "abandoned")


def _outcomes(store: Store, intents: list[Event]) -> Iterator[Event]:
    """But for names whose config.pbtxt is damaged: their intents stay open, and other names' commands go on."""
    for event in intents:
        try:
            ended = outcome(store, event)
        except InputError:
            continue
        yield ended


def leaves_a_rest(ended: Event) -> bool:
    """Whether, of a killed writer, there may be a part of a version that is not to be."""
    return ended.state == "abandoned" if ended.brings_in else (ended.action, ended.state) == ("retire", "done")


def _conclude(store: Store, ended: Event) -> None:
    """A version that was brought in but never named is removed, and so is the rest of one that was to go."""
    if leaves_a_rest(ended):
        store.remove(ended.name, ended.version)
    store.append(ended)
