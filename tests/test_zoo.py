"""What `bin/zoo` does to released versions: as commands, under a killer, on damaged files and under a real Triton."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import NAME as RELEASED
from conftest import Workplace, run_command, start_command, wait_until
from github import LOCATION, GitHub
from publishers import NOT_REACHED, die, disturb, fork
from test_repository import (
    NAME,
    Candidate,
    assert_clean,
    assert_live_is_complete,
    make_source,
    release_json,
    tree,
)
from test_triton_server import LABELS, MATRIX, SHAPE, expected, images, onnx_model, options

from pipeline.errors import ConflictError, InputError, ServerError
from pipeline.triton import (
    client,
    history,
    inspection,
    model_config,
    publishing,
    repository,
    switching,
    transfer,
    verification,
)
from pipeline.triton.file_store import FileStore
from pipeline.triton.history import Event
from pipeline.triton.server import running
from pipeline.triton.store import open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The repository's folder, not made yet; alone in its parent, where the staging folder goes."""
    (tmp_path / "zoo").mkdir()
    return tmp_path / "zoo" / "models"


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    return Candidate(tmp_path / "candidate")


@pytest.fixture
def store(root: Path, candidate: Candidate) -> FileStore:
    """Versions 1 to 3 of one name; version 3 is live."""
    for _ in range(3):
        candidate.publish(root)
    return FileStore(root)


def loaded(store: FileStore) -> tuple[int, ...]:
    return repository.loaded_versions(store, NAME)


def problems(store: FileStore) -> list[str]:
    return [problem.problem for problem in verification.verify(store).problems]


def promotions(store: FileStore) -> list[int]:
    return history.promotions(store.events(), NAME)


def change_config(folder: Path, change: Callable[[Any], None]) -> bytes:
    """Change a version's own config before it is released; its new release.json."""
    config = model_config.read(folder / "config.pbtxt")
    change(config)
    (folder / "config.pbtxt").write_text(model_config.to_text(config), encoding="utf-8")
    return release_json(folder)


# Which version is live


def test_roll_back_walks_through_promotions(store: FileStore) -> None:
    assert (switching.promote(store, NAME, 1).previous, loaded(store)) == (3, (1,))
    assert promotions(store) == [1, 2, 3, 1]
    switching.retire(store, NAME, 2, reason="it was the worst")
    assert promotions(store) == [1, 3, 1]
    assert switching.rollback(store, NAME).version == 3
    assert switching.rollback(store, NAME).version == 1
    with pytest.raises(InputError, match="nothing to roll back to"):
        switching.rollback(store, NAME)
    assert store.events()[-5].reason == "it was the worst"
    assert problems(store) == []


def test_a_version_between_two_promotions_of_another_may_go(store: FileStore) -> None:
    switching.promote(store, NAME, 2)
    switching.retire(store, NAME, 3, force=True)
    assert promotions(store) == [1, 2]
    assert switching.rollback(store, NAME).version == 1


def test_what_was_live_before_the_history_began_can_come_back(store: FileStore, root: Path, tmp_path: Path) -> None:
    """As where a tar file was unpacked into a repository by hand."""
    (root / "history.jsonl").unlink()
    assert repository.newest(store) == NAME
    assert Candidate(tmp_path / "another").publish(root) == (4, 3)
    assert inspection.name_details(store, NAME).next_rollback == 3
    assert [event.version for event in switching.prune(store, NAME, 1).retired] == [1, 2]
    assert switching.rollback(store, NAME).version == 3
    with pytest.raises(InputError, match="nothing to roll back to"):
        switching.rollback(store, NAME)
    assert problems(store) == []


def test_a_version_that_is_promoted_after_a_change_by_hand_is_live_once(store: FileStore, root: Path) -> None:
    point_by_hand(root)
    assert switching.promote(store, NAME, 3).previous == 1
    assert promotions(store) == [1, 2, 3]
    assert switching.rollback(store, NAME).version == 2


@pytest.mark.parametrize(("version", "said"), [(3, "is live already"), (7, "no version 7: known: 1, 2, 3")])
def test_what_cannot_be_promoted_is_refused(store: FileStore, root: Path, version: int, said: str) -> None:
    before = tree(root)
    with pytest.raises(InputError, match=said):
        switching.promote(store, NAME, version)
    assert tree(root) == before


def test_versions_are_kept_loaded_until_finish(store: FileStore, root: Path, candidate: Candidate) -> None:
    with pytest.raises(InputError, match="must be lower"):
        switching.promote(store, NAME, 2, keep_live=True)
    with pytest.raises(InputError, match="nothing to finish"):
        switching.finish(store, NAME)
    switching.promote(store, NAME, 1)
    event = switching.promote(store, NAME, 2, keep_live=True)
    assert (event.version, event.previous, event.kept) == (2, 1, (1,))
    assert loaded(store) == (1, 2)
    assert repository.live_version(store, NAME) == 2
    with pytest.raises(InputError, match="kept loaded"):
        switching.retire(store, NAME, 1)
    # Who pins version 1 does not lose it by a release that comes meanwhile.
    assert candidate.publish(root) == (4, 2)
    assert loaded(store) == (1, 4)
    assert switching.prune(store, NAME, 1).retired[0].version == 3
    assert repository.versions(store, NAME) == [1, 2, 4]
    assert problems(store) == []
    assert switching.finish(store, NAME).version == 4
    assert loaded(store) == (4,)
    assert promotions(store) == [1, 2, 1, 2, 4]
    # Only a lower one can be kept, so a roll-back lets go of it.
    switching.rollback(store, NAME)
    switching.promote(store, NAME, 4, keep_live=True)
    switching.rollback(store, NAME)
    assert loaded(store) == (2,)


