"""What a push releases: which files decide it, compared with a commit, or with that of each name's last release.

The project is this one's, in a git repository of its own with as few files as decide anything.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from conftest import ROOT, run_command
from test_repository import make_source, release_json

from pipeline import changes
from pipeline.commands import load
from pipeline.errors import InputError, UnknownIdError
from pipeline.triton import publishing, switching
from pipeline.triton.file_store import FileStore

CNN, FCN = "mnist_cnn_v1-mnist_v1", "mnist_fcn_v1-digits_v1"
LIST = """
[[release]]
model_id = "mnist_cnn_v1"
dataset_id = "mnist_v1"

[[release]]
model_id = "mnist_fcn_v1"
dataset_id = "digits_v1"
flags = ["--epochs", "3"]
"""


class Project:
    """A checkout; `commit` returns the new commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("models", "datasets"):
            shutil.copytree(ROOT / "pipeline" / folder, root / "pipeline" / folder)
        self.write("requirements.lock", "torch==2.15")
        self.write("releases.toml", LIST)
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        settings = ("-c", "user.name=anyone", "-c", "user.email=anyone@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *settings, *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text, encoding="utf-8")

    def append(self, path: str) -> None:
        with (self.root / path).open("a", encoding="utf-8") as file:
            file.write("\n# changed\n")

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


def release(store: FileStore, folder: Path, name: str, commit: str | None, *, modified: bool = False) -> None:
    """A version that was made of this commit."""
    source = make_source(folder)
    content = json.loads(release_json(source))
    content["code"] |= {"revision": commit, "modified": modified}
    publishing.publish_version(store, name, source, json.dumps(content).encode())


def everything(project: Project) -> tuple[changes.Change, ...]:
    return changes.since_release(FileStore(project.root / "none"), project.root, everything=True)


def names(found: tuple[changes.Change, ...]) -> list[str]:
    return [change.name for change in found]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pipeline/models/mnist_cnn_v1.py", [CNN]),
        ("pipeline/models/_cnn.py", [CNN]),
        ("pipeline/models/mnist_fcn_v1.py", [FCN]),
        ("pipeline/datasets/mnist_v1.py", [CNN]),
        ("pipeline/datasets/_idx.py", [CNN]),
        ("pipeline/datasets/_fetch.py", [CNN]),
        ("pipeline/datasets/digits_v1.py", [FCN]),
        ("requirements.lock", [CNN, FCN]),
        ("pipeline/models/resnet18_v1.py", []),
        ("pipeline/datasets/cifar10_v1.py", []),
    ],
)
def test_a_release_depends_on_its_model_its_data_and_the_lock(project: Project, path: str, expected: list[str]) -> None:
    before = project.commit()
    assert changes.since(before, project.root) == ()
    project.append(path)
    found = changes.since(before, project.root)
    assert names(found) == expected
    assert {change.why for change in found} <= {path}
    project.commit()
    assert names(changes.since("HEAD~1", project.root)) == expected
    assert changes.since("HEAD", project.root) == ()


def test_what_is_new_in_the_list_or_has_other_flags_is_released(project: Project) -> None:
    before = project.commit()
    more = '[[release]]\nmodel_id = "mnist_fcn_v1"\ndataset_id = "mnist_v1"\n'
    project.write("releases.toml", LIST.replace('"3"', '"4"') + more)
    found = changes.since(before, project.root)
    assert [(change.name, change.train, change.why) for change in found] == [
        (FCN, "--model-id mnist_fcn_v1 --dataset-id digits_v1 --epochs 4", "flags"),
        ("mnist_fcn_v1-mnist_v1", "--model-id mnist_fcn_v1 --dataset-id mnist_v1", "flags"),
    ]
    project.write("releases.toml", LIST)
    assert changes.since(before, project.root) == ()
    assert names(everything(project)) == [CNN, FCN]


def test_what_was_not_released_is_tried_again_and_what_was_rolled_back_is_not(project: Project, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "models")
    first = project.commit()
    assert names(changes.since_release(store, project.root)) == [CNN, FCN]
    for name in (CNN, FCN):
        release(store, tmp_path / f"{name} 1", name, first)
    assert changes.since_release(store, project.root) == ()
    project.append("pipeline/models/_cnn.py")
    project.commit()
    # Its release fails, and comes with the next push, whatever that is about.
    project.append("pipeline/models/resnet18_v1.py")
    third = project.commit()
    assert names(changes.since_release(store, project.root)) == [CNN]
    release(store, tmp_path / "CNN 2", CNN, third)
    assert changes.since_release(store, project.root) == ()
    switching.rollback(store, CNN)
    assert changes.since_release(store, project.root) == ()


