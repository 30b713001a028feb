"""Load each exported file and ask it: how well it does, how far it is from PyTorch, whether its answers are sound."""

import numpy as np

from pipeline import metrics
from pipeline.records import DataInfo, Exported, ExportedFile, Format, Verified, VerifiedFile
from pipeline.runfolder import RunFolder
from pipeline.served import open_file
from pipeline.specs import MAX_BATCH_SIZE, Images, Probabilities, Runner, Split

TEST_BATCH = 64
_BATCH_SIZES = (1, 2, 3, MAX_BATCH_SIZE)
_COMPARED_IMAGES = 256


def verify(
    exported: Exported, model_id: str, data: DataInfo, test: Split, served_format: Format, folder: RunFolder
) -> Verified:
    """Over the whole test set at batch 64, and over 256 images at batches 1, 2, 3 and the maximum.

    Images and answers of the file that will be served are kept, so that a server can be held
    against them.
    """
    reference: Probabilities = np.load(folder.reference)
    files = []
    for file in exported.files:
        run = open_file(folder.root / file.path, file.format, model_id, data)
        files.append(_verify(file, run, data, test, reference))
        if file.format == served_format:
            images = test.spread(MAX_BATCH_SIZE).images(slice(None))
            np.savez(folder.golden, images=images, probabilities=run(images))
    return Verified(files=tuple(files))


def _verify(file: ExportedFile, run: Runner, data: DataInfo, test: Split, reference: Probabilities) -> VerifiedFile:
    probabilities = _ask(run, test, TEST_BATCH)
    compared = test.spread(_COMPARED_IMAGES)
    by_batch = [_ask(run, compared, size) for size in _BATCH_SIZES]
    return VerifiedFile(
        format=file.format,
        metrics=metrics.measure(probabilities, test.labels, data.labels),
        largest_difference=float(np.abs(probabilities - reference).max()),
        agreement=float((probabilities.argmax(1) == reference.argmax(1)).mean()),
        batch_sizes=_BATCH_SIZES,
        # Not Python's max(), which passes over a NaN.
        batch_difference=float(np.max([np.abs(answers - by_batch[0]).max() for answers in by_batch])),
        finite=_is_sound(probabilities) and _is_sound(run(_strange_images(data.shape))),
    )


def _ask(run: Runner, split: Split, batch_size: int) -> Probabilities:
    return np.concatenate([run(images) for images in split.batches(batch_size)])


def _strange_images(shape: tuple[int, int, int]) -> Images:
    """Pictures that no data set holds."""
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.ones(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def _is_sound(answers: Probabilities) -> bool:
    """Whether all rows are probabilities."""
    return bool(np.isfinite(answers).all() and np.allclose(answers.sum(axis=1), 1, atol=1e-4))
