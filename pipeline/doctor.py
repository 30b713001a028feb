"""What this machine has for making and serving a release, and what to do about what it lacks. Changes nothing."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.errors import PortInUseError, ServerError, ZooError
from pipeline.records import Record
from pipeline.triton import container, inspection, ports, server
from pipeline.triton.store import open_store

_ROOT = Path(__file__).parent.parent
_LOCKS = ("requirements.lock", "requirements-triton.lock", "requirements-uv.lock")
_PACKAGES = ("torchvision", "onnx", "onnxruntime", "tritonclient")
_USUAL_PORTS = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}

# Room for the checkpoints, exports and copies of the largest network here, several times over.
_DISK_BYTES = 1 << 30
# bin/train with its server takes about half of it for small images.
_MEMORY_BYTES = 2 << 30
# What containers have by default.
_SHARED_MEMORY_BYTES = 60 << 20

State = Literal["ok", "note", "missing"]


class Finding(Record):
    """A note does not hinder a release, and what is missing does; `found` or `advice` then says what to do."""

    subject: str
    state: State
    found: str
    advice: str = ""


class Diagnosis(Record):
    """`missing`: the subjects of the findings that hinder a release."""

    missing: tuple[str, ...]
    findings: tuple[Finding, ...]


class Place(NamedTuple):
    """Where data and releases lie; the repository as people name it."""

    data_dir: Path
    repository: str


class _Found(NamedTuple):
    state: State
    found: str
    advice: str = ""


def examine(place: Place) -> Diagnosis:
    """Also what cannot be found out is a finding."""
    findings = tuple(_finding(subject, check, place) for subject, check in _CHECKS.items())
    missing = tuple(finding.subject for finding in findings if finding.state == "missing")
    return Diagnosis(missing=missing, findings=findings)


def _finding(subject: str, check: Callable[[Place], _Found], place: Place) -> Finding:
    try:
        found = check(place)
    except ZooError as error:
        found = _Found("missing", str(error))  # it says what to do
    except Exception as error:  # one that nobody thought of must not hide the others
        found = _Found("missing", f"{type(error).__name__}: {error}", "nothing here expected that: report this line")
    return Finding(subject=subject, **found._asdict())


def _python(place: Place) -> _Found:
    return _Found("ok", f"{platform.python_version()}, {sys.executable}")


def _environment(place: Place) -> _Found:
    stamp = Path(sys.prefix) / "installed.lock"
    locked = b"".join((_ROOT / lock).read_bytes() for lock in _LOCKS)
    if stamp.exists() and stamp.read_bytes() == locked:
        return _Found("ok", f"{sys.prefix} is what the lock files pin")
    return _Found("note", f"{sys.prefix} is not what the lock files pin", "start by bin/..., which installs that")


def _packages(place: Place) -> _Found:
    try:
        import torch

        versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    except (ImportError, OSError) as error:
        return _Found("missing", str(error), f"remove {sys.prefix} and run bin/doctor, which installs it again")
    return _Found("ok", f"torch {torch.__version__}, {', '.join(versions)}")


def _devices(place: Place) -> _Found:
    import torch

    from pipeline.training import precision

    devices = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    devices.append(f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = "computes" if precision.computes_in_bf16(torch.device(best)) else "does not compute"
    if server.has_gpu() and best == "cpu":
        return _Found("note", f"{'; '.join(devices)}; a GPU that torch cannot use", "install a driver for its CUDA")
    return _Found("ok", f"{'; '.join(devices)}; {best} {bf16} in bf16")


def _embedded(place: Place) -> _Found:
    if reason := server.unavailable():
        return _Found(
            "missing", reason, "prove releases on Linux x86-64 (glibc 2.35 or newer) by bin/zoo publish --run"
        )
    wheels = importlib.metadata.distributions(name="nvidia-pytriton", path=[str(server.WHEEL)])
    return _Found("ok", f"of nvidia-pytriton {', '.join(wheel.version for wheel in wheels)}")


def _image(place: Place) -> _Found:
    try:
        return _Found("ok", f"{container.find(container.IMAGE)} has {container.IMAGE}")
    except ServerError as error:
        return _Found("note", str(error), "only bin/serve --engine docker and bin/train --validate-with docker need it")


def _data(place: Place) -> _Found:
    from pipeline import registry
    from pipeline.config import DataOptions

    count = len(registry.dataset("digits_v1").load(DataOptions(place.data_dir, None, 0)).train)
    folders = sorted(path.name for path in place.data_dir.glob("*") if path.is_dir())
    at_hand = f"{place.data_dir} holds {', '.join(folders) or 'no data set'}"
    advice = "" if folders else "bin/train fetches what it is asked for; or name a folder by --data-dir"
    return _Found("ok" if folders else "note", f"{at_hand}; digits_v1 needs no files ({count} images)", advice)


def _disk(place: Place) -> _Found:
    """Of each file system that a run writes to."""
    free: dict[int, tuple[Path, int]] = {}
    local = [] if "://" in place.repository else [Path(place.repository)]
    for path in (Path.cwd(), place.data_dir.absolute(), *(path.absolute() for path in local), _temporary()):
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free.setdefault(existing.stat().st_dev, (existing, shutil.disk_usage(existing).free))
    said = ", ".join(f"{_size(available)} free for {folder}" for folder, available in free.values())
    if min(available for _, available in free.values()) < _DISK_BYTES:
        return _Found("missing", said, f"a release wants {_size(_DISK_BYTES)}: make room, or work in another folder")
    return _Found("ok", said)


def _memory(place: Place) -> _Found:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, limit - used)
    if available < _MEMORY_BYTES:
        return _Found("note", f"{_size(available)} available", f"end other programs: {_size(_MEMORY_BYTES)} are safe")
    return _Found("ok", f"{_size(available)} available")


def _shared_memory(place: Place) -> _Found:
    folder = Path("/dev/shm")
    if sys.platform != "linux":
        return _Found("ok", "only Linux needs it")
    free = shutil.disk_usage(folder).free
    if free < _SHARED_MEMORY_BYTES or not os.access(folder, os.W_OK):
        return _Found("missing", f"{_size(free)} free in {folder}", "make it larger; in a container by --shm-size=256m")
    return _Found("ok", f"{_size(free)} free in {folder}")


def _repository(place: Place) -> _Found:
    """No file is hashed: that is for bin/zoo verify."""
    store = open_store(place.repository)
    store.check_writable()
    names = inspection.listing(store).names
    if not names:
        return _Found("ok", f"{store.location} can be written and holds nothing yet", "bin/train releases into it")
    problems = [f"{name.name}: {name.problem}" for name in names if name.problem]
    problems += [
        f"{name.name}: config.pbtxt names version {version}, which is not there"
        for name in names
        for version in sorted({*name.loaded} - {*name.versions})
    ]
    versions = sum(len(name.versions) for name in names)
    held = f"{store.location} can be written and holds {len(names)} names, {versions} versions"
    if problems:
        return _Found("missing", f"{held}; {'; '.join(problems)}", "bin/zoo verify tells more")
    return _Found("ok", f"{held}; bin/zoo verify reads them all")


def _ports(place: Place) -> _Found:
    try:
        ports.choose("127.0.0.1", _USUAL_PORTS)
    except PortInUseError as error:
        return _Found("note", str(error), "bin/serve may serve there already; bin/serve --http-port 0 takes a free one")
    return _Found("ok", f"{', '.join(map(str, _USUAL_PORTS.values()))} of 127.0.0.1 are free")


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


_CHECKS: dict[str, Callable[[Place], _Found]] = {
    "Python": _python,
    "environment": _environment,
    "packages": _packages,
    "devices": _devices,
    "embedded Triton": _embedded,
    "stock image": _image,
    "data": _data,
    "disk": _disk,
    "memory": _memory,
    "shared memory": _shared_memory,
    "repository": _repository,
    "ports": _ports,
}
