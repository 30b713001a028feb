"""CIFAR-10: 50,000 and 10,000 colour pictures of 32x32 pixels (Krizhevsky 2009)."""

import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import DataOptions
from pipeline.datasets import _labels
from pipeline.datasets._torchvision import checked, verified
from pipeline.errors import DataError
from pipeline.specs import Arrays, Description, Split

_DESCRIPTION = Description(
    short_name="cifar10",
    title="CIFAR-10 colour pictures of animals and vehicles",
    source="A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, University of Toronto",
    license="not stated by its authors",
    shape=(3, 32, 32),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)


def describe(options: DataOptions) -> Description:
    return _DESCRIPTION


def load(options: DataOptions) -> Arrays:
    """From the folder `<data_dir>/cifar-10-batches-py`, else from the archive `cifar-10-python.tar.gz` beside it."""
    from torchvision.datasets import CIFAR10  # slow to import

    md5 = dict((*CIFAR10.train_list, *CIFAR10.test_list))
    folder = options.data_dir / CIFAR10.base_folder
    if all((folder / name).exists() for name in md5):
        contents = {folder / name: _read(folder / name) for name in md5}
    else:
        archive = verified(options.data_dir / CIFAR10.filename, CIFAR10.tgz_md5, [CIFAR10.url])
        contents = _members(archive, [f"{CIFAR10.base_folder}/{name}" for name in md5])
    splits = [_split(path, checked(content, md5[path.name], path)) for path, content in contents.items()]
    count = len(CIFAR10.train_list)
    return Arrays(_joined(splits[:count]), _joined(splits[count:]))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): replace or remove it") from None


def _members(archive: Path, names: Sequence[str]) -> dict[Path, bytes]:
    """Read in the order of the archive: to go back in it would be to decompress it again."""
    contents = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in names else None
            if file is not None:
                contents[member.name] = file.read()
    return {archive / name: contents[name] for name in names}


def _split(path: Path, content: bytes) -> Split:
    # A pickle may run code. The very bytes that are loaded here were held against the sum that the authors' files
    # have, so nothing else gets this far, and no list of allowed names is needed.
    batch = pickle.loads(content, encoding="latin1")
    images = batch["data"].reshape(-1, *_DESCRIPTION.shape)
    labels = _labels.checked(np.array(batch["labels"]), len(images), len(_DESCRIPTION.labels), path)
    return Split.whole(images, labels)


def _joined(splits: Sequence[Split]) -> Split:
    return Split.whole(
        np.concatenate([split.array for split in splits]), np.concatenate([split.labels for split in splits])
    )
