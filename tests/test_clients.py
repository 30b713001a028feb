"""One release under one server: what bin/evaluate measures, bin/infer makes of files, and doc/Clients.md promises."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import NAME, ROOT, Workplace, environment, run_command
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image, ImageOps

from pipeline import evaluation, inference, predictors
from pipeline.config import RunConfig
from pipeline.errors import DataError, InputError, ServerError
from pipeline.options import Named
from pipeline.pictures import pixels
from pipeline.records import DataInfo, EvalResults, Evaluated, Metrics
from pipeline.runfolder import RunFolder
from pipeline.triton import client, model_config, repository
from pipeline.triton.file_store import FileStore
from pipeline.triton.server import Server, ServerOptions, running

BLOCK = re.compile(r"```(bash|python)\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)
SNIPPETS = BLOCK.findall((ROOT / "doc" / "Clients.md").read_text(encoding="utf-8"))
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server(released: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves the release; the same without labels; and a model with tensors of other names."""
    root = tmp_path_factory.mktemp("server") / "models"
    shutil.copytree(released.repository, root)
    shutil.copytree(root / NAME, root / "unlabelled")
    config = model_config.read(root / NAME / "config.pbtxt")
    config.name = "unlabelled"
    config.output[0].label_filename = ""
    (root / "unlabelled" / "config.pbtxt").write_text(model_config.to_text(config))
    add_doubling(root / "doubling")
    options = ServerOptions(
        repository=root,
        log_file=root.with_suffix(".log"),
        control="explicit",
        exit_on_error=True,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        load=(NAME, "unlabelled", "doubling"),
    )
    with running(options) as started:
        started.wait_live(time.monotonic() + 120)
        yield started


