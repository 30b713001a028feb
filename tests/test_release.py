"""From a command to a version that a real Triton server answers for."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    NAME,
    Workplace,
    assert_nothing_left,
    processes,
    run_command,
    shared_memory,
    start_command,
    wait_until,
)

from pipeline.config import RunConfig
from pipeline.errors import ServerError
from pipeline.records import Carded, DataInfo, Exported
from pipeline.runfolder import RunFolder
from pipeline.stages.assemble import assemble
from pipeline.triton import client, repository, storage
from pipeline.triton.file_store import FileStore

RUN_FILES = [
    "pipeline.log",
    "logs/metrics.json",
    "models/digits_model.pth",
    "models/digits_model.onnx",
    "models/digits_model.pt",
    "model_card/digits_model_card.md",
    *(
        f"model_card/plots/{name}.png"
        for name in (
            "confusion_matrix",
            "per_class_accuracy",
            "training_accuracy",
            "training_loss",
            "batch_metrics",
            "epoch_metrics",
        )
    ),
]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def workplace(released: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the release that a test may change; its training is finished and is not done again."""
    shutil.copytree(released.folder, tmp_path / "copy")
    return Workplace(tmp_path / "copy", released.output)


def train_again(workplace: Workplace, *flags: str) -> subprocess.CompletedProcess[str]:
    return run_command(
        "train", "--dataset-id", "digits_v1", "--epochs", "6", "--output-dir", "run", *flags, cwd=workplace.folder
    )


