"""How a version comes into a model repository and goes live: by one switch of config.pbtxt.

A server may read at any moment, and a publisher may be killed at any moment. So a version is
complete before it is visible; the first one of a name appears together with its config.
A publisher takes a number above all that were ever used, and never moves the pointer to a lower one.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import ConflictError, InputError
from pipeline.records import Published
from pipeline.triton import history, journal, model_config, repository, storage
from pipeline.triton.history import Event
from pipeline.triton.signing import Signer
from pipeline.triton.store import Store

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


class Arrival(NamedTuple):
    """A version that is to come in. `fill` makes its folder, complete with release.json; `origin` of the installed.

    Where it is `known`, as it has come before, nothing changes. Without `promote`, what is live stays so; the first
    version of a name goes live all the same.
    """

    action: history.Action
    name: str
    fill: Callable[[Path], None]
    origin: str = ""
    reason: str = ""
    promote: bool = True
    known: Callable[[], Published | None] = lambda: None


def publish_version(
    store: Store,
    name: str,
    source: Path,
    release_json: bytes,
    reason: str = "",
    signer: Signer | None = None,
    *,
    promote: bool = True,
) -> Published:
    """Copy a complete version in, and sign it; what `Arrival` and `bring_in` say holds."""

    def fill(folder: Path) -> None:
        storage.copy(source, folder)
        (folder / repository.RELEASE).write_bytes(release_json)
        if signer:
            signer.sign(folder, name)

    return bring_in(store, Arrival("publish", name, fill, reason=reason, promote=promote))


def bring_in(store: Store, arrival: Arrival) -> Published:
    """A new version, live. Killed at any point, the repository is as before or complete.

    SignatureError where the name is live with another signature; InputError where versions that are kept loaded
    cannot stay so beside the new one; StorageError where the disk is full or gone, or another publisher holds the
    lock for a minute; FolderError where rights are missing.
    """
    with store.exclusive():
        journal.settle(store)
        if found := arrival.known():
            return found
        with store.staging() as staging:
            staged = staging / "version"
            arrival.fill(staged)
            storage.make_durable(staged)
            while True:
                # Where another publisher has claimed the number, the next one is free.
                with suppress(ConflictError):
                    return _publish(store, arrival, staged)


def kept_beside(
    store: Store, name: str, wanted: frozenset[int], version: int, own: "ModelConfig", *, strict: bool
) -> tuple[int, ...]:
    """Those of the wanted versions that can stay loaded beside a live one; InputError where `strict` and not all can.

    Triton answers a request that names no version by the highest one that is loaded, and has one config for all.
    """
    kept = tuple(
        other for other in sorted(wanted) if other < version and repository.own_config(store, name, other) == own
    )
    if strict and wanted != set(kept):
        others = ", ".join(map(str, sorted(wanted - set(kept))))
        raise InputError(
            f"{name} version {others} cannot stay loaded beside version {version}: it must be lower, as Triton answers "
            f"by the highest, and have the same configuration; run bin/zoo finish {name}, or leave out --keep-live"
        )
    return kept


def _publish(store: Store, arrival: Arrival, staged: Path) -> Published:
    name = arrival.name
    own = model_config.read(staged / repository.CONFIG)
    labels = repository.labels_in((staged / repository.LABELS).read_bytes())
    repository.demand_signature(store, name, own, labels)
    version, loaded = repository.next_version(store, name), repository.loaded_versions(store, name)
    kept = kept_beside(store, name, frozenset(loaded[:-1]), version, own, strict=True) if arrival.promote else ()
    event = history.intent(
        arrival.action,
        name,
        version,
        max(loaded, default=None),
        repository.sha256((staged / repository.RELEASE).read_bytes()),
        kept=kept,
        origin=arrival.origin,
        reason=arrival.reason,
    )

    def act() -> Event:
        if loaded:
            store.add(name, version, staged, None)
            if not arrival.promote:
                return event.ended("superseded")
        else:
            with suppress(ConflictError):  # of another publisher, whose first version came before this one
                store.add(name, version, staged, repository.pointing_config(own, version))
                return event.ended("done")
            if not arrival.promote:
                return event.ended("superseded")
        return _go_live(store, event, own, labels)

    ended = journal.carried_out(store, event, act)
    return Published(
        name=name,
        version=version,
        previous=ended.previous,
        repository=store.location,
        live=ended.state == "done",
    )


def _go_live(store: Store, event: Event, own: "ModelConfig", labels: tuple[str, ...]) -> Event:
    """Unless a higher version was quicker."""
    name, version = event.name, event.version
    while True:
        current = store.read(f"{name}/{repository.CONFIG}")
        *others, live = repository.loaded_in(store, name, current)
        repository.demand_signature(store, name, own, labels)
        if live > version:
            return event.ended("superseded", previous=live)
        journal.confirm(store, name, live)
        kept = kept_beside(store, name, frozenset(others), version, own, strict=False)
        with suppress(ConflictError):
            store.point(name, repository.pointing_config(own, version, kept), current)
            return event.ended("done", previous=live).model_copy(update={"kept": kept})
