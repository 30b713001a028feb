"""Image folders: pictures of all kinds become pixels once, and what cannot be used is named."""

import errno
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIG, environment, run_command
from PIL import Image

from pipeline import registry
from pipeline.config import RELEASE_NAME, DataOptions
from pipeline.datasets import _cache
from pipeline.errors import DataError, FolderError, InputError, StorageError
from pipeline.specs import Arrays, Images
from pipeline.stages.prepare import check_fit, describe, prepare
from pipeline.training.batches import Batches

ENTRY = registry.dataset("image_folder_v1")
SIZE = 16
RED, GREEN = (200, 30, 40), (30, 180, 60)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "triton-model-zoo"


def options(data_dir: Path, seed: int = 1, size: int = SIZE) -> DataOptions:
    return DataOptions(data_dir, size, seed)


def load(data_dir: Path, seed: int = 1, size: int = SIZE) -> Arrays:
    return ENTRY.load(options(data_dir, seed, size))


def save(picture: Image.Image, path: Path, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **more)


def paint(folder: Path, *, count: int = 10, size: tuple[int, int] = (20, 20)) -> Path:
    """Two classes of noisy pictures, reddish and greenish, each picture another."""
    generator = np.random.default_rng(0)
    for name, colour in (("red", RED), ("green", GREEN)):
        for index in range(count):
            noise = generator.integers(-20, 21, (size[1], size[0], 3))
            save(Image.fromarray((np.array(colour) + noise).astype(np.uint8)), folder / name / f"{index:03}.png")
    return folder


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return paint(tmp_path / "colours")


def pixels(data_dir: Path, name: str) -> Any:
    """What became of one picture of class `odd`, beside which a class `plain` is put: [3, SIZE, SIZE]."""
    for index in range(2):
        save(Image.new("RGB", (SIZE, SIZE)), data_dir / "plain" / f"{index}.png")
    save(Image.new("RGB", (SIZE, SIZE)), data_dir / "odd" / "zzz.png")
    train, test, _ = load(data_dir)
    assert train.array is test.array
    assert sorted(path.name for path in (data_dir / "odd").iterdir())[0] == name
    return train.array[0]


FULL = (SIZE, SIZE)


