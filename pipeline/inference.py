"""Classify some test images by a running server or by the released file, and draw the answers."""

import logging
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import registry
from pipeline.errors import FolderError, InputError, ServerError
from pipeline.specs import Images, Probabilities, Split
from pipeline.triton import client, repository
from pipeline.triton.repository import Release
from pipeline.triton.store import Store

_log = logging.getLogger(__name__)

_SCALE = 8  # a 28x28 image is hard to see


def infer(
    store: Store, data_dir: Path, results: Path, *, name: str | None, url: str, count: int, seed: int | None
) -> str:
    """A table of the answers to `count` random test images; one `predicted_<class>_<index>.png` for each.

    InputError where nothing is released under the name, or the data has other classes.
    """
    name = name or repository.newest(store)
    version = repository.live_version(store, name)
    if version is None:
        raise repository.unknown_name(store, name)
    released = repository.release(store, name, version)
    test = _test_images(released, data_dir)
    chosen = np.random.default_rng(seed).choice(len(test), size=min(count, len(test)), replace=False)
    images = test.images(chosen)
    probabilities, answered_by = _ask(store, name, version, url, images)
    labels = released.data.labels
    lines = [f"{name} version {version}, {answered_by}", f"{'index':>6}  {'predicted':<16} {'probability':>11}  true"]
    for index, image, row in zip(chosen.tolist(), images, probabilities, strict=True):
        best = int(row.argmax())
        path = results / f"predicted_{best}_{index}.png"
        _draw(image, path)
        right = labels[int(test.labels[index])]
        lines.append(f"{index:6d}  {labels[best]:<16} {row[best]:11.2%}  {right:<12} {path}")
    return "\n".join(lines)


def _test_images(released: Release, data_dir: Path) -> Split:
    """With the seed of the released run: by it an image folder's test images were set apart."""
    options, entry = released.config.train.data_options(data_dir), registry.dataset(released.data.dataset_id)
    if entry.describe(options).labels != released.data.labels:
        raise InputError(
            f"the classes in {data_dir} are not those of {released.name} ({', '.join(released.data.labels)}): name the "
            "folder of its data by --data-dir"
        )
    return entry.load(options).test


def _ask(store: Store, name: str, version: int, url: str, images: Images) -> tuple[Probabilities, str]:
    try:
        return client.classify_http(url, name, images), f"answered by the server at {url}"
    except ServerError as error:
        _log.debug("no server: %s", error)
    repository.verify_version(store, name, version)
    path = f"{name}/{version}/model.onnx"
    with tempfile.NamedTemporaryFile() as file:
        try:
            file.write(store.read(path))
        except FileNotFoundError:
            raise InputError(
                f"{store.location}/{path} is missing and no server answers at {url}: start bin/serve, then ask again"
            ) from None
        file.flush()
        run = registry.file_format("onnx").open(Path(file.name), lambda: None)  # type: ignore[arg-type,return-value]
    return run(images), f"answered by {store.location}/{path}, as no server serves it at {url}"


def _draw(image: Images, path: Path) -> None:
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    picture = Image.fromarray(pixels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST).save(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}): name another --results-dir") from None
