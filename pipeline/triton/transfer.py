"""Versions that go from one repository into another, straight or as a tar file.

No hashed file of a version contains its number, so it may take another one there. Hashes are
verified in the staging folder, before anything is visible.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

from pipeline.config import RELEASE_NAME
from pipeline.errors import InputError
from pipeline.records import Published, Record
from pipeline.triton import archive, journal, model_config, repository, switching
from pipeline.triton.inspection import field
from pipeline.triton.publishing import Arrival, bring_in
from pipeline.triton.store import Store


def copy(source: Store, target: Store, name: str, version: int | None, *, trust: bool, reason: str = "") -> Published:
    """Publish a version of another repository, or its live one; one that is there already is not copied again.

    InputError where it is altered, has a name that no release has, or makes Triton run code and `trust` is not given.
    """
    if not RELEASE_NAME.fullmatch(name):
        # In an object store, a folder may have any name, and so lead out of here.
        raise InputError(f"{name!r} in {source.location} is no name of a release: rename or remove it there")
    version = version or repository.live_version(source, name)
    if version is None:
        raise repository.unknown_name(source, name)
    repository.demand_version(source, name, version)
    where = f"{source.location}/{name}/{version}"

    def fill(folder: Path) -> None:
        download(source, name, version, folder, trust=trust)

    release_json = repository.read(source, name, version, repository.RELEASE)
    return _installed(target, Arrival("install", name, fill, origin=where, reason=reason), release_json)


def download(source: Store, name: str, version: int, folder: Path, *, trust: bool) -> None:
    """Write a version into a local folder; errors as of `copy`."""
    for path, content in repository.verified_files(source, name, version):
        _write(folder, path, content)
    _check(folder, name, f"{source.location}/{name}/{version}", trust=trust)


class Refused(Record):
    """A name that was left as it is here, and why."""

    name: str
    reason: str


class Pulled(Record):
    """What became live here because it is live there, or was so already; and what was refused."""

    source: str
    names: tuple[Published, ...]
    refused: tuple[Refused, ...]


def follow_all(source: Store, target: Store, *, trust: bool, reason: str = "") -> Pulled:
    """Make live what is live in another repository, of all names; one that is refused keeps no other from coming.

    InputError where nothing is live there.
    """
    names = repository.names(source)
    if not names:
        raise InputError(f"nothing is live in {source.location}: expected a model repository")
    followed, refused = [], []
    for name in names:
        try:
            followed.append(follow(source, target, name, trust=trust, reason=reason))
        except InputError as error:
            refused.append(Refused(name=name, reason=str(error)))
    return Pulled(source=source.location, names=tuple(followed), refused=tuple(refused))


def follow(source: Store, target: Store, name: str, *, trust: bool, reason: str = "") -> Published:
    """Make live what is live in another repository; also where that has gone back to a version before.

    InputError where it is altered, or makes Triton run code and `trust` is not given.
    """
    found = copy(source, target, name, None, trust=trust, reason=reason)
    if found.live or found.new:
        return found
    event = switching.promote(target, name, found.version, reason=reason or f"live in {source.location}")
    return found.model_copy(update={"live": True, "previous": event.previous})


class Exported(Record):
    """A version in a tar file; `bytes` and `sha256` are the file's."""

    name: str
    version: int
    file: str
    bytes: int
    sha256: str


def export(store: Store, name: str, version: int, path: Path) -> Exported:
    """Write a version to a tar file, the same bytes each time; no file is left where that does not succeed."""
    repository.demand_version(store, name, version)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        archive.write(temporary, name, version, repository.verified_files(store, name, version))
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(name=name, version=version, file=str(path), bytes=path.stat().st_size, sha256=sha256)


def install(store: Store, path: Path, *, trust: bool, reason: str = "") -> Published:
    """Publish the version in a tar file; one that is there already is left as it is.

    InputError where the file is not one that `export` writes, was altered, or makes Triton run code and `trust` is
    not given.
    """
    packed = archive.read(path)

    def fill(folder: Path) -> None:
        for file, content in packed.files.items():
            _write(folder, file, content)
        _check(folder, packed.name, str(path), trust=trust)

    if repository.RELEASE not in packed.files:
        raise InputError(f"{path} has no {repository.RELEASE}: expected a released version")
    arrival = Arrival("install", packed.name, fill, origin=path.name, reason=reason)
    return _installed(store, arrival, packed.files[repository.RELEASE])


def _write(folder: Path, file: str, content: bytes) -> None:
    parts = file.split("/")
    if not all(parts) or {".", ".."} & {*parts}:
        raise InputError(f"{file!r} is not a path inside a version's folder: nothing was published")
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _check(folder: Path, name: str, where: str, *, trust: bool) -> None:
    """InputError where what is staged is not a release of this name as it was released, or may not be trusted."""
    for file in (repository.RELEASE, repository.CONFIG, repository.LABELS):
        if not (folder / file).is_file():
            raise InputError(f"{where} has no {file}: expected a released version")
    manifest = (folder / repository.RELEASE).read_bytes()
    repository.demand_as_released(repository.hashes(folder), manifest, where)
    own = model_config.read(folder / repository.CONFIG)
    if own.name != name:
        raise InputError(f"{where} is a release of {own.name!r} under the name {name!r}: Triton would not load it")
    # By the second, bin/evaluate and bin/infer choose the file that they open.
    served_format = field(json.loads(manifest), "gated", "served_format")
    code = model_config.code_in(own) or (served_format != "onnx" and f"served format {served_format!r}")
    if code and not trust:
        raise InputError(
            f"{where} makes its user run code that comes with it ({code}): if you trust who made it, give --trust"
        )


def _installed(store: Store, arrival: Arrival, release_json: bytes) -> Published:
    """Bring it in, unless it has come before and is still there."""
    known = partial(_known, store, arrival.name, repository.sha256(release_json))
    # Asked again under the lock, for which another one may have been quicker.
    return known() or bring_in(store, arrival._replace(known=known))


def _known(store: Store, name: str, release_sha256: str) -> Published | None:
    """The version at hand that came with this release.json; also where its publisher was killed after the switch."""
    known = repository.versions(store, name)
    there = [
        event.version
        for event in journal.settled(store)
        if event.brings_in
        and event.state in ("done", "superseded")
        and (event.name, event.release_sha256) == (name, release_sha256)
        and event.version in known
    ]
    if not there:
        return None
    version, live = there[-1], repository.live_version(store, name)
    return Published(
        name=name,
        version=version,
        previous=live,
        repository=store.location,
        live=version == live,
        new=False,
    )
