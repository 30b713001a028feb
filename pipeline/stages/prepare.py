"""Load a data set, set validation images aside, and describe what was found."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import registry
from pipeline.config import DataOptions, TrainConfig
from pipeline.errors import DataError, InputError
from pipeline.records import DataInfo
from pipeline.specs import Description, Images, Prepared, Split

# Bytes that are looked at together where all are looked at: an array may be larger than memory.
_CHUNK_BYTES = 1 << 24


def describe(config: TrainConfig, data_dir: Path) -> Description:
    """InputError where the data set has not the wanted image size."""
    data = registry.dataset(config.dataset_id).describe(config.data_options(data_dir))
    height, width = data.shape[1:]
    if config.image_size not in (None, height):
        raise InputError(
            f"--image-size {config.image_size}: images of {config.dataset_id} always have {height}x{width} pixels; "
            "leave it out, or choose --dataset-id image_folder_v1"
        )
    return data


def check_fit(config: TrainConfig, data: Description) -> None:
    """InputError where model, data set and losses do not go together; no image is read for it."""
    shape, classes = data.shape, len(data.labels)
    needs = registry.model(config.model_id).accepts(shape, classes)
    if needs is not None:
        raise InputError(
            f"{config.model_id} cannot take {config.dataset_id} (channels, height, width {shape}, {classes} classes): "
            f"it needs {needs}; choose another --model-id, --dataset-id or --image-size"
        )
    network = registry.model(config.model_id).build(shape, classes)
    for criterion in config.criteria:
        needs = registry.loss(criterion.loss_id).accepts(network)
        if needs is not None:
            raise InputError(
                f"--criterion-id {criterion.loss_id} has no meaning for {config.model_id}: it needs {needs}; "
                "choose another --criterion-id or --model-id"
            )


def prepare(config: TrainConfig, data_dir: Path, *, fallback: bool) -> Prepared:
    """The data as a run uses them; validation images are drawn from the training images by the seed."""
    data = describe(config, data_dir)
    train, test, sha256 = load(config.dataset_id, config.data_options(data_dir), data)
    mean, std = _statistics(train)
    kept, validation = _split(train, config.validation_fraction, config.seed)
    if config.batch_size > len(kept):
        raise DataError(
            f"--batch-size {config.batch_size} is more than the {len(kept)} training images of "
            f"{config.dataset_id}: choose a smaller one"
        )
    if config.early_stopping_patience and not len(validation):
        raise InputError(
            f"--early-stopping-patience needs validation images: --validation-fraction {config.validation_fraction} of "
            f"the {len(train)} training images of {config.dataset_id} is none; choose a larger one"
        )
    info = DataInfo(
        dataset_id=config.dataset_id,
        short_name=data.short_name,
        title=data.title,
        source=data.source,
        license=data.license,
        shape=data.shape,
        labels=data.labels,
        train_images=len(kept),
        validation_images=len(validation),
        test_images=len(test),
        test_images_per_class=tuple(np.bincount(test.labels, minlength=len(data.labels)).tolist()),
        sha256=sha256,
        mean=mean,
        std=std,
        fallback=fallback,
    )
    return Prepared(info, kept, validation, test)


def load(dataset_id: str, options: DataOptions, data: Description) -> tuple[Split, Split, str]:
    """Training images, test images and the SHA-256 of both; DataError where they are not as described."""
    train, test, sha256 = registry.dataset(dataset_id).load(options)
    for name, split in (("training", train), ("test", test)):
        _check(split, data, f"the {name} images of {dataset_id}")
    return train, test, sha256 or _sha256(train, test)


def _check(split: Split, data: Description, name: str) -> None:
    if split.array.shape[1:] != data.shape:
        raise DataError(
            f"{name} have shape {split.array.shape[1:]}: expected channels, height, width {data.shape}; "
            "replace the files"
        )
    per_class = np.bincount(split.labels, minlength=len(data.labels))
    empty = [label for label, images in zip(data.labels, per_class, strict=True) if not images]
    if empty:
        raise DataError(f"{name} show nothing of class {', '.join(empty)}: each class needs images; replace the files")


def _sha256(*splits: Split) -> str:
    """Over images and labels of each in turn."""
    digest = hashlib.sha256()
    for split in splits:
        for images in _chunks(split):
            digest.update(images.data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by channel. Sums of integers are exact, whatever the order and size of the chunks."""
    channels = split.array.shape[1]
    total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for images in _chunks(split):
        total += images.sum(axis=(0, 2, 3), dtype=np.int64)
        # The square of a byte fits 16 bits.
        squares += np.square(images, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)
    pixels = len(split) * math.prod(split.array.shape[2:])
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return tuple(mean.tolist()), tuple(std.tolist())


def _chunks(split: Split) -> Iterator[Images]:
    return split.batches(max(1, _CHUNK_BYTES // math.prod(split.array.shape[1:])))


def _split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """The rest, and a share of the images of each class, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(split))
    by_class = order[np.argsort(split.labels[order], kind="stable")]
    chosen = np.zeros(len(order), dtype=bool)
    count = round(fraction * len(order))
    chosen[by_class[(np.arange(count) * len(order)) // max(1, count)]] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))
