"""Where a run's code, libraries and machine come from."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from pipeline.records import CodeInfo

_ROOT = Path(__file__).parent.parent
_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "scikit-learn", "tritonclient")


def describe() -> CodeInfo:
    """The revision is None where the code is not in a git checkout, nor in an image that was made from one."""
    revision, modified = _revision()
    return CodeInfo(
        revision=revision or None,
        modified=modified,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        libraries={name: metadata.version(name) for name in _LIBRARIES},
    )


def _revision() -> tuple[str, bool]:
    if revision := _git("rev-parse", "HEAD"):
        return revision, bool(_git("status", "--porcelain", "--untracked-files=no"))
    # What `git describe --dirty` said where the image was built.
    revision, dirty, _ = os.environ.get("CODE_REVISION", "").partition("-dirty")
    return revision, bool(dirty)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(_ROOT), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
