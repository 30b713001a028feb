"""EMNIST, balanced: 112,800 and 18,800 handwritten digits and letters of 28x28 pixels (Cohen et al. 2017)."""

import gzip
import zipfile

import numpy as np

from pipeline.config import DataOptions
from pipeline.datasets import _idx
from pipeline.datasets._torchvision import verified
from pipeline.specs import Arrays, Description, Split

_DESCRIPTION = Description(
    short_name="emnist_balanced",
    title="EMNIST balanced handwritten digits and letters",
    source="G. Cohen et al. 2017, arXiv:1702.05373, from NIST Special Database 19",
    license="not stated by its authors",
    shape=(1, 28, 28),
    # A small letter that looks like its capital shares its class.
    labels=tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
)
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "test-images-idx3-ubyte", "test-labels-idx1-ubyte")


def describe(options: DataOptions) -> Description:
    return _DESCRIPTION


def load(options: DataOptions) -> Arrays:
    """From the archive `<data_dir>/EMNIST/raw/gzip.zip`: no sum of what is in it is published."""
    from torchvision.datasets import EMNIST  # slow to import

    path = verified(options.data_dir / "EMNIST" / "raw" / "gzip.zip", EMNIST.md5, [EMNIST.url])
    members = [f"gzip/emnist-balanced-{file}.gz" for file in _FILES]
    with zipfile.ZipFile(path) as archive:
        contents = {path / member: gzip.decompress(archive.read(member)) for member in members}
    train, test, _ = _idx.arrays(contents, len(_DESCRIPTION.labels))
    return Arrays(_upright(train), _upright(test))


def _upright(split: Split) -> Split:
    """The files hold each image column by column."""
    return Split.whole(np.ascontiguousarray(split.array.transpose(0, 1, 3, 2)), split.labels)
