"""Fetches a file of a data set from the first mirror that has it."""

import hashlib
import http.client
import itertools
import logging
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline import console
from pipeline.errors import DataUnavailableError, unwritable

_TIMEOUT_SECONDS = 15
_CHUNK_BYTES = 1 << 16

_log = logging.getLogger(__name__)


class _TransferError(Exception):
    """A mirror cannot be reached, or stopped in the middle."""


def fetch(urls: Sequence[str], path: Path, md5: str | None = None, other_folders: Sequence[Path] = ()) -> Path:
    """`path`, with what the first mirror sends that answers, and with that MD5 where one is given.

    DataUnavailableError names where the file was looked for, `other_folders` among it, and the ways out
    where no mirror has it; FolderError where it cannot be written, StorageError where the disk is full.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    failures = []
    try:
        for url in urls:
            _log.info("fetching %s", url)
            try:
                found = _store(_chunks(url), part)
            except _TransferError as error:
                failures.append(f"{url}: {error}")
                continue
            if md5 in (None, found):
                return part.replace(path)
            failures.append(f"{url}: sent content of MD5 {found}, expected {md5}")
    except OSError as error:
        raise unwritable(error)(
            f"{path} cannot be written ({error.strerror}): name another folder by --data-dir or DATA_DIR"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()
    folders = " or ".join(map(str, (path.parent, *other_folders)))
    raise DataUnavailableError(
        f"{path.name} is not in {folders} and could not be fetched ({'; '.join(failures)}): put it there, name another "
        "folder by --data-dir or DATA_DIR, connect to a network, or train on --dataset-id digits_v1, which needs no "
        "download"
    )


def _chunks(url: str) -> Iterator[bytes]:
    # Some mirrors refuse the name that urllib gives itself.
    request = urllib.request.Request(url, headers={"User-Agent": "triton-model-zoo"})
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with console.progress(f"fetch {url.rsplit('/', 1)[-1]}", total, unit="B") as advance:
                while chunk := response.read(_CHUNK_BYTES):
                    received += len(chunk)
                    advance(len(chunk))
                    yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(getattr(error, "reason", error)) from None
    if total and received != total:
        raise _TransferError(f"{received} of {total} bytes arrived")


def _store(chunks: Iterator[bytes], path: Path) -> str:
    """Write a file and return its MD5."""
    # Asked for before the folder is made: where no mirror answers, nothing is left.
    first = next(chunks, b"")
    digest = hashlib.md5(usedforsecurity=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for chunk in itertools.chain([first], chunks):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
