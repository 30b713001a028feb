"""The canonical store as releases at GitHub: what is published, followed and rolled back there, and what a host takes.

Versions are those of `test_repository`; in GitHub's place stands the server of `github`.
"""

import re
import subprocess
import tarfile
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from github import HEAD, LOCATION, LOST, REPOSITORY, UNANSWERED, GitHub
from test_repository import NAME, make_source, release_json, tree
from test_zoo import change_config, torchscript

from pipeline.errors import ConflictError, InputError, StorageError
from pipeline.records import Published
from pipeline.triton import github_api, history, inspection, publishing, repository, switching, transfer, verification
from pipeline.triton.file_store import FileStore
from pipeline.triton.github import GithubStore
from pipeline.triton.store import Store, open_store


@pytest.fixture
def store(github: GitHub) -> Store:
    return open_store(LOCATION)


@pytest.fixture
def host(tmp_path: Path) -> FileStore:
    """The repository of a machine that serves."""
    (tmp_path / "host").mkdir()
    return FileStore(tmp_path / "host" / "models")


def publish(store: Store, folder: Path, *, promote: bool = True) -> Published:
    """A version that is like no other: its model is named for the folder."""
    source = make_source(folder)
    (source / "model.onnx").write_bytes(folder.name.encode())
    return publishing.publish_version(store, NAME, source, release_json(source), promote=promote)


def follow(store: Store, host: FileStore, **given: Any) -> Published:
    return transfer.follow(open_store(store.location), host, NAME, **{"trust": False, **given})


def problems(store: Store) -> list[str]:
    return [problem.problem for problem in verification.verify(store).problems]


# What is there


def test_a_version_is_a_release_with_a_tag_and_its_files(store: Store, github: GitHub, tmp_path: Path) -> None:
    published = [publish(store, tmp_path / f"candidate {number}") for number in (1, 2)]
    assert [(one.version, one.previous, one.live) for one in published] == [(1, None, True), (2, 1, True)]
    assert github.tags == {f"{NAME}/v1": HEAD, f"{NAME}/v2": HEAD}
    for release in github.releases.values():
        number = release["tag_name"].removeprefix(f"{NAME}/v")
        assert (release["draft"], release["name"]) == (False, f"{NAME} version {number}")
        assert [asset["name"] for asset in release["assets"]] == [
            f"{NAME}-v{number}.tar",
            "release.json",
            "config.pbtxt",
        ]
    assert github.latest is None, "of all names together, that says nothing"
    assert repository.names(store) == [NAME]
    assert repository.versions(store, NAME) == [1, 2]
    assert repository.live_version(store, NAME) == 2
    assert repository.newest(store) == NAME
    assert problems(store) == []
    assert repository.read(store, NAME, 1, "model.onnx") == b"candidate 1"
    assert [version.version for version in inspection.name_details(store, NAME).versions] == [1, 2]


def test_the_tag_is_of_the_commit_that_the_workflow_runs_on(
    store: Store, github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    github.commits.add("c0ffee")
    monkeypatch.setenv("GITHUB_SHA", "c0ffee")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/else")  # which has that commit, and the zoo has not
    publish(store, tmp_path / "candidate")
    monkeypatch.setenv("GITHUB_REPOSITORY", REPOSITORY)
    publish(store, tmp_path / "another")
    github.refused.add("c0ffee")  # as a push has changed the workflows meanwhile
    publish(store, tmp_path / "third")
    assert github.tags == {f"{NAME}/v1": HEAD, f"{NAME}/v2": "c0ffee", f"{NAME}/v3": HEAD}


def test_its_tar_file_is_a_part_of_a_model_repository(store: Store, github: GitHub, tmp_path: Path) -> None:
    """By hand, with what is on each machine; and it is what `bin/zoo export` writes."""
    for number in (1, 2):
        publish(store, tmp_path / f"candidate {number}")
    tar = tmp_path / "asset.tar"
    tar.write_bytes(github.asset(f"{NAME}/v2", f"{NAME}-v2.tar"))
    models = tmp_path / "unpacked" / "models"
    models.mkdir(parents=True)
    subprocess.run(["tar", "-xf", tar, "-C", models], check=True)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=models, check=True, capture_output=True, text=True)
    assert done.stdout.count(": OK\n") == len([path for path in models.rglob("*") if path.is_file()]) - 1
    assert {path.name for path in models.iterdir()} == {NAME, "SHA256SUMS"}
    assert {path.name for path in (models / NAME).iterdir()} == {"2", "config.pbtxt"}
    unpacked = FileStore(models)
    assert repository.live_version(unpacked, NAME) == 2
    assert problems(unpacked) == []
    with tarfile.open(tar) as archive:
        assert archive.getnames()[-2:] == [f"{NAME}/config.pbtxt", "SHA256SUMS"]
    exported = transfer.export(store, NAME, 2, tmp_path / "exported.tar")
    assert (tmp_path / "exported.tar").read_bytes() == tar.read_bytes()
    assert exported.bytes == tar.stat().st_size


