"""An intent is in the history before a change of the repository, and how it ended after: killed anywhere, it heals."""

from collections.abc import Callable
from contextlib import suppress

from pipeline.errors import StorageError
from pipeline.triton import history, repository
from pipeline.triton.history import Event
from pipeline.triton.store import Store


def carried_out(store: Store, event: Event, act: Callable[[], Event]) -> Event:
    """Write the intent down, act, and write down how it ended, which `act` returns; also if it failed."""
    store.append(event)
    # Where the disk takes no more, the intent stays open for the next writer: the switch itself is made, or not.
    try:
        ended = act()
    except BaseException:
        with suppress(OSError, StorageError):
            _conclude(store, event)
        raise
    with suppress(OSError, StorageError):
        store.append(ended)
    return ended


def settle(store: Store) -> None:
    """Say of each intent that nobody is at work on what became of it, and finish or remove what it left."""
    for event in history.open_intents(store.events()):
        if store.is_abandoned(event):
            _conclude(store, event)


def settled(store: Store) -> list[Event]:
    """The history as `settle` would leave it, without writing."""
    events = store.events()
    return [*events, *(outcome(store, event) for event in history.open_intents(events))]


def outcome(store: Store, event: Event) -> Event:
    """How an open intent ended, or would if nobody went on with it. Only config.pbtxt tells what is live."""
    loaded = repository.loaded_versions(store, event.name)
    if event.action == "retire":
        happened = event.version not in loaded
    elif event.action == "finish":
        happened = loaded == (event.version,)
    else:
        happened = loaded[-1:] == (event.version,)
    return event.ended("done" if happened else "abandoned")


def leaves_a_rest(ended: Event) -> bool:
    """Whether, of a killed writer, there may be a part of a version that is not to be."""
    return ended.state == "abandoned" if ended.brings_in else (ended.action, ended.state) == ("retire", "done")


def _conclude(store: Store, event: Event) -> None:
    """A version that was brought in but never named is removed, and so is the rest of one that was to go."""
    ended = outcome(store, event)
    if leaves_a_rest(ended):
        store.remove(event.name, event.version)
    store.append(ended)
