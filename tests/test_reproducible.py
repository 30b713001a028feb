"""With SOURCE_DATE_EPOCH the same commit, seed and machine make the same release, byte for byte, in another folder."""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import NAME, ROOT, run_command, start_command
from test_signing import signatories, write_key

from pipeline.publication import publish_run
from pipeline.runfolder import RunFolder
from pipeline.triton import repository, transfer
from pipeline.triton.file_store import FileStore

# Seconds since 1970 of 2023-11-14 22:13:20 UTC.
EPOCH = "1700000000"


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two copies of the code, each with a run, and its release in a repository."""
    top = tmp_path_factory.mktemp("checkouts")
    private, _ = write_key(top, "release")
    folders = [top / "one", top / "another" / "one"]

    def release(folder: Path) -> tuple[str, int]:
        shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        # Which precision is the fastest would be measured.
        flags = (
            "--dataset-id digits_v1 --max-steps 10 --precision fp32 --min-test-accuracy 0 --min-per-class-accuracy 0"
        )
        places = ("--output-dir", "run", "--checkpoint", str(folder / "weights.pt"), "--sign-key", str(private))
        # A process of its own takes the code from where it is started.
        process = start_command("train", *flags.split(), *places, cwd=folder, temporary=folder)
        return process.communicate()[0], process.returncode

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        for output, status in pool.map(release, folders):
            assert status == 0, output
        yield folders


def version(checkout: Path) -> dict[str, bytes]:
    folder = checkout / "model_repository" / NAME / "1"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unsigned_tar(checkout: Path, root: Path) -> bytes:
    store = FileStore(root)
    publish_run(RunFolder(checkout / "run"), store)
    transfer.export(store, NAME, 1, root.with_suffix(".tar"))
    return root.with_suffix(".tar").read_bytes()


def test_two_runs_make_the_same_tar_file(checkouts: list[Path], tmp_path: Path) -> None:
    one, other = map(version, checkouts)
    assert {"model.onnx", "model.pt", "model.pth", "golden.npz", "model_card/plots/training_loss.png"} < one.keys()
    assert one.keys() == other.keys()
    assert [path for path in one if one[path] != other[path]] == ["model.sig"]  # it has a random number
    assert json.loads(one["release.json"])["created"] == "2023-11-14T22:13:20+00:00"
    for checkout, files in zip(checkouts, (one, other), strict=True):
        assert [path for path, content in files.items() if str(checkout).encode() in content] == []
    assert unsigned_tar(checkouts[0], tmp_path / "one") == unsigned_tar(checkouts[1], tmp_path / "other")
    shown = run_command("zoo", "show", f"{NAME}:1", "--model-repository", "one", cwd=tmp_path)
    assert re.search(r"inference time +- +<= 50", shown.stdout)


def test_one_run_makes_the_same_tar_file_wherever_it_is_released(
    checkouts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = checkouts[0] / "run"
    moved = shutil.copytree(run, tmp_path / "moved" / "run")
    for number, folder in enumerate((run, moved)):
        store = FileStore(tmp_path / f"models-{number}")
        publish_run(RunFolder(folder), store)
        transfer.export(store, NAME, 1, tmp_path / f"{number}.tar")
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()

    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    store = FileStore(tmp_path / "models-1")
    publish_run(RunFolder(moved), store)
    dated, undated = (repository.release(store, NAME, number) for number in (1, 2))
    assert dated.created != undated.created
    assert dated.trained.seconds is None
    assert undated.trained.seconds
    assert dated == undated.without_times().model_copy(update={"created": dated.created})


def test_bin_train_signs_what_it_publishes(checkouts: list[Path]) -> None:
    for checkout in checkouts:
        store = FileStore(checkout / "model_repository")
        signatories(checkouts[0].parent / "release.pub").demand_signed(store, NAME, 1)
        # The key's place is nobody's business.
        assert b"release.key" not in store.read(f"{NAME}/1/release.json")
