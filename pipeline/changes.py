"""Which releases of `releases.toml` a push has to make again: those whose inputs are others than at their last release.

What goes in: the files of the model and of the data set and what these import of their folders, the packages'
lock file, and the flags. The recipe is in the model's file, the hash of the data in the data set's. A change of the
pipeline itself makes no release: it would release everything each time, and `bin/release-changed --all` can.
"""

import ast
import hashlib
import json
import logging
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from pipeline import registry
from pipeline.errors import InputError, UnknownIdError
from pipeline.records import Record
from pipeline.triton import history, repository
from pipeline.triton.inspection import field
from pipeline.triton.store import Store

_log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
LIST = "releases.toml"
LOCK = "requirements.lock"
_MODEL, _DATASET = "pipeline/models/{}.py", "pipeline/datasets/{}.py"

# The content of a file of the project by its path in it, or None where there is none.
Read = Callable[[str], bytes | None]

Id = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class Planned(Record):
    """An entry of `releases.toml`; `flags` are more of bin/train's. A shell takes all of them as they are."""

    model_id: Id
    dataset_id: Id
    flags: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:=/-]+$")], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model_id}-{self.dataset_id}"

    @property
    def train(self) -> str:
        """All flags for bin/train, as they are typed."""
        return " ".join(("--model-id", self.model_id, "--dataset-id", self.dataset_id, *self.flags))


class _Plan(Record):
    release: tuple[Planned, ...]


class Change(Record):
    """A release to be made: by `bin/train` with the flags in `train`; `why` says what is not as it was."""

    name: str
    train: str
    why: str


def since(revision: str, root: Path = ROOT) -> tuple[Change, ...]:
    """What has changed in the working tree since a commit; InputError where that or a usable list is not there."""
    commit = _commit(root, revision)
    if commit is None:
        raise InputError(f"{revision} is no commit of {root}: name one, or fetch the whole history")
    return _changes((one, _why(root, one, commit)) for one in _wanted(root))


def since_release(store: Store, root: Path = ROOT, *, everything: bool = False) -> tuple[Change, ...]:
    """What has changed since the newest version of each name that ever went live, by the commit in its release.json.

    So what could not be released is tried again at the next push, and what was rolled back is not. With `everything`
    the whole list; but never a name whose version was made of a later commit than that of the working tree, over which
    an old job that is run again would put older code. InputError where the list cannot be used.
    """

    def why(planned: Planned) -> str:
        commit = _released(store, planned.name)
        if commit and _is_later(root, commit):
            _log.info("%s: released from commit %s, which is later than this one", planned.name, commit[:12])
            return ""
        return "wanted" if everything else _why(root, planned, commit)

    return _changes((one, why(one)) for one in _wanted(root))


def _changes(found: Iterable[tuple[Planned, str]]) -> tuple[Change, ...]:
    return tuple(Change(name=one.name, train=one.train, why=why) for one, why in found if why)


def _why(root: Path, planned: Planned, commit: str | None) -> str:
    """Nothing where all is as it was at the commit, which is None where there is no release of a known commit."""
    if commit is None:
        return "not released yet, or of a modified checkout"
    if _commit(root, commit) is None:
        return f"released from commit {commit[:12]}, which is not in this clone"
    now, then = _reader(root), _reader(root, commit)
    old = next((one for one in _planned(then) if one.name == planned.name), None) if then(LIST) else None
    changed = {"flags"} if old is None or old.flags != planned.flags else set()
    before, after = _inputs(planned, then), _inputs(planned, now)
    changed |= {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return ", ".join(sorted(changed))


def _inputs(planned: Planned, read: Read) -> dict[str, str]:
    """SHA-256 of each file that decides what the release is, by path."""
    found: dict[str, str] = {}
    waiting = [LOCK, _MODEL.format(planned.model_id), _DATASET.format(planned.dataset_id)]
    while waiting:
        path = waiting.pop()
        content = read(path)
        if path in found or content is None:
            continue
        found[path] = hashlib.sha256(content).hexdigest()
        if path.endswith(".py"):
            waiting += _imported(path, content)
    return found


def _imported(path: str, content: bytes) -> Iterator[str]:
    """Files of entries that a file may import; not all of them need be there."""
    for node in ast.walk(ast.parse(content, path)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            if module.startswith(("pipeline.models.", "pipeline.datasets.")):
                yield module.replace(".", "/") + ".py"


def _planned(read: Read) -> tuple[Planned, ...]:
    content = read(LIST)
    try:
        plan = _Plan.model_validate(tomllib.loads((content or b"").decode()))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{LIST} is no list of releases: {reason}; expected [[release]] with model_id and dataset_id"
        ) from None
    return plan.release


def _wanted(root: Path) -> tuple[Planned, ...]:
    """The list as it is now; UnknownIdError where it names an entry that is not there."""
    read = _reader(root)
    planned = _planned(read)
    for one in planned:
        if read(_MODEL.format(one.model_id)) is None:
            raise UnknownIdError("model", one.model_id, registry.ids("models"))
        if read(_DATASET.format(one.dataset_id)) is None:
            raise UnknownIdError("data set", one.dataset_id, registry.ids("datasets"))
        if one.dataset_id == "image_folder_v1" or any(flag.startswith("--release-name") for flag in one.flags):
            raise InputError(f"{LIST}: {one.name} would be released under another name: leave out its entry")
    twice = [name for name, count in Counter(one.name for one in planned).items() if count > 1]
    if twice:
        raise InputError(f"{LIST} has {twice[0]} twice: keep one entry of a model and a data set")
    return planned


def _released(store: Store, name: str) -> str | None:
    """The commit that the newest version was made of which ever went live."""
    promoted = {
        event.version
        for event in store.events()
        if event.name == name and event.state == "done" and event.action in history.PROMOTIONS
    }
    there = promoted.intersection(repository.versions(store, name))
    if not there:
        return None
    release = json.loads(repository.read(store, name, max(there), repository.RELEASE))
    revision = field(release, "code", "revision")
    return None if field(release, "code", "modified") else revision


def _reader(root: Path, commit: str | None = None) -> Read:
    """Reads in the working tree, or as of a commit."""

    def read_file(path: str) -> bytes | None:
        file = root / path
        return file.read_bytes() if file.is_file() else None

    def read_blob(path: str) -> bytes | None:
        return _git(root, "cat-file", "blob", f"{commit}:./{path}")

    return read_blob if commit else read_file


def _commit(root: Path, revision: str) -> str | None:
    """The full hash of a commit that is in this clone."""
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return found.decode().strip() if found else None


def _is_later(root: Path, commit: str) -> bool:
    """Whether the commit has that of the working tree among its ancestors."""
    head, other = _commit(root, "HEAD"), _commit(root, commit)
    if head is None or other is None or head == other:
        return False
    return _git(root, "merge-base", "--is-ancestor", head, other) is not None


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise InputError("git is not installed: what has changed is told by it") from None
    return done.stdout if done.returncode == 0 else None