def test_what_was_kept_loaded_comes_back_with_what_is_undone(store: FileStore) -> None:
    switching.rollback(store, NAME)
    switching.promote(store, NAME, 3, keep_live=True)
    promoted = promotions(store)
    changes: tuple[Callable[[], Event], ...] = (
        lambda: switching.rollback(store, NAME),
        lambda: switching.promote(store, NAME, 2),
    )
    for change in changes:
        event = change()
        assert loaded(store) == (2,)
        switching.undo(store, event, (2, 3), reason="no good")
        assert loaded(store) == (2, 3)
        assert promotions(store) == promoted
    assert problems(store) == []


def test_versions_of_other_configurations_are_not_loaded_together(
    store: FileStore, root: Path, tmp_path: Path, candidate: Candidate
) -> None:
    source = make_source(tmp_path / "other")
    content = change_config(source, lambda config: config.parameters["intra_op_thread_count"].Clear())
    switching.promote(store, NAME, 1)
    switching.promote(store, NAME, 2, keep_live=True)
    before = tree(root)
    with pytest.raises(InputError, match=f"version 1 cannot stay loaded.*bin/zoo finish {NAME}"):
        publishing.publish_version(store, NAME, source, content)
    assert tree(root) == before
    switching.finish(store, NAME)
    assert publishing.publish_version(store, NAME, source, content).version == 4
    switching.promote(store, NAME, 2)
    with pytest.raises(InputError, match="same configuration"):
        switching.promote(store, NAME, 4, keep_live=True)


# Versions that go


def test_retire_spares_the_live_version_and_the_next_roll_back(store: FileStore, root: Path) -> None:
    before = tree(root)
    for version, said in ((3, "is live"), (2, "--force")):
        with pytest.raises(InputError, match=said):
            switching.retire(store, NAME, version)
    assert tree(root) == before
    switching.retire(store, NAME, 2, force=True)
    assert repository.versions(store, NAME) == [1, 3]
    assert switching.rollback(store, NAME).version == 1
    assert problems(store) == []


def test_the_number_of_a_retired_version_is_not_used_again(store: FileStore, root: Path, candidate: Candidate) -> None:
    switching.rollback(store, NAME)
    switching.retire(store, NAME, 3)
    assert candidate.publish(root) == (4, 2)


def test_prune_keeps_the_newest_and_what_is_needed(store: FileStore, root: Path, candidate: Candidate) -> None:
    for _ in range(3):
        candidate.publish(root)
    candidate.publish(root, "other")
    switching.promote(store, NAME, 2)
    assert [event.version for event in switching.prune(store, None, 2).retired] == [1, 3, 4]
    assert repository.versions(store, NAME) == [2, 5, 6]
    assert switching.prune(store, None, 2).retired == ()
    assert problems(store) == []


def test_prune_removes_nothing_where_one_name_is_damaged(store: FileStore, root: Path, candidate: Candidate) -> None:
    candidate.publish(root, "zebra")
    (root / "zebra" / "config.pbtxt").write_text("version_policy {", encoding="utf-8")
    before = tree(root)
    with pytest.raises(InputError, match="not a Triton model config"):
        switching.prune(store, None, 1)
    assert tree(root) == before


class Counting(FileStore):
    """Counts how often its history is read."""

    reads = 0

    def events(self) -> list[Event]:
        self.reads += 1
        return super().events()


def test_prune_reads_the_history_of_many_names_as_often_as_of_one(root: Path, candidate: Candidate) -> None:
    for name in ("a", "b", "c"):
        candidate.publish(root, name)
    one, all_names = Counting(root), Counting(root)
    switching.prune(one, "a", 1)
    switching.prune(all_names, None, 1)
    assert 0 < all_names.reads == one.reads


# Other repositories and tar files


def test_a_version_is_pushed_once_under_its_own_number_there(
    store: FileStore, tmp_path: Path, candidate: Candidate
) -> None:
    there = FileStore(tmp_path / "there")
    Candidate(tmp_path / "another").publish(tmp_path / "there")
    pushed = transfer.copy(store, there, NAME, None, trust=False, reason="approved")
    assert (pushed.version, pushed.previous, pushed.live, pushed.new) == (2, 1, True, True)
    assert tree(tmp_path / "there" / NAME / "2") == tree(tmp_path / "zoo" / "models" / NAME / "3")
    event = there.events()[-1]
    assert (event.action, event.origin, event.reason) == ("install", f"{store.location}/{NAME}/3", "approved")
    switching.rollback(there, NAME)
    before = tree(tmp_path / "there")
    again = transfer.copy(store, there, NAME, 3, trust=False)
    assert (again.version, again.live, again.new) == (2, False, False)
    assert tree(tmp_path / "there") == before
    assert problems(there) == []