def add_doubling(folder: Path) -> None:
    """A model that is no classifier: two floats in, the double of each out."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", values[:1], values[1:])
    (folder / "1").mkdir(parents=True)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save_model(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(
        'backend: "onnxruntime" max_batch_size: 8 instance_group { count: 1 kind: KIND_CPU } '
        'input { name: "x" data_type: TYPE_FP32 dims: 2 } output { name: "y" data_type: TYPE_FP32 dims: 2 }'
    )


@pytest.fixture(scope="module")
def recorded(released: Workplace) -> Metrics:
    """Of the served file, as release.json has them."""
    release = repository.release(FileStore(released.repository), NAME, 1)
    return next(file.metrics for file in release.verified.files if file.format == release.gated.served_format)


def evaluate(
    root: Path,
    *,
    target: Named | None = None,
    run: Path | None = None,
    checkpoint: Path | None = None,
    url: str | None = None,
    dataset_id: str | None = None,
) -> EvalResults:
    return evaluation.evaluate(
        FileStore(root),
        target=target,
        run=run,
        checkpoint=checkpoint,
        url=url,
        dataset_id=dataset_id,
        data_dir=Path("unused"),
        seed=None,
    )


def assert_as_recorded(results: EvalResults, recorded: Metrics) -> None:
    assert results.model == NAME
    assert results.images == recorded.images == 360
    assert results.accuracy == recorded.accuracy
    assert results.test_loss == pytest.approx(recorded.loss, rel=1e-6)
    assert results.per_class_accuracy == {entry.label: entry.recall for entry in recorded.per_class}


def test_a_released_version_is_measured_as_its_release_says(released: Workplace, recorded: Metrics) -> None:
    file = released.repository / NAME / "1" / "model.onnx"
    for target in (None, Named(NAME, None), Named(NAME, 1)):
        results = evaluate(released.repository, target=target)
        assert_as_recorded(results, recorded)
        assert (results.version, results.answered_by) == (1, str(file))
    release = repository.release(FileStore(released.repository), NAME, 1)
    assert (results.file_sha256, results.data_sha256) == (release.hashes["model.onnx"], release.data.sha256)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_is_measured_as_the_release_says(
    released: Workplace, server: Server, recorded: Metrics, protocol: str, tmp_path: Path
) -> None:
    url = f"{protocol}://{server.http_url if protocol == 'http' else server.grpc_url}"
    here = evaluate(released.repository, url=url)
    assert_as_recorded(here, recorded)
    assert (here.version, here.answered_by, here.file_sha256) == (1, f"the server at {url}", None)
    # Elsewhere nothing is known of the release.
    assert evaluate(tmp_path, target=Named(NAME, None), url=url, dataset_id="digits_v1") == here
    unlabelled = evaluate(tmp_path, target=Named("unlabelled", None), url=url, dataset_id="digits_v1")
    assert unlabelled.per_class_accuracy == here.per_class_accuracy
    with pytest.raises(InputError, match="name its test set by --dataset-id"):
        evaluate(tmp_path, target=Named(NAME, None), url=url)


def test_one_connection_serves_the_whole_test_set(
    released: Workplace, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = [], []
    connected, classify = client.connected, client.Connection.classify

    def connecting(url: str) -> AbstractContextManager[client.Connection]:
        made.append(url)
        return connected(url)

    def counted(connection: client.Connection, model: str, images: NDArray[np.uint8], version: int) -> object:
        asked.append(len(images))
        return classify(connection, model, images, version)

    monkeypatch.setattr(client, "connected", connecting)
    monkeypatch.setattr(client.Connection, "classify", counted)
    evaluate(released.repository, url=server.http_url)
    assert (made, asked) == ([server.http_url], [128, 128, 104])


def test_a_run_is_measured_by_its_served_file_or_else_by_its_checkpoint(
    released: Workplace, recorded: Metrics, tmp_path: Path
) -> None:
    exported = evaluate(tmp_path, run=released.run)
    assert_as_recorded(exported, recorded)
    assert (exported.version, exported.answered_by) == (None, str(released.run / "models" / "digits_model.onnx"))
    shutil.copytree(released.run, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    config = RunConfig.load(folder.record("config"))
    config.model_copy(update={"served_format": "torchscript"}).save(folder.record("config"))
    script = evaluate(tmp_path, run=folder.root)
    assert_as_recorded(script, recorded)
    assert script.answered_by == str(folder.root / "models" / "digits_model.pt")
    folder.record("exported").unlink()
    network = evaluate(tmp_path, run=folder.root)
    assert_as_recorded(network, Evaluated.load(folder.record("evaluated")).metrics)
    assert network.answered_by == str(folder.checkpoint)
    elsewhere = folder.checkpoint.rename(tmp_path / "network.pt")
    config.model_copy(update={"checkpoint": elsewhere}).save(folder.record("config"))
    assert evaluate(tmp_path, run=folder.root) == network.model_copy(update={"answered_by": str(elsewhere)})
    elsewhere.unlink()
    with pytest.raises(InputError, match="nothing was exported: run bin/train without --no-save-model"):
        evaluate(tmp_path, run=folder.root)


def test_other_data_than_those_of_the_training_are_named(
    released: Workplace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(released.run, tmp_path / "run")
    evaluate(tmp_path, run=tmp_path / "run")
    assert "other data" not in caplog.text
    path = RunFolder(tmp_path / "run").record("data")
    DataInfo.load(path).model_copy(update={"sha256": "0" * 64}).save(path)
    evaluate(tmp_path, run=tmp_path / "run")
    assert f"these are other data than {NAME} was trained and measured on" in caplog.text


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_measured_are_the_bytes_that_were_verified(
    released: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read once: another file may lie there at a second time."""
    read, paths = FileStore.read, []

    def noted(store: FileStore, path: str) -> bytes:
        paths.append(path)
        return read(store, path)

    monkeypatch.setattr(FileStore, "read", noted)
    predictors.of_release(FileStore(released.repository), NAME, 1)
    assert [paths.count(f"{NAME}/1/{file}") for file in ("model.onnx", "release.json")] == [1, 1]


def test_what_was_altered_is_not_measured(released: Workplace, tmp_path: Path) -> None:
    shutil.copytree(released.folder, tmp_path / "copy")
    copy = Workplace(tmp_path / "copy", "")
    for file in (copy.repository / NAME / "1" / "model.onnx", copy.run / "models" / "digits_model.onnx"):
        flip_a_byte(file)
    with pytest.raises(InputError, match=r"model.onnx is not as it was released"):
        evaluate(copy.repository)
    with pytest.raises(InputError, match=r"digits_model.onnx is not as it was exported"):
        evaluate(copy.repository, run=copy.run)


