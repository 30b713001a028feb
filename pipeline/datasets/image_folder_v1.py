"""The user's own pictures: a folder with one folder of them for each class."""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataOptions
from pipeline.datasets import _cache, _pictures
from pipeline.errors import DataError
from pipeline.pictures import DECODER
from pipeline.specs import Arrays, Description, Labels, Split

# The largest that all the small networks take.
_DEFAULT_SIZE = 64
_TEST_SHARE = 0.2
# With a model's id before it, this still is a release's name.
_LONGEST_NAME = 40

_log = logging.getLogger(__name__)


def describe(options: DataOptions) -> Description:
    """The classes are the folders' names, sorted; DataError where they are fewer than two, or no names for classes."""
    name, size = _name(options.data_dir), options.image_size or _DEFAULT_SIZE
    return Description(
        short_name=name,
        title=f"Image folder {name}",
        source=f"the publisher's own; each upright, cut to its middle square and scaled to {size}x{size} RGB",
        license="not stated",
        shape=(3, size, size),
        labels=_classes(options.data_dir),
        release_name=name,
    )


def load(options: DataOptions) -> Arrays:
    """Split as the folders `train` and `test` are, else by the seed: 80 and 20 % of each class.

    The SHA-256 is over names and contents of the files. DataError names a class without pictures, and all pictures
    that cannot be used.
    """
    root, size = options.data_dir, options.image_size or _DEFAULT_SIZE
    files = [_files(folder, _classes(root)) for folder in _halves(root)]
    pictures = _pictures.identified([path for half in files for path, _ in half])
    labels = np.array([label for half in files for _, label in half], np.int64)
    # Without a folder of test pictures, some are drawn.
    is_test = _drawn(labels, options) if len(files) == 1 else np.repeat([False, True], [len(half) for half in files])
    sha256 = _sha256(root, pictures)
    key = hashlib.sha256(f"{DECODER}, {size} pixels, {sha256}".encode()).hexdigest()
    array = _cache.mapped(key, (len(pictures), 3, size, size), lambda: _pictures.decoded(pictures, size))
    train, test = (Split(array, rows, labels[rows]) for rows in (np.flatnonzero(~is_test), np.flatnonzero(is_test)))
    return Arrays(train, test, sha256)


def _name(root: Path) -> str:
    """The folder's own name in the letters that a release's name may have."""
    letters = re.sub(r"[^a-z0-9._-]+", "-", root.resolve().name.lower())
    return letters[:_LONGEST_NAME].strip("._-") or "image_folder"


def _halves(root: Path) -> tuple[Path, ...]:
    """`train` and `test` where both are there, else the root alone; DataError where one of them is all of a split."""
    halves = (root / "train", root / "test")
    there = [folder for folder in halves if folder.is_dir()]
    if len(there) == 1 and _folders(there[0]) and not _pictures_in(there[0]):
        (missing,) = {*halves} - {*there}
        raise DataError(
            f"{there[0]} holds folders and no pictures, as one part of a split does, and there is no {missing}: add "
            "it, or name the folder that holds the classes by --data-dir"
        )
    return halves if len(there) == 2 else (root,)


def _classes(root: Path) -> tuple[str, ...]:
    first, *others = _halves(root)
    names = _folders(first)
    for other in others:
        differing = sorted(set(names) ^ set(_folders(other)))
        if differing:
            raise DataError(f"{first} and {other} must hold the same classes: only one of them has {differing[0]}")
    if len(names) < 2:
        raise DataError(
            f"{first} holds {len(names)} folders ({', '.join(names) or 'none'}): expected one folder of pictures for "
            "each of two or more classes; name the folder that holds them by --data-dir"
        )
    for name in names:
        # Labels are lines of a UTF-8 file.
        if not name.isprintable():
            raise DataError(f"{first / name!r} cannot give a class its name: use printable letters in UTF-8")
    return tuple(names)


def _folders(root: Path) -> list[str]:
    try:
        return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{root} cannot be read ({error.strerror}): name by --data-dir a folder with one folder of pictures for "
            "each class"
        ) from None


def _files(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Pictures and their labels, in the order of classes and names. Hidden files are not seen."""
    suffixes, files, others = _pictures.suffixes(), [], []
    if loose := _pictures_in(root):
        _log.info("%d pictures lie in no class's folder, as %s: they are left out", len(loose), loose[0])
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (root / name).rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
        )
        pictures = [path for path in found if path.suffix.lower() in suffixes]
        others += sorted(set(found) - set(pictures))
        if not pictures:
            raise DataError(f"{root / name} holds no pictures: each class needs some; add them or remove the folder")
        files += [(path, label) for path in pictures]
    if others:
        _log.info("%d files are no pictures by their names, as %s: they are left out", len(others), others[0])
    return files


def _pictures_in(folder: Path) -> list[Path]:
    """Those that lie in the folder itself, by their names."""
    suffixes = _pictures.suffixes()
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes and path.is_file())


def _drawn(labels: Labels, options: DataOptions) -> NDArray[np.bool_]:
    """Which pictures are for testing: a share of each class."""
    generator = np.random.default_rng(options.seed)
    is_test = np.zeros(len(labels), np.bool_)
    for label, count in enumerate(np.bincount(labels)):
        if count < 2:
            folder = options.data_dir / _classes(options.data_dir)[label]
            raise DataError(f"{folder} holds one picture: expected two or more, one of them for testing; add some")
        rows = generator.permutation(np.flatnonzero(labels == label))
        is_test[rows[: max(1, round(_TEST_SHARE * count))]] = True
    return is_test


def _sha256(root: Path, pictures: Sequence[_pictures.Picture]) -> str:
    """Contents, not times: a copy of the folder is the same data, and a picture that was altered never is."""
    digest = hashlib.sha256()
    for path, sha256 in pictures:
        digest.update(os.fsencode(path.relative_to(root).as_posix()) + f"\0{sha256}\n".encode())
    return digest.hexdigest()
