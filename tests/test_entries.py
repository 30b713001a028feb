"""Every entry of the zoo, found by walking its folder: it keeps its promise, in each format, at each batch size."""

import gzip
import hashlib
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch

from pipeline import registry
from pipeline.datasets import _idx
from pipeline.errors import DataError, DataUnavailableError, UnknownIdError
from pipeline.records import DataInfo
from pipeline.served import build_served
from pipeline.specs import INPUT, OUTPUT

DATA = DataInfo(
    dataset_id="digits_v1",
    short_name="digits",
    title="",
    source="",
    license="",
    shape=(1, 28, 28),
    labels=tuple("0123456789"),
    train_images=0,
    validation_images=0,
    test_images=0,
    test_images_per_class=(),
    sha256="",
    mean=(30.0,),
    std=(70.0,),
    fallback=False,
)


@pytest.mark.parametrize("folder", get_args(registry.Folder))
def test_no_folder_is_empty(folder: registry.Folder) -> None:
    assert registry.ids(folder)


@pytest.mark.parametrize("given", ["../../x", "/etc/passwd", "_idx", "__init__", ""])
def test_what_is_no_id_is_never_opened(given: str) -> None:
    with pytest.raises(UnknownIdError, match="known: digits_v1"):
        registry.dataset(given)


@pytest.mark.parametrize("model_id", registry.ids("models"))
def test_each_model_answers_alike_in_each_format_at_each_batch_size(model_id: str, tmp_path: Path) -> None:
    accepts = registry.model(model_id).accepts
    assert accepts((7, 500, 500), 10) is not None
    shape = next(shape for shape in ((1, 28, 28), (3, 32, 32)) if accepts(shape, 10) is None)
    channels = shape[0]
    data = DATA.model_copy(update={"shape": shape, "mean": (30.0,) * channels, "std": (70.0,) * channels})
    served = build_served(model_id, data).eval()
    images = np.random.default_rng(0).integers(0, 256, (128, *shape), dtype=np.uint8)
    with torch.inference_mode():
        expected = served(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)
    for format_id in registry.ids("formats"):
        entry = registry.file_format(format_id)
        path = tmp_path / f"model{entry.SUFFIX}"
        entry.export(served, torch.zeros((2, *shape), dtype=torch.uint8), path)
        run = entry.open(path, partial(build_served, model_id, data))
        for size in (1, 2, 3, 128):
            np.testing.assert_allclose(run(images[:size]), expected[:size], atol=1e-5)


def test_the_onnx_file_suits_the_oldest_server_and_names_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    served = build_served("mnist_cnn_v1", DATA).eval()
    details = registry.file_format("onnx").export(served, torch.zeros((2, 1, 28, 28), dtype=torch.uint8), path)
    model = onnx.load_model(path)
    opset = max(entry.version for entry in model.opset_import)
    assert model.ir_version <= 10
    assert opset <= 20
    assert (details["ir_version"], details["opset"]) == (model.ir_version, opset)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [INPUT, OUTPUT]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_digits_are_split_alike_by_class() -> None:
    arrays = registry.dataset("digits_v1").load(Path())
    assert (arrays.train.images.shape, arrays.test.images.shape) == ((1437, 1, 28, 28), (360, 1, 28, 28))
    assert set(np.bincount(arrays.test.labels)) <= {35, 36, 37}
    assert arrays.train.images.max() == 255


def idx(array: np.ndarray) -> bytes:
    header = np.array([2048 + array.ndim, *array.shape], dtype=">u4")
    return header.tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_folder(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A tiny data set in MNIST's layout, half of it gzipped, and its hashes."""
    folder = tmp_path / "Tiny" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    contents = {
        "train-images-idx3-ubyte": idx(generator.integers(0, 256, (6, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(6)),
        "t10k-images-idx3-ubyte": idx(generator.integers(0, 256, (4, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.arange(4)),
    }
    for name, content in contents.items():
        if name.startswith("train"):
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return tmp_path, {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_idx_files_are_read_plain_and_gzipped(idx_folder: tuple[Path, dict[str, str]]) -> None:
    arrays = _idx.load("Tiny", idx_folder[0], idx_folder[1], "MNIST")
    assert (arrays.train.images.shape, arrays.test.images.shape) == ((6, 1, 28, 28), (4, 1, 28, 28))
    assert arrays.test.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_cut_or_altered_file_is_named(idx_folder: tuple[Path, dict[str, str]], file: str, cut: bool) -> None:
    path = idx_folder[0] / "Tiny" / "raw" / file
    content = path.read_bytes()
    path.write_bytes(content[:-20] if cut else content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(DataError, match=file):
        _idx.load("Tiny", idx_folder[0], idx_folder[1], "MNIST")


def test_missing_files_that_cannot_be_fetched_are_explained(
    idx_folder: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str) -> bytes:
        raise OSError("no network")

    # A test must not depend on whether this machine reaches the mirrors.
    monkeypatch.setattr(_idx, "_download", no_network)
    (idx_folder[0] / "Tiny" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataUnavailableError, match="--data-dir"):
        _idx.load("Tiny", idx_folder[0], idx_folder[1], "MNIST")
