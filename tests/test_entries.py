"""Every entry of the zoo, found by walking its folder: it keeps its promise, in each format, at each batch size."""

from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch

from pipeline import registry
from pipeline.config import DataOptions
from pipeline.errors import UnknownIdError
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
    with pytest.raises(UnknownIdError, match=r"known: .*digits_v1"):
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
    arrays = registry.dataset("digits_v1").load(DataOptions(Path(), None, 1))
    assert (arrays.train.array.shape, arrays.test.array.shape) == ((1437, 1, 28, 28), (360, 1, 28, 28))
    assert set(np.bincount(arrays.test.labels)) <= {35, 36, 37}
    assert arrays.train.array.max() == 255
