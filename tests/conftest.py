"""Real commands: what they make, and what they leave. One release, made once, is asked by many tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from github import TOKEN, GitHub, served

from pipeline.config import Criterion, TrainConfig
from pipeline.triton import github_api

# A shell may have started the tests in the background, where Ctrl-C is ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests run side by side, and threads of several trainings would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
NAME = "mnist_cnn_v1-digits_v1"
CONFIG = TrainConfig(
    model_id="mnist_convnet_v1",  # it has dropout, which also must be drawn again alike
    dataset_id="digits_v1",
    image_size=None,
    criteria=(Criterion(loss_id="nll"),),
    optimizer_id="adam",
    scheduler_id="none",
    epochs=4,
    batch_size=64,
    learning_rate=0.003,
    weight_decay=0.0,
    betas=(0.9, 0.999),
    momentum=0.9,
    gamma=0.7,
    label_smoothing=0.0,
    gradient_clip_norm=0.0,
    augmentation="shift",
    validation_fraction=0.1,
    early_stopping_patience=0,
    seed=1,
)


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign", action="store_true", help="the full counts of tests/test_campaign*.py")


def environment() -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if key not in ("DATA_DIR", "OUTPUT_DIR", "MODEL_REPOSITORY")
    }
    return {**kept, "PYTHONPATH": str(ROOT)}


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command as a user runs it: `bin/train ...` is `run_command("train", ...)`."""
    return forked.run(arguments, cwd, environment(), timeout=240)


def start_command(
    *arguments: str, cwd: Path, temporary: Path, process_group: int | None = None
) -> subprocess.Popen[str]:
    """The same, while it runs; `temporary` is its folder for temporary files."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env={**environment(), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=process_group,
    )


def wait_until(
    done: Callable[[], bool], seconds: float = 90, what: str = "what was waited for", pause: float = 0.05
) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(pause)


# In a stub's command line, as Triton starts it; the guard's has the path that the stub is copied from.
STUB = "../python/triton_python_backend_stub\0"


def processes(temporary: Path, program: str = "") -> list[int]:
    """Ids of a command and of all that it started, told by their folder for temporary files; not of the dead."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            variables = (folder / "environ").read_bytes().split(b"\0")
            if f"TMPDIR={temporary}".encode() in variables and program in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def children(process: int) -> list[int]:
    """Ids of those that its main thread has started, in this order."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def shared_memory(guards: list[int]) -> list[Path]:
    """Of the servers of these guard processes."""
    return [path for guard in guards for path in Path("/dev/shm").glob(f"zoo-triton-{guard}-*")]


def assert_nothing_left(temporary: Path, guards: list[int]) -> None:
    wait_until(lambda: processes(temporary) == [], 15, "all processes have ended")
    # torch makes one empty folder for each user, and uses it no more.
    assert [path for path in temporary.rglob("*") if not path.name.startswith("torchinductor_")] == []
    assert shared_memory(guards) == []


@contextmanager
def running(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, temporary files in `cwd`; what it started is killed at the end."""
    process = start_command(*arguments, cwd=cwd, temporary=cwd, process_group=0)
    try:
        yield process
    finally:
        # Nobody tidies up for an agent of torchrun that is killed.
        kill_all(cwd)
        process.communicate()


def kill_all(temporary: Path) -> None:
    """A command and all that it started."""
    for number in processes(temporary):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("released")
    done = run_command("train", "--dataset-id", "digits_v1", "--epochs", "6", "--output-dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Workplace(folder, done.stdout + done.stderr)


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """A repository at GitHub, in which nothing is released yet; the environment has what it takes to use it."""
    with served() as github:
        monkeypatch.setenv("GITHUB_API_URL", github.url)
        monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
        for name in ("GH_TOKEN", "GITHUB_SHA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(github_api, "_PAUSE_SECONDS", 0.0)
        yield github


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> bool:
    """Whether the tests of releases under load, killers and full disks run with their full counts."""
    return bool(pytestconfig.getoption("--campaign"))
