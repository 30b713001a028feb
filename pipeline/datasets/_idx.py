"""Reads the four IDX files of a data set in MNIST's format, or fetches them from torchvision's mirrors.

The format: http://yann.lecun.com/exdb/mnist. Content is compared with known SHA-256 sums of the
uncompressed files, however it was compressed and wherever it came from.
"""

import gzip
import hashlib
import logging
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline import console
from pipeline.errors import DataError, DataUnavailableError, FolderError
from pipeline.specs import Arrays, Split

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049
_TIMEOUT_SECONDS = 15

_log = logging.getLogger(__name__)


def load(
    name: str, data_dir: Path, sha256: Mapping[str, str], torchvision_class: str, other_folders: Sequence[Path] = ()
) -> Arrays:
    """Images [N, 1, 28, 28] of the data set `name` in `data_dir/<name>/raw`, plain or gzipped, or fetched there.

    DataError names a file that is altered or cut off; DataUnavailableError the ways out where
    nothing is at hand and no mirror answers.
    """
    folder = data_dir / name / "raw"
    contents = [
        _checked(path, sha256[file])
        for file in _FILES
        for path in [_find(file, (folder, *other_folders)) or _fetch(name, file, folder, torchvision_class)]
    ]
    train_images, train_labels, test_images, test_labels = (_parse(content) for content in contents)
    return Arrays(
        Split(train_images[:, np.newaxis], train_labels.astype(np.int64)),
        Split(test_images[:, np.newaxis], test_labels.astype(np.int64)),
    )


def _find(file: str, folders: Sequence[Path]) -> Path | None:
    candidates = (folder / (file + suffix) for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.exists()), None)


def _checked(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): expected a whole IDX file; replace or remove it") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} is cut off or altered: expected content of SHA-256 {expected[:12]}…, found {found[:12]}…; "
            "replace or remove it"
        )
    return content


def _parse(content: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    magic, count = np.frombuffer(content, ">u4", 2)
    dimensions = np.frombuffer(content, ">u4", 2, offset=8) if magic == _IMAGES_MAGIC else ()
    if magic not in (_IMAGES_MAGIC, _LABELS_MAGIC):
        raise DataError(f"an IDX file begins with {magic}: expected {_IMAGES_MAGIC} or {_LABELS_MAGIC}")
    header = 8 + 4 * len(dimensions)
    return np.frombuffer(content, np.uint8, offset=header).reshape(count, *dimensions).copy()


def _fetch(name: str, file: str, folder: Path, torchvision_class: str) -> Path:
    from torchvision import datasets  # slow to import, and wanted only for its list of mirrors

    mirrors: Sequence[str] = getattr(datasets, torchvision_class).mirrors
    failures = []
    for mirror in mirrors:
        url = f"{mirror}{file}.gz"
        try:
            content = _download(url)
        except (urllib.error.URLError, OSError) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        return _store(folder / f"{file}.gz", content)
    _log.debug("no mirror answered: %s", "; ".join(failures))
    raise DataUnavailableError(
        f"{name} is not in {folder} and no mirror could be reached: put its four IDX files there, name their folder "
        "by --data-dir or DATA_DIR, connect to a network, or train on --dataset-id digits_v1, which needs no download"
    )


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        total = int(response.headers.get("Content-Length") or 0)
        content = bytearray()
        with console.progress(f"fetch {url.rsplit('/', 1)[-1]}", total, unit="B") as advance:
            while chunk := response.read(1 << 16):
                content += chunk
                advance(len(chunk))
    if total and len(content) != total:
        raise OSError(f"{len(content)} of {total} bytes arrived")
    return bytes(content)


def _store(path: Path, content: bytes) -> Path:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FolderError(
            f"{path} cannot be written ({error.strerror}): name another folder by --data-dir or DATA_DIR"
        ) from None
    return path
