"""Data sets from real files: what is read is what was written, and every file that cannot be used is named."""

import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIG
from numpy.typing import NDArray
from torchvision import datasets as torchvision_datasets

from pipeline import registry
from pipeline.config import DataOptions
from pipeline.datasets import _idx
from pipeline.errors import DataError, DataUnavailableError, FolderError
from pipeline.stages.prepare import prepare

FETCHED = ("cifar10_v1", "emnist_balanced_v1", "fashion_mnist_v1", "kmnist_v1", "mnist_v1")
NOBODY = "http://127.0.0.1:1/"


def options(data_dir: Path, image_size: int | None = None, seed: int = 1) -> DataOptions:
    return DataOptions(data_dir, image_size, seed)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array: NDArray[Any]) -> bytes:
    header = np.array([2048 + array.ndim, *array.shape], dtype=">u4")
    return header.tobytes() + array.astype(np.uint8).tobytes()


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


Quarters = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def quarters(classes: int, shape: tuple[int, ...]) -> Quarters:
    """Images uint8 [classes, *shape] for training and their labels, for testing and theirs: each class once in both."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, classes, *shape), dtype=np.uint8)
    return images[0], generator.permutation(classes), images[1], generator.permutation(classes)


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not depend on whether this machine reaches the real ones."""
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        monkeypatch.setattr(getattr(torchvision_datasets, name), "mirrors", [NOBODY])
    for name in ("EMNIST", "CIFAR10"):
        monkeypatch.setattr(getattr(torchvision_datasets, name), "url", NOBODY)


class Written:
    """Small data sets in torchvision's layout, whose classes are told the sums of these files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = monkeypatch

    def kmnist(self, data: Quarters) -> None:
        files = {f"{name}.gz": gzip.compress(idx(array)) for name, array in zip(_idx.FILES, data, strict=True)}
        write(self.folder / "KMNIST" / "raw", files)
        sums = [(name, md5(content)) for name, content in files.items()]
        self._patch.setattr(torchvision_datasets.KMNIST, "resources", sums)

    def emnist(self, data: Quarters) -> None:
        names = [f"{half}-{kind}-ubyte" for half in ("train", "test") for kind in ("images-idx3", "labels-idx1")]
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for name, array in zip(names, data, strict=True):
                archive.writestr(f"gzip/emnist-balanced-{name}.gz", gzip.compress(idx(array)))
        write(self.folder / "EMNIST" / "raw", {"gzip.zip": content.getvalue()})
        self._patch.setattr(torchvision_datasets.EMNIST, "md5", md5(content.getvalue()))

    def cifar10(self, data: Quarters, *, packed: bool = False, first: object = None) -> None:
        """Two training batches and a test batch, in a folder or in an archive; `first` in place of the first one."""
        cifar, (images, labels, test_images, test_labels) = torchvision_datasets.CIFAR10, data
        batches = {
            "data_batch_1": first or cifar_batch(images[:4], labels[:4]),
            "data_batch_2": cifar_batch(images[4:], labels[4:]),
            "test_batch": cifar_batch(test_images, test_labels),
            "batches.meta": {"label_names": [str(label) for label in range(10)]},
        }
        files = {name: pickle.dumps(batch, protocol=2) for name, batch in batches.items()}
        sums = [[name, md5(content)] for name, content in files.items()]
        self._patch.setattr(cifar, "train_list", sums[:2])
        self._patch.setattr(cifar, "test_list", sums[2:3])
        self._patch.setattr(cifar, "meta", {**cifar.meta, "md5": sums[3][1]})
        if not packed:
            write(self.folder / cifar.base_folder, files)
            return
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for name in reversed(files):
                member = tarfile.TarInfo(f"{cifar.base_folder}/{name}")
                member.size = len(files[name])
                archive.addfile(member, io.BytesIO(files[name]))
        write(self.folder, {cifar.filename: content.getvalue()})
        self._patch.setattr(cifar, "tgz_md5", md5(content.getvalue()))


def cifar_batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, object]:
    return {"data": images.reshape(len(images), -1), "labels": labels.tolist()}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(tmp_path, monkeypatch)


def demand_equal(dataset_id: str, folder: Path, expected: Quarters) -> None:
    train, test, _ = registry.dataset(dataset_id).load(options(folder))
    found: Quarters = (train.images(slice(None)), train.labels, test.images(slice(None)), test.labels)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted.reshape(array.shape))
        assert array.dtype == wanted.dtype
    assert train.array.shape[1:] == registry.dataset(dataset_id).describe(options(folder)).shape


def test_kmnist_is_read_as_written(written: Written) -> None:
    data = quarters(10, (28, 28))
    written.kmnist(data)
    demand_equal("kmnist_v1", written.folder, data)


def test_emnist_is_read_upright(written: Written) -> None:
    images, labels, test_images, test_labels = quarters(47, (28, 28))
    written.emnist((images.transpose(0, 2, 1), labels, test_images.transpose(0, 2, 1), test_labels))
    demand_equal("emnist_balanced_v1", written.folder, (images, labels, test_images, test_labels))


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_is_read_from_its_folder_or_archive(written: Written, packed: bool) -> None:
    data = quarters(10, (3, 32, 32))
    written.cifar10(data, packed=packed)
    demand_equal("cifar10_v1", written.folder, data)


def test_cifar10_is_what_torchvision_reads(written: Written) -> None:
    written.cifar10(quarters(10, (3, 32, 32)))
    train = registry.dataset("cifar10_v1").load(options(written.folder)).train
    reference = torchvision_datasets.CIFAR10(str(written.folder))
    np.testing.assert_array_equal(train.images(slice(None)).transpose(0, 2, 3, 1), reference.data)
    assert train.labels.tolist() == reference.targets


def test_classes_are_those_of_torchvision() -> None:
    def labels(dataset_id: str) -> list[str]:
        return list(registry.dataset(dataset_id).describe(options(Path())).labels)

    assert labels("kmnist_v1") == torchvision_datasets.KMNIST.classes
    assert labels("emnist_balanced_v1") == torchvision_datasets.EMNIST.classes_split_dict["balanced"]


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> dict[str, str]:
    """Four files in MNIST's layout, the training ones gzipped; their SHA-256 sums by name."""
    contents = {name: idx(array) for name, array in zip(_idx.FILES, quarters(10, (28, 28)), strict=True)}
    packed = {f"{name}.gz": gzip.compress(content) for name, content in contents.items() if name.startswith("train")}
    plain = {name: content for name, content in contents.items() if not name.startswith("train")}
    write(tmp_path / "MNIST" / "raw", packed | plain)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, tiny_mnist: dict[str, str]) -> None:
    train, test, _ = _idx.load("MNIST", tmp_path, tiny_mnist, 10)
    images, labels, test_images, test_labels = quarters(10, (28, 28))
    np.testing.assert_array_equal(train.images(slice(None))[:, 0], images)
    np.testing.assert_array_equal(test.images(slice(None))[:, 0], test_images)
    assert (train.labels.tolist(), test.labels.tolist()) == (labels.tolist(), test_labels.tolist())


