"""What containers run: the services, here without any; bin/build with no engine; what is written in two places."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import grading
import pytest
import yaml
from conftest import ROOT, environment, run_command

from pipeline import inference, provenance
from pipeline.commands import train
from pipeline.errors import ZooError
from pipeline.triton import container, repository
from pipeline.triton.file_store import FileStore
from pipeline.triton.server import ServerOptions, arguments

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of the services, each of which has run as grading.sh runs it; without MNIST and a network."""
    folder = tmp_path_factory.mktemp("graded")
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    both = {**nowhere, **{name.lower(): value for name, value in nowhere.items()}}
    done = subprocess.run(
        [ROOT / "tests" / "grading.sh"],
        env={**environment(), **both, "ENGINE": "local", "MNIST_ROOT": str(folder), "DATA_DIR": str(folder / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "predictions are where they belong" in done.stdout
    return folder


@pytest.fixture
def volume(graded: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(graded, tmp_path / "mnist")


def test_the_services_leave_what_grading_wants(graded: Path) -> None:
    assert grading.check(graded) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: next((root / "results").iterdir()).unlink(), "expected 5 pictures"),
        (lambda root: next((root / "results").iterdir()).rename(root / "results" / "three.png"), "three.png: expected"),
        (lambda root: next((root / "results").iterdir()).write_text("a picture"), "is not a PNG"),
        (lambda root: (root / "model" / "eval_results.json").unlink(), "model/: expected"),
        (lambda root: (root / "model" / ".mnist_cnn.pt.tmp").touch(), "model/: expected"),
        (lambda root: (root / "output").mkdir(), "no other folders"),
        (lambda root: os.truncate(root / "model" / "mnist_cnn.pt", 1000), "cut off or altered"),
    ],
)
def test_grading_finds_what_is_wrong(volume: Path, change: Any, said: str) -> None:
    change(volume)
    with pytest.raises(AssertionError, match=said):
        grading.check(volume)


def test_other_predictions_take_the_place_of_earlier_ones(volume: Path) -> None:
    before = {path.name for path in (volume / "results").iterdir()}
    kept = volume / "results" / "predicted_rain_1.png"
    kept.touch()
    inference.infer_by_checkpoint(volume / "model" / "mnist_cnn.pt", volume, volume / "results", count=5, seed=5)
    kept.unlink()
    assert {path.name for path in (volume / "results").iterdir()} != before
    assert grading.check(volume) == 2


def test_release_publishes_what_train_has_come_to_and_trains_no_more(volume: Path) -> None:
    """So both services were given the same run. Two epochs of Hogwild on digits do not always pass the gates."""
    release = COMPOSE["release"]
    assert f"./model_repository:{release['environment']['MODEL_REPOSITORY']}" in release["volumes"]
    weights = (volume / "model" / "mnist_cnn.pt").read_bytes()
    mine = ("--dataset-id", "digits_v1", "--model-repository", "models")
    gates = ("--min-test-accuracy", "0", "--min-per-class-accuracy", "0")
    done = run_command(*release["entrypoint"][3:], *mine, *gates, cwd=volume)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch 2 of 2" in done.stderr
    assert (volume / "model" / "mnist_cnn.pt").read_bytes() == weights
    assert repository.live_version(FileStore(volume / "models"), "mnist_cnn_v1-digits_v1") == 1


def test_a_run_that_its_steps_have_ended_goes_on_without_training(tmp_path: Path) -> None:
    command = ("train", "--dataset-id", "digits_v1", "--skip-export", "--output-dir", "run")
    for epochs in (("--epochs", "1", "--max-steps", "2"), ("--add-epochs", "0")):
        done = run_command(*command, *epochs, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "going on after epoch 1 of 1" in done.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--add-epochs", "0"], "there is no checkpoint at"),
        (["--add-epochs", "1", "--epochs", "3"], "give one of them"),
        (["--add-epochs", "1", "--trainer", "ddp"], "torchrun"),
    ],
)
def test_epochs_that_cannot_be_added_are_refused(
    typed: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ZooError, click.UsageError), match=said):
        train.command.main(["--dataset-id", "digits_v1", *typed], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


def test_the_stock_server_is_the_one_of_serve() -> None:
    triton = COMPOSE["triton"]
    options = ServerOptions(Path("/models"), log_file=None, control="poll", exit_on_error=False)
    ports = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
    assert triton["image"] == container.IMAGE
    without_gpu = {"--allow-gpu-metrics=false"}
    assert {*triton["command"][1:]} | without_gpu == {*arguments(options, "/models", "0.0.0.0", ports)} | without_gpu


def test_plain_up_ends_and_publishes_nothing() -> None:
    assert [name for name, service in COMPOSE.items() if "profiles" not in service] == ["train", "evaluate", "infer"]
    assert {service["restart"] for service in COMPOSE.values()} == {"no"}
    for name in ("evaluate", "infer"):
        assert COMPOSE[name]["depends_on"] == {"train": {"condition": "service_completed_successfully"}}


# Stands for a program of that name: notes how it is called, and answers `info` as the daemon's being there decides.
ENGINE = """#!/bin/sh
[ "$1" != info ] || exit {status}
echo "$0 $*"
"""


def build(folder: Path, **engines: int) -> tuple[int, str, str]:
    """bin/build where these engines are installed; 0 for one that answers. Exit status, output, errors."""
    for name, status in engines.items():
        (folder / name).write_text(ENGINE.format(status=status))
        (folder / name).chmod(0o755)
    for program in ("bash", "git", "dirname", "realpath", "env"):
        (folder / program).symlink_to(str(shutil.which(program)))
    done = subprocess.run(
        [ROOT / "bin" / "build", "--no-cache"],
        env={"PATH": str(folder), "TORCH": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_build_takes_the_engine_that_answers(tmp_path: Path) -> None:
    status, out, err = build(tmp_path, docker=1, podman=0)
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path}/podman build --tag triton-model-zoo --build-arg TORCH=cpu")
    assert out.endswith("--no-cache .\n")


@pytest.mark.parametrize("engines", [{}, {"docker": 1}])
def test_build_without_an_engine_is_one_line_and_status_4(tmp_path: Path, engines: dict[str, int]) -> None:
    status, out, err = build(tmp_path, **engines)
    assert (status, out, err.count("\n")) == (4, "", 1)
    assert "neither Docker nor Podman answers" in err


@pytest.mark.parametrize(
    ("given", "revision", "modified"),
    [("", None, False), ("0123abc", "0123abc", False), ("0123abc-dirty", "0123abc", True)],
)
def test_an_image_knows_its_commit(
    given: str, revision: str | None, modified: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No git is in it."""
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    monkeypatch.setenv("CODE_REVISION", given)
    code = provenance.describe()
    assert (code.revision, code.modified) == (revision, modified)
