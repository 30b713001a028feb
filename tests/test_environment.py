"""bin/python: when it installs, when it does not, and what an interrupted or failed install leaves.

The script, venv and pip are the real ones. In place of the locked packages stands one small real
wheel, `uv`, whose program only notes how it was called; so nothing needs a network.
"""

import base64
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pip
import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-triton.lock", "requirements-uv.lock")

# Notes its arguments, then takes long where the test says so.
UV_PROGRAM = b"""#!/usr/bin/env bash
echo "$@" >>"$UV_NOTES"
sleep "${UV_SECONDS:-0}"
"""

# Unpacking pip takes venv seven seconds: this one links the pip that is here.
BASE_PYTHON = f"""#!/usr/bin/env bash
set -euo pipefail
if [[ $2 != venv ]]; then exec "{sys.executable}" "$@"; fi
"{sys.executable}" "$@" --without-pip
ln -s "{Path(pip.__file__).parent}" "${{@: -1}}"/lib/python3.*/site-packages/
"""


def make_wheel(folder: Path) -> Path:
    """A wheel of a `uv` whose program is UV_PROGRAM."""
    info = "uv-0.0.0.dist-info"
    files = {
        "uv-0.0.0.data/scripts/uv": UV_PROGRAM,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: uv\nVersion: 0.0.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for name, content in files.items()
    )
    folder.mkdir()
    path = folder / "uv-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | 0o755) << 16
            wheel.writestr(entry, content)
        wheel.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


class Project:
    """A copy of bin/python in a folder with a space in its name, beside lock files of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project"
        self.python = self.root / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        shutil.copy(ROOT / "bin" / "python", self.python)
        wheel = make_wheel(folder / "wheels")
        for name in LOCKS:
            (self.root / name).write_text(f"# {name}\n")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (self.root / "requirements-uv.lock").write_text(f"uv==0.0.0 --hash=sha256:{digest}\n")
        self.stamp = self.root / ".venv" / "installed.lock"
        self.notes = folder / "notes"
        base_python = folder / "base-python"
        base_python.write_text(BASE_PYTHON)
        base_python.chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "PYTHON"))}
        self.environment = inherited | {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(wheel.parent),
            "PIP_NO_INDEX": "1",
            "PYTHON": str(base_python),
            "UV_NOTES": str(self.notes),
        }

    @property
    def locked(self) -> str:
        return "".join((self.root / name).read_text() for name in LOCKS)

    def pretend_installed(self) -> None:
        """What an install leaves, as far as the fast path looks at it."""
        program = self.root / ".venv" / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.symlink_to(sys.executable)
        self.stamp.write_text(self.locked)

    def start(self, *arguments: str, program: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [program or self.python, *arguments],
            env=self.environment | environment,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, program: Path | None = None, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, program=program, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_installed_environment_is_used_at_once(project: Project, tmp_path: Path) -> None:
    project.pretend_installed()
    link = tmp_path / "link"
    link.symlink_to(project.python)
    code = "import os, sys; print(sys.argv[1:], os.environ['PYTHONPATH'])"

    status, out, err = project.run("-c", code, "a b", "", program=link, PYTHONPATH="/else")

    assert (status, out, err) == (0, f"['a b', ''] {project.root}:/else\n", "")
    assert not project.notes.exists()


def test_exit_status_and_signals_are_those_of_python(project: Project) -> None:
    project.pretend_installed()
    assert project.run("-c", "raise SystemExit(3)")[0] == 3

    process = project.start("-c", "import time; print('up', flush=True); time.sleep(60)")
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("command", ["train", "evaluate", "infer", "serve", "zoo"])
def test_commands_run_the_pipeline_from_anywhere(project: Project, tmp_path: Path, command: str) -> None:
    project.pretend_installed()
    (project.root / "pipeline").mkdir()
    (project.root / "pipeline" / "__main__.py").write_text("import os, sys; print(sys.argv[1:], os.getcwd())")
    link = tmp_path / command
    link.symlink_to(shutil.copy(ROOT / "bin" / command, project.python.parent))

    assert project.run("--flag", "a b", program=link) == (0, f"['{command}', '--flag', 'a b'] /\n", "")


@pytest.mark.parametrize("python", ["/does/not/exist", "/bin/false"])
def test_without_a_python_says_which_are_wanted(project: Project, python: str) -> None:
    status, out, err = project.run("-c", "pass", PYTHON=python)

    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "3.11, 3.12 or 3.13" in err
    assert python in err
    assert not project.stamp.exists()


def test_failed_install_leaves_no_stamp(project: Project) -> None:
    (project.root / "requirements-uv.lock").write_text(f"uv==9.9.9 --hash=sha256:{'0' * 64}\n")

    status, out, err = project.run("-c", "print('not reached')")

    assert (status, out) == (4, "")
    assert "check the network" in err.splitlines()[-1]
    assert not project.stamp.exists()


def test_installs_once_and_again_after_a_lock_changed(project: Project) -> None:
    first = project.run("-c", "print('ran')")
    again = project.run("-c", "print('ran')")

    assert first[:2] == (0, "ran\n")
    assert again == (0, "ran\n", "")
    assert project.stamp.read_text() == project.locked
    calls = project.notes.read_text().splitlines()
    assert all("--require-hashes" in call for call in calls)
    assert calls[0].endswith("--compile-bytecode -r requirements.lock")

    (project.root / "requirements.lock").write_text("# another\n")
    assert project.run("-c", "print('ran')")[:2] == (0, "ran\n")
    assert project.stamp.read_text() == project.locked
    assert len(project.notes.read_text().splitlines()) == 2 * len(calls)


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_an_image_gets_what_runs_the_product(project: Project, torch: str) -> None:
    (project.root / "requirements.lock").write_text(
        "torch==2.1.0 ; sys_platform == 'linux'\ntorchinfo==1\ntorchvision==3\n"
    )

    assert project.run("-c", "print('ran')", TORCH=torch)[:2] == (0, "ran\n")

    calls = project.notes.read_text().splitlines()
    if torch == "cpu":  # the lock has no hash of that build
        first = calls.pop(0)
        assert first.endswith("--torch-backend cpu --no-deps --compile-bytecode torch==2.1.0 torchvision==3")
    assert ("--require-hashes" in calls[0]) == (torch == "cuda")
    assert calls[0].endswith("-r pyproject.toml --extra s3 --extra sign -c requirements.lock")
    assert project.run("-c", "print('ran')") == (0, "ran\n", "")


def test_an_unknown_build_of_pytorch_is_refused(project: Project) -> None:
    status, out, err = project.run("-c", "pass", TORCH="rocm")

    assert (status, out, err) == (2, "", "bin/python: TORCH=rocm: expected cpu or cuda\n")


def test_killed_install_is_made_again_and_two_at_once_install_once(project: Project) -> None:
    killed = project.start("-c", "print('not reached')", UV_SECONDS="60")
    deadline = time.monotonic() + 60
    while not project.notes.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.communicate()[0] == ""
    assert not project.stamp.exists()
    project.notes.unlink()

    both = [project.start("-c", "print('ran')", UV_SECONDS="1") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]

    assert [out for out, _ in outputs] == ["ran\n", "ran\n"]
    assert sorted("waiting for another installation" in err for _, err in outputs) == [False, True]
    assert project.notes.read_text().count("-r requirements.lock") == 1
    assert project.stamp.read_text() == project.locked
