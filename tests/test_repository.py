"""The model repository on real files: what a reader may see, and what a killed publisher leaves.

The versions are synthetic (a "model" of random bytes); their config.pbtxt and release.json are made by
the product's own code. No server runs here.
"""

import errno
import functools
import json
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
from publishers import DONE, NOT_REACHED, STORAGE_ERROR, die, disturb, fork, have_no_space

from pipeline.config import Criterion, GateConfig, RunConfig, TrainConfig
from pipeline.errors import FolderError, GateError, InputError, SignatureError, StorageError, VerdictError
from pipeline.publication import publish_run
from pipeline.records import (
    Assembled,
    BatchSeries,
    Benchmarked,
    Check,
    CodeInfo,
    DataInfo,
    Evaluated,
    Exported,
    Gate,
    Gated,
    Metrics,
    Published,
    Record,
    Trained,
    Validated,
    Verified,
)
from pipeline.runfolder import RunFolder
from pipeline.triton import history, model_config, publishing, repository, storage, switching
from pipeline.triton.file_store import FileStore

NAME = "digits"
SHAPE = (1, 4, 4)
LABELS = ("zero", "one", "T-shirt/top")


def make_source(folder: Path, labels: tuple[str, ...] = LABELS, shape: tuple[int, int, int] = SHAPE) -> Path:
    """A complete version, as the stage before publishing leaves it."""
    (folder / "plots").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(os.urandom(2000))
    (folder / "plots" / "loss.svg").write_bytes(os.urandom(100))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    config = model_config.build(name=NAME, backend="onnxruntime", shape=shape, classes=len(labels), max_batch_size=128)
    config.ClearField("model_warmup")  # only long to parse, and these tests parse a thousand times
    (folder / "config.pbtxt").write_text(model_config.to_text(config), encoding="utf-8")
    return folder


def release_json(source: Path, labels: tuple[str, ...] = LABELS) -> bytes:
    return _release(labels).model_copy(update={"hashes": repository.hashes(source)}).model_dump_json().encode()


@functools.cache
def _release(labels: tuple[str, ...]) -> repository.Release:
    """The smallest release record; only its hashes matter here."""
    gates = GateConfig(
        min_test_accuracy=0.9, min_per_class_accuracy=0.8, max_model_size_mb=1.0, max_inference_time_ms=1.0
    )
    train = TrainConfig(
        model_id="m",
        dataset_id="d",
        image_size=None,
        criteria=(Criterion(loss_id="nll"),),
        optimizer_id="sgd",
        scheduler_id="none",
        epochs=1,
        batch_size=1,
        learning_rate=0.1,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        momentum=0.0,
        gamma=0.1,
        label_smoothing=0.0,
        gradient_clip_norm=0.0,
        augmentation="none",
        validation_fraction=0.0,
        early_stopping_patience=0,
        seed=1,
    )
    config = RunConfig(
        train=train,
        gates=gates,
        default_gates=gates,
        data_dir=Path("data"),
        output_dir=Path("output"),
        model_repository="repository",
        release_name=NAME,
        devices=("cpu",),
        export_formats=("onnx",),
        served_format="onnx",
        test_batch_size=1,
        log_interval=1,
        visualizations=False,
        export=True,
        publish=True,
        dry_run=False,
        save_model=True,
        resume=False,
        dataset_fallback=False,
        sources={},
    )
    data = DataInfo(
        dataset_id="d",
        short_name="d",
        title="D",
        source="here",
        license="none",
        shape=SHAPE,
        labels=labels,
        train_images=1,
        validation_images=0,
        test_images=1,
        test_images_per_class=(1,) * len(labels),
        sha256="0",
        mean=(0.0,),
        std=(1.0,),
        fallback=False,
    )
    trained = Trained(
        model_id="m",
        parameters=1,
        layers=(),
        device="cpu",
        epochs=(),
        stopped_early=False,
        best_epoch=None,
        batches=BatchSeries(epoch=(), loss=(), accuracy=(), learning_rate=(), gradient_norm=()),
        images_seen=1,
        seconds=1.0,
        weights_sha256="0",
    )
    return repository.Release(
        name=NAME,
        created="2026-01-01T00:00:00+00:00",
        config=config,
        code=CodeInfo(revision=None, modified=False, python="3", platform="linux", cpu="cpu", threads=1, libraries={}),
        data=data,
        trained=trained,
        evaluated=Evaluated(metrics=Metrics(images=1, loss=0.1, accuracy=1.0, per_class=(), confusion=()), seconds=1.0),
        exported=Exported(files=()),
        verified=Verified(files=()),
        benchmarked=Benchmarked(files=()),
        gated=Gated(served_format="onnx", gates=()),
        validated=Validated(
            name=NAME, version=1, server="Triton", seconds_to_load=1.0, checks=(), log_tail=(), hashes={}
        ),
        hashes={},
    )


