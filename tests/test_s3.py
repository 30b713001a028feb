"""The model repository in an object store: moto's S3 server, real publishers, a real Triton that reads from it.

Publishers are forked, so the store runs in a process of its own. What they publish is mostly synthetic, see
`test_repository`; what Triton serves are the tiny models of `test_triton_server`.
"""

import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session
from conftest import NAME as RELEASED
from conftest import Workplace, assert_nothing_left, run_command, start_command, wait_until
from publishers import NOT_REACHED, fork
from test_repository import LABELS, NAME, Candidate, make_source, release_json
from test_triton_server import MATRIX, add_version, expected, images, onnx_model

from pipeline.errors import ConflictError, InputError, ServerError, SignatureError, StorageError
from pipeline.inference import infer_test_images
from pipeline.publication import publish_run
from pipeline.records import Published
from pipeline.runfolder import RunFolder
from pipeline.triton import bucket, client, history, publishing, repository, s3, switching, transfer, verification
from pipeline.triton.file_store import FileStore
from pipeline.triton.s3 import S3Store
from pipeline.triton.store import open_store

MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""
ACCESS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "unspoken", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def object_store() -> Iterator[str]:
    """The address of a store with one empty bucket, `zoo`; the environment has what it takes to use it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        process = subprocess.Popen(
            [sys.executable, "-c", MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            host, port = process.stdout.readline().decode().split()
            address = f"http://{host}:{port}"
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="zoo")
            yield address
        finally:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_store() as address:
        yield address


@pytest.fixture
def objects(endpoint: str) -> Any:
    """The store as others see it."""
    return boto3.client("s3", endpoint_url=endpoint)


@pytest.fixture
def location(endpoint: str, tmp_path: Path) -> str:
    """A repository of the test's own, in which nothing is yet."""
    return f"s3://{endpoint}/zoo/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture
def store(location: str) -> S3Store:
    return S3Store(location)


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    return Candidate(tmp_path / "candidate")


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two switches a second must pass, for Triton's sake; where no Triton looks, none need pass."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def publish(store: S3Store, candidate: Candidate, name: str = NAME) -> Published:
    return publishing.publish_version(store, name, candidate.source, candidate.release_json)


def assert_live_is_complete(store: S3Store, name: str, version: int | None) -> None:
    assert repository.live_version(store, name) == version
    if version is not None:
        repository.verify_version(store, name, version)


def assert_clean(store: S3Store, name: str) -> None:
    """History says what became of each intent, and there is nothing but what was published."""
    events = [event for event in store.events() if event.name == name]
    assert history.open_intents(events) == []
    published = {event.version for event in events if event.state in ("done", "superseded")}
    files = {"config.pbtxt", "labels.txt", "model.onnx", "plots/loss.svg", "release.json"}
    wanted = {f"{version}/{file}" for version in published for file in files}
    assert store.files(name).keys() == {"config.pbtxt", *wanted}


# Objects


def test_the_store_is_found_by_its_location(location: str, tmp_path: Path) -> None:
    for typed in (location, location + "/"):
        assert open_store(typed).location == location
    assert open_store("s3://bucket/prefix").location == "s3://bucket/prefix"
    assert not isinstance(open_store(tmp_path), S3Store)


@pytest.mark.parametrize(
    "wrong",
    ["s3://", "s3://bucket", "s3://bucket/", "s3://http://host/bucket/prefix", "s3://me:key@host/b", "s3://b/../x"],
)
def test_another_location_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="expected s3://bucket/prefix") as caught:
        open_store(wrong)
    assert "key" not in str(caught.value)


def test_without_boto3_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(InputError, match=r"boto3: run .* -r requirements-s3\.lock"):
        open_store("s3://bucket/prefix")