def test_what_never_went_live_is_not_a_release(project: Project, tmp_path: Path) -> None:
    """As where its attestation failed."""
    store = FileStore(tmp_path / "models")
    first = project.commit()
    release(store, tmp_path / "1", CNN, first)
    project.append("pipeline/models/_cnn.py")
    content = json.loads((tmp_path / "models" / CNN / "1" / "release.json").read_bytes())
    content["code"]["revision"] = project.commit()
    publishing.publish_version(store, CNN, tmp_path / "1", json.dumps(content).encode(), promote=False)
    assert names(changes.since_release(store, project.root)) == [CNN, FCN]
    switching.promote(store, CNN, 2)
    assert names(changes.since_release(store, project.root)) == [FCN]


def test_an_old_checkout_releases_nothing_over_what_a_later_one_has_released(project: Project, tmp_path: Path) -> None:
    """As where a job is run again that failed some pushes ago."""
    store = FileStore(tmp_path / "models")
    old = project.commit()
    project.append("pipeline/models/_cnn.py")
    release(store, tmp_path / "1", CNN, project.commit())
    project.git("checkout", "--quiet", "-b", "other", old)
    assert names(changes.since_release(store, project.root)) == [FCN]
    assert names(changes.since_release(store, project.root, everything=True)) == [FCN]
    project.append("pipeline/models/_cnn.py")
    project.commit()  # beside the released one, not before it
    assert names(changes.since_release(store, project.root, everything=True)) == [CNN, FCN]


def test_a_release_of_no_known_commit_is_made_again(project: Project, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "models")
    commit = project.commit()
    release(store, tmp_path / "1", CNN, "0" * 40)
    release(store, tmp_path / "2", FCN, commit, modified=True)
    assert [change.why for change in changes.since_release(store, project.root)] == [
        "released from commit 000000000000, which is not in this clone",
        "not released yet, or of a modified checkout",
    ]


@pytest.mark.parametrize("revision", ["nothing", "--all", "", "HEAD~5"])
def test_a_commit_that_is_not_there_is_an_error(project: Project, revision: str) -> None:
    project.commit()
    with pytest.raises(InputError, match="is no commit"):
        changes.since(revision, project.root)


@pytest.mark.parametrize(
    "text",
    [
        "release = 1",
        "[[release]]\nmodel_id = 'a'",
        "[[release",
        LIST + "more = 1",
        LIST.replace('"3"', '"3; rm x"'),
        LIST.replace("mnist_fcn_v1", "../models/mnist_fcn_v1"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error(project: Project, text: str) -> None:
    project.write("releases.toml", text)
    with pytest.raises(InputError, match=r"releases\.toml is no list of releases"):
        everything(project)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LIST + LIST, f"{CNN} twice"),
        (LIST.replace('"--epochs", "3"', '"--release-name=x"'), f"{FCN} would be released under another name"),
        (
            LIST.replace('"digits_v1"', '"image_folder_v1"'),
            "mnist_fcn_v1-image_folder_v1 would be released under another",
        ),
    ],
)
def test_a_list_whose_names_would_not_hold_is_an_error(project: Project, text: str, reason: str) -> None:
    project.write("releases.toml", text)
    with pytest.raises(InputError, match=reason):
        everything(project)


def test_an_entry_that_is_not_there_is_an_error(project: Project) -> None:
    for given, kind in (("mnist_cnn_v1", "model"), ("digits_v1", "data set")):
        project.write("releases.toml", LIST.replace(given, given.replace("_v1", "_v9")))
        with pytest.raises(UnknownIdError, match=f"unknown {kind} .*did you mean {given}"):
            everything(project)


def test_the_command_answers_as_a_matrix_takes_it(tmp_path: Path) -> None:
    done = run_command("release-changed", "--all", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    listed = json.loads(done.stdout)
    assert [entry.keys() for entry in listed] == [{"name", "train", "why"}] * len(listed)
    assert listed
    train = load("train")
    for entry in listed:
        assert train.make_context("bin/train", entry["train"].split())
    assert run_command("release-changed", "--all", "--since", "HEAD", cwd=tmp_path).returncode == 2


# The workflows


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_step_of_a_workflow_is_a_command_of_the_project(path: Path) -> None:
    """With flags that the command has; or an action, at a full commit with its version."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"uses: (?!\$/)\S+@(?![0-9a-f]{40} # v\d+\.\d+\.\d+\n).*", text) == []
    commands = re.findall(r"^ .*?\bbin/(\S+) ?([^|)\n]*)", text, re.MULTILINE)
    assert commands
    for name, words in commands:
        if name in ("check", "test"):
            continue
        command, arguments = load(name), words.split()
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in arguments if word.startswith("-")} <= known, words
