"""Classify pictures by a running server or by the released file, and draw what was asked."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import predictors
from pipeline.config import TrainConfig
from pipeline.errors import DataError, FolderError, ServerError
from pipeline.pictures import pixels
from pipeline.predictors import Origin, Predictor
from pipeline.specs import Images
from pipeline.triton import repository
from pipeline.triton.store import Store

_log = logging.getLogger(__name__)

_SCALE = 8  # a 28x28 image is hard to see
_MIDDLE = 127.5  # between black and white
_PICTURE = re.compile(r"predicted_\d+_\d+\.png")


def infer_test_images(
    store: Store, data_dir: Path, results: Path, *, name: str | None, url: str, count: int, seed: int | None
) -> str:
    """A table of the answers to `count` random test images; one `predicted_<class>_<index>.png` for each.

    InputError where nothing is released under the name, or the data has other classes.
    """
    name = name or repository.newest(store)
    origin = predictors.origin(store, name, repository.find(store, name))
    with _predictor(store, name, url) as predictor:
        return _infer_test_images(predictor, origin.config, data_dir, results, count, seed)


def infer_by_checkpoint(checkpoint: Path, data_dir: Path, results: Path, *, count: int, seed: int | None) -> str:
    """The same of the network in a checkpoint of a training, as `predictors.of_checkpoint` has it."""
    predictor = predictors.of_checkpoint(checkpoint, data_dir)
    assert predictor.origin is not None
    return _infer_test_images(predictor, predictor.origin.config, data_dir, results, count, seed)


def infer_files(store: Store, files: Sequence[Path], results: Path, *, name: str | None, url: str, invert: bool) -> str:
    """A table of the answers to picture files of any size; `predicted_<class>_<place in the list>.png` for each.

    They become pixels as those of an image folder do; `invert` then exchanges light and dark. Where a server answers,
    nothing need be released here. DataError names all files that cannot be used.
    """
    name = name or repository.newest(store)
    with _predictor(store, name, url) as predictor:
        images = _decoded(files, predictor.shape)
        images = 255 - images if invert else images
        lines = _answers(predictor, images, range(len(files)), results, "file", list(map(str, files)))
        return "\n".join(
            [*lines, *_notes(files, images, predictor.origin or predictors.local_origin(store, name, None))]
        )


def _infer_test_images(
    predictor: Predictor, config: TrainConfig, data_dir: Path, results: Path, count: int, seed: int | None
) -> str:
    # With the seed of the training: by it an image folder's test images were set apart.
    test = predictors.load_test_set(predictor, config.dataset_id, data_dir, config.seed)
    chosen = np.random.default_rng(seed).choice(len(test.split), size=min(count, len(test.split)), replace=False)
    right = [test.labels[label] for label in test.split.labels[chosen]]
    return "\n".join(_answers(predictor, test.split.images(chosen), chosen.tolist(), results, "true", right))


@contextmanager
def _predictor(store: Store, name: str, url: str) -> Iterator[Predictor]:
    """The server, or the released file where no server answers for it."""
    with ExitStack() as stack:
        try:
            predictor = stack.enter_context(predictors.of_server(url, name))
        except ServerError as error:
            if name not in repository.names(store):
                raise
            _log.debug("no server: %s", error)
            predictor = predictors.of_release(store, name, repository.find(store, name))
            predictor = replace(predictor, answered_by=f"{predictor.answered_by}, as no server serves it at {url}")
        yield predictor


def _answers(
    predictor: Predictor, images: Images, indices: Sequence[int], results: Path, heading: str, column: Sequence[str]
) -> list[str]:
    """A line for each image, with its value of a further column, under two lines of heading; draws each.

    The pictures take the place of those that an earlier call has left.
    """
    labels = predictor.labels or tuple(map(str, range(predictor.classes)))
    version = "" if predictor.version is None else f" version {predictor.version}"
    lines = [
        f"{predictor.name}{version}, answered by {predictor.answered_by}",
        f"{'index':>6}  {'predicted':<16} {'probability':>11}  {heading}",
    ]
    answers = predictor.predict(images)
    _remove_pictures(results)
    for index, image, row, value in zip(indices, images, answers, column, strict=True):
        best = int(row.argmax())
        path = results / f"predicted_{best}_{index}.png"
        _draw(image, path)
        lines.append(f"{index:6d}  {labels[best]:<16} {row[best]:11.2%}  {value:<12} {path}")
    return lines


def _decoded(files: Sequence[Path], shape: tuple[int, int, int]) -> Images:
    """uint8 [N, *shape]."""
    images, bad = [], []
    for path in files:
        try:
            # Of a picture that would fill the memory Pillow only warns, up to twice its limit.
            with (
                path.open("rb") as file,
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            ):
                images.append(pixels(file, shape))
        except OSError as error:
            bad.append(f"{path} ({error.strerror})")
        except DataError as error:
            bad.append(f"{path} ({error})")
    if bad:
        raise DataError(f"{len(bad)} of {len(files)} files cannot be used; replace or leave out {'; '.join(bad)}")
    return np.stack(images)


def _notes(files: Sequence[Path], images: Images, origin: Origin | None) -> list[str]:
    """On grey pictures that are light where the training images were dark, or dark where those were light."""
    if origin is None or images.shape[1] > 1:
        return []
    light = np.mean(origin.data.mean) > _MIDDLE
    other = [str(file) for file, image in zip(files, images, strict=True) if (image.mean() > _MIDDLE) != light]
    if not other:
        return []
    usual, found = ("light", "dark") if light else ("dark", "light")
    return [
        f"note: mostly {found}, where the training images are mostly {usual}: {', '.join(other)}; "
        "--invert exchanges light and dark"
    ]


def _remove_pictures(results: Path) -> None:
    try:
        for path in results.glob("predicted_*.png"):
            if _PICTURE.fullmatch(path.name):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(
            f"{error.filename} cannot be removed ({error.strerror}): name another --results-dir"
        ) from None


def _draw(image: Images, path: Path) -> None:
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    picture = Image.fromarray(pixels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST).save(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}): name another --results-dir") from None
