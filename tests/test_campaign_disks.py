"""Repositories on disks that are full, read-only or gone: a clear error or success, never damage.

The disks are real mounts, which need root; without it these tests say so and are skipped.
"""

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import NAME, Workplace, run_command
from publishers import DONE, STORAGE_ERROR, count_steps, disturb, fork
from test_repository import tree

from pipeline import publication
from pipeline.errors import StorageError, ZooError
from pipeline.runfolder import RunFolder
from pipeline.triton import history, repository, switching, verification
from pipeline.triton.file_store import FileStore

DETACH = 2  # of umount2: at once, though files in it are open


@contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[None]:
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        unmount(at)


def unmount(at: Path) -> None:
    """Nothing happens where nothing is mounted."""
    ctypes.CDLL(None).umount2(os.fsencode(at), DETACH)


def publish(run: Path, root: Path) -> int:
    return publication.publish_run(RunFolder(run), FileStore(root)).version


def assert_sound(root: Path, live: int) -> None:
    store = FileStore(root)
    assert repository.live_version(store, NAME) == live
    assert verification.verify(store).problems == ()
    assert history.open_intents(store.events()) == []
    assert {path.name for path in root.iterdir()} == {".lock", "history.jsonl", NAME}


@pytest.mark.parametrize("place", ["a folder of the disk", "the disk itself"])
def test_a_full_disk_refuses_a_version_and_keeps_the_others(
    released: Workplace, tmp_path: Path, campaign: bool, place: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    root = disk if place == "the disk itself" else disk / "models"
    needed = sum(path.stat().st_size for path in released.run.glob("candidate/*/1/**/*") if path.is_file())
    refused, count = 0, 60 if campaign else 5
    with mounted(disk, "-t", "tmpfs", "-o", "size=100m", "tmpfs"):
        live = publish(released.run, root)
        for number in range(count):
            space(disk, 2 * needed * number / count)
            try:
                live = publish(released.run, root)
            except StorageError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                assert "nothing went live" in str(error)  # noqa: PT017
                refused += 1
            else:
                assert number, "nothing fits where there is no space"
            assert repository.live_version(FileStore(root), NAME) == live
            assert verification.verify(FileStore(root)).problems == ()
            space(disk, 3 * needed)
            live = publish(released.run, root)
            assert_sound(root, live)
            switching.prune(FileStore(root), NAME, 2)
        assert 0 < refused < count
        space(disk, 0)
        done = run_command("zoo", "rollback", NAME, "--model-repository", str(root), cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (4, 1)
        assert_sound(root, live)
    print(f"{place}: {count} times almost full, refused {refused} times")


def space(disk: Path, size: float) -> None:
    """Leave so many bytes on a tmpfs, and some of its pages."""
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={used + int(size)}", disk], check=True)


def test_a_read_only_repository_is_read_and_not_written(released: Workplace, tmp_path: Path) -> None:
    root = tmp_path / "zoo" / "models"
    root.parent.mkdir()
    for _ in range(2):
        live = publish(released.run, root)
    before = tree(root.parent)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command("zoo", *arguments, "--model-repository", str(root), cwd=tmp_path)

    with mounted(root, "--bind", "-o", "ro", str(root)):
        with pytest.raises(StorageError, match=r"Read-only file system.*nothing went live"):
            publish(released.run, root)
        refused = run("rollback", NAME)
        assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
        assert "Read-only file system" in refused.stderr
        assert NAME in run("list").stdout
        assert run("verify").returncode == 0
        assert tree(root.parent) == before
    assert publish(released.run, root) == live + 1
    assert_sound(root, live + 1)


def test_a_disk_that_vanishes_at_any_step_harms_nothing(released: Workplace, tmp_path: Path, campaign: bool) -> None:
    disk, root = tmp_path / "disk", tmp_path / "zoo" / "models"
    disk.mkdir()
    root.mkdir(parents=True)
    with mounted(root, "--bind", str(disk)):
        live = publish(released.run, root)
        steps = count_steps(lambda: publish(released.run, root))
    live = publish(released.run, disk)
    refused = 0
    chosen = range(1, steps + 1) if campaign else random.Random(1).sample(range(1, steps + 1), 3)
    for step in chosen:
        with mounted(root, "--bind", str(disk)):

            def vanish(step: int = step) -> int:
                disturb(step, lambda: unmount(root))
                try:
                    publish(released.run, root)
                except ZooError:
                    return STORAGE_ERROR
                return DONE

            status = os.waitstatus_to_exitcode(os.waitpid(fork(vanish), 0)[1])
        assert status in (DONE, STORAGE_ERROR), f"status {status} at step {step}"
        refused += status == STORAGE_ERROR
        assert repository.live_version(FileStore(disk), NAME) in (live, live + 1)
        assert verification.verify(FileStore(disk)).problems == ()
        # What came into the folder under the mount instead would be served if the disk stayed away.
        assert verification.verify(FileStore(root)).problems == (), f"at step {step}"
        for left in root.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        with mounted(root, "--bind", str(disk)):
            live = publish(released.run, root)
            assert_sound(root, live)
        switching.prune(FileStore(disk), NAME, 2)
    print(f"vanished at {len(chosen)} steps, {refused} times an error")