def test_more_than_one_page_of_everything(
    store: Store, github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(github_api, "_PER_PAGE", 2)
    for number in range(1, 6):
        publish(store, tmp_path / f"candidate {number}")
    fresh = open_store(LOCATION)
    assert repository.versions(fresh, NAME) == [1, 2, 3, 4, 5]
    assert [event.version for event in fresh.events()] == [1, 2, 3, 4, 5]


def test_other_releases_of_the_project_are_passed_over(store: Store, github: GitHub, tmp_path: Path) -> None:
    github.tags |= {"v1.0": HEAD, f"{NAME}/v01": HEAD}
    for tag in github.tags:
        github.post("/releases", {"tag_name": tag, "name": None, "draft": False})
    assert publish(store, tmp_path / "candidate").version == 1
    assert repository.names(store) == [NAME]


def test_to_verify_each_file_is_fetched_once(store: Store, github: GitHub, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        publish(store, tmp_path / f"candidate {number}")
    fetched: list[str] = []

    def note(method: str, path: str) -> None:
        if path.startswith("/assets/"):
            fetched.append(path)

    github.disturb = note
    assert problems(open_store(LOCATION)) == []
    names = {
        f"/assets/{asset['id']}": asset["name"] for release in github.releases.values() for asset in release["assets"]
    }
    counts = Counter(names[path] for path in fetched)
    del counts["config.pbtxt"]  # of the live one, small, and it may change
    assert counts == {"release.json": 3, f"{NAME}-v1.tar": 1, f"{NAME}-v2.tar": 1, f"{NAME}-v3.tar": 1}


# What is live


def test_a_host_follows_what_is_live_there_also_back(store: Store, host: FileStore, tmp_path: Path) -> None:
    publish(store, tmp_path / "one")
    first = follow(store, host)
    assert (first.version, first.live, first.new) == (1, True, True)
    publish(store, tmp_path / "two")
    publish(store, tmp_path / "three")
    assert (follow(store, host).version, follow(store, host).new) == (2, False)
    assert repository.read(host, NAME, 2, "model.onnx") == b"three"
    before = tree(Path(host.location))
    event = switching.rollback(open_store(LOCATION), NAME, reason="worse on the night's pictures")
    assert (event.version, event.previous) == (2, 3)
    assert tree(Path(host.location)) == before
    back = follow(store, host)
    assert (back.version, back.previous, back.live, back.new) == (3, 2, True, True)
    assert repository.read(host, NAME, 3, "model.onnx") == b"two"
    switching.rollback(open_store(LOCATION), NAME)
    again = follow(store, host)
    assert (again.version, again.previous, again.live, again.new) == (1, 3, True, False)
    assert host.events()[-1].reason == f"live in {LOCATION}"
    assert repository.live_version(host, NAME) == 1
    assert problems(host) == problems(open_store(LOCATION)) == []
    with pytest.raises(InputError, match="nothing to roll back to"):
        switching.rollback(open_store(LOCATION), NAME)


def test_who_moved_the_live_mark_when_and_why_is_recorded(store: Store, github: GitHub, tmp_path: Path) -> None:
    publish(store, tmp_path / "one")
    publish(store, tmp_path / "two")
    switching.rollback(open_store(LOCATION), NAME, reason="worse")
    assert [(made["ref"], made["environment"]) for made in github.deployments] == [
        (f"{NAME}/v1", NAME),
        (f"{NAME}/v2", NAME),
        (f"{NAME}/v1", NAME),
    ]
    assert github.deployments[-1]["description"] == "rollback: version 1 is live; worse"
    assert [state for _, state in github.statuses] == ["success"] * 3
    events = open_store(LOCATION).events()
    assert [(event.action, event.state, event.version, event.previous) for event in events] == [
        ("publish", "done", 1, None),
        ("publish", "done", 2, 1),
        ("rollback", "done", 1, 2),
    ]
    assert history.promotions(events, NAME) == [1]


def test_a_version_may_wait_for_its_promotion(store: Store, github: GitHub, host: FileStore, tmp_path: Path) -> None:
    publish(store, tmp_path / "one")
    held = publish(store, tmp_path / "two", promote=False)
    assert (held.version, held.previous, held.live) == (2, 1, False)
    assert follow(store, host).version == 1
    assert [state for _, state in github.statuses] == ["success", "inactive"]
    assert repository.live_version(open_store(LOCATION), NAME) == 1
    switching.promote(open_store(LOCATION), NAME, 2)
    assert repository.read(host, NAME, follow(store, host).version, "model.onnx") == b"two"
    assert problems(open_store(LOCATION)) == []


def test_a_version_may_wait_in_a_repository_that_is_served(host: FileStore, tmp_path: Path) -> None:
    first = publish(host, tmp_path / "one", promote=False)
    assert first.live, "else nothing would answer under this name"
    held = publish(host, tmp_path / "two", promote=False)
    assert (held.version, held.previous, held.live) == (2, 1, False)
    assert repository.loaded_versions(host, NAME) == (1,)
    assert publish(host, tmp_path / "three").previous == 1
    assert switching.rollback(host, NAME).version == 1
    assert switching.promote(host, NAME, 2).previous == 1
    assert problems(host) == []


def test_what_is_live_is_not_kept_loaded_nor_removed(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "one")
    publish(store, tmp_path / "two", promote=False)
    with pytest.raises(InputError, match="keep-live is for what a Triton reads"):
        switching.promote(store, NAME, 2, keep_live=True)
    with pytest.raises(InputError, match=f"keeps what was released.*{NAME}/v2"):
        switching.retire(store, NAME, 2)
    assert repository.live_version(open_store(LOCATION), NAME) == 1


def test_after_the_live_release_was_deleted_the_next_one_goes_live(
    store: Store, github: GitHub, tmp_path: Path
) -> None:
    """By hand, at GitHub; its tag stays there, and so its number is not used again."""
    publish(store, tmp_path / "one")
    github.releases.clear()
    deleted = open_store(LOCATION)
    assert repository.names(deleted) == []
    published = publish(deleted, tmp_path / "two")
    assert (published.version, published.previous, published.live) == (2, None, True)
    assert repository.live_version(open_store(LOCATION), NAME) == 2


# Two at once, and killed


def test_a_number_that_another_has_taken_is_not_used(
    store: Store, github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version = repository.next_version
    answers = iter([1])  # as read before another one's tag came
    monkeypatch.setattr(repository, "next_version", lambda *place: next(answers, None) or next_version(*place))
    github.tags[f"{NAME}/v1"] = HEAD
    assert publish(store, tmp_path / "candidate").version == 2
    assert github.tags.keys() == {f"{NAME}/v1", f"{NAME}/v2"}


def test_of_many_at_once_each_has_its_own_number(github: GitHub, tmp_path: Path) -> None:
    sources = [make_source(tmp_path / f"candidate {number}") for number in range(4)]
    contents = [release_json(source) for source in sources]
    done: list[Published] = []

    def run(source: Path, content: bytes) -> None:
        done.append(publishing.publish_version(open_store(LOCATION), NAME, source, content))

    threads = [threading.Thread(target=run, args=given) for given in zip(sources, contents, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(LOCATION)
    assert sorted(one.version for one in done) == repository.versions(store, NAME)
    assert len(done) == 4
    assert repository.live_version(store, NAME) in {one.version for one in done if one.live}
    assert problems(store) == []


def test_a_switch_that_another_has_overtaken_is_refused(store: Store, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        publish(store, tmp_path / f"candidate {number}")
    seen = repository.live_config(store, NAME)
    assert seen is not None
    switching.rollback(open_store(LOCATION), NAME)
    with pytest.raises(ConflictError, match="another publisher has changed"):
        store.point(NAME, repository.pointing_config(repository.own_config(store, NAME, 1), 1), seen)


@pytest.mark.usefixtures("github")
def test_two_roll_backs_at_once_go_to_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = GithubStore(LOCATION)
    for number in (1, 2, 3):
        publish(slow, tmp_path / f"candidate {number}")
    switch = slow._switch

    def overtaken(previous: int | None) -> None:
        assert switching.rollback(open_store(LOCATION), NAME).version == 2
        switch(previous)

    monkeypatch.setattr(slow, "_switch", overtaken)
    assert switching.rollback(slow, NAME).version == 2
    assert [event.action for event in open_store(LOCATION).events()] == ["publish"] * 3 + ["rollback"] * 2
    assert repository.live_version(open_store(LOCATION), NAME) == 2
    assert switching.rollback(open_store(LOCATION), NAME).version == 1
    assert problems(open_store(LOCATION)) == []


@pytest.mark.parametrize("how", [LOST, UNANSWERED])
def test_cut_off_at_any_step_it_is_done_or_as_before(github: GitHub, tmp_path: Path, how: int) -> None:
    publish(open_store(LOCATION), tmp_path / "first")
    seen = set()
    for step in range(1, 20):
        github.writes = 0
        previous = repository.live_version(open_store(LOCATION), NAME)

        def cut(method: str, path: str, step: int = step) -> int | None:
            return how if method != "GET" and github.writes == step else None

        github.disturb = cut
        try:
            publish(open_store(LOCATION), tmp_path / f"cut at {step}")
            ended = True
        except StorageError:
            ended = False
        finally:
            github.disturb = lambda method, path: None
        store = open_store(LOCATION)
        live = repository.live_version(store, NAME)
        assert problems(store) == []
        seen.add((ended, live != previous))
        if github.writes < step:
            break
        # The next one goes on, under a number of its own.
        next_one = publish(store, tmp_path / f"after {step}")
        assert next_one.live
        assert next_one.previous == live
    assert step == 9
    # What has got no answer may have been the switch.
    assert seen == {(False, False), (True, True)} | ({(False, True)} if how == UNANSWERED else set())


def test_drafts_of_the_killed_go_after_a_day_and_no_others(store: Store, github: GitHub, tmp_path: Path) -> None:
    old, young = (f"begun {(datetime.now(UTC) - timedelta(hours=hours)).isoformat()}" for hours in (25, 23))
    for name in (old, young, "a draft of people"):
        github.post("/releases", {"tag_name": f"{NAME}/v9", "name": name, "draft": True})
    publish(store, tmp_path / "candidate")
    left = {release["name"] for release in github.releases.values()}
    assert left == {young, "a draft of people", f"{NAME} version 1"}


# What does not come


def test_a_file_that_was_altered_there_does_not_come(
    store: Store, github: GitHub, host: FileStore, tmp_path: Path
) -> None:
    publish(store, tmp_path / "one")
    number = next(number for number, content in github.files.items() if b"candidate" in content or b"one" in content)
    tar = github.files[number]
    github.files[number] = tar.replace(b"one\0", b"two\0", 1)
    assert github.files[number] != tar
    altered = rf"{NAME}/1/model\.onnx is not as SHA256SUMS has it"
    with pytest.raises(InputError, match=altered):
        follow(store, host)
    assert repository.names(host) == []
    found = verification.verify(open_store(LOCATION))
    assert found.versions == 1
    assert all(re.search(altered, problem.problem) for problem in found.problems)
    assert found.problems[0].version == 1


def test_a_release_that_was_exchanged_does_not_come(
    store: Store, github: GitHub, host: FileStore, tmp_path: Path
) -> None:
    """As whole as it is: the history has the hash of what was published."""
    publish(store, tmp_path / "one")
    publish(store, tmp_path / "two")
    files = {
        asset["name"]: asset["id"]
        for release in github.releases.values()
        if release["tag_name"] == f"{NAME}/v2"
        for asset in release["assets"]
    }
    other = FileStore(tmp_path / "other")
    for number in (1, 2):
        publish(other, tmp_path / f"other {number}")
    transfer.export(other, NAME, 2, tmp_path / "other.tar")
    github.files[files[f"{NAME}-v2.tar"]] = (tmp_path / "other.tar").read_bytes()
    with pytest.raises(InputError, match=rf"release\.json in {NAME}-v2\.tar is not the one beside it"):
        follow(store, host)
    github.files[files["release.json"]] = other.read(f"{NAME}/2/release.json")
    with pytest.raises(InputError, match=r"2/release\.json is not as it was released"):
        follow(store, host)
    assert repository.names(host) == []


@pytest.mark.parametrize("lost", ["release.json", f"{NAME}-v1.tar"])
def test_a_release_that_has_lost_a_file_is_altered(
    store: Store, github: GitHub, host: FileStore, tmp_path: Path, lost: str
) -> None:
    publish(store, tmp_path / "one")
    (release,) = github.releases.values()
    release["assets"] = [asset for asset in release["assets"] if asset["name"] != lost]
    with pytest.raises(InputError, match=r"1/release\.json is not as it was released"):
        follow(store, host)
    (problem, *_) = problems(open_store(LOCATION))
    assert "1/release.json is not as it was released" in problem


def test_code_comes_only_when_trusted(store: Store, host: FileStore, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    publishing.publish_version(store, NAME, source, change_config(source, torchscript))
    with pytest.raises(InputError, match=r"backend 'pytorch'.*--trust"):
        follow(store, host)
    assert repository.names(host) == []
    assert follow(store, host, trust=True).live


# What fails


@pytest.mark.parametrize("wrong", ["github:", "github:someone", "github:a/b/c", "github:a/../b", "github:-x/y"])
def test_another_location_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="expected github:OWNER/NAME"):
        open_store(wrong)


def test_what_is_not_githubs_api_says_so(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"{LOCATION}: .* not GitHub's API.*GITHUB_API_URL"
    monkeypatch.setattr(github, "post", lambda *asked: b"<html>Sign in</html>")
    with pytest.raises(StorageError, match=said):
        publish(open_store(LOCATION), tmp_path / "one")
    monkeypatch.setattr(github, "get", github.post)
    with pytest.raises(StorageError, match=said):
        repository.names(open_store(LOCATION))
    monkeypatch.setenv("GITHUB_API_URL", "ghe.example.org")
    with pytest.raises(InputError, match=r"GITHUB_API_URL 'ghe\.example\.org': expected .*https://"):
        open_store(LOCATION)


def test_without_a_token_all_can_be_read_and_nothing_written(
    store: Store, host: FileStore, github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, tmp_path / "one")
    monkeypatch.delenv("GITHUB_TOKEN")
    assert follow(store, host).live
    with pytest.raises(InputError, match=f"nothing can be published to {LOCATION} without a token: set GH_TOKEN"):
        open_store(LOCATION).check_writable()
    with pytest.raises(StorageError, match=r"404 Status 404; .* set GH_TOKEN or GITHUB_TOKEN"):
        publish(open_store(LOCATION), tmp_path / "two")
    monkeypatch.setenv("GH_TOKEN", "another")
    with pytest.raises(StorageError, match=r"401 .* the token is not valid") as caught:
        repository.names(open_store(LOCATION))
    assert "another" not in str(caught.value)


def test_reading_is_tried_again_and_given_up(store: Store, github: GitHub, tmp_path: Path) -> None:
    publish(store, tmp_path / "one")
    answers = iter([LOST, 502, 503])
    github.disturb = lambda method, path: next(answers, None)
    assert repository.names(open_store(LOCATION)) == [NAME]
    github.disturb = lambda method, path: 502
    with pytest.raises(StorageError, match=f"{LOCATION}: 502 Status 502; try again"):
        repository.names(open_store(LOCATION))
    github.disturb = lambda method, path: LOST
    with pytest.raises(StorageError, match=f"{LOCATION} cannot be reached"):
        repository.names(open_store(LOCATION))
