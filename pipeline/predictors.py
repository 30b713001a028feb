"""What answers images with probabilities: a run's network, a released version's file, a server; and its test images."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import registry
from pipeline.config import DataOptions, RunConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.records import DataInfo, Exported
from pipeline.runfolder import RunFolder
from pipeline.served import build_served, open_file
from pipeline.specs import Images, Probabilities, Runner, Split
from pipeline.stages.prepare import load, prepare
from pipeline.stages.verify import TEST_BATCH
from pipeline.training import checkpoint
from pipeline.training.loop import trained_weights
from pipeline.triton import client, repository
from pipeline.triton.store import Store


class Origin(NamedTuple):
    """What a network was trained with and on."""

    config: TrainConfig
    data: DataInfo


@dataclass(frozen=True)
class Predictor:
    """`ask` takes uint8 [N, *shape], N up to `batch_size`, and returns float32 [N, K].

    `answered_by` is a path, or "the server at" an address. What a server does not tell is None: its labels where it has
    none, its file and its origin.
    """

    name: str
    version: int | None
    answered_by: str
    file_sha256: str | None
    shape: tuple[int, int, int]
    classes: int
    labels: tuple[str, ...] | None
    batch_size: int
    ask: Runner
    origin: Origin | None

    def predict(self, images: Images) -> Probabilities:
        """For any number of images."""
        starts = range(0, len(images), self.batch_size)
        return np.concatenate([self.ask(images[start : start + self.batch_size]) for start in starts])


class TestSet(NamedTuple):
    """The test images of a data set. `sha256` is over all of its images."""

    dataset_id: str
    split: Split
    labels: tuple[str, ...]
    sha256: str


def of_run(run: Path) -> Predictor:
    """The exported file that would be served, else the weights in the checkpoint; on the CPU.

    InputError where the folder holds neither, or a file that was altered.
    """
    if not run.is_dir():
        raise InputError(f"{run} is not a folder: give --run the output folder of a bin/train run")
    folder = RunFolder(run)
    config = RunConfig.load(folder.record("config"))
    data = DataInfo.load(folder.record("data"))
    if folder.record("exported").exists():
        files = Exported.load(folder.record("exported")).files
        file = next(file for file in files if file.format == config.judged_format)
        path = folder.root / file.path
        if not path.exists() or _sha256(path) != file.sha256:
            raise InputError(f"{path} is not as it was exported: run the same bin/train command again")
        ask = open_file(path, file.format, config.train.model_id, data)
    else:
        path = config.checkpoint or folder.checkpoint
        ask = _checkpoint(path, config.train, data)
    return _of_file(config.release_name, None, str(path), _sha256(path), Origin(config.train, data), ask)


def of_checkpoint(path: Path, data_dir: Path) -> Predictor:
    """The weights that a training has come to, on the CPU; its data tells what the network takes a pixel for.

    CheckpointError where the file is missing or damaged; InputError where other data lies in `data_dir`.
    """
    config, data_sha256 = checkpoint.origin(path)
    data = prepare(config, data_dir, fallback=False).info
    if data.sha256 != data_sha256:
        raise InputError(f"{path} was trained on other data than lies in {data_dir}: name its folder by --data-dir")
    name = f"{config.model_id}-{config.dataset_id}"
    return _of_file(name, None, str(path), _sha256(path), Origin(config, data), _checkpoint(path, config, data))


def of_release(store: Store, name: str, version: int) -> Predictor:
    """The file of a version that Triton loads, here on the CPU. InputError where any of the version's was altered."""
    files = dict(repository.verified_files(store, name, version))
    where = f"{store.location}/{name}/{version}"
    release = repository.Release.parse(files[repository.RELEASE], f"{where}/{repository.RELEASE}")
    served_format = release.gated.served_format
    path = repository.MODEL_FILES[served_format]
    if path not in files:
        raise InputError(f"{where} has no {path}, which its release.json says is served: publish the model again")
    content = files[path]
    # Both runtimes have read all of it when they have opened it.
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        ask = open_file(Path(file.name), served_format, release.config.train.model_id, release.data)
    trained = Origin(release.config.train, release.data)
    return _of_file(name, version, f"{where}/{path}", repository.sha256(content), trained, ask)


