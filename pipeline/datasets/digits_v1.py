"""The 1,797 digits that ship inside scikit-learn: 8x8 pixels, here resized to 28x28. Needs no download."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pipeline.config import DataOptions
from pipeline.errors import DataError
from pipeline.specs import Arrays, Description, Split

_DESCRIPTION = Description(
    short_name="digits",
    title="Optical recognition of handwritten digits (8x8, resized to 28x28)",
    source="E. Alpaydin, C. Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49; scikit-learn's copy",
    license="CC BY 4.0",
    shape=(1, 28, 28),
    labels=tuple(str(digit) for digit in range(10)),
)

_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
_DARKEST = 16.0


def describe(options: DataOptions) -> Description:
    return _DESCRIPTION


def load(options: DataOptions) -> Arrays:
    """The options are not used. Every fifth image in the order of classes is a test image: 1,437 and 360."""
    table = _table()
    labels = table[:, -1].astype(np.int64)
    small = torch.from_numpy(table[:, :-1].astype(np.float32)).reshape(-1, 1, 8, 8) * (255 / _DARKEST)
    large = functional.interpolate(small, _DESCRIPTION.shape[1:], mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).numpy()
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    return Arrays(Split.whole(images[~is_test], labels[~is_test]), Split.whole(images[is_test], labels[is_test]))


def _table() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Rows of 64 grey values 0..16 and a label.

    Read from scikit-learn's own file: importing scikit-learn for it costs a second at each start.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("scikit-learn is not installed, and the digits lie inside it: install requirements.lock")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    content = gzip.decompress(path.read_bytes())
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(f"{path} is not the table that is expected (SHA-256 differs): install scikit-learn again")
    return np.loadtxt(content.decode().splitlines(), delimiter=",", dtype=np.uint8, ndmin=2)