def test_a_version_that_another_one_pulls_meanwhile_comes_once(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = FileStore(tmp_path / "there"), FileStore(tmp_path / "there")
    exclusive = slow.exclusive

    def overtaken() -> AbstractContextManager[None]:
        transfer.follow(store, quick, NAME, trust=False)
        return exclusive()

    monkeypatch.setattr(slow, "exclusive", overtaken)
    pulled = transfer.follow(store, slow, NAME, trust=False)
    assert (pulled.version, pulled.live, pulled.new) == (1, True, False)
    assert repository.versions(slow, NAME) == [1]


def test_a_version_whose_publisher_was_killed_after_the_switch_comes_once(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody can tell yet that he is dead."""
    there = Unlocked(tmp_path / "there", lambda: None)
    (tmp_path / "there").mkdir()
    append = there.append
    with monkeypatch.context() as patch:
        patch.setattr(there, "append", lambda event: append(event) if event.state == "intent" else None)
        assert transfer.follow(store, there, NAME, trust=False).new
    assert [event.state for event in there.events()] == ["intent"]
    pulled = transfer.follow(store, there, NAME, trust=False)
    assert (pulled.version, pulled.live, pulled.new) == (1, True, False)
    assert repository.versions(there, NAME) == [1]


def test_an_altered_version_is_neither_pushed_nor_exported(store: FileStore, root: Path, tmp_path: Path) -> None:
    (root / NAME / "2" / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"2/model\.onnx is not as it was released"):
        transfer.copy(store, FileStore(tmp_path / "there"), NAME, 2, trust=True)
    with pytest.raises(InputError, match=r"2/model\.onnx is not as it was released"):
        transfer.export(store, NAME, 2, tmp_path / "digits.tar")
    assert repository.names(FileStore(tmp_path / "there")) == []
    assert list(tmp_path.glob("*.tar*")) == list(tmp_path.glob(".*.tmp")) == []


def test_a_tar_file_has_the_same_bytes_each_time_and_no_owner(store: FileStore, root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.tar", tmp_path / "2.tar"
    exported = transfer.export(store, NAME, 2, first)
    for path in (root / NAME / "2").rglob("*"):
        os.utime(path, (1, 1))
    assert transfer.export(store, NAME, 2, second).sha256 == exported.sha256
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        members = archive.getmembers()
    version = {f"{NAME}/2/{path}" for path in store.files(f"{NAME}/2")}
    assert {member.name for member in members} == {*version, f"{NAME}/config.pbtxt", "SHA256SUMS"}
    assert {(member.uname, member.gname, member.uid, member.mtime, member.mode) for member in members} == {
        ("", "", 0, 0, 0o644)
    }


def test_an_exported_version_is_installed(store: FileStore, tmp_path: Path) -> None:
    transfer.export(store, NAME, 2, tmp_path / "digits.tar")
    there = FileStore(tmp_path / "there")
    assert transfer.install(there, tmp_path / "digits.tar", trust=False).version == 1
    assert not transfer.install(there, tmp_path / "digits.tar", trust=False).new
    assert tree(tmp_path / "there" / NAME / "1") == tree(Path(store.location) / NAME / "2")
    assert there.events()[-1].origin == "digits.tar"
    assert problems(there) == []


def plain(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    return entry, content


def link(kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(f"{NAME}/2/link")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry, b""


HOSTILE: dict[str, tuple[tuple[tarfile.TarInfo, bytes], str]] = {
    "outside": (plain(f"{NAME}/2/../../escaped"), "not a plain file inside"),
    "absolute": (plain("/tmp/escaped"), "not a plain file inside"),
    "absolute inside": (plain(f"{NAME}/2//tmp/escaped"), "not a plain file inside"),
    "symbolic link": (link(tarfile.SYMTYPE), "not a plain file"),
    "hard link": (link(tarfile.LNKTYPE), "not a plain file"),
    "device": (link(tarfile.CHRTYPE), "not a plain file"),
    "second time": (plain(f"{NAME}/2/model.onnx"), "once"),
    "not released": (plain(f"{NAME}/2/extra.py"), r"extra\.py is not as it was released"),
    "another name": (plain("other/2/model.onnx"), "one version of one name"),
    "another version": (plain(f"{NAME}/3/model.onnx"), "one version of one name"),
    "beside the versions": (plain(f"{NAME}/model.py"), "one version of one name"),
    "beside the names": (plain("README.md"), "one version of one name"),
}


def summed_anew(path: Path, *, left_out: str = "", added: tuple[tarfile.TarInfo, bytes] | None = None) -> None:
    """Write a tar file again, with other entries and right sums, as one who means harm would."""
    with tarfile.open(path) as archive:
        entries = [(member, archive.extractfile(member)) for member in archive]
        contents = [(member, file.read()) for member, file in entries if file and member.name != "SHA256SUMS"]
    kept = [(member, content) for member, content in contents if member.name != left_out]
    kept += [added] if added else []
    lines = [f"{repository.sha256(content)}  {member.name}\n" for member, content in kept]
    with tarfile.open(path, "w") as archive:
        for member, content in (*kept, plain("SHA256SUMS", "".join(lines).encode())):
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tar_file_with_anything_else_is_refused(store: FileStore, root: Path, tmp_path: Path, kind: str) -> None:
    (entry, content), said = HOSTILE[kind]
    path = tmp_path / "tars" / "digits.tar"
    path.parent.mkdir()
    transfer.export(store, NAME, 2, path)
    summed_anew(path, added=(entry, content))
    there = FileStore(tmp_path / "there" / "models")
    with pytest.raises(InputError, match=said):
        transfer.install(there, path, trust=True)
    assert repository.names(there) == []
    assert not list(tmp_path.rglob("escaped"))
    assert [path.name for path in (tmp_path / "there").glob("*")] in ([], ["models"])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (f"{NAME}/config.pbtxt", "with its config.pbtxt"),
        (f"{NAME}/2/config.pbtxt", "not what makes version 2 live"),
        (f"{NAME}/2/release.json", "has no release.json"),
        (f"{NAME}/2/labels.txt", "has no labels.txt"),
        (f"{NAME}/2/model.onnx", r"model\.onnx is not as it was released"),
    ],
)
def test_a_tar_file_that_lacks_a_file_is_refused(store: FileStore, tmp_path: Path, file: str, said: str) -> None:
    path = tmp_path / "digits.tar"
    transfer.export(store, NAME, 2, path)
    summed_anew(path, left_out=file)
    with pytest.raises(InputError, match=said):
        transfer.install(FileStore(tmp_path / "there"), path, trust=True)
    assert repository.names(FileStore(tmp_path / "there")) == []


def test_a_tar_file_makes_no_other_version_live(store: FileStore, root: Path, tmp_path: Path) -> None:
    """For those who unpack it by hand."""
    path = tmp_path / "digits.tar"
    transfer.export(store, NAME, 2, path)
    own = repository.own_config(store, NAME, 2)
    own.max_batch_size = 1
    other = plain(f"{NAME}/config.pbtxt", repository.pointing_config(own, 2).encode())
    summed_anew(path, left_out=f"{NAME}/config.pbtxt", added=other)
    with pytest.raises(InputError, match="not what makes version 2 live"):
        transfer.install(FileStore(tmp_path / "there"), path, trust=True)


def test_a_tar_file_of_which_a_byte_has_changed_is_refused(store: FileStore, tmp_path: Path) -> None:
    path = tmp_path / "digits.tar"
    transfer.export(store, NAME, 2, path)
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        places = {member.name: member.offset_data for member in archive}
    for name, place in places.items():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"digits\.tar"):
            transfer.install(FileStore(tmp_path / "there"), path, trust=True)
        assert repository.names(FileStore(tmp_path / "there")) == [], name


@pytest.mark.parametrize("length", [0, 700, 5000, -11000])
def test_a_tar_file_that_is_cut_short_is_refused(store: FileStore, tmp_path: Path, length: int) -> None:
    path = tmp_path / "digits.tar"
    transfer.export(store, NAME, 2, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"digits\.tar"):
        transfer.install(FileStore(tmp_path / "there"), path, trust=True)
    assert repository.names(FileStore(tmp_path / "there")) == []


def torchscript(config: Any) -> None:
    config.backend = "pytorch"


def operators(config: Any) -> None:
    config.model_operations.op_library_filename.append("operators.so")


def environment(config: Any) -> None:
    config.parameters["EXECUTION_ENV_PATH"].string_value = "/tmp/environment.tar.gz"


@pytest.mark.parametrize(
    ("change", "said"),
    [(torchscript, "backend 'pytorch'"), (operators, "model_operations"), (environment, "EXECUTION_ENV_PATH")],
)
def test_code_from_elsewhere_is_refused_unless_trusted(
    root: Path, tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    source = make_source(tmp_path / "source")
    store, there = FileStore(root), FileStore(tmp_path / "there")
    publishing.publish_version(store, NAME, source, change_config(source, change))
    transfer.export(store, NAME, 1, tmp_path / "digits.tar")
    with pytest.raises(InputError, match=f"{said}.*--trust"):
        transfer.install(there, tmp_path / "digits.tar", trust=False)
    with pytest.raises(InputError, match=f"{said}.*--trust"):
        transfer.copy(store, there, NAME, 1, trust=False)
    assert repository.names(there) == []
    assert transfer.install(there, tmp_path / "digits.tar", trust=True).live


def test_a_release_that_is_said_to_be_torchscript_is_code(root: Path, tmp_path: Path, candidate: Candidate) -> None:
    """Whatever its config.pbtxt says: bin/evaluate opens the file of the format that release.json names."""
    content = json.loads(candidate.release_json)
    content["gated"]["served_format"] = "torchscript"
    publishing.publish_version(FileStore(root), NAME, candidate.source, json.dumps(content).encode())
    there = FileStore(tmp_path / "there")
    with pytest.raises(InputError, match=r"'torchscript'.*--trust"):
        transfer.copy(FileStore(root), there, NAME, 1, trust=False)
    assert transfer.copy(FileStore(root), there, NAME, 1, trust=True).live


# What is wrong is found


def damage_config(root: Path) -> None:
    (root / NAME / "config.pbtxt").write_text("version_policy {", encoding="utf-8")


def other_settings(root: Path) -> None:
    path = root / NAME / "config.pbtxt"
    path.write_text(path.read_text(encoding="utf-8").replace("max_batch_size: 128", "max_batch_size: 64"))


def point_by_hand(root: Path) -> None:
    own = model_config.read(root / NAME / "1" / "config.pbtxt")
    (root / NAME / "config.pbtxt").write_text(repository.pointing_config(own, 1), encoding="utf-8")


def point_nowhere(root: Path) -> None:
    own = model_config.read(root / NAME / "1" / "config.pbtxt")
    (root / NAME / "config.pbtxt").write_text(repository.pointing_config(own, 9), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (lambda root: (root / NAME / "1" / "model.onnx").write_bytes(b""), r"1/model\.onnx is not as it"),
    "config": (damage_config, "not a Triton model config"),
    "settings": (other_settings, "is not the one of version 3"),
    "pointer": (point_by_hand, "version 1 live, the history version 3"),
    "nowhere": (point_nowhere, "names version 9, which is not there"),
    "gone": (lambda root: shutil.rmtree(root / NAME / "1"), "version 1 was published and is not there"),
    "no config": (lambda root: (root / NAME / "config.pbtxt").unlink(), r"no config\.pbtxt"),
    "stray file": (lambda root: (root / NAME / "notes.txt").touch(), r"notes\.txt is neither"),
    "stray folder": (lambda root: (root / NAME / "old").mkdir(), "old is neither"),
    "stray name": (lambda root: (root / "staging").mkdir(), "no version in it"),
    "name": (lambda root: shutil.rmtree(root / NAME), "version 3 was published and is not there"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_what_is_wrong(store: FileStore, root: Path, damage: str) -> None:
    assert problems(store) == []
    act, said = DAMAGES[damage]
    act(root)
    before = tree(root)
    assert re.search(said, "\n".join(problems(store)))
    assert tree(root) == before


def test_a_version_is_shown_where_the_name_has_no_config(store: FileStore, root: Path) -> None:
    (root / NAME / "config.pbtxt").unlink()
    details = inspection.version_details(store, NAME, 2)
    assert (details.summary.version, details.summary.live, details.summary.loaded) == (2, False, False)


def test_a_config_that_names_no_version_is_replaced_as_its_error_says(
    store: FileStore, root: Path, candidate: Candidate
) -> None:
    config = root / NAME / "config.pbtxt"
    shutil.copy(root / NAME / "2" / "config.pbtxt", config)
    for change in (lambda: candidate.publish(root), lambda: switching.promote(store, NAME, 2)):
        with pytest.raises(InputError, match=r"names no version.*: restore it, or remove it and publish again"):
            change()
    config.unlink()
    assert candidate.publish(root) == (4, None)
    assert loaded(store) == (4,)
    assert problems(store) == []


def test_a_name_whose_config_is_damaged_keeps_no_other_from_changing(
    store: FileStore, root: Path, candidate: Candidate
) -> None:
    candidate.publish(root, "other")
    store.append(history.intent("publish", "other", 2, 1, "0"))
    config = root / "other" / "config.pbtxt"
    whole = config.read_bytes()
    config.write_text("version_policy {", encoding="utf-8")
    assert switching.rollback(store, NAME).version == 2
    assert switching.retire(store, NAME, 3).state == "done"
    assert switching.prune(store, NAME, 1).retired == ()
    assert inspection.name_details(store, NAME).next_rollback == 1
    with pytest.raises(InputError, match="not a Triton model config"):
        switching.rollback(store, "other")
    assert [event.name for event in history.open_intents(store.events())] == ["other"]
    config.write_bytes(whole)
    assert candidate.publish(root) == (4, 2)
    assert history.open_intents(store.events()) == []


class Disturbed(FileStore):
    """What somebody else does while the first model is read."""

    def __init__(self, root: Path, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self.meanwhile = [meanwhile]

    def read(self, path: str) -> bytes:
        if path.endswith("model.onnx") and self.meanwhile:
            self.meanwhile.pop()()
        return super().read(path)


def test_what_changes_while_it_verifies_is_no_problem(store: FileStore, root: Path, candidate: Candidate) -> None:
    for change in (
        lambda: candidate.publish(root),
        lambda: switching.rollback(store, NAME),
        lambda: switching.retire(store, NAME, 1),
        lambda: candidate.publish(root, "another"),
    ):
        assert problems(Disturbed(root, change)) == []
    (root / NAME / "2" / "labels.txt").write_text("other\n")
    (problem,) = problems(Disturbed(root, lambda: candidate.publish(root)))
    assert "2/labels.txt is not as it was released" in problem


def test_a_damaged_config_hides_no_other_problem(store: FileStore, root: Path) -> None:
    """Not even that nobody can tell how a publisher ended."""
    store.append(history.intent("publish", NAME, 4, 3, "0" * 64))
    (root / NAME / "1" / "labels.txt").write_text("other\n")
    damage_config(root)
    found = "\n".join(problems(store))
    for said in ("publish is open in the history", "not a Triton model config", r"1/labels\.txt is not as it"):
        assert re.search(said, found)
    assert verification.verify(store, NAME, 2).problems == ()


def test_versions_read_without_protobuf_are_those_that_it_reads(store: FileStore, root: Path) -> None:
    path = root / NAME / "config.pbtxt"
    by_hand = path.read_text(encoding="utf-8").replace("version_policy {\n  specific {", "version_policy { specific {")
    assert by_hand != path.read_text(encoding="utf-8")
    for text in (path.read_text(encoding="utf-8"), by_hand, by_hand.replace("versions: 3", "versions: [2, 3]")):
        path.write_text(text, encoding="utf-8")
        parsed = model_config.parse(text.encode(), "").version_policy.specific.versions
        assert loaded(store) == tuple(parsed)


# Killed, and at the same time


def act_on(store: FileStore, action: str, tar: Path) -> None:
    """One change of a repository that holds versions 1 to 3, with 3 live and 2 kept."""
    if action == "promote":
        switching.promote(store, NAME, 2)
    elif action == "finish":
        switching.finish(store, NAME)
    elif action == "retire":
        switching.retire(store, NAME, 1)
    else:
        transfer.install(store, tar, trust=False)


@pytest.mark.parametrize("action", ["promote", "finish", "retire", "install"])
def test_killed_at_any_step_it_is_done_or_as_before(
    store: FileStore, root: Path, tmp_path: Path, candidate: Candidate, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # most of the time, and only for a loss of power
    tar = tmp_path / "other.tar"
    Candidate(tmp_path / "other candidate").publish(tmp_path / "other")
    transfer.export(FileStore(tmp_path / "other"), NAME, 1, tar)
    switching.rollback(store, NAME)
    switching.promote(store, NAME, 3, keep_live=True)
    seen = set()
    for step in range(1, 1000):
        copy = tmp_path / f"killed at {step}" / "models"
        copy.parent.mkdir()
        shutil.copytree(root, copy)
        killed = FileStore(copy)

        def run(killed: FileStore = killed, step: int = step) -> int:
            steps = disturb(step, die)
            act_on(killed, action, tar)
            return 0 if steps() >= step else NOT_REACHED

        status = os.waitpid(fork(run), 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == NOT_REACHED
            assert step > 4, "there are fewer steps than the protocol has"
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert problems(killed) == []
        seen.add((loaded(killed), (copy / NAME / "1" / "release.json").exists()))
        # The next one heals it, and who is kept loaded is still so.
        live, kept = repository.live_version(killed, NAME), loaded(killed)[:-1]
        version, previous = candidate.publish(copy)
        assert (previous, loaded(killed)) == (live, (*kept, version))
        assert problems(killed) == []
        assert history.open_intents(killed.events()) == []
        assert {path.name for path in copy.parent.iterdir()} == {copy.name}
        assert {path.name for path in copy.iterdir()} - {".lock"} == {"history.jsonl", NAME}
        shutil.rmtree(copy.parent)
    after = {
        "promote": ((2,), True),
        "finish": ((3,), True),
        "retire": ((2, 3), False),
        "install": ((2, 4), True),
    }
    assert seen == {((2, 3), True), after[action]}


class Unlocked(FileStore):
    """A store without a lock, as S3 is: the steps on single files refuse what another has changed meanwhile.

    `meanwhile` is what another publisher does just before this one's first switch.
    """

    def __init__(self, root: Path, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self.meanwhile: Callable[[], object] | None = meanwhile

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def is_abandoned(self, intent: Event) -> bool:
        return False

    def append(self, event: Event) -> None:
        if event.state == "intent" and event.brings_in and event.version in {other.version for other in self.events()}:
            raise ConflictError(f"version {event.version} is taken")
        super().append(event)

    def point(self, name: str, config: str, expected: bytes) -> None:
        if self.meanwhile:
            act, self.meanwhile = self.meanwhile, None
            act()
        if repository.live_config(self, name) != expected:
            raise ConflictError(f"{name} has changed")
        super().point(name, config, expected)


def test_a_publisher_who_is_overtaken_leaves_the_higher_version_live(
    store: FileStore, root: Path, candidate: Candidate
) -> None:
    slow = Unlocked(root, lambda: publishing.publish_version(quick, NAME, candidate.source, candidate.release_json))
    quick = Unlocked(root, lambda: None)
    published = publishing.publish_version(slow, NAME, candidate.source, candidate.release_json)
    assert (published.version, published.previous, published.live) == (4, 5, False)
    assert repository.versions(store, NAME) == [1, 2, 3, 4, 5]
    assert_live_is_complete(root, 5)
    assert promotions(store) == [1, 2, 3, 5]
    assert problems(store) == []
    assert switching.rollback(store, NAME).version == 3


def test_a_switch_of_which_two_say_that_it_was_done_counts_once(
    store: FileStore, root: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher does, but late; before that, who rolls it back."""
    slow, quick = Unlocked(root, lambda: None), Unlocked(root, lambda: None)
    point = slow.point

    def overtaken(name: str, config: str, expected: bytes) -> None:
        point(name, config, expected)
        assert switching.rollback(quick, NAME).version == 3

    monkeypatch.setattr(slow, "point", overtaken)
    assert publishing.publish_version(slow, NAME, candidate.source, candidate.release_json).version == 4
    assert [(event.action, event.version) for event in store.events() if event.state == "done"][3:] == [
        ("publish", 4),
        ("rollback", 3),
        ("publish", 4),
    ]
    assert promotions(store) == [1, 2, 3]
    assert problems(store) == []


def test_a_publisher_goes_on_after_a_roll_back_of_another(store: FileStore, root: Path, candidate: Candidate) -> None:
    slow = Unlocked(root, lambda: switching.rollback(Unlocked(root, lambda: None), NAME))
    published = publishing.publish_version(slow, NAME, candidate.source, candidate.release_json)
    assert (published.version, published.previous, published.live) == (4, 2, True)
    assert_live_is_complete(root, 4)


def test_a_number_that_another_has_claimed_is_not_taken(
    store: FileStore, root: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version = repository.next_version
    answers = iter([3])  # as read before another one's intent came
    monkeypatch.setattr(repository, "next_version", lambda *place: next(answers, None) or next_version(*place))
    slow = Unlocked(root, lambda: None)
    assert publishing.publish_version(slow, NAME, candidate.source, candidate.release_json).version == 4
    assert_live_is_complete(root, 4)
    assert_clean(root)


# As commands


def zoo(*arguments: str, cwd: Path, status: int = 0) -> Any:
    """What a command answers as JSON; of one that fails, its error."""
    done = run_command("zoo", *arguments, "--json", cwd=cwd)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status else json.loads(done.stdout)


def test_every_command(released: Workplace, tmp_path: Path) -> None:
    run = str(released.run)
    shutil.copytree(released.repository, tmp_path / "model_repository")
    published = zoo("publish", "--run", run, "-m", "again", cwd=tmp_path)
    assert (published["version"], published["previous"], published["live"]) == (2, 1, True)

    listed = zoo("list", cwd=tmp_path)["names"][0]
    assert (listed["name"], listed["versions"], listed["live"]["version"]) == (RELEASED, [1, 2], 2)
    assert listed["live"]["accuracy"] > 0.9
    assert listed["live"]["bytes"] == (tmp_path / "model_repository" / RELEASED / "2" / "model.onnx").stat().st_size
    assert zoo("show", RELEASED, cwd=tmp_path)["next_rollback"] == 1
    assert zoo("show", f"{RELEASED}:1", cwd=tmp_path)["release"]["name"] == RELEASED

    difference = zoo("diff", f"{RELEASED}:1", f"{RELEASED}:2", cwd=tmp_path)
    assert (difference["same_data"], difference["metrics"], difference["recall"]) == (True, [], [])

    assert zoo("rollback", RELEASED, cwd=tmp_path)["version"] == 1
    assert zoo("promote", f"{RELEASED}:2", "--keep-live", cwd=tmp_path)["kept"] == [1]
    assert zoo("finish", RELEASED, cwd=tmp_path)["kept"] == []
    assert "--force" in zoo("retire", f"{RELEASED}:1", cwd=tmp_path, status=2)
    assert zoo("prune", "--keep", "1", cwd=tmp_path)["retired"] == []

    exported = zoo("export", f"{RELEASED}:2", "model.tar", cwd=tmp_path)
    assert exported["bytes"] == (tmp_path / "model.tar").stat().st_size
    installed = zoo("install", "model.tar", "--model-repository", "second", cwd=tmp_path)
    assert (installed["version"], installed["live"], installed["new"]) == (1, True, True)
    assert zoo("push", RELEASED, "second", cwd=tmp_path)["new"] is False
    assert zoo("pull", f"{RELEASED}:1", "second", "--model-repository", "third", cwd=tmp_path)["version"] == 1

    assert zoo("retire", f"{RELEASED}:1", "--force", "-m", "old", cwd=tmp_path)["version"] == 1
    events = zoo("history", RELEASED, cwd=tmp_path)["events"]
    actions = ["publish", "publish", "rollback", "promote", "finish", "retire"]
    assert [(event["action"], event["state"]) for event in events] == [(action, "done") for action in actions]
    assert zoo("verify", cwd=tmp_path) == {"repository": "model_repository", "versions": 1, "problems": []}
    (tmp_path / "second" / RELEASED / "1" / "labels.txt").write_text("other\n")
    wrong = zoo("verify", RELEASED, "--model-repository", "second", cwd=tmp_path, status=2)
    assert f"error: second has a problem: {RELEASED}: second/{RELEASED}/1/labels.txt is not as it was" in wrong
    assert not list(tmp_path.glob(".*"))


def test_the_steps_of_the_workflows(
    released: Workplace, github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the files in .github/workflows have them, on top of a first version; with a host that follows."""
    there = ("--model-repository", LOCATION)
    transfer.copy(FileStore(released.repository), open_store(LOCATION), RELEASED, None, trust=False)
    # From one job's machine to the other's.
    subprocess.run(["tar", "-cf", tmp_path / "run.tar", "-C", released.run.parent, released.run.name], check=True)
    (tmp_path / "trained").mkdir()
    subprocess.run(["tar", "-xf", "run.tar", "-C", "trained"], cwd=tmp_path, check=True)
    run = f"trained/{released.run.name}"
    assert all(gate["passed"] for gate in json.loads((tmp_path / run / "records" / "gated.json").read_bytes())["gates"])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # or both versions may be of the same second, and the same
    held = zoo("publish", "--run", run, "--no-promote", *there, cwd=tmp_path)
    assert (held["version"], held["previous"], held["live"]) == (2, 1, False)
    zoo("export", f"{RELEASED}:2", "release.tar", *there, cwd=tmp_path)
    assert (tmp_path / "release.tar").read_bytes() == github.asset(f"{RELEASED}/v2", f"{RELEASED}-v2.tar")
    assert zoo("promote", f"{RELEASED}:2", *there, "-m", "attested", cwd=tmp_path)["previous"] == 1
    pulled = zoo("pull", LOCATION, cwd=tmp_path)
    assert [(one["version"], one["live"], one["new"]) for one in pulled["names"]] == [(1, True, True)]
    assert zoo("rollback", RELEASED, *there, "-m", "worse", cwd=tmp_path)["version"] == 1
    back = zoo("pull", RELEASED, LOCATION, cwd=tmp_path)
    assert (back["version"], back["previous"]) == (2, 1)


def test_a_judged_run_is_published_without_torch(
    released: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import takes seconds."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    process = start_command("zoo", "publish", "--run", str(released.run), cwd=tmp_path, temporary=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    imported = {line.rpartition("|")[2].strip() for line in output.splitlines()}
    assert "pipeline.publication" in imported
    assert "torch" not in imported


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["list"], [f"{RELEASED} +1 +1 +\\d+\\.\\d\\d% +0\\.\\d\\d MB"]),
        (["show", RELEASED], ["1 +live"]),
        (["show", f"{RELEASED}:1"], ["proven by +Triton", "test accuracy +0\\.9\\d* +>= 0.97"]),
        (["verify"], ["1 version in .*: all as released"]),
        (["history", RELEASED], ["publish +1 +- +done"]),
        (["diff", f"{RELEASED}:1", f"{RELEASED}:1"], ["on the same data"]),
    ],
)
def test_answers_for_people(released: Workplace, arguments: list[str], shown: list[str]) -> None:
    done = run_command("zoo", *arguments, cwd=released.folder)
    assert done.returncode == 0, done.stderr
    for line in shown:
        assert re.search(line, done.stdout), done.stdout


def test_a_name_that_is_refused_keeps_no_other_from_coming(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        source = make_source(tmp_path / name)
        backend: model_config.Backend = "pytorch" if name == "b" else "onnxruntime"
        own = model_config.build(name=name, backend=backend, shape=(1, 4, 4), classes=3, max_batch_size=1)
        (source / "config.pbtxt").write_text(model_config.to_text(own), encoding="utf-8")
        publishing.publish_version(FileStore(root), name, source, release_json(source))
    (root / "c" / "1" / "model.onnx").write_bytes(b"other")
    done = run_command("zoo", "pull", str(root), cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"^error: b was not taken: .*give --trust; and 1 more$", done.stderr, re.MULTILINE)
    for said in ("a version 1, live in model_repository", "refused +c: .*model.onnx is not as", "d version 1, live"):
        assert re.search(said, done.stdout), done.stdout
    assert repository.names(FileStore(tmp_path / "model_repository")) == ["a", "d"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "../digits"], "not NAME[:V]"),
        (["show", "digits:0"], "not NAME[:V]"),
        (["promote", "digits"], "as digits:3"),
        (["rollback", "nope"], "nope is not in"),
        (["finish", "../digits"], "not NAME"),
        (["history", "digits:1"], "leave out the version"),
        (["diff", "a:1", "b:2"], "two names"),
        (["pull", "a", "b", "elsewhere"], "name one, or none for all"),
        (["install", "missing.tar"], "does not exist"),
        (["verify"], "model_repository holds no models"),
        (["pull", "elsewhere"], "nothing is live in elsewhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in zoo(*arguments, cwd=tmp_path, status=2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_a_mistake_too(store: FileStore, root: Path, tmp_path: Path) -> None:
    done = zoo("export", f"{NAME}:3", "missing/x.tar", "--model-repository", str(root), cwd=tmp_path, status=2)
    assert re.fullmatch(r"error: missing/\S+: No such file or directory: .*\n", done)


# Under a real Triton


def publish_matrix(store: FileStore, folder: Path, matrix: np.ndarray) -> None:
    """Publish a model of one matrix, whose answers tell it from others."""
    source = make_source(folder, LABELS, SHAPE)
    onnx.save_model(onnx_model(matrix), source / "model.onnx")
    own = model_config.build(name=NAME, backend="onnxruntime", shape=SHAPE, classes=len(LABELS), max_batch_size=8)
    own.instance_group[0].count = 1
    (source / "config.pbtxt").write_text(model_config.to_text(own), encoding="utf-8")
    publishing.publish_version(store, NAME, source, release_json(source, LABELS))


def test_a_server_follows_without_a_failed_request_or_a_needless_load(root: Path, tmp_path: Path) -> None:
    store = FileStore(root)
    matrices = [MATRIX, -MATRIX, MATRIX[::-1].copy()]
    for number, matrix in enumerate(matrices, start=1):
        publish_matrix(store, tmp_path / f"source {number}", matrix)
    batch = images(1)
    answers = [expected(batch, matrix) for matrix in matrices]
    failures: list[str] = []
    unpinned, pinned = threading.Event(), threading.Event()

    def ask_until(stop: threading.Event, url: str, version: int | None) -> None:
        wanted = answers if version is None else [answers[version - 1]]
        while not stop.is_set():
            try:
                answer = client.classify(url, NAME, batch, version)
                if not any(np.allclose(answer, known, atol=1e-5) for known in wanted):
                    failures.append(f"an answer of another version: {answer}")
            except ServerError as error:
                failures.append(str(error))

    with running(options(root, "poll")) as server:
        server.wait_live(time.monotonic() + 120)

        def answers_by(number: int, version: int | None = None) -> bool:
            try:
                answer = client.classify(server.http_url, NAME, batch, version)
            except ServerError:
                return False
            return np.allclose(answer, answers[number - 1], atol=1e-5)

        def loads() -> int:
            """How often an instance of any version was made."""
            return root.with_suffix(".log").read_text(errors="replace").count("TRITONBACKEND_ModelInstanceInitialize")

        askers = [threading.Thread(target=ask_until, args=(unpinned, server.http_url, None))]
        askers.append(threading.Thread(target=ask_until, args=(pinned, server.http_url, 2)))
        askers[0].start()
        try:
            assert answers_by(3)
            switching.rollback(store, NAME)
            wait_until(lambda: answers_by(2), 20)
            askers[1].start()
            switching.promote(store, NAME, 3, keep_live=True)
            wait_until(lambda: answers_by(3), 20)
            assert answers_by(2, version=2)
            pinned.set()
            askers[1].join()
            switching.finish(store, NAME)
            wait_until(lambda: not answers_by(2, version=2), 20)
            assert answers_by(3)

            before = loads()
            switching.retire(store, NAME, 1)
            switching.retire(store, NAME, 2, force=True)
            time.sleep(3.5)  # it looks once a second
            assert loads() == before
            assert answers_by(3)
            # Else nothing would have been seen: what is touched in the live version is seen.
            (root / NAME / "3" / "labels.txt").touch()
            wait_until(lambda: loads() > before, 20)
        finally:
            pinned.set()
            unpinned.set()
            askers[0].join()
    assert failures == []