def test_folders_files_and_contents(store: S3Store, candidate: Candidate, objects: Any) -> None:
    assert store.folders() == []
    assert store.files("a") == {}
    store.add("a", 1, candidate.source, "name: 'a'")
    store.add("a", 12, candidate.source, None)
    store.add("ab", 1, candidate.source, None)
    prefix = store.location.partition("/zoo/")[2]
    objects.put_object(Bucket="zoo", Key=f"{prefix}/a/1/empty/", Body=b"")
    objects.put_object(Bucket="zoo", Key=f"{prefix}er/c/1/model.onnx", Body=b"of another repository")
    assert sorted(store.folders()) == ["a", "ab"]
    assert sorted(store.folders("a")) == ["1", "12"]
    sizes = {path: (candidate.source / path).stat().st_size for path in repository.hashes(candidate.source)}
    assert store.files("a/1") == sizes
    assert store.read("a/1/plots/loss.svg") == (candidate.source / "plots" / "loss.svg").read_bytes()
    with pytest.raises(FileNotFoundError):
        store.read("a/1/nothing")
    store.remove("a", 1)
    assert sorted(store.folders("a")) == ["12"]
    assert store.files("a/12") == sizes
    assert store.files("ab/1") == sizes


def test_more_objects_than_one_answer_holds(
    store: S3Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = store._bucket._pages
    monkeypatch.setattr(store._bucket, "_pages", lambda **request: pages(MaxKeys=2, **request))
    monkeypatch.setattr(bucket, "_DELETED_AT_ONCE", 2)
    for version in (1, 2, 3):
        store.add("a", version, candidate.source, None)
        store.append(history.intent("publish", "a", version, None, "0"))
    assert sorted(store.folders("a")) == ["1", "2", "3"]
    assert store.files("a/1").keys() == repository.hashes(candidate.source).keys()
    assert len(S3Store(store.location).events()) == 3
    store.remove("a", 1)
    assert sorted(store.folders("a")) == ["2", "3"]
    assert store.files("a/1") == {}


@pytest.mark.usefixtures("no_wait")
def test_a_pointer_is_replaced_only_by_one_who_has_seen_it(store: S3Store, candidate: Candidate) -> None:
    store.add("a", 1, candidate.source, "name: 'one'")
    with pytest.raises(ConflictError):
        store.add("a", 2, candidate.source, "name: 'two'")
    seen = store.read("a/config.pbtxt")
    store.point("a", "name: 'two'", seen)
    with pytest.raises(ConflictError):
        store.point("a", "name: 'three'", seen)
    # Also where it is as it was: somebody has been here meanwhile.
    store.point("a", "name: 'one'", store.read("a/config.pbtxt"))
    with pytest.raises(ConflictError):
        store.point("a", "name: 'three'", seen)
    with pytest.raises(ConflictError):
        store.point("nothing", "name: 'three'", seen)
    assert store.read("a/config.pbtxt").startswith(b"name: 'one'")


def test_two_switches_are_told_apart_by_their_time(store: S3Store, candidate: Candidate, objects: Any) -> None:
    key = store.location.partition("/zoo/")[2] + "/a/config.pbtxt"
    store.add("a", 1, candidate.source, "name: 'a'")
    times = []
    for _ in range(2):
        times.append(objects.head_object(Bucket="zoo", Key=key)["LastModified"])
        store.point("a", "name: 'a'", store.read("a/config.pbtxt"))
    times.append(objects.head_object(Bucket="zoo", Key=key)["LastModified"])
    assert times == sorted(set(times))


def test_events_are_counted_and_a_number_is_claimed_once(store: S3Store) -> None:
    other = S3Store(store.location)
    first, second = (history.intent("publish", NAME, number, None, "0") for number in (1, 2))
    store.append(first)
    other.append(second)
    with pytest.raises(ConflictError, match="at work on digits version 1"):
        other.append(history.intent("publish", NAME, 1, None, "0"))
    store.append(first.ended("done"))
    other.append(history.intent("publish", "another", 1, None, "0"))
    assert [(event.name, event.version, event.state) for event in store.events()] == [
        (NAME, 1, "intent"),
        (NAME, 2, "intent"),
        (NAME, 1, "done"),
        ("another", 1, "intent"),
    ]
    assert S3Store(store.location).events() == store.events()


def test_an_object_that_is_no_event_is_refused(store: S3Store, objects: Any) -> None:
    key = store.location.partition("/zoo/")[2] + ".history/0000000001.json"
    objects.put_object(Bucket="zoo", Key=key, Body=b"{}")
    with pytest.raises(InputError, match=key):
        store.events()


def test_a_store_that_ignores_conditions_is_refused(
    store: S3Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store._bucket._put
    monkeypatch.setattr(store._bucket, "_put", lambda key, content, **condition: real(key, content))
    for _ in range(2):
        with pytest.raises(StorageError, match="ignores If-None-Match"):
            publish(store, candidate)
    assert store.folders() == []


# Publishing


@pytest.mark.usefixtures("no_wait")
def test_versions_are_published_and_rolled_back(store: S3Store, candidate: Candidate, objects: Any) -> None:
    for version in (1, 2, 3):
        assert publish(store, candidate) == Published(
            name=NAME, version=version, previous=version - 1 or None, repository=store.location
        )
        assert_live_is_complete(store, NAME, version)
    for version in (2, 1):
        assert switching.rollback(store, NAME).version == version
        assert_live_is_complete(store, NAME, version)
    with pytest.raises(InputError, match="no version before 1"):
        switching.rollback(store, NAME)
    assert publish(store, candidate).version == 4
    assert_clean(store, NAME)
    assert repository.names(store) == [NAME]
    assert repository.newest(store) == NAME
    # Each folder in the repository is a model for Triton: nothing else may lie there.
    prefix = store.location.partition("/zoo/")[2]
    keys = [found["Key"] for found in objects.list_objects_v2(Bucket="zoo", Prefix=f"{prefix}/")["Contents"]]
    assert {key[len(prefix) + 1 :].split("/")[0] for key in keys} == {NAME}


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize(
    ("before", "step"),
    [
        (0, "append"),
        (0, "add"),
        (0, "_demand_in_time"),
        (1, "append"),
        (1, "add"),
        (1, "point"),
    ],
)
def test_a_slow_publisher_loses_nothing_and_turns_nothing_back(
    location: str, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, before: int, step: str
) -> None:
    slow, quick = S3Store(location), S3Store(location)
    for _ in range(before):
        publish(quick, candidate)
    overtaken(slow, step, monkeypatch, by=lambda: publish(quick, candidate))
    published = publish(slow, candidate)
    # Who claims first has the lower number; published later, it does not replace the higher one.
    assert (published.version, published.live) == ((before + 2, True) if step == "append" else (before + 1, False))
    assert_live_is_complete(quick, NAME, before + 2)
    assert_clean(quick, NAME)
    assert repository.versions(quick, NAME) == list(range(1, before + 3))


def overtaken(store: S3Store, step: str, monkeypatch: pytest.MonkeyPatch, by: Callable[[], object]) -> None:
    """The next time, just before this step of its protocol, another one does something."""
    real = getattr(store, step)

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(store, step, real)
        by()
        real(*arguments)

    monkeypatch.setattr(store, step, late)


def test_a_first_publisher_who_is_overtaken_by_another_signature_is_refused(
    location: str, tmp_path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = S3Store(location), S3Store(location)
    source = make_source(tmp_path / "other", LABELS[::-1])
    overtaken(slow, "add", monkeypatch, by=lambda: publish(quick, candidate))
    with pytest.raises(SignatureError, match="--release-name"):
        publishing.publish_version(slow, NAME, source, release_json(source, LABELS[::-1]))
    assert_live_is_complete(quick, NAME, 2)


@pytest.mark.usefixtures("no_wait")
def test_a_roll_back_that_is_overtaken_says_so(
    location: str, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = S3Store(location), S3Store(location)
    for _ in range(2):
        publish(quick, candidate)
    overtaken(slow, "point", monkeypatch, by=lambda: publish(quick, candidate))
    with pytest.raises(ConflictError, match="another publisher has changed what is live"):
        switching.rollback(slow, NAME)
    assert_live_is_complete(quick, NAME, 3)
    assert switching.rollback(quick, NAME).version == 2


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("step", ["append", "remove"])
def test_a_version_that_is_to_be_removed_is_not_rolled_back_to(
    location: str, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    slow, quick = S3Store(location), S3Store(location)
    for _ in range(3):
        publish(quick, candidate)

    def roll_back() -> None:
        if step == "append":
            switching.rollback(quick, NAME)
        else:
            with pytest.raises(ConflictError, match="at work on digits version 2"):
                switching.rollback(quick, NAME)

    overtaken(slow, step, monkeypatch, by=roll_back)
    if step == "append":
        with pytest.raises(ConflictError, match="has just been made live"):
            switching.retire(slow, NAME, 2, force=True)
    else:
        switching.retire(slow, NAME, 2, force=True)
    assert repository.live_version(quick, NAME) == (2 if step == "append" else 3)
    assert repository.versions(quick, NAME) == ([1, 2, 3] if step == "append" else [1, 3])
    assert verification.verify(quick).problems == ()
    assert history.open_intents(quick.events()) == []


@pytest.mark.usefixtures("no_wait")
def test_a_version_on_which_another_one_is_at_work_is_not_removed(
    location: str, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = S3Store(location), S3Store(location)
    for _ in range(2):
        publish(quick, candidate)

    def remove() -> None:
        with pytest.raises(ConflictError, match="at work on digits version 1"):
            switching.retire(quick, NAME, 1, force=True)

    overtaken(slow, "point", monkeypatch, by=remove)
    assert switching.rollback(slow, NAME).version == 1

    def publish_and_prune() -> None:
        assert publish(quick, candidate).version == 4
        assert [event.version for event in switching.prune(quick, NAME, 1).retired] == [2]

    overtaken(slow, "point", monkeypatch, by=publish_and_prune)
    published = publish(slow, candidate)
    assert (published.version, published.live) == (3, False)
    assert repository.versions(quick, NAME) == [1, 3, 4]
    assert verification.verify(quick).problems == ()


def test_publishers_at_once_all_succeed(location: str, tmp_path: Path) -> None:
    candidates = [Candidate(tmp_path / f"candidate {number}") for number in range(3)]

    def publish_two(candidate: Candidate) -> int:
        time.sleep = lambda seconds: None
        for _ in range(2):
            publish(S3Store(location), candidate)
        return 0

    children = [fork(functools.partial(publish_two, candidate)) for candidate in candidates]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    store = S3Store(location)
    assert repository.versions(store, NAME) == [1, 2, 3, 4, 5, 6]
    assert_clean(store, NAME)
    events = store.events()
    promoted = history.promotions(events, NAME)
    assert promoted == sorted(set(promoted)), "a publish has moved the pointer back"
    assert_live_is_complete(store, NAME, 6)
    assert {event.version for event in events if event.state == "superseded"} == {*range(1, 7)} - {*promoted}
    contents = [store.read(f"{NAME}/{version}/model.onnx") for version in range(1, 7)]
    for candidate in candidates:
        assert contents.count((candidate.source / "model.onnx").read_bytes()) == 2


# Publishers that are killed


def killed_at(change: int, action: Callable[[], object]) -> bool:
    """Whether a process was killed in this action, just before so many requests that change something.

    It goes on with its parent's stores: moto keeps no connection that the two could share.
    """

    def run() -> int:
        time.sleep = lambda seconds: None
        send, count = URLLib3Session.send, 0

        def counted(session: URLLib3Session, request: Any) -> Any:
            nonlocal count
            count += request.method != "GET"
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)
            return send(session, request)

        URLLib3Session.send = counted
        action()
        return NOT_REACHED

    status = os.waitpid(fork(run), 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == NOT_REACHED
    return os.WIFSIGNALED(status)


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("action", ["first publish", "later publish", "rollback"])
def test_a_publisher_killed_at_any_request_harms_nothing(
    store: S3Store, tmp_path: Path, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    name = "a"
    if action != "first publish":
        publish(store, candidate, name)
        publish(store, candidate, name)

    def act() -> object:
        return switching.rollback(store, name) if action == "rollback" else publish(store, candidate, name)

    outcomes = []
    for change in range(1, 100):
        if action == "first publish":
            name = f"killed-at-{change}"
        old, promoted = repository.live_version(store, name), history.promotions(store.events(), name)
        after = promoted[:-1] if action == "rollback" else [*promoted, repository.next_version(store, name)]
        if not killed_at(change, act):
            break
        live = repository.live_version(store, name)
        assert live in (old, after[-1])
        assert_live_is_complete(store, name, live)
        outcomes.append("old" if live == old else "new")
        # The next publisher does not know whether that one is dead, and need not.
        published = publish(store, candidate, name)
        assert (published.previous, published.live) == (live, True)
        # A number that was taken is not used again; before the first request it is not taken.
        assert published.version > max(promoted if change == 1 else after, default=0)
        kept = promoted if live == old else after
        assert history.promotions(store.events(), name) == [*kept, published.version]
    # The intent, five files, config.pbtxt; the confirmation. Or without files.
    assert outcomes == ["old"] * (2 if action == "rollback" else 7) + ["new"]
    assert list(temporary.iterdir()) == []

    # A day later what the dead have left is removed, and nothing else.
    assert len(history.open_intents(store.events())) == outcomes.count("old") - 1  # the first one left not even that
    monkeypatch.setattr(s3, "TIME_TO_ABANDON", timedelta(0))
    publish(store, candidate, "another")
    for name in store.folders():
        assert_clean(store, name)
    assert verification.verify(store).problems == ()


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("action", ["publish", "rollback"])
def test_a_switch_that_was_made_is_in_the_history_though_nobody_was_told(
    store: S3Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Its writer is killed right after it; and then, before anyone says so, others switch and switch back."""
    for _ in range(2):
        publish(store, candidate)
    acts = {"publish": lambda: publish(store, candidate), "rollback": lambda: switching.rollback(store, NAME)}
    confirmation = {"publish": 8, "rollback": 3}[action]
    assert killed_at(confirmation, acts[action])
    live = repository.live_version(store, NAME)
    assert live == {"publish": 3, "rollback": 1}[action]
    monkeypatch.setattr(s3, "TIME_TO_ABANDON", timedelta(0))
    assert publish(store, candidate).previous == live
    assert switching.rollback(store, NAME).version == live
    assert_live_is_complete(store, NAME, live)
    assert_clean(store, NAME)


@pytest.mark.usefixtures("no_wait")
def test_who_was_killed_long_ago_does_not_keep_the_next_one_from_going_live(
    store: S3Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He was live; the next one says so for him, and his time is not the next one's."""
    append = store.append

    def append_intents_of_five_hours_ago(event: history.Event) -> None:
        if event.state == "intent":
            when = datetime.now(UTC) - timedelta(hours=5)
            append(event.model_copy(update={"when": when.isoformat(timespec="seconds")}))

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", append_intents_of_five_hours_ago)
        patch.setattr(s3, "TIME_TO_GO_LIVE", timedelta(hours=6))
        assert publish(store, candidate).version == 1
    assert publish(store, candidate).live
    assert history.promotions(store.events(), NAME) == [1, 2]
    assert_clean(store, NAME)


def test_a_version_that_is_still_being_brought_in_is_not_promoted(
    location: str, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = S3Store(location), S3Store(location)
    publish(quick, candidate)

    def promote() -> None:
        with pytest.raises(ConflictError, match="at work on digits version 2"):
            switching.promote(quick, NAME, 2)

    overtaken(slow, "point", monkeypatch, by=promote)
    assert publish(slow, candidate).version == 2
    assert verification.verify(quick).problems == ()


@pytest.mark.usefixtures("no_wait")
def test_each_request_may_lose_its_answer(
    store: S3Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was carried out, and is sent again: a condition that then fails was fulfilled by oneself."""
    send = URLLib3Session.send
    lost: list[tuple[str, str]] = []

    def losing(session: URLLib3Session, request: Any) -> Any:
        answer = send(session, request)
        if lost[-1:] != [(request.method, request.url)]:
            lost.append((request.method, request.url))
            answer.raw.close()
            raise ConnectionClosedError(endpoint_url=request.url)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(URLLib3Session, "send", losing)
        publish(store, candidate)
        publish(store, candidate)
        switching.rollback(store, NAME)
    assert len(lost) > 30
    assert_live_is_complete(store, NAME, 1)
    assert_clean(store, NAME)
    assert [(event.state, event.version) for event in store.events()] == [
        ("intent", 1),
        ("done", 1),
        ("intent", 2),
        ("done", 2),
        ("intent", 1),
        ("done", 1),
    ]


def test_only_a_day_makes_a_publisher_dead(store: S3Store) -> None:
    intent = history.intent("publish", NAME, 1, None, "0")
    assert not store.is_abandoned(intent)
    for hours, dead in ((23, False), (25, True)):
        when = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
        assert store.is_abandoned(intent.model_copy(update={"when": when})) == dead


def test_a_publisher_who_took_too_long_does_not_go_live(
    store: S3Store, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "TIME_TO_GO_LIVE", timedelta(0))
    with pytest.raises(StorageError, match="it took more than"):
        publish(store, candidate)
    assert repository.live_version(store, NAME) is None
    monkeypatch.undo()
    assert publish(store, candidate).version == 2


# What goes wrong


def test_an_unreachable_store_says_so(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    begin = time.monotonic()
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9/zoo/models cannot be reached .*check the address"):
        publish(S3Store("s3://http://127.0.0.1:9/zoo/models"), candidate)  # nobody listens there
    assert time.monotonic() - begin < 20


def test_a_missing_bucket_says_so(endpoint: str, candidate: Candidate) -> None:
    with pytest.raises(StorageError, match=r"NoSuchBucket.*make the bucket") as caught:
        publish(S3Store(f"s3://{endpoint}/nowhere/models"), candidate)
    assert "\n" not in str(caught.value)


def test_wrong_and_missing_credentials_say_so(endpoint: str, location: str, tmp_path: Path) -> None:
    def ask(**variables: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name in ACCESS:
                patch.delenv(name)
            for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), **variables}.items():
                patch.setenv(name, value)
            done = run_command("zoo", "list", "--model-repository", location, cwd=tmp_path)
        assert done.returncode == 4
        assert done.stderr.count("\n") == 1
        assert "unspoken" not in done.stderr
        return done.stderr

    assert "AWS_ACCESS_KEY_ID" in ask()
    with demanding_credentials(endpoint):
        refused = ask(**ACCESS)
    assert "InvalidAccessKeyId" in refused
    assert "set AWS_ACCESS_KEY_ID" in refused


@contextmanager
def demanding_credentials(endpoint: str) -> Iterator[None]:
    """The store knows nobody."""

    def free_requests(count: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", count, plain)).close()

    free_requests(b"0")
    try:
        yield
    finally:
        free_requests(b"inf")


# Under a real server, and by the commands


def test_a_server_reads_the_store_through_a_publish_and_a_roll_back(store: S3Store, tmp_path: Path) -> None:
    matrices = {1: MATRIX, 2: -MATRIX}
    sources = {}
    for version, matrix in matrices.items():
        add_version(tmp_path / NAME, version, "onnxruntime", onnx_model(matrix), instances=1)
        sources[version] = tmp_path / NAME / str(version)
    batch = images(2)
    wanted = {version: expected(batch, matrix) for version, matrix in matrices.items()}
    seen: list[int] = []
    wrong: list[object] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        while not stop.is_set():
            try:
                answer = client.classify(url, NAME, batch)
            except ServerError as error:
                wrong.append(error)
                continue
            by = [version for version in wanted if np.allclose(answer, wanted[version], atol=1e-5)]
            wrong.extend([] if len(by) == 1 else [answer])
            seen.extend(by)
            time.sleep(0.01)

    def publish_source(version: int) -> None:
        publishing.publish_version(store, NAME, sources[version], release_json(sources[version]))

    publish_source(1)
    (tmp_path / "tmp").mkdir()
    ports = [argument for service in ("http", "grpc", "metrics") for argument in (f"--{service}-port", "0")]
    command = start_command(
        "serve", "--model-repository", store.location, *ports, cwd=tmp_path, temporary=tmp_path / "tmp"
    )
    try:
        assert command.stdout is not None
        said = re.search(r"serves (\S+): HTTP ([^\s,]+)", command.stdout.readline())
        assert said is not None
        assert said[1] == store.location
        asking = threading.Thread(target=ask, args=[said[2]])
        asking.start()
        try:
            wait_until(lambda: seen[-1:] == [1], 10, "version 1 answers")
            # Triton's copies of the models; at its end they are gone, as all is that lay there.
            assert list((tmp_path / "tmp").glob("zoo-triton-*/folder*/1/model.onnx")) != []
            publish_source(2)
            wait_until(lambda: seen[-1:] == [2], 30, "version 2 answers")
            switching.rollback(store, NAME)
            wait_until(lambda: seen[-1:] == [1], 30, "version 1 answers again")
        finally:
            stop.set()
            asking.join()
    finally:
        command.terminate()
        command.communicate()
    assert_nothing_left(tmp_path / "tmp", [])
    assert wrong == []
    assert [version for version, before in zip(seen, [0, *seen], strict=False) if version != before] == [1, 2, 1]


def test_a_server_is_not_started_on_nothing(store: S3Store, tmp_path: Path) -> None:
    done = run_command("serve", "--model-repository", store.location, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no models: release one" in done.stderr


def test_a_run_is_published_into_the_store_and_the_released_file_answers(
    released: Workplace, store: S3Store, tmp_path: Path
) -> None:
    published = publish_run(RunFolder(released.run), store)
    assert (published.name, published.version, published.repository) == (RELEASED, 1, store.location)
    answers = infer_test_images(store, tmp_path, tmp_path / "results", name=None, url="127.0.0.1:9", count=5, seed=1)
    assert f"answered by {store.location}/{RELEASED}/1/model.onnx" in answers
    (tmp_path / ".env").write_text(f"MODEL_REPOSITORY={store.location}\n", encoding="utf-8")
    listed = run_command("zoo", "list", cwd=tmp_path)
    assert RELEASED in listed.stdout, listed.stderr


@pytest.mark.usefixtures("no_wait")
def test_versions_are_pushed_to_the_store_and_pulled_from_it(
    store: S3Store, candidate: Candidate, tmp_path: Path
) -> None:
    local, other = FileStore(tmp_path / "local" / "models"), FileStore(tmp_path / "other" / "models")
    for _ in range(2):
        publishing.publish_version(local, NAME, candidate.source, candidate.release_json)
    assert transfer.copy(local, store, NAME, 2, trust=False).version == 1
    assert transfer.copy(store, other, NAME, None, trust=False).version == 1
    assert other.files(f"{NAME}/1") == local.files(f"{NAME}/2")
    assert verification.verify(store).problems == verification.verify(other).problems == ()


def test_a_folder_of_the_bucket_that_leads_out_of_here_is_not_pulled(
    store: S3Store, candidate: Candidate, tmp_path: Path
) -> None:
    source = make_source(tmp_path / "source")
    config = (source / "config.pbtxt").read_text(encoding="utf-8")
    (source / "config.pbtxt").write_text(config.replace(f'name: "{NAME}"', 'name: ".."'), encoding="utf-8")
    publishing.publish_version(store, "..", source, release_json(source))
    publish(store, candidate)
    host = tmp_path / "host"
    pulled = transfer.follow_all(store, FileStore(host / "models"), trust=False)
    assert [one.name for one in pulled.names] == [NAME]
    assert [(one.name, one.reason.startswith("'..' in ")) for one in pulled.refused] == [("..", True)]
    assert [path.name for path in host.iterdir()] == ["models"]