def flipped(content: bytes) -> bytes:
    return content[:20] + bytes([content[20] ^ 1]) + content[21:]


DAMAGES = pytest.mark.parametrize("damage", [lambda content: content[:-20], flipped], ids=["cut", "altered"])
Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"])
@DAMAGES
def test_a_damaged_idx_file_is_named(tmp_path: Path, tiny_mnist: dict[str, str], file: str, damage: Damage) -> None:
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=str(path)):
        _idx.load("MNIST", tmp_path, tiny_mnist, 10)


@pytest.mark.parametrize(
    ("dataset_id", "file"),
    [
        ("kmnist_v1", "KMNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("emnist_balanced_v1", "EMNIST/raw/gzip.zip"),
        ("cifar10_v1", "cifar-10-python.tar.gz"),
        ("cifar10_v1", "cifar-10-batches-py/data_batch_2"),
    ],
)
@DAMAGES
def test_a_damaged_file_is_named(written: Written, dataset_id: str, file: str, damage: Damage) -> None:
    written.kmnist(quarters(10, (28, 28)))
    written.emnist(quarters(47, (28, 28)))
    written.cifar10(quarters(10, (3, 32, 32)), packed=file.endswith(".gz"))
    path = written.folder / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} is cut off or altered"):
        registry.dataset(dataset_id).load(options(written.folder))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("packed", [False, True])
def test_a_foreign_pickle_is_never_run(written: Written, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = written.folder / "trace"
    written.cifar10(quarters(10, (3, 32, 32)), packed=packed, first=Touch(trace))
    # Even where the archive as a whole was taken for the right one.
    _, *others = torchvision_datasets.CIFAR10.train_list
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "train_list", [["data_batch_1", md5(b"the real one")], *others])
    with pytest.raises(DataError, match="data_batch_1 is cut off or altered"):
        registry.dataset("cifar10_v1").load(options(written.folder))
    assert not trace.exists()