class Candidate:
    """A complete version and its release.json."""

    def __init__(self, folder: Path) -> None:
        self.source = make_source(folder)
        self.release_json = release_json(self.source)

    def publish(self, root: Path, name: str = NAME) -> tuple[int, int | None]:
        """The new version and the one that was live before."""
        published = publishing.publish_version(FileStore(root), name, self.source, self.release_json)
        assert published.live
        return published.version, published.previous


def roll_back(root: Path) -> tuple[int | None, int]:
    """The versions that were live before and after."""
    event = switching.rollback(FileStore(root), NAME)
    return event.previous, event.version


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    return Candidate(tmp_path / "candidate")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The repository's folder, not made yet; alone in its parent, where the staging folder goes."""
    (tmp_path / "zoo").mkdir()
    return tmp_path / "zoo" / "models"


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that lies below a folder, byte for byte; None for a folder. The lock file is no content."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def assert_live_is_complete(root: Path, version: int | None) -> None:
    """The live version is this one, whole, and under its own config."""
    assert repository.live_version(FileStore(root), NAME) == version
    assert repository.names(FileStore(root)) == ([] if version is None else [NAME])
    if version is not None:
        repository.verify_version(FileStore(root), NAME, version)
        live = (root / NAME / "config.pbtxt").read_text(encoding="utf-8")
        assert live == repository.pointing_config(repository.own_config(FileStore(root), NAME, version), version)


def assert_clean(root: Path) -> None:
    """Nothing of a publisher that was killed is left, and history says what became of each intent."""
    events = FileStore(root).events()
    assert history.open_intents(events) == []
    assert {path.name for path in root.parent.iterdir()} == {root.name}
    assert {path.name for path in root.iterdir()} - {".lock"} == {"history.jsonl", NAME}
    published = {event.version for event in events if event.state == "done" and event.action == "publish"}
    assert repository.versions(FileStore(root), NAME) == sorted(published)
    assert {path.name for path in (root / NAME).iterdir()} == {"config.pbtxt", *map(str, published)}
    for version in published:
        repository.verify_version(FileStore(root), NAME, version)


# Publishing


def test_first_publish_makes_the_name_live(root: Path, candidate: Candidate) -> None:
    assert repository.names(FileStore(root)) == []
    assert repository.live_version(FileStore(root), NAME) is None
    assert candidate.publish(root) == (1, None)
    assert_live_is_complete(root, 1)
    assert_clean(root)
    assert repository.release(FileStore(root), NAME, 1).name == NAME
    assert (root / NAME / "1" / "release.json").read_bytes() == candidate.release_json
    assert repository.hashes(candidate.source).items() <= repository.hashes(root / NAME / "1").items()
    assert [event.state for event in FileStore(root).events()] == ["intent", "done"]
    assert 'label_filename: "1/labels.txt"' in (root / NAME / "config.pbtxt").read_text(encoding="utf-8")