def test_opening_a_run_folder_removes_its_own_unfinished_files_only(tmp_path: Path) -> None:
    own = ("records/.gated.json.tmp", "logs/.metrics.json.tmp", "checkpoints/.last.pt.tmp")
    others = (".model.tar.tmp", "checkpoints/.notes.tmp", "other/checkpoints/.last.pt.tmp")
    for path in map(tmp_path.joinpath, (*own, *others)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with RunFolder(tmp_path).open():
        assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tmp")} == set(others)


def test_run_folder_holds_what_the_specification_lists(released: Workplace) -> None:
    assert [name for name in RUN_FILES if not (released.run / name).is_file()] == []


def test_the_version_is_complete_live_and_unaltered(released: Workplace) -> None:
    assert repository.names(FileStore(released.repository)) == [NAME]
    assert repository.live_version(FileStore(released.repository), NAME) == 1
    repository.verify_version(FileStore(released.repository), NAME, 1)
    release = repository.release(FileStore(released.repository), NAME, 1)
    assert release.gated.passed
    assert release.validated.passed
    assert release.validated.server.startswith("Triton 2.")
    conditions = release.trained.reproducible_with
    assert conditions is not None
    assert conditions["torch"].startswith(release.code.libraries["torch"])
    assert conditions["CPU capability"] == release.code.cpu_capability
    labels = (released.repository / NAME / "1" / "labels.txt").read_text().splitlines()
    assert labels == [str(digit) for digit in range(10)]


def test_the_last_lines_say_what_was_released_and_how_to_use_it(released: Workplace) -> None:
    for text in (f"released {NAME} version 1", "accuracy", "bin/serve", "bin/infer", "seconds", "recipe", "flag"):
        assert text in released.output


def test_accuracy_in_metrics_is_what_the_served_file_answers(released: Workplace) -> None:
    metrics = json.loads((released.run / "logs" / "metrics.json").read_text())
    assert [file["format"] for file in metrics["verified"]["files"]] == ["pytorch", "onnx", "torchscript"]
    assert all(file["agreement"] == 1.0 for file in metrics["verified"]["files"])
    assert metrics["test"]["accuracy"] >= 0.97


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder for temporary files of a test's command."""
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


@pytest.fixture
def server(workplace: Workplace, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`bin/serve` on free ports: the process, its HTTP and its gRPC address."""
    free = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    process = start_command("serve", *free, cwd=workplace.folder, temporary=temporary)
    try:
        assert process.stdout is not None
        found = re.search(r"HTTP ([\d.:]+), gRPC ([\d.:]+)", process.stdout.readline())
        assert found
        yield process, found[1], found[2]
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def wait_for_version(url: str, version: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (NAME, str(version), "READY", "") not in client.models(url):
        assert time.monotonic() < deadline, client.models(url)
        time.sleep(0.1)


def test_served_published_again_rolled_back_and_stopped(
    workplace: Workplace, server: tuple[subprocess.Popen[str], str, str], temporary: Path
) -> None:
    process, http, grpc = server
    with np.load(workplace.repository / NAME / "1" / "golden.npz") as golden:
        images, expected = golden["images"], golden["probabilities"]
    for answers in (client.classify(http, NAME, images), client.classify(f"grpc://{grpc}", NAME, images)):
        np.testing.assert_allclose(answers, expected, atol=1e-4)

    asked = run_command("infer", "--url", http, "--seed", "3", cwd=workplace.folder)
    assert asked.returncode == 0, asked.stderr
    assert "answered by the server" in asked.stdout
    pictures = list((workplace.folder / "results").glob("*.png"))
    assert len(pictures) == 5
    assert all(re.fullmatch(r"predicted_\d_\d+\.png", picture.name) for picture in pictures)

    published = run_command("zoo", "publish", "--run", "run", cwd=workplace.folder)
    assert published.returncode == 0, published.stderr
    wait_for_version(http, 2, 5)
    back = run_command("zoo", "rollback", NAME, cwd=workplace.folder)
    assert back.returncode == 0, back.stderr
    wait_for_version(http, 1, 5)

    guards = processes(temporary, "guard.py")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    with pytest.raises(ServerError):
        client.models(http)
    assert_nothing_left(temporary, guards)


def test_the_candidates_folder_never_vanishes_under_the_server_that_starts_on_it(workplace: Workplace) -> None:
    folder = RunFolder(workplace.run)
    config = RunConfig.load(folder.record("config"))
    data = DataInfo.load(folder.record("data"))
    exported = Exported.load(folder.record("exported"))
    carded = Carded.load(folder.record("carded"))
    opened = os.open(folder.candidate, os.O_RDONLY)
    try:
        assembled = assemble(config, data, exported, carded, folder)
        assert os.fstat(opened).st_nlink  # none where it was removed, also if there is another one now
        assert [path.name for path in folder.candidate.iterdir()] == [assembled.name]
    finally:
        os.close(opened)


def test_nothing_outlives_a_killed_serve(server: tuple[subprocess.Popen[str], str, str], temporary: Path) -> None:
    guards = processes(temporary, "guard.py")
    assert shared_memory(guards)
    server[0].kill()
    server[0].wait()
    assert_nothing_left(temporary, guards)


# What a run writes in the midst of its training, when its server starts, when that is asked, and when it has answered.
MOMENTS = (
    ("checkpoints/last.pt", ""),
    ("pipeline.log", "stage card begins"),
    ("pipeline.log", "stage validate begins"),
    ("pipeline.log", "stage publish begins"),
)


def kill_when_written(command: tuple[str, ...], path: Path, text: str, cwd: Path, temporary: Path) -> None:
    """Start the command, kill it when the text stands in the file once more than before, and look for what is left."""

    def count() -> int:
        return path.read_bytes().count(text.encode()) if path.exists() else 0

    before = count()
    process = start_command(*command, cwd=cwd, temporary=temporary)
    try:
        wait_until(lambda: count() > before or process.poll() is not None, 120, f"{text} in {path}")
        guards = processes(temporary, "guard.py")
    finally:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert_nothing_left(temporary, guards)


def test_killed_at_one_stage_after_another_the_same_command_ends_well(tmp_path: Path, temporary: Path) -> None:
    command = ("train", "--dataset-id", "digits_v1", "--epochs", "6", "--output-dir", "run", "--skip-visualizations")
    root = tmp_path / "model_repository"
    root.mkdir()
    # The publish then waits for us, so that it cannot be over before it is killed; test_repository kills it later.
    with storage.locked(root):
        for file, text in MOMENTS:
            kill_when_written(command, tmp_path / "run" / file, text, tmp_path, temporary)
    assert [path.name for path in root.iterdir()] == [".lock"]
    done = run_command(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert repository.live_version(FileStore(root), NAME) == 1
    repository.verify_version(FileStore(root), NAME, 1)
    assert sorted(path.name for path in root.iterdir()) == [".lock", "history.jsonl", NAME]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_repository", "run", "tmp"]
    assert list((tmp_path / "run").rglob("*.tmp")) == []


def test_two_at_once_are_both_released_while_the_usual_ports_are_taken(workplace: Workplace, temporary: Path) -> None:
    shutil.copytree(workplace.run, workplace.folder / "other")
    command = ("train", "--dataset-id", "digits_v1", "--epochs", "6", "--skip-visualizations", "--output-dir")
    with ExitStack() as sockets:
        for port in (8000, 8001, 8002):
            with suppress(OSError):  # taken by another process, which is as good
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
        both = [
            start_command(*command, folder, cwd=workplace.folder, temporary=temporary) for folder in ("run", "other")
        ]
        outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert repository.versions(FileStore(workplace.repository), NAME) == [1, 2, 3]
    assert repository.live_version(FileStore(workplace.repository), NAME) == 3
    for version in (1, 2, 3):
        repository.verify_version(FileStore(workplace.repository), NAME, version)
    assert_nothing_left(temporary, [])


def test_without_a_server_the_released_file_answers(workplace: Workplace) -> None:
    asked = run_command("infer", "--url", "127.0.0.1:1", "--count", "2", cwd=workplace.folder)
    assert asked.returncode == 0, asked.stderr
    assert "model.onnx" in asked.stdout
    assert len(list((workplace.folder / "results").glob("predicted_*_*.png"))) == 2


def test_a_refused_candidate_changes_nothing(workplace: Workplace) -> None:
    before = tree(workplace.repository)
    refused = train_again(
        workplace, "--max-model-size-mb", "0.001", "--max-inference-time-ms", "0.000001", "--skip-visualizations"
    )
    assert refused.returncode == 3
    assert "model size is" in refused.stderr
    assert "inference time is" in refused.stderr
    assert "test accuracy is" not in refused.stderr
    assert tree(workplace.repository) == before
    publish = run_command("zoo", "publish", "--run", "run", cwd=workplace.folder)
    assert publish.returncode == 3
    assert tree(workplace.repository) == before


def test_a_verdict_on_another_configuration_is_refused(workplace: Workplace) -> None:
    """Of a candidate only the config.pbtxt beside the version has no hash."""
    run = workplace.folder / "run"
    (run / "records" / "validated.json").unlink()
    config = run / "candidate" / NAME / "config.pbtxt"
    content = config.read_text()
    config.write_text(content.replace("max_batch_size: 128", "max_batch_size: 64"))
    before = tree(workplace.repository)
    done = run_command("zoo", "publish", "--run", "run", cwd=workplace.folder)
    assert done.returncode == 2
    assert f"{config.relative_to(workplace.folder)} is not that of version" in done.stderr
    assert tree(workplace.repository) == before
    config.write_text(content)
    assert run_command("zoo", "publish", "--run", "run", cwd=workplace.folder).returncode == 0


def test_torchscript_is_served_under_another_name(workplace: Workplace) -> None:
    done = train_again(
        workplace, "--served-format", "torchscript", "--release-name", "digits-script", "--skip-visualizations"
    )
    assert done.returncode == 0, done.stderr
    assert 'backend: "pytorch"' in (workplace.repository / "digits-script" / "config.pbtxt").read_text()


def test_no_publish_judges_and_says_how_to_publish(workplace: Workplace) -> None:
    # It need not even be one that can be read: only who publishes may have the rights.
    (workplace.repository / "history.jsonl").write_text("{}\n")
    before = tree(workplace.repository)
    done = train_again(workplace, "--no-publish", "--skip-visualizations")
    assert done.returncode == 0, done.stderr
    assert "bin/zoo publish --run run" in done.stdout
    assert tree(workplace.repository) == before
    # The plots of the earlier run must not be taken for this one's.
    assert "plots/" not in (workplace.run / "model_card" / "digits_model_card.md").read_text()


def test_a_format_that_is_not_served_is_judged_without_a_server(workplace: Workplace) -> None:
    done = train_again(workplace, "--export-format", "pytorch", "--no-publish", "--skip-visualizations")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"passed the gates {NAME}: no server was asked, as pytorch is not what is served")


@pytest.mark.parametrize("flag", ["--dry-run", "--skip-export"])
def test_nothing_is_judged_or_published(flag: str, tmp_path: Path) -> None:
    done = run_command("train", "--dataset-id", "digits_v1", "--epochs", "1", flag, "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was judged or published" in done.stdout
    assert not (tmp_path / "model_repository").exists()


def test_without_mnist_a_plain_run_takes_the_digits_and_says_so(tmp_path: Path) -> None:
    done = run_command("train", "--dry-run", "--data-dir", "nothing", "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "embedded digits_v1" in done.stderr
    assert "embedded digits_v1" in done.stdout
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "run" / "pipeline.log").read_text().count("stage train begins") == 1


@pytest.mark.parametrize("named", [("--dataset-id", "mnist_v1"), ("--release-name", "production")])
def test_mnist_is_never_replaced_where_it_or_the_release_is_named(named: tuple[str, str], tmp_path: Path) -> None:
    done = run_command("train", *named, "--data-dir", "nothing", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "--data-dir" in done.stderr
    assert "digits_v1" in done.stderr
