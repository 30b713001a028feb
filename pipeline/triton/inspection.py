"""What a repository says of itself: its names, their versions, how these differ, and what happened."""

import json
from difflib import unified_diff
from typing import Any

from pipeline.errors import InputError
from pipeline.records import Record
from pipeline.triton import history, journal, repository
from pipeline.triton.history import Event
from pipeline.triton.repository import Release
from pipeline.triton.store import Store


class VersionSummary(Record):
    """`bytes`: of the served file; `created`: when it was released; None where release.json does not tell."""

    version: int
    live: bool
    loaded: bool
    accuracy: float | None
    bytes: int | None
    served_format: str | None
    created: str | None
    commit: str | None


class NameSummary(Record):
    """A name with its live version. `problem` is why nothing can be said of that, where config.pbtxt is damaged."""

    name: str
    live: VersionSummary | None
    loaded: tuple[int, ...]
    versions: tuple[int, ...]
    problem: str | None = None


class Listing(Record):
    repository: str
    names: tuple[NameSummary, ...]


class NameDetails(Record):
    """`next_rollback`: the version that a roll-back goes to."""

    repository: str
    name: str
    next_rollback: int | None
    versions: tuple[VersionSummary, ...]


class VersionDetails(Record):
    """`release`: the content of release.json."""

    repository: str
    name: str
    summary: VersionSummary
    release: dict[str, Any]


class Chronicle(Record):
    """Events of a name, oldest first: each as it ended, or as an intent where it is open."""

    repository: str
    name: str
    events: tuple[Event, ...]


class Change(Record):
    """One value that differs; None where there is none."""

    what: str
    before: Any
    after: Any


class Difference(Record):
    """Between two versions of a name; of metrics and recall, of the served file.

    `same_data`: both were made from the same images; `triton`: their own config.pbtxt, as a unified diff.
    """

    name: str
    before: int
    after: int
    same_data: bool
    metrics: tuple[Change, ...]
    recall: tuple[Change, ...]
    config: tuple[Change, ...]
    data: tuple[Change, ...]
    triton: tuple[str, ...]


def listing(store: Store) -> Listing:
    """All names. One small file is read for each beside its config.pbtxt."""
    return Listing(repository=store.location, names=tuple(_name(store, name) for name in repository.names(store)))


def name_details(store: Store, name: str) -> NameDetails:
    """InputError where the name is not released."""
    loaded = repository.loaded_versions(store, name)
    if not loaded:
        raise repository.unknown_name(store, name)
    return NameDetails(
        repository=store.location,
        name=name,
        next_rollback=history.next_rollback(journal.settled(store), name),
        versions=tuple(_version(store, name, version, loaded) for version in repository.versions(store, name)),
    )


def version_details(store: Store, name: str, version: int) -> VersionDetails:
    """InputError where there is no such version."""
    repository.demand_version(store, name, version)
    return VersionDetails(
        repository=store.location,
        name=name,
        summary=_version(store, name, version, repository.loaded_versions(store, name)),
        release=_release(store, name, version),
    )


def chronicle(store: Store, name: str) -> Chronicle:
    """InputError where there was never such a name."""
    # An outcome takes the place of its intent, which has the same id.
    events = {event.id: event for event in store.events() if event.name == name}
    if not events:
        raise repository.unknown_name(store, name)
    return Chronicle(repository=store.location, name=name, events=tuple(events.values()))


def difference(store: Store, name: str, before: int, after: int) -> Difference:
    """InputError where one of them is not there, or was released by a pipeline with other records."""
    for version in (before, after):
        repository.demand_version(store, name, version)
    old, new = (repository.release(store, name, version) for version in (before, after))
    return Difference(
        name=name,
        before=before,
        after=after,
        same_data=old.data.sha256 == new.data.sha256,
        metrics=_changes(_metrics(old), _metrics(new)),
        recall=_changes(_recall(old), _recall(new)),
        config=_changes(_settings(old), _settings(new)),
        data=_changes(old.data.model_dump(mode="json"), new.data.model_dump(mode="json")),
        triton=_triton(store, name, before, after),
    )


def _name(store: Store, name: str) -> NameSummary:
    versions = tuple(repository.versions(store, name))
    try:
        loaded = repository.loaded_versions(store, name)
    except InputError as error:
        return NameSummary(name=name, live=None, loaded=(), versions=versions, problem=str(error))
    return NameSummary(name=name, live=_version(store, name, loaded[-1], loaded), loaded=loaded, versions=versions)


def _version(store: Store, name: str, version: int, loaded: tuple[int, ...]) -> VersionSummary:
    release = _release(store, name, version)
    served_format = field(release, "config", "served_format")
    return VersionSummary(
        version=version,
        live=(version,) == loaded[-1:],
        loaded=version in loaded,
        accuracy=field(_of_format(field(release, "verified", "files"), served_format), "metrics", "accuracy"),
        bytes=field(_of_format(field(release, "exported", "files"), served_format), "bytes"),
        served_format=served_format,
        created=field(release, "created"),
        commit=field(release, "code", "revision"),
    )


def _release(store: Store, name: str, version: int) -> dict[str, Any]:
    """As JSON, since another pipeline's has other fields, and as records 10,000 would take long; {} if damaged."""
    try:
        release = json.loads(store.read(f"{name}/{version}/{repository.RELEASE}"))
    except (FileNotFoundError, ValueError):
        return {}
    return release if isinstance(release, dict) else {}


def field(value: Any, *path: str) -> Any:
    """The value below these keys of a release.json; None where it has none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _of_format(files: Any, served_format: str | None) -> Any:
    return next((file for file in files or () if field(file, "format") == served_format), None)


def _metrics(release: Release) -> dict[str, Any]:
    served = release.config.served_format
    verified = next(file for file in release.verified.files if file.format == served)
    timed = next(file for file in release.benchmarked.files if file.format == served)
    return {
        "accuracy": verified.metrics.accuracy,
        "loss": verified.metrics.loss,
        "bytes": next(file.bytes for file in release.exported.files if file.format == served),
        "p50_ms": timed.p50_ms,
        "p95_ms": timed.p95_ms,
        "parameters": release.trained.parameters,
    }


def _recall(release: Release) -> dict[str, Any]:
    served = release.config.served_format
    verified = next(file for file in release.verified.files if file.format == served)
    return {entry.label: entry.recall for entry in verified.metrics.per_class}


def _settings(release: Release) -> dict[str, Any]:
    return {
        "commit": release.code.revision,
        "served_format": release.config.served_format,
        **release.config.train.model_dump(mode="json"),
        **release.config.gates.model_dump(),
    }


def _changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[Change, ...]:
    """What differs, in the order of the first; then what only the second has."""
    return tuple(
        Change(what=key, before=before.get(key), after=after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    )


def _triton(store: Store, name: str, before: int, after: int) -> tuple[str, ...]:
    old, new = (
        repository.read(store, name, version, repository.CONFIG).decode().splitlines() for version in (before, after)
    )
    return tuple(unified_diff(old, new, str(before), str(after), n=2, lineterm=""))