def test_second_publish_becomes_version_2_and_leaves_version_1_alone(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    first = tree(root / NAME / "1")
    assert candidate.publish(root) == (2, 1)
    assert_live_is_complete(root, 2)
    assert_clean(root)
    assert repository.versions(FileStore(root), NAME) == [1, 2]
    assert tree(root / NAME / "1") == first


@pytest.mark.parametrize("crossing", [False, True])
def test_published_files_are_readable_by_the_servers_user(root: Path, candidate: Candidate, crossing: bool) -> None:
    top, root = root, root / "of a team" / "models"
    (candidate.source / "model.onnx").chmod(0o600)
    (candidate.source / "plots").chmod(0o700)
    previous = os.umask(0o077)
    try:
        with other_file_system() if crossing else nullcontext():
            candidate.publish(root)
            candidate.publish(root)
    finally:
        os.umask(previous)
    files = {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert files == {0o644}
    assert {path.stat().st_mode & 0o777 for path in [top, *top.rglob("*/")]} == {0o755}


def test_a_reader_never_sees_a_name_without_its_config_and_complete_version(root: Path, candidate: Candidate) -> None:
    expected = {*repository.hashes(candidate.source), "release.json"}
    wrong: list[str] = []
    seen = threading.Event()
    stop = threading.Event()
    watching = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if (root / NAME).exists():
                if not (root / NAME / "config.pbtxt").exists():
                    wrong.append("no config.pbtxt")
                elif repository.hashes(root / NAME / "1").keys() != expected:
                    wrong.append("an incomplete version")
                seen.set()
            for path in root.glob("*/"):
                if path.name != NAME:
                    wrong.append(f"another folder, {path.name}")
            watching.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert watching.wait(10)
        candidate.publish(root)
        assert seen.wait(10)
    finally:
        stop.set()
        watcher.join()
    assert wrong == []


def test_names_do_not_disturb_each_other(root: Path, candidate: Candidate) -> None:
    candidate.publish(root, "b")
    candidate.publish(root, "a")
    assert candidate.publish(root, "b") == (2, 1)
    assert repository.names(FileStore(root)) == ["a", "b"]
    assert repository.newest(FileStore(root)) == "b"
    assert repository.next_version(FileStore(root), "a") == 2
    assert repository.next_version(FileStore(root), "c") == 1
    (root / "history.jsonl").unlink()
    with pytest.raises(InputError, match="name one of a, b"):
        repository.newest(FileStore(root))


def test_newest_of_an_empty_repository_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match="nothing is released"):
        repository.newest(FileStore(root))


def test_a_number_is_never_used_again(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    candidate.publish(root)
    assert roll_back(root) == (2, 1)
    shutil.rmtree(root / NAME / "2")
    assert repository.next_version(FileStore(root), NAME) == 3
    assert candidate.publish(root) == (3, 1)
    # A version that history does not know, from an earlier repository.
    shutil.copytree(root / NAME / "3", root / NAME / "7")
    assert repository.next_version(FileStore(root), NAME) == 8
    # The name is taken out of service as a whole: clients may still hold answers of its versions.
    shutil.rmtree(root / NAME)
    assert repository.next_version(FileStore(root), NAME) == 4
    # A publish that did not end.
    FileStore(root).append(history.intent("publish", NAME, 4, None, "0"))
    assert repository.next_version(FileStore(root), NAME) == 5
    assert candidate.publish(root) == (5, None)
    assert_live_is_complete(root, 5)


def test_a_config_from_the_future_is_replaced_by_a_strictly_newer_one(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    config = root / NAME / "config.pbtxt"
    future = time.time_ns() + 3600 * 10**9
    os.utime(config, ns=(future, future))
    candidate.publish(root)
    second = config.stat().st_mtime_ns
    assert second > future
    roll_back(root)
    assert config.stat().st_mtime_ns > second


# Rolling back


def test_roll_back_goes_back_one_version_at_a_time(root: Path, candidate: Candidate) -> None:
    for _ in range(3):
        candidate.publish(root)
    assert roll_back(root) == (3, 2)
    assert_live_is_complete(root, 2)
    assert roll_back(root) == (2, 1)
    assert_live_is_complete(root, 1)
    before = tree(root)
    with pytest.raises(InputError, match="no version before 1"):
        roll_back(root)
    assert tree(root) == before
    assert_clean(root)
    # A version that was rolled back is not what the next one goes back to.
    assert candidate.publish(root) == (4, 1)
    assert roll_back(root) == (4, 1)
    actions = [
        (event.action, event.version, event.previous) for event in FileStore(root).events() if event.state == "done"
    ]
    assert actions == [
        ("publish", 1, None),
        ("publish", 2, 1),
        ("publish", 3, 2),
        ("rollback", 2, 3),
        ("rollback", 1, 2),
        ("publish", 4, 1),
        ("rollback", 1, 4),
    ]


def test_roll_back_of_an_unknown_name_is_refused_and_makes_nothing(root: Path) -> None:
    with pytest.raises(InputError, match="nope is not in"):
        switching.rollback(FileStore(root), "nope")
    assert not root.exists()


@pytest.mark.parametrize("alteration", ["changed", "missing", "added", "config", "no release.json"])
def test_roll_back_to_an_altered_version_is_refused_and_changes_nothing(
    root: Path, candidate: Candidate, alteration: str
) -> None:
    candidate.publish(root)
    candidate.publish(root)
    version = root / NAME / "1"
    file = {
        "changed": "model.onnx",
        "missing": "plots/loss.svg",
        "added": "extra.bin",
        "config": "config.pbtxt",
        "no release.json": "release.json",
    }[alteration]
    if alteration in ("missing", "no release.json"):
        (version / file).unlink()
    else:
        with (version / file).open("ab") as opened:
            opened.write(b"\n")
    before = tree(root)
    with pytest.raises(InputError, match=file):
        repository.verify_version(FileStore(root), NAME, 1)
    with pytest.raises(InputError, match=file):
        roll_back(root)
    assert tree(root) == before
    assert_live_is_complete(root, 2)


# Signatures


def test_check_signature_compares_with_the_live_version(root: Path, candidate: Candidate) -> None:
    repository.check_signature(FileStore(root), NAME, SHAPE, LABELS)  # no such name yet: anything goes
    assert not root.exists()
    candidate.publish(root)
    repository.check_signature(FileStore(root), NAME, SHAPE, LABELS)
    other = {
        "other dims": ((3, 4, 4), LABELS),
        "fewer labels": (SHAPE, LABELS[:2]),
        "other labels": (SHAPE, ("zero", "one", "two")),
        "another order": (SHAPE, LABELS[::-1]),
    }
    for shape, labels in other.values():
        with pytest.raises(SignatureError, match="--release-name"):
            repository.check_signature(FileStore(root), NAME, shape, labels)


# Publishers that are killed


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk takes most of the time, and matters only to a machine that loses its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def refuse_rename_from_staging() -> None:
    """In a child, for good; `other_file_system` undoes it."""
    real_rename = os.rename

    def rename(source: Any, target: Any) -> None:
        # As the kernel does: a target whose folder is missing is ENOENT also across file systems.
        if ".staging" in str(source) and ".staging" not in str(target) and Path(target).parent.is_dir():
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        real_rename(source, target)

    os.rename = rename  # type: ignore[assignment]


@contextmanager
def other_file_system() -> Iterator[None]:
    """The staging folder lies on another file system.

    A fake: a second file system can only be mounted by root, and not in every container.
    """
    real_rename = os.rename
    refuse_rename_from_staging()
    try:
        yield
    finally:
        os.rename = real_rename


def publish_disturbed(
    root: Path, candidate: Candidate, step: int, mode: Literal["kill", "fail"], action: str, crossing: bool
) -> int:
    """The child's wait status."""

    def run() -> int:
        if crossing:
            refuse_rename_from_staging()
        steps = disturb(step, die) if mode == "kill" else disturb(step, have_no_space, syncs=True)
        try:
            if action == "rollback":
                roll_back(root)
            else:
                candidate.publish(root)
        except StorageError:
            return STORAGE_ERROR
        return DONE if steps() >= step else NOT_REACHED

    return os.waitpid(fork(run), 0)[1]


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize(
    ("action", "crossing"),
    [
        ("first publish", False),
        ("second publish", False),
        ("rollback", False),
        ("first publish", True),
        ("second publish", True),
    ],
)
def test_a_publisher_killed_at_any_step_harms_nothing(
    tmp_path: Path, root: Path, candidate: Candidate, action: str, crossing: bool
) -> None:
    before = {"first publish": 0, "second publish": 1, "rollback": 2}[action]
    for _ in range(before):
        candidate.publish(root)
    old = before or None
    new = 1 if action == "rollback" else before + 1
    outcomes = set()
    for step in range(1, 1000):
        copy = tmp_path / f"killed at {step}" / "models"
        copy.parent.mkdir()
        if before:
            shutil.copytree(root, copy)
        status = publish_disturbed(copy, candidate, step, "kill", action, crossing)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == NOT_REACHED
            assert step > 5, "there are fewer steps than the protocol has"
            break
        assert os.WTERMSIG(status) == signal.SIGKILL

        live = repository.live_version(FileStore(copy), NAME)
        assert live in (old, new)
        assert_live_is_complete(copy, live)
        outcomes.add(live)
        if not crossing:
            # A server's eye: each folder in the root is a model, and has its config from the start.
            assert {path.parent.name for path in copy.glob("*/config.pbtxt")} == {p.name for p in copy.glob("*/")}

        promoted = [*range(1, before + 1)]
        if live == new:
            promoted = promoted[:-1] if action == "rollback" else [*promoted, new]
        with other_file_system() if crossing else nullcontext():
            version, previous = candidate.publish(copy)
        assert previous == live
        assert version > max(before, live or 0)
        assert_live_is_complete(copy, version)
        assert_clean(copy)
        assert history.promotions(FileStore(copy).events(), NAME) == [*promoted, version]
        shutil.rmtree(copy.parent)
    assert outcomes == {old, new}


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("action", ["first publish", "second publish", "rollback"])
def test_a_disk_that_is_full_at_any_step_harms_nothing(
    tmp_path: Path, root: Path, candidate: Candidate, action: str
) -> None:
    before = {"first publish": 0, "second publish": 1, "rollback": 2}[action]
    for _ in range(before):
        candidate.publish(root)
    failed = 0
    for step in range(1, 1000):
        copy = tmp_path / f"full at {step}" / "models"
        copy.parent.mkdir()
        if before:
            shutil.copytree(root, copy)
        status = publish_disturbed(copy, candidate, step, "fail", action, False)
        code = os.waitstatus_to_exitcode(status)
        if code == NOT_REACHED:
            break
        assert code in (DONE, STORAGE_ERROR), f"status {code} at step {step}"
        failed += code == STORAGE_ERROR
        live = repository.live_version(FileStore(copy), NAME)
        assert live in (before or None, 1 if action == "rollback" else before + 1)
        assert_live_is_complete(copy, live)
        version, previous = candidate.publish(copy)
        assert previous == live
        assert_live_is_complete(copy, version)
        assert_clean(copy)
        shutil.rmtree(copy.parent)
    assert failed > 5


@pytest.mark.parametrize("action", ["publish", "rollback"])
def test_a_disk_that_is_full_after_the_switch_is_not_said_to_have_changed_nothing(
    root: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    candidate.publish(root)
    candidate.publish(root)
    append = FileStore.append

    def full(store: FileStore, event: history.Event) -> None:
        if event.state == "done":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root / "history.jsonl"))
        append(store, event)

    message = ""
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "append", full)
        try:
            if action == "publish":
                candidate.publish(root)
            else:
                roll_back(root)
        except StorageError as error:
            message = str(error)
    live = repository.live_version(FileStore(root), NAME)
    assert live == 2 or "nothing went live" not in message
    # The next publisher settles it.
    assert candidate.publish(root)[1] == live
    assert_clean(root)


def test_four_publishers_at_once_all_succeed(root: Path, tmp_path: Path) -> None:
    candidates = [Candidate(tmp_path / f"candidate {number}") for number in range(4)]

    def publish_three(candidate: Candidate) -> int:
        for _ in range(3):
            candidate.publish(root)
        return 0

    children = [fork(functools.partial(publish_three, candidate)) for candidate in candidates]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert repository.versions(FileStore(root), NAME) == list(range(1, 13))
    assert_live_is_complete(root, 12)
    assert_clean(root)
    events = FileStore(root).events()
    assert [(event.state, event.version, event.previous) for event in events] == [
        (state, version, version - 1 or None) for version in range(1, 13) for state in ("intent", "done")
    ]
    contents = [(root / NAME / str(version) / "model.onnx").read_bytes() for version in range(1, 13)]
    for candidate in candidates:
        assert contents.count((candidate.source / "model.onnx").read_bytes()) == 3


# File systems that refuse


def test_a_repository_on_another_file_system_than_its_staging_folder(root: Path, candidate: Candidate) -> None:
    with other_file_system():
        assert candidate.publish(root) == (1, None)
        assert_live_is_complete(root, 1)
        assert candidate.publish(root) == (2, 1)
    assert_live_is_complete(root, 2)
    assert_clean(root)
    assert roll_back(root) == (2, 1)


def test_a_repository_that_really_lies_on_another_file_system(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Path("/dev/shm")
    assert memory.stat().st_dev != candidate.source.stat().st_dev, f"needs a TMPDIR that does not lie in {memory}"
    # As where the root is a mount: its parent cannot be written, so staging is beside the candidate.
    monkeypatch.setattr(storage, "is_writable", lambda path: False)
    with tempfile.TemporaryDirectory(dir=memory) as other:
        root = Path(other, "models")
        assert candidate.publish(root) == (1, None)
        assert candidate.publish(root) == (2, 1)
        assert_live_is_complete(root, 2)
        assert_clean(root)


@contextmanager
def no_large_files() -> Iterator[None]:
    """In the block, a file that grows past 1,500 bytes, as the model does, is an error of the system.

    No longer than that: pytest itself may be writing into a larger file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("before", [0, 1])
def test_a_disk_that_takes_no_more_while_copying_changes_nothing(root: Path, candidate: Candidate, before: int) -> None:
    root.mkdir()
    for _ in range(before):
        candidate.publish(root)
    unchanged = tree(root.parent)
    with (
        pytest.raises(StorageError, match=r"model\.onnx: File too large.*nothing went live"),
        no_large_files(),
    ):
        candidate.publish(root)
    assert tree(root.parent) == unchanged


def test_a_repository_that_is_a_file_is_refused(root: Path, candidate: Candidate) -> None:
    FileStore(root).check_writable()
    assert not root.exists()
    root.write_bytes(b"")
    with pytest.raises(FolderError, match="--model-repository"):
        FileStore(root).check_writable()


# The stages around it


class Run:
    """A run's folder with the assembled candidate of version 1, and the verdicts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)
        self.source = make_source(self.folder.candidate / NAME / "1")
        hashes = repository.hashes(self.source)
        self.release = _release(LABELS)
        self.assembled = Assembled(name=NAME, version=1, root="candidate", served_format="onnx", hashes=hashes)
        self.gate = Gate(
            name="test accuracy",
            measured=0.9,
            relation=">=",
            threshold=0.8,
            unit="",
            default_threshold=0.8,
            passed=True,
            detail="9 of 10",
        )
        self.check = Check(name="labels", passed=True, detail="3 of 3 agree")
        self.validated = self.release.validated.model_copy(update={"checks": (self.check,), "hashes": hashes})

    def publish(self, root: Path, *, gate_passed: bool = True, check_passed: bool = True) -> Published:
        gates = (self.gate.model_copy(update={"passed": gate_passed}),)
        checks = (self.check.model_copy(update={"passed": check_passed}),)
        judged = {
            "assembled": self.assembled,
            "gated": Gated(served_format="onnx", gates=gates),
            "validated": self.validated.model_copy(update={"checks": checks}),
        }
        for name, record in {**dict(self.release), **judged}.items():
            if isinstance(record, Record):
                record.save(self.folder.record(name))
        return publish_run(self.folder, FileStore(root))


def test_the_published_version_is_the_validated_one_under_its_own_number(root: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.publish(root) == Published(name=NAME, version=1, previous=None, repository=str(root))
    # The number moved on since the candidate was assembled; its files did not.
    assert run.publish(root).version == 2
    found = repository.hashes(root / NAME / "2")
    assert found.keys() - {"release.json"} == run.assembled.hashes.keys()
    assert run.assembled.hashes.items() <= found.items()
    assert_live_is_complete(root, 2)
    assert repository.release(FileStore(root), NAME, 2).validated.hashes == run.assembled.hashes


def test_a_refused_verdict_leaves_the_repository_as_it_was(root: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(GateError):
        run.publish(root, gate_passed=False)
    assert not root.exists()
    run.publish(root)
    before = tree(root)
    with pytest.raises(GateError, match=r"test accuracy is 0\.9"):
        run.publish(root, gate_passed=False)
    with pytest.raises(VerdictError, match="labels: 3 of 3 agree"):
        run.publish(root, check_passed=False)
    assert tree(root) == before


@pytest.mark.parametrize("file", ["model.onnx", "added"])
def test_a_candidate_altered_since_its_validation_is_refused(root: Path, tmp_path: Path, file: str) -> None:
    run = Run(tmp_path / "run")
    with (run.source / file).open("ab") as opened:
        opened.write(b"x")
    with pytest.raises(InputError, match=f"{file} is not the file that was validated"):
        run.publish(root)
    assert not root.exists()


@pytest.mark.parametrize(("shape", "labels"), [((3, 4, 4), LABELS), (SHAPE, LABELS[::-1])])
def test_another_signature_is_refused_at_publishing(
    root: Path, tmp_path: Path, candidate: Candidate, shape: tuple[int, int, int], labels: tuple[str, ...]
) -> None:
    candidate.publish(root)
    before = tree(root)
    source = make_source(tmp_path / "other", labels, shape)
    with pytest.raises(SignatureError, match="--release-name"):
        publishing.publish_version(FileStore(root), NAME, source, release_json(source, labels))
    assert tree(root) == before


def test_a_version_of_another_pipeline_can_be_rolled_back_to(root: Path, candidate: Candidate) -> None:
    """Its release.json has other fields than this pipeline's."""
    content = json.dumps({"schema": 0, "hashes": repository.hashes(candidate.source)}).encode()
    publishing.publish_version(FileStore(root), NAME, candidate.source, content)
    candidate.publish(root)
    assert roll_back(root) == (2, 1)


def test_a_release_json_that_lists_altered_files_is_refused(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    version = root / NAME / "1"
    (version / "model.onnx").write_bytes(b"another")
    found = repository.hashes(version)
    del found["release.json"]
    (version / "release.json").write_text(json.dumps({"hashes": found}), encoding="utf-8")
    with pytest.raises(InputError, match=r"release\.json is not as it was released"):
        repository.verify_version(FileStore(root), NAME, 1)


# History


def test_an_outcome_begins_no_history(root: Path) -> None:
    """As in the folder under a disk that vanished after the intent."""
    root.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        FileStore(root).append(history.intent("publish", NAME, 1, None, "0").ended("done"))
    assert list(root.iterdir()) == []


def test_half_a_line_at_the_end_of_the_history_is_passed_over(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    path = root / "history.jsonl"
    whole = path.read_bytes()
    line = history.intent("publish", NAME, 2, 1, "0").model_dump_json().encode()
    for length in range(1, len(line)):
        path.write_bytes(whole + line[:length])
        assert [event.state for event in FileStore(root).events()] == ["intent", "done"]
    path.write_bytes(whole + line[:-10])
    assert candidate.publish(root) == (2, 1)
    assert_live_is_complete(root, 2)
    assert_clean(root)
    assert roll_back(root) == (2, 1)
    assert [event.state for event in FileStore(root).events()] == ["intent", "done"] * 3


def test_a_line_without_its_end_still_counts(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    path = root / "history.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [event.state for event in FileStore(root).events()] == ["intent", "done"]
    candidate.publish(root)
    assert [event.state for event in FileStore(root).events()] == ["intent", "done"] * 2


def test_a_whole_line_that_is_no_event_is_refused(root: Path, candidate: Candidate) -> None:
    candidate.publish(root)
    path = root / "history.jsonl"
    path.write_bytes(json.dumps({"id": "x"}).encode() + b"\n" + path.read_bytes())
    before = tree(root)
    with pytest.raises(InputError, match=r"history\.jsonl line 1"):
        candidate.publish(root)
    assert tree(root) == before
