"""Many picture files: what is in them, and their pixels.

In threads: Pillow and hashlib let others run while they work.
"""

import hashlib
import io
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from pipeline import console
from pipeline.errors import DataError
from pipeline.pictures import pixels
from pipeline.specs import Images

# Pictures that are worked on at a time, or wait for those before them.
_AHEAD = 64
_NAMED = 10

_log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Picture(NamedTuple):
    """A file and the SHA-256 of its content."""

    path: Path
    sha256: str


def suffixes() -> frozenset[str]:
    """Endings of the names of files that Pillow reads, as `.jpg`."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def identified(paths: Sequence[Path]) -> list[Picture]:
    """DataError names a file that cannot be read."""
    return list(_each(_identified, paths, "read pictures"))


def decoded(pictures: Sequence[Picture], size: int) -> Iterator[Images]:
    """Each in order, uint8 [3, size, size]: upright, its middle square, on white where it is transparent.

    After the last one, DataError names those that cannot be decoded, or have changed since they were identified.
    """
    bad = []
    for result in _each(partial(_decoded, size=size), pictures, "decode pictures"):
        if isinstance(result, str):
            _log.warning("%s", result)
            bad.append(result)
        elif not bad:
            yield result
    if bad:
        more = f"; and {len(bad) - _NAMED} more, named in the log" if len(bad) > _NAMED else ""
        raise DataError(
            f"{len(bad)} of {len(pictures)} pictures cannot be used; replace or remove {'; '.join(bad[:_NAMED])}{more}"
        )


def _each(work: Callable[[T], R], items: Sequence[T], title: str) -> Iterator[R]:
    """In order, and only some ahead: the executor's own map would hold all results that nobody took yet."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor() as pool, console.progress(title, len(items)) as advance:
        for index in range(len(items) + _AHEAD):
            if index < len(items):
                pending.append(pool.submit(work, items[index]))
            if index >= _AHEAD:
                yield pending.popleft().result()
                advance(1)


def _identified(path: Path) -> Picture:
    return Picture(path, hashlib.sha256(_read(path)).hexdigest())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): change its rights or remove it") from None


def _decoded(picture: Picture, size: int) -> Images | str:
    """The pixels, or what is wrong with the file."""
    content = _read(picture.path)
    if hashlib.sha256(content).hexdigest() != picture.sha256:
        return f"{picture.path} (changed while it was read)"
    try:
        return pixels(io.BytesIO(content), (3, size, size))
    except DataError as error:
        return f"{picture.path} ({error})"