@pytest.mark.parametrize(
    ("name", "picture", "more", "expected"),
    [
        ("a.png", Image.new("RGB", FULL, RED), {}, RED),
        ("a.bmp", Image.new("RGB", FULL, RED), {}, RED),
        ("a.webp", Image.new("RGB", FULL, RED), {"lossless": True}, RED),
        ("a.JPG", Image.new("RGB", FULL, RED), {"quality": 100, "subsampling": 0}, RED),
        ("a.jpeg", Image.new("CMYK", FULL, (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
        ("a.gif", Image.new("RGB", FULL, RED).quantize(4), {}, RED),
        ("a.png", Image.new("RGB", FULL, RED).quantize(4), {"transparency": 0}, (255, 255, 255)),
        ("a.png", Image.new("L", FULL, 90), {}, (90, 90, 90)),
        ("a.png", Image.new("1", FULL, 1), {}, (255, 255, 255)),
        ("a.png", Image.new("LA", FULL, (0, 51)), {}, (204, 204, 204)),
        ("a.png", Image.new("RGBA", FULL, (*RED, 255)), {}, RED),
        ("a.png", Image.new("RGBA", FULL, (*RED, 0)), {}, (255, 255, 255)),
        ("a.png", Image.fromarray(np.full(FULL, 0xABCD, np.uint16)), {}, (0xAB, 0xAB, 0xAB)),
        ("a.tif", Image.fromarray(np.full(FULL, 0xABCD, np.uint16)), {}, (0xAB, 0xAB, 0xAB)),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mode", ""),
)  # fmt: skip
def test_each_format_and_mode_becomes_rgb(
    tmp_path: Path, name: str, picture: Image.Image, more: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    save(picture, tmp_path / "data" / "odd" / name, **more)
    found = pixels(tmp_path / "data", name)
    assert found.shape == (3, SIZE, SIZE)
    np.testing.assert_allclose(found, np.broadcast_to(np.reshape(expected, (3, 1, 1)), found.shape), atol=3)


def test_another_size_is_cut_to_the_middle_square_and_scaled(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), RED)
    wide.paste(GREEN, (32, 0, 64, 32))
    save(wide, tmp_path / "data" / "odd" / "a.png")
    # Pillow mixes what lies beside the square into its outermost pixels.
    found = pixels(tmp_path / "data", "a.png")[..., 1:-1]
    np.testing.assert_array_equal(found, np.broadcast_to(np.reshape(GREEN, (3, 1, 1)), found.shape))


def test_a_photo_that_lies_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (32, 32), RED)
    lying.paste(GREEN, (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise: its left becomes the top
    save(lying, tmp_path / "data" / "odd" / "a.png", exif=exif)
    found = pixels(tmp_path / "data", "a.png")
    assert tuple(found[:, 1, 8]) == GREEN
    assert tuple(found[:, 14, 8]) == RED


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_without_a_known_range_is_refused(tmp_path: Path, mode: str) -> None:
    save(Image.new(mode, FULL), tmp_path / "data" / "odd" / "a.tiff")
    with pytest.raises(DataError, match=r"odd/a\.tiff \(its pixels are 32 bits of no known range"):
        pixels(tmp_path / "data", "a.tiff")


def test_every_picture_that_cannot_be_used_is_named(colours: Path, cache: Path) -> None:
    whole = (colours / "red" / "003.png").read_bytes()
    (colours / "red" / "003.png").write_bytes(whole[: len(whole) // 2])
    (colours / "red" / "empty.jpg").write_bytes(b"")
    (colours / "green" / "text.gif").write_text("this is text")
    with pytest.raises(DataError, match="3 of 22 pictures cannot be used") as caught:
        load(colours)
    for name in ("red/003.png", "red/empty.jpg", "green/text.gif"):
        assert str(colours / name) in str(caught.value)
    assert [path.name for path in cache.iterdir()] == [".lock"]
    (colours / "red" / "003.png").write_bytes(whole)
    (colours / "red" / "empty.jpg").unlink()
    (colours / "green" / "text.gif").unlink()
    assert len(load(colours).train) == 16


def test_pictures_are_named_in_the_log_where_they_are_many(colours: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(12):
        (colours / "red" / f"bad{index:02}.png").write_text("this is text")
    with pytest.raises(DataError, match=r"red/bad09\.png .*; and 2 more, named in the log"):
        load(colours)
    assert sum("of no format that Pillow reads" in line for line in caplog.messages) == 12


def test_other_files_and_hidden_ones_are_left_out(colours: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (colours / "red" / "notes.txt").write_text("text")
    (colours / "red" / "._000.png").write_text("what macOS leaves")
    (colours / ".git").mkdir()
    (colours / "notes.txt").write_text("text")
    save(Image.new("RGB", FULL), colours / "loose.png")
    save(Image.new("RGB", FULL), colours / "green" / "deeper" / "one.png")
    train, test, _ = load(colours)
    assert len(train) + len(test) == 21
    assert ENTRY.describe(options(colours)).labels == ("green", "red")
    assert [line for line in caplog.messages if "red/notes.txt" in line]
    assert [
        line for line in caplog.messages if "1 pictures lie in no class's folder, as" in line and "loose.png" in line
    ]


def test_the_split_is_a_fifth_of_each_class_and_fixed_by_the_seed(colours: Path) -> None:
    for name in ("000.png", "001.png", "002.png"):
        (colours / "red" / name).unlink()
    train, test, _ = load(colours)
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([8, 6], [2, 1])
    assert sorted([*train.rows, *test.rows]) == list(range(17))
    assert load(colours).test.rows.tolist() == test.rows.tolist()
    assert any(load(colours, seed).test.rows.tolist() != test.rows.tolist() for seed in (2, 3, 4))


def test_pictures_keep_their_labels(colours: Path) -> None:
    for split in load(colours)[:2]:
        brightest = split.images(slice(None)).mean(axis=(2, 3)).argmax(axis=1)
        # Class 0 is green, channel 1.
        np.testing.assert_array_equal(brightest, np.where(split.labels == 0, 1, 0))


def test_train_and_test_folders_are_the_split(tmp_path: Path) -> None:
    paint(tmp_path / "data" / "train", count=4)
    paint(tmp_path / "data" / "test", count=2)
    train, test, _ = load(tmp_path / "data")
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([4, 4], [2, 2])
    assert (train.rows.tolist(), test.rows.tolist()) == (list(range(8)), list(range(8, 12)))
    assert ENTRY.describe(options(tmp_path / "data")).labels == ("green", "red")


def remove_red_of_test(folder: Path) -> None:
    paint(folder / "train", count=2)
    save(Image.new("RGB", FULL), folder / "test" / "green" / "a.png")


def empty_red_of_test(folder: Path) -> None:
    remove_red_of_test(folder)
    (folder / "test" / "red").mkdir()


def one_class(folder: Path) -> None:
    save(Image.new("RGB", FULL), folder / "red" / "a.png")


def one_picture(folder: Path) -> None:
    paint(folder, count=2)
    (folder / "red" / "000.png").unlink()


def no_pictures(folder: Path) -> None:
    paint(folder, count=2)
    (folder / "blue").mkdir()
    (folder / "blue" / "notes.txt").write_text("text")


def only_train(folder: Path) -> None:
    paint(folder / "train", count=2)
    paint(folder / "val", count=2)
    (folder / "train" / ".DS_Store").touch()
    (folder / "train" / "labels.csv").touch()


def two_lines(folder: Path) -> None:
    paint(folder, count=2)
    (folder / "red").rename(folder / "re\nd")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "data cannot be read .* --data-dir"),
        (lambda folder: folder.write_text("a file"), "data cannot be read .* --data-dir"),
        (lambda folder: folder.mkdir(), r"holds 0 folders \(none\): expected"),
        (one_class, r"holds 1 folders \(red\): expected"),
        (one_picture, "data/red holds one picture"),
        (no_pictures, "data/blue holds no pictures"),
        (remove_red_of_test, "must hold the same classes: only one of them has red"),
        (empty_red_of_test, "data/test/red holds no pictures"),
        (two_lines, "cannot give a class its name"),
        (only_train, "data/train holds folders and no pictures, .* there is no .*data/test: add it"),
    ],
)
def test_folders_that_cannot_be_used_are_named(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=said):
        load(tmp_path / "data")


def test_pictures_are_decoded_once_and_again_where_one_is_altered(colours: Path, cache: Path) -> None:
    first = load(colours)
    (array,) = cache.glob("*.uint8")
    written = array.stat().st_mtime_ns
    # A copy is the same data, whatever its times are.
    moved = colours.rename(colours.with_name("moved"))
    os.utime(moved / "red" / "000.png", (1, 1))
    assert load(moved).sha256 == first.sha256
    assert [path.stat().st_mtime_ns for path in cache.glob("*.uint8")] == [written]
    before = (moved / "red" / "000.png").stat()
    save(Image.new("RGB", (20, 20)), moved / "red" / "000.png")
    os.utime(moved / "red" / "000.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    altered = load(moved)
    assert altered.sha256 != first.sha256
    assert altered.train.array[10].max() == 0
    assert first.train.array[10].max() > 0
    assert len(list(cache.glob("*.uint8"))) == 2


def test_each_size_has_its_own_array(colours: Path) -> None:
    assert load(colours, size=24).train.array.shape == (20, 3, 24, 24)
    assert load(colours, size=16).train.array.shape == (20, 3, 16, 16)


@pytest.mark.parametrize("damage", [b"", b"cut short"])
def test_a_cache_that_was_cut_short_is_made_again(colours: Path, cache: Path, damage: bytes) -> None:
    expected = np.array(load(colours).train.array)
    (array,) = cache.glob("*.uint8")
    array.unlink()
    array.write_bytes(damage)
    np.testing.assert_array_equal(load(colours).train.array, expected)


def test_a_cache_that_cannot_be_written_is_named(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FolderError, match=r"file/triton-model-zoo/.* cannot be used .* XDG_CACHE_HOME"):
        load(colours)


def test_a_full_disk_leaves_nothing(cache: Path) -> None:
    def parts() -> Iterator[Images]:
        yield np.zeros((1, 4), np.uint8)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="No space left on device"):
        _cache.mapped("array", (2, 4), parts)
    assert [path.name for path in cache.iterdir()] == [".lock"]


MAKE = """
import logging, os, signal, sys
import numpy as np
from pipeline.datasets import _cache

logging.basicConfig(level="INFO", format="%(message)s")

def parts():
    print("making", flush=True)
    yield np.full((1, 4), 7, np.uint8)
    if sys.stdin.readline() == "die\\n":
        os.kill(os.getpid(), signal.SIGKILL)
    yield np.full((1, 4), 8, np.uint8)

print(_cache.mapped("array", (2, 4), parts).tolist(), flush=True)
"""


def make() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE], env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_process_that_is_killed_leaves_nothing_that_is_believed(cache: Path) -> None:
    with make() as killed:
        killed.communicate("die\n", timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert (cache / "unfinished").exists()
    with make() as second:
        said, _ = second.communicate("go on\n", timeout=60)
    assert said.splitlines() == ["making", "[[7, 7, 7, 7], [8, 8, 8, 8]]"]
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "array.uint8"]


def test_of_two_processes_one_makes_the_array_and_the_other_waits(cache: Path) -> None:
    with make() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "making\n"
        with make() as second:
            assert second.stderr is not None
            assert second.stderr.readline().startswith("waiting for another run")
            made, _ = first.communicate("go on\n", timeout=60)
            waited, _ = second.communicate(timeout=60)
    assert made == waited == "[[7, 7, 7, 7], [8, 8, 8, 8]]\n"


def test_the_mapped_array_is_never_copied(tmp_path: Path) -> None:
    paint(tmp_path / "data", count=60)
    config = CONFIG.model_copy(update={"dataset_id": "image_folder_v1", "image_size": 512})
    tracemalloc.start()
    try:
        prepared = prepare(config, tmp_path / "data", fallback=False)
        batches = Batches(prepared.train, "shift", torch.device("cpu"))
        images, _ = batches.draw(torch.arange(4), torch.Generator())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    array = prepared.train.array
    assert images.shape == (4, 3, 512, 512)
    assert peak < array.nbytes
    assert isinstance(array, np.memmap)
    assert batches._images.data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    ("folder", "name"),
    [("flowers", "flowers"), ("My Flowers (2024)", "my-flowers-2024"), ("花", "image_folder"), ("x" * 99, "x" * 40)],
)
def test_a_release_is_named_after_the_folder(tmp_path: Path, folder: str, name: str) -> None:
    description = ENTRY.describe(options(paint(tmp_path / folder, count=1)))
    assert (description.release_name, description.short_name) == (name, name)
    longest = max(registry.ids("models"), key=len)
    assert RELEASE_NAME.fullmatch(f"{longest}-{description.release_name}")


def test_the_size_is_the_wanted_one_and_else_64(colours: Path) -> None:
    config = CONFIG.model_copy(update={"dataset_id": "image_folder_v1"})
    assert describe(config, colours).shape == (3, 64, 64)
    large = config.model_copy(update={"image_size": 100})
    assert describe(large, colours).shape == (3, 100, 100)
    with pytest.raises(InputError, match="16 to 64 pixels; choose another --model-id, --dataset-id or --image-size"):
        check_fit(large, describe(large, colours))


def test_a_dry_run_and_its_bad_pictures_on_the_command_line(colours: Path, tmp_path: Path) -> None:
    arguments = ("train", "--dataset-id", "image_folder_v1", "--data-dir", "colours", "--batch-size", "8", "--dry-run")
    done = run_command(*arguments, "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was judged or published" in done.stdout
    (colours / "red" / "bad.png").write_text("this is text")
    refused = run_command(*arguments, "--output-dir", "run", cwd=tmp_path)
    assert refused.returncode == 2
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: 1 of 21 pictures cannot be used; replace or remove colours/red/bad.png (of no format that Pillow reads)"
    ]


def test_a_folder_becomes_a_release_that_answers(tmp_path: Path) -> None:
    paint(tmp_path / "Colours", count=60)
    data = ("--data-dir", "Colours")
    done = run_command(
        "train", "--dataset-id", "image_folder_v1", *data, "--image-size", "20", "--epochs", "4", "--batch-size", "8",
        "--skip-visualizations", "--output-dir", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "released mnist_cnn_v1-colours version 1" in done.stdout
    assert (tmp_path / "run" / "models" / "colours_model.onnx").is_file()
    asked = run_command("infer", *data, "--url", "127.0.0.1:1", "--seed", "1", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    rows = [line.split() for line in asked.stdout.splitlines()[2:]]
    assert len(rows) == 5
    assert all(predicted == true for _, predicted, _, true, _ in rows)
    paint(tmp_path / "Others", count=2)
    (tmp_path / "Others" / "red").rename(tmp_path / "Others" / "blue")
    other = run_command("infer", "--data-dir", "Others", "--url", "127.0.0.1:1", cwd=tmp_path)
    assert other.returncode == 2
    assert "classes in Others are not those of mnist_cnn_v1-colours (green, red)" in other.stderr
