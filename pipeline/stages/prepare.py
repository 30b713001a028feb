"""Load a data set, set validation images aside, and describe what was found."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pipeline import registry
from pipeline.config import TrainConfig
from pipeline.errors import DataError, InputError
from pipeline.records import DataInfo
from pipeline.specs import Images, Prepared, Split


def shape_of(config: TrainConfig) -> tuple[int, int, int]:
    """Channels, height and width of the images that the network will get."""
    channels, height, width = registry.dataset(config.dataset_id).SHAPE
    return (channels, config.image_size or height, config.image_size or width)


def check_fit(config: TrainConfig) -> None:
    """InputError where model, data set and losses do not go together; nothing is read for it."""
    shape, classes = shape_of(config), len(registry.dataset(config.dataset_id).LABELS)
    needs = registry.model(config.model_id).accepts(shape, classes)
    if needs is not None:
        raise InputError(
            f"{config.model_id} cannot take {config.dataset_id} (channels, height, width {shape}, {classes} classes): "
            f"it needs {needs}; choose another --model-id, --dataset-id or --image-size"
        )
    with torch.device("meta"):
        network = registry.model(config.model_id).build(shape, classes)
    for criterion in config.criteria:
        needs = registry.loss(criterion.loss_id).accepts(network)
        if needs is not None:
            raise InputError(
                f"--criterion-id {criterion.loss_id} has no meaning for {config.model_id}: it needs {needs}; "
                "choose another --criterion-id or --model-id"
            )


def prepare(config: TrainConfig, data_dir: Path, *, fallback: bool) -> Prepared:
    """All images in memory as uint8 [N, C, H, W]; validation images are drawn from the training images by the seed."""
    entry = registry.dataset(config.dataset_id)
    arrays = entry.load(data_dir)
    train, test = arrays.train, arrays.test
    digest = hashlib.sha256()
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(np.ascontiguousarray(array).data)
    shape = shape_of(config)
    if shape != entry.SHAPE:
        train, test = (Split(_resized(split.images, shape[1:]), split.labels) for split in (train, test))
    pixels = train.images.astype(np.float32)
    mean, std = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))
    kept, validation = _split(train, config.validation_fraction, config.seed)
    if config.batch_size > len(kept.labels):
        raise DataError(
            f"--batch-size {config.batch_size} is more than the {len(kept.labels)} training images of "
            f"{config.dataset_id}: choose a smaller one"
        )
    info = DataInfo(
        dataset_id=config.dataset_id,
        short_name=entry.SHORT_NAME,
        title=entry.TITLE,
        source=entry.SOURCE,
        license=entry.LICENSE,
        shape=shape,
        labels=entry.LABELS,
        train_images=len(kept.labels),
        validation_images=len(validation.labels),
        test_images=len(test.labels),
        test_images_per_class=tuple(np.bincount(test.labels, minlength=len(entry.LABELS)).tolist()),
        sha256=digest.hexdigest(),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        fallback=fallback,
    )
    return Prepared(info, kept, validation, test)


def _split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """The rest, and a share of the images of each class, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(split.labels))
    by_class = order[np.argsort(split.labels[order], kind="stable")]
    chosen = np.zeros(len(order), dtype=bool)
    count = round(fraction * len(order))
    chosen[by_class[(np.arange(count) * len(order)) // max(1, count)]] = True
    return (
        Split(split.images[~chosen], split.labels[~chosen]),
        Split(split.images[chosen], split.labels[chosen]),
    )


def _resized(images: Images, size: tuple[int, int]) -> Images:
    tensor = torch.from_numpy(images)
    resized: Images = functional.interpolate(tensor, size, mode="bilinear", antialias=True).numpy()
    return resized
