"""A release as one tar file, whose root is a part of a model repository: unpacked into one, Triton serves it.

    <name>/<N>/...         the version
    <name>/config.pbtxt    makes it live; it comes after the version, so that nobody meets half of one
    SHA256SUMS             of all these files, for `sha256sum -c`

The same version under the same number gives the same bytes.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from pipeline.config import RELEASE_NAME
from pipeline.errors import InputError
from pipeline.triton import model_config

SUMS = "SHA256SUMS"
_CONFIG = "config.pbtxt"
_EXPECTED = "expected what bin/zoo export writes"


class Packed(NamedTuple):
    """What a tar file holds; `files` are the version's, by path in its folder."""

    name: str
    version: int
    files: dict[str, bytes]


def write(target: Path, name: str, version: int, files: Iterable[tuple[str, bytes]]) -> None:
    """Pack a version's files, its own config.pbtxt among them."""
    sums = {}
    config = ""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:

        def add(path: str, content: bytes) -> None:
            # Its time is 1970, its owner nobody.
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
            sums[path] = hashlib.sha256(content).hexdigest()

        for path, content in files:
            add(f"{name}/{version}/{path}", content)
            if path == _CONFIG:
                own = model_config.parse(content, f"{name}/{version}/{path}")
                config = model_config.to_text(model_config.pointed_at(own, version))
        add(f"{name}/{_CONFIG}", config.encode())
        add(SUMS, "".join(f"{sha256}  {path}\n" for path, sha256 in sums.items()).encode())


def read(source: Path) -> Packed:
    """InputError where the file is not a whole one that `write` has made, or its sums are of other content.

    That the version is as it was released, only its release.json tells.
    """
    members = _members(source)
    sums = members.pop(SUMS, None)
    if sums is None:
        raise InputError(f"{source} has no {SUMS}: it is cut short, or no release; {_EXPECTED}")
    _demand_sums(source, members, sums)
    name = next(iter(members), "").partition("/")[0]
    config = members.pop(f"{name}/{_CONFIG}", None)
    version = next(iter(members), "").removeprefix(f"{name}/").partition("/")[0]
    folder = f"{name}/{version}/"
    if not (RELEASE_NAME.fullmatch(name) and re.fullmatch("[1-9][0-9]*", version) and config is not None) or any(
        not path.startswith(folder) for path in members
    ):
        raise InputError(f"{source} is not one version of one name with its config.pbtxt: {_EXPECTED}")
    files = {path.removeprefix(folder): content for path, content in members.items()}
    own = files.get(_CONFIG)
    if own is None or not _makes_live(source, config, own, int(version)):
        raise InputError(f"{source}: {name}/{_CONFIG} is not what makes version {version} live: {_EXPECTED}")
    return Packed(name, int(version), files)


def _members(source: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                parts = member.name.split("/")
                content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None or not all(parts) or {".", ".."} & {*parts} or member.name in found:
                    raise InputError(f"{source} holds {member.name!r}: not a plain file inside, once; {_EXPECTED}")
                found[member.name] = content.read()
    except tarfile.TarError as error:
        raise InputError(f"{source} is not a whole tar file ({error}): {_EXPECTED}") from None
    return found


def _demand_sums(source: Path, members: dict[str, bytes], sums: bytes) -> None:
    actual = {f"{hashlib.sha256(content).hexdigest()}  {path}" for path, content in members.items()}
    listed = set(sums.decode(errors="replace").splitlines())
    for line in sorted(actual ^ listed, key=lambda line: line[66:]):
        raise InputError(f"{source}: {line[66:]} is not as {SUMS} has it: fetch the file again")


def _makes_live(source: Path, config: bytes, own: bytes, version: int) -> bool:
    parsed = model_config.parse(own, f"{source}: {_CONFIG}")
    return bool(model_config.parse(config, f"{source}: {_CONFIG}") == model_config.pointed_at(parsed, version))
