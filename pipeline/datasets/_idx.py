"""Reads the four IDX files of a data set in MNIST's format, or fetches them from torchvision's mirrors.

The format: http://yann.lecun.com/exdb/mnist. Content is compared with known SHA-256 sums of the
uncompressed files, however it was compressed and wherever it came from.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.datasets import _labels
from pipeline.datasets._fetch import fetch
from pipeline.errors import DataError
from pipeline.specs import Arrays, Images, Split

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# The last byte is the number of dimensions.
_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801


def load(
    name: str, data_dir: Path, sha256: Mapping[str, str], classes: int, other_folders: Sequence[Path] = ()
) -> Arrays:
    """Images [N, 1, 28, 28] from `data_dir/<name>/raw`, plain or gzipped, or fetched there; torchvision's class has
    that name.

    DataError names a file that is altered or cut off; DataUnavailableError the ways out where
    nothing is at hand and no mirror answers.
    """
    folder = data_dir / name / "raw"
    paths = [_find(file, (folder, *other_folders)) or _fetch(file, folder, name, other_folders) for file in FILES]
    return arrays({path: _checked(path, sha256[file]) for file, path in zip(FILES, paths, strict=True)}, classes)


def arrays(contents: Mapping[Path, bytes], classes: int) -> Arrays:
    """From the four files in the order of `FILES`; DataError names one that is not whole or has wrong labels."""
    train_images, train_labels, test_images, test_labels = contents.items()
    return Arrays(_split(train_images, train_labels, classes), _split(test_images, test_labels, classes))


def _split(images: tuple[Path, bytes], labels: tuple[Path, bytes], classes: int) -> Split:
    array = _parse(*images, _IMAGES_MAGIC)[:, np.newaxis]
    return Split.whole(array, _labels.checked(_parse(*labels, _LABELS_MAGIC), len(array), classes, labels[0]))


def _parse(path: Path, content: bytes, magic: int) -> Images:
    header = 4 * (1 + magic % 256)
    found, *shape = np.frombuffer(content[:header].ljust(header, b"\0"), ">u4").tolist()
    if found != magic or len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} is no whole IDX file of {magic % 256} dimensions: begins with {found}, expected {magic}, and is "
            f"{len(content)} bytes long; replace it"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _find(file: str, folders: Sequence[Path]) -> Path | None:
    candidates = (folder / (file + suffix) for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.exists()), None)


def _fetch(file: str, folder: Path, torchvision_class: str, other_folders: Sequence[Path]) -> Path:
    from torchvision import datasets  # slow to import, and wanted only for its mirrors and sums

    entry, name = getattr(datasets, torchvision_class), f"{file}.gz"
    urls = [mirror + name for mirror in entry.mirrors]
    return fetch(urls, folder / name, dict(entry.resources)[name], other_folders)


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