def test_labels_that_do_not_fit_the_images_are_named(written: Written) -> None:
    images, labels, test_images, test_labels = quarters(10, (28, 28))
    written.kmnist((images, labels[:9], test_images, test_labels))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz holds 9 labels for 10 images"):
        registry.dataset("kmnist_v1").load(options(written.folder))
    written.kmnist((images, labels, test_images, test_labels + 1))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz holds labels from 1 to 10: expected 0 to 9"):
        registry.dataset("kmnist_v1").load(options(written.folder))
    pictures, _, _, _ = quarters(10, (3, 32, 32))
    written.cifar10((pictures, labels, pictures, np.full(10, 10)))
    with pytest.raises(DataError, match="test_batch holds labels from 10 to 10"):
        registry.dataset("cifar10_v1").load(options(written.folder))


def test_what_is_no_idx_file_is_named(written: Written) -> None:
    images, labels, test_images, _ = quarters(10, (28, 28))
    written.kmnist((images, labels, test_images, images))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is no whole IDX file of 1 dimensions"):
        registry.dataset("kmnist_v1").load(options(written.folder))


@pytest.mark.parametrize("dataset_id", FETCHED)
def test_what_is_missing_and_cannot_be_fetched_is_explained(dataset_id: str, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailableError) as caught:
        registry.dataset(dataset_id).load(options(tmp_path / "nothing"))
    for text in (f"is not in {tmp_path / 'nothing'}", NOBODY, "--data-dir", "digits_v1"):
        assert text in str(caught.value)
    assert not (tmp_path / "nothing").exists()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real server's address, and the folder that it serves. It says that files named cut_* are longer."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def send_header(self, keyword: str, value: str) -> None:
            longer = keyword == "Content-Length" and "/cut_" in self.path
            super().send_header(keyword, str(int(value) + 9) if longer else value)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", folder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_first_mirror_that_has_the_right_file_is_taken(
    written: Written, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = mirror
    data = quarters(10, (28, 28))
    written.kmnist(data)
    raw = written.folder / "KMNIST" / "raw"
    write(folder / "other", {name: b"other content" for name, _ in torchvision_datasets.KMNIST.resources})
    raw.rename(folder / "right")
    mirrors = [NOBODY, f"{url}missing/", f"{url}other/", f"{url}right/"]
    monkeypatch.setattr(torchvision_datasets.KMNIST, "mirrors", mirrors)
    demand_equal("kmnist_v1", written.folder, data)
    assert {path.name for path in raw.iterdir()} == {f"{name}.gz" for name in _idx.FILES}


def test_a_transfer_that_is_cut_or_other_content_leaves_nothing(
    written: Written, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = mirror
    write(folder, {"cut_short.zip": b"the first bytes", "other.zip": b"other content"})
    for name, said in (("cut_short.zip", "15 of 24 bytes arrived"), ("other.zip", "sent content of MD5")):
        monkeypatch.setattr(torchvision_datasets.EMNIST, "url", url + name)
        with pytest.raises(DataUnavailableError, match=said):
            registry.dataset("emnist_balanced_v1").load(options(written.folder))
        assert [path for path in (written.folder / "EMNIST").rglob("*") if path.is_file()] == []


def test_a_page_in_place_of_a_file_is_not_kept(
    tmp_path: Path, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = mirror
    write(folder, {f"{name}.gz": b"<html>Please sign in</html>" for name in _idx.FILES})
    monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", [url])
    with pytest.raises(DataUnavailableError, match="sent content of MD5"):
        registry.dataset("mnist_v1").load(options(tmp_path / "data"))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents] == []


def test_a_folder_that_cannot_be_written_is_named(
    written: Written, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = mirror
    write(folder, {"gzip.zip": b"content"})
    write(written.folder, {"EMNIST": b"a file where a folder should be"})
    monkeypatch.setattr(torchvision_datasets.EMNIST, "url", f"{url}gzip.zip")
    with pytest.raises(FolderError, match=r"gzip\.zip cannot be written .* --data-dir"):
        registry.dataset("emnist_balanced_v1").load(options(written.folder))


def test_a_class_without_images_is_named(written: Written) -> None:
    images, labels, test_images, test_labels = quarters(10, (28, 28))
    written.kmnist((images, np.where(labels == 3, 4, labels), test_images, test_labels))
    config = CONFIG.model_copy(update={"dataset_id": "kmnist_v1", "batch_size": 1})
    with pytest.raises(DataError, match="the training images of kmnist_v1 show nothing of class tsu"):
        prepare(config, written.folder, fallback=False)


def test_statistics_and_hash_are_those_of_the_whole_arrays() -> None:
    info = prepare(CONFIG, Path(), fallback=False).info
    train, test, _ = registry.dataset("digits_v1").load(options(Path()))
    arrays = (train.images(slice(None)), train.labels, test.images(slice(None)), test.labels)
    assert info.sha256 == hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    assert info.mean == pytest.approx(arrays[0].mean(axis=(0, 2, 3)))
    assert info.std == pytest.approx(arrays[0].std(axis=(0, 2, 3)))
