"""Files as torchvision lays them out, fetched from where its classes point, and held against the MD5 that they know.

No better sum is published. Two files of one MD5 can be made together, but none that has the MD5 of a given file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets._fetch import fetch
from pipeline.errors import DataError


def verified(path: Path, md5: str, urls: Sequence[str]) -> Path:
    """`path`, of that MD5; fetched where it is not there.

    DataError where it is cut off or altered; DataUnavailableError where it is not to be had.
    """
    if not path.exists():
        return fetch(urls, path, md5)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): replace or remove it") from None
    _demand(found, md5, path)
    return path


def checked(content: bytes, md5: str, path: Path) -> bytes:
    """The content of `path`; DataError where its MD5 is another one."""
    _demand(hashlib.md5(content, usedforsecurity=False).hexdigest(), md5, path)
    return content


def _demand(found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise DataError(
            f"{path} is cut off or altered: expected content of MD5 {expected}, found {found}; replace or remove it"
        )