def test_a_release_without_the_file_that_it_names_is_not_measured(released: Workplace, tmp_path: Path) -> None:
    root = shutil.copytree(released.repository, tmp_path / "models")
    (root / "history.jsonl").unlink()  # which has the hash of release.json
    (root / NAME / "1" / "model.onnx").unlink()
    path = root / NAME / "1" / "release.json"
    content = json.loads(path.read_bytes())
    del content["hashes"]["model.onnx"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 has no model\.onnx, which its release\.json says is served"):
        evaluate(root)


def test_what_cannot_be_measured_is_said(released: Workplace, server: Server, tmp_path: Path) -> None:
    root, url = released.repository, server.http_url
    for named, message in (
        ({"target": Named("nope", None)}, f"nope is not in {root}: known: {NAME}"),
        ({"target": Named(NAME, 7)}, f"{NAME} has no version 7: known: 1"),
        ({"dataset_id": "cifar10_v1"}, "name another --dataset-id"),
        ({"dataset_id": "emnist_balanced_v1"}, "in 10 classes, and emnist_balanced_v1 has"),
        ({"dataset_id": "fashion_mnist_v1"}, "are not those of"),
        ({"run": tmp_path / "nope"}, "give --run the output folder"),
        ({"url": "https://here:8000"}, "is no server's address: expected host:port"),
        ({"url": url, "target": Named("doubling", None)}, "expected image UINT8 [N, C, H, W]"),
        ({"url": "8000"}, "is no server's address"),
        ({"url": "here:port"}, "is no server's address"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            evaluate(root, **named)
    for target, address in (
        ((NAME, None), NOBODY),
        ((NAME, None), f"grpc://{NOBODY}"),
        (("nope", None), url),
        ((NAME, 7), url),
    ):
        with pytest.raises(ServerError):
            evaluate(root, target=Named(*target), url=address, dataset_id="digits_v1")


@pytest.fixture(scope="module")
def digit(released: Workplace) -> tuple[Image.Image, int]:
    """A test image, enlarged, and its class."""
    with np.load(released.repository / NAME / "1" / "golden.npz") as golden:
        image, answer = golden["images"][0, 0], int(golden["probabilities"][0].argmax())
    return Image.fromarray(image).resize((600, 600), Image.Resampling.BICUBIC), answer


def paint(folder: Path, digit: Image.Image) -> dict[str, Path]:
    """The same digit as files of many kinds; those whose names begin with `dark` are dark on light."""
    wide = Image.new("L", (1000, 600))
    wide.paste(digit, (200, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # turn right to see it upright
    alpha = digit.convert("RGBA")
    alpha.putalpha(digit)
    pictures = {
        "light.png": digit,
        "wide.png": wide,
        "small.png": digit.resize((28, 28), Image.Resampling.BOX),
        "palette.gif": digit.convert("P"),
        "dark.png": ImageOps.invert(digit),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    Image.fromarray(np.asarray(digit).astype(np.uint16) * 257).save(folder / "deep.png")
    digit.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=turned, quality=95)
    black = Image.new("RGBA", digit.size, "black")
    black.putalpha(digit)
    black.save(folder / "dark transparent.png")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_files_of_many_kinds_are_answered_alike(
    released: Workplace, server: Server, digit: tuple[Image.Image, int], tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    files = paint(tmp_path / "pictures", digit[0])
    results = tmp_path / "results"
    dark = [path for name, path in files.items() if name.startswith("dark")]
    light = [path for path in files.values() if path not in dark]
    for chosen, invert in ((light, False), (dark, True)):
        text = inference.infer_files(
            FileStore(released.repository), chosen, results, name=None, url=server.http_url, invert=invert
        )
        rows = [line.split() for line in text.splitlines()[2:]]
        assert [row[1] for row in rows] == [str(digit[1])] * len(chosen), text
        assert "note" not in text
        # Those of the call before are gone.
        drawn = {f"predicted_{digit[1]}_{n}.png" for n in range(len(chosen))}
        assert {path.name for path in results.iterdir()} == drawn
    text = inference.infer_files(
        FileStore(released.repository), [*dark, light[0]], results, name=None, url=NOBODY, invert=False
    )
    assert "model.onnx, as no server serves it at" in text
    assert text.splitlines()[-1] == (
        f"note: mostly light, where the training images are mostly dark: {', '.join(map(str, dark))}; "
        "--invert exchanges light and dark"
    )


def test_a_client_needs_no_repository_for_its_files(
    server: Server, digit: tuple[Image.Image, int], tmp_path: Path
) -> None:
    digit[0].save(tmp_path / "digit.png")
    files = [tmp_path / "digit.png"]
    for name in (NAME, "unlabelled"):
        url = f"grpc://{server.grpc_url}"
        text = inference.infer_files(FileStore(tmp_path / "nope"), files, tmp_path, name=name, url=url, invert=False)
        assert text.splitlines()[-1].split()[:2] == ["0", str(digit[1])]
    with pytest.raises(ServerError, match="start bin/serve"):
        inference.infer_files(
            FileStore(tmp_path / "nope"), files, tmp_path, name=NAME, url=f"grpc://{NOBODY}", invert=False
        )


def test_files_that_are_no_pictures_are_all_named(
    released: Workplace, server: Server, digit: tuple[Image.Image, int], tmp_path: Path
) -> None:
    good, text, short, bomb = (tmp_path / name for name in ("good.jpg", "text.png", "short.jpg", "bomb.png"))
    digit[0].save(good)
    text.write_text("this is text")
    short.write_bytes(good.read_bytes()[:2000])
    Image.new("1", (10_000, 10_000)).save(bomb)
    files = [good, text, short, bomb, tmp_path / "none.png", tmp_path]
    with pytest.raises(DataError, match="5 of 6 files cannot be used") as raised:
        inference.infer_files(
            FileStore(released.repository), files, tmp_path, name=None, url=server.http_url, invert=False
        )
    for said in (
        f"{text} (of no format that Pillow reads)",
        f"{short} (image file is truncated",
        f"{bomb} (Image size (100000000 pixels) exceeds limit",
        f"{tmp_path / 'none.png'} (No such file or directory)",
        f"{tmp_path} (Is a directory)",
    ):
        assert said in str(raised.value)
    assert not list(tmp_path.glob("predicted*"))


def test_files_become_what_their_network_takes(digit: tuple[Image.Image, int], tmp_path: Path) -> None:
    """Grey from colours by luma (ITU-R 601-2), colours from grey by repetition; not only squares."""
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "colour.png")
    with (tmp_path / "colour.png").open("rb") as file:
        grey = pixels(file, (1, 6, 8))
        colours = pixels(file, (3, 6, 8))
    assert (grey.shape, colours.shape) == ((1, 6, 8), (3, 6, 8))
    assert (grey == (200 * 299 + 100 * 587 + 50 * 114) // 1000).all()
    assert (colours == np.array([200, 100, 50]).reshape(3, 1, 1)).all()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("evaluate", "--run", "run", "--url", NOBODY), "--run and --url name two things"),
        (("infer", "a.png", "--count", "3"), "leave them out where FILE is given"),
        (("infer", "--invert"), "--invert is for pictures"),
    ],
)
def test_flags_that_do_not_go_together(typed: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run_command(*typed, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def masked(text: str) -> list[str]:
    """Lines without their figures, which differ from release to release, and without repetition."""
    lines = [" ".join(re.sub(r"\d+\.?\d*(e[+-]\d+)?", "0", line).split()) for line in text.strip().splitlines()]
    return list(dict.fromkeys(lines))


def test_the_guide_for_clients_prints_what_it_says(
    released: Workplace, server: Server, digit: tuple[Image.Image, int], tmp_path: Path
) -> None:
    shutil.copytree(released.repository, tmp_path / "model_repository")
    digit[0].save(tmp_path / "scan.png")
    ImageOps.invert(digit[0]).convert("RGB").save(tmp_path / "photo.jpg")
    real = {"8000": server.http_url, "8001": server.grpc_url, "8002": server.metrics_url}
    assert len(SNIPPETS) > 12
    for language, code, printed in SNIPPETS:
        ported = re.sub(r"127\.0\.0\.1:(800[012])", lambda found: real[found[1]], code)
        ported = re.sub(r"\bbin/(\w+)", lambda found: command(found[1]), ported)
        done = subprocess.run(
            ["bash", "-c", ported] if language == "bash" else [sys.executable, "-c", ported],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (code, done.stderr)
        assert masked(done.stdout) == masked(printed), code
    assert EvalResults.load(tmp_path / "eval_results.json").images == 360
    assert (tmp_path / "results" / f"predicted_{digit[1]}_0.png").is_file()


def command(name: str) -> str:
    """`bin/NAME` in this very environment."""
    return sys.executable if name == "python" else f"{sys.executable} -m pipeline {name}"
