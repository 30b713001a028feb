"""How a version comes into a model repository and goes live: by one switch of config.pbtxt.

A server may read at any moment, and a publisher may be killed at any moment. So a version is
complete before it is visible; the first one of a name appears together with its config.
A publisher takes a number above all that were ever used, and never moves the pointer to a lower one.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from pipeline.errors import ConflictError, InputError, StorageError
from pipeline.records import Published
from pipeline.triton import history, model_config, repository, storage
from pipeline.triton.history import Event
from pipeline.triton.store import Store


def publish_version(store: Store, name: str, source: Path, release_json: bytes) -> Published:
    """Copy a complete version in and make it live.

    Killed at any point, the repository is as before or complete. SignatureError where the name is live
    with another signature; StorageError where the disk is full or gone, or another publisher holds the
    lock for a minute; FolderError where rights are missing.
    """
    with store.exclusive():
        _settle(store)
        with store.staging() as staging:
            staged = staging / "version"
            storage.copy(source, staged)
            (staged / repository.RELEASE).write_bytes(release_json)
            storage.make_durable(staged)
            while True:
                # Where another publisher has claimed the number, the next one is free.
                with suppress(ConflictError):
                    return _publish(store, name, staged)


def rollback(store: Store, name: str) -> Event:
    """Make the version live that was live before; its own config comes back with it.

    The event tells the versions after and before. InputError where there is nothing before or it was altered.
    """
    if repository.live_config(store, name) is None:
        raise repository.unknown_name(store, name)
    with store.exclusive():
        _settle(store)
        current = repository.live_config(store, name)
        before = None if current is None else repository.version_in(store, name, current)
        _confirm(store, name, before)
        promoted = history.promotions(store.events(), name)
        if current is None or len(promoted) < 2:
            raise InputError(f"{name} has no version before {before}: there is nothing to roll back to")
        after = promoted[-2]
        repository.verify_version(store, name, after)
        config = repository.pointing_config(repository.own_config(store, name, after), after)
        content = repository.read(store, name, after, repository.RELEASE)
        event = history.intent("rollback", name, after, before, repository.sha256(content))

        def act() -> Event:
            store.point(name, config, current)
            return event.ended("done")

        return _recorded(store, event, act)


def _publish(store: Store, name: str, staged: Path) -> Published:
    own = model_config.read(staged / repository.CONFIG)
    labels = repository.labels_in((staged / repository.LABELS).read_bytes())
    repository.demand_signature(store, name, own, labels)
    version, previous = repository.next_version(store, name), repository.live_version(store, name)
    config = repository.pointing_config(own, version)
    release_sha256 = repository.sha256((staged / repository.RELEASE).read_bytes())
    event = history.intent("publish", name, version, previous, release_sha256)

    def act() -> Event:
        if previous is None:
            with suppress(ConflictError):  # of another publisher, whose first version came before this one
                store.add(name, version, staged, config)
                return event.ended("done")
        else:
            store.add(name, version, staged, None)
        while True:
            current = store.read(f"{name}/{repository.CONFIG}")
            live = repository.version_in(store, name, current)
            repository.demand_signature(store, name, own, labels)
            if live > version:
                return event.ended("superseded", previous=live)
            _confirm(store, name, live)
            with suppress(ConflictError):
                store.point(name, config, current)
                return event.ended("done", previous=live)

    ended = _recorded(store, event, act)
    return Published(
        name=name,
        version=version,
        previous=ended.previous,
        repository=store.location,
        live=ended.state == "done",
    )


def _recorded(store: Store, event: Event, act: Callable[[], Event]) -> Event:
    """Write the intent down, act, and write down how it ended; also if it failed."""
    store.append(event)
    try:
        ended = act()
    except BaseException:
        # In an object store a switch that got no answer may still come; time will tell.
        if store.is_abandoned(event):
            with suppress(OSError, StorageError):
                _conclude(store, event)
        raise
    # Where the disk takes no more, the intent stays open for the next writer, who sees that it is live.
    with suppress(OSError, StorageError) if ended.state == "done" else nullcontext():
        store.append(ended)
    return ended


def _settle(store: Store) -> None:
    """Say of each intent that nobody is at work on what became of it, and remove what it left."""
    for event in history.open_intents(store.events()):
        if store.is_abandoned(event):
            _conclude(store, event)


def _conclude(store: Store, event: Event) -> None:
    """A version that was brought in but never went live is removed."""
    if _confirm(store, event.name, repository.live_version(store, event.name)) == event.id:
        return
    if event.action == "publish":
        store.remove(event.name, event.version)
    store.append(event.ended("abandoned"))


def _confirm(store: Store, name: str, live: int | None) -> str | None:
    """Say in the history who made this version live, if that is missing; return the id of that intent.

    Only config.pbtxt tells that a switch was made. So its writer may be killed before he has said so, and after the
    next switch nobody could tell any more.
    """
    events = store.events()
    if history.promotions(events, name)[-1:] != [live]:
        for event in reversed(history.open_intents(events)):
            if (event.name, event.version) == (name, live):
                store.append(event.ended("done"))
                return event.id
    return None
