"""One real release, made once and asked by many tests."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = "mnist_cnn_v1-digits_v1"


@dataclass(frozen=True)
class Workplace:
    """A folder in which a user has made one release; `run` is the run's folder."""

    folder: Path
    output: str

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def repository(self) -> Path:
        return self.folder / "model_repository"


def environment() -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if key not in ("DATA_DIR", "OUTPUT_DIR", "MODEL_REPOSITORY")
    }
    return {**kept, "PYTHONPATH": str(ROOT)}


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command as a user runs it: `bin/train ...` is `run_command("train", ...)`."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("released")
    done = run_command("train", "--dataset-id", "digits_v1", "--epochs", "6", "--output-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Workplace(folder, done.stdout + done.stderr)