def origin(store: Store, name: str, version: int) -> Origin:
    """Of a version in a repository."""
    release = repository.release(store, name, version)
    return Origin(release.config.train, release.data)


def local_origin(store: Store, name: str, version: int | None) -> Origin | None:
    """Of that version, or of the live one; None where it is not released in the repository."""
    if name not in repository.names(store):
        return None
    version = version or repository.find(store, name)
    return origin(store, name, version) if version in repository.versions(store, name) else None


@contextmanager
def of_server(url: str, name: str, version: int | None = None) -> Iterator[Predictor]:
    """A server's model, asked over one connection; its newest version where none is named.

    ServerError where no server answers for it; InputError where the address or the model's tensors are others.
    """
    with client.connected(url) as connection:
        model = connection.describe(name, version)

        def ask(images: Images) -> Probabilities:
            # Always the same version, whatever goes live meanwhile.
            return connection.classify(name, images, model.version)

        blank = np.zeros((1, *model.shape), np.uint8)
        (ranked,) = connection.ranked(name, blank, model.classes, model.version)
        labels = tuple(label for _, label in sorted(ranked))
        yield Predictor(
            name=name,
            version=model.version,
            answered_by=f"the server at {url}",
            file_sha256=None,
            shape=model.shape,
            labels=labels if all(labels) else None,
            classes=model.classes,
            batch_size=model.max_batch_size,
            ask=ask,
            origin=None,
        )


def load_test_set(predictor: Predictor, dataset_id: str, data_dir: Path, seed: int) -> TestSet:
    """InputError where its images or labels are not those of the predictor.

    `seed`: of the run that was trained on it, as by that an image folder's test images were set apart.
    """
    options = DataOptions(data_dir, image_size=predictor.shape[1], seed=seed)
    data = registry.dataset(dataset_id).describe(options)
    if data.shape != predictor.shape or len(data.labels) != predictor.classes:
        raise InputError(
            f"{predictor.name} takes images of (channels, height, width) {predictor.shape} in {predictor.classes} "
            f"classes, and {dataset_id} has {data.shape} in {len(data.labels)}: name another --dataset-id"
        )
    if predictor.labels not in (None, data.labels):
        raise InputError(
            f"the classes in {data_dir} are not those of {predictor.name} ({', '.join(predictor.labels or ())}): name "
            "the folder of its data by --data-dir"
        )
    _, test, sha256 = load(dataset_id, options, data)
    return TestSet(dataset_id, test, data.labels, sha256)


def _of_file(name: str, version: int | None, path: str, sha256: str, origin: Origin, ask: Runner) -> Predictor:
    data = origin.data
    return Predictor(
        name=name,
        version=version,
        answered_by=path,
        file_sha256=sha256,
        shape=data.shape,
        labels=data.labels,
        classes=len(data.labels),
        # As the release was measured.
        batch_size=TEST_BATCH,
        ask=ask,
        origin=origin,
    )


def _checkpoint(path: Path, config: TrainConfig, data: DataInfo) -> Runner:
    weights = trained_weights(path, checkpoint.identity_of(config, data))
    if weights is None:
        raise InputError(f"{path} is missing and nothing was exported: run bin/train without --no-save-model")
    served = build_served(config.model_id, data).eval()
    served.network.load_state_dict(weights)

    @torch.inference_mode()
    def ask(images: Images) -> Probabilities:
        probabilities: Probabilities = served(torch.from_numpy(images)).numpy()
        return probabilities

    return ask


def _sha256(path: Path) -> str:
    return repository.sha256(path.read_bytes())
