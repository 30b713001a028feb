"""Releases and killed publishers in an object store while clients ask the server that reads from it.

What a publisher leaves when it is killed at each of its requests is in `test_s3`. `bin/test campaign` runs the full
counts.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import candidates
import pytest
from clients import Protocol, asking
from conftest import NAME, Workplace, assert_nothing_left
from publishers import killed_after
from service import SECONDS_WHERE_BUSY, options
from test_s3 import object_store

from pipeline import publication
from pipeline.runfolder import RunFolder
from pipeline.triton import client, repository, switching, verification
from pipeline.triton.client import ModelState
from pipeline.triton.s3 import S3Store
from pipeline.triton.server import running


@pytest.fixture(scope="module")
def store() -> Iterator[S3Store]:
    with object_store() as address:
        yield S3Store(f"s3://{address}/zoo/models")


def publish(store: S3Store, run: Path) -> int:
    published = publication.publish_run(RunFolder(run), store)
    assert published.live
    return published.version


def test_nobody_notices_releases_and_killed_publishers_in_an_object_store(
    store: S3Store, released: Workplace, tmp_path: Path, campaign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishes, kills = (20, 20) if campaign else (1, 1)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    runs = [released.run, candidates.softened(released.run, tmp_path / "softened", 0.5)]
    rng = random.Random(1)
    seconds: list[float] = []
    guards: list[int] = []
    publish(store, runs[0])
    with running(options(store.location, None)) as server:
        guards.append(server.pid)
        server.wait_live(time.monotonic() + 60)
        urls: list[tuple[Protocol, str]] = [("http", server.http_url), ("grpc", server.grpc_url)]
        with asking(store.location, NAME, urls * 2, tmp_path / "clients") as clients:

            def goes_live(act: Callable[[], int]) -> float:
                """The seconds that it took to act."""
                begin = time.monotonic()
                version = act()
                end = time.monotonic()
                seconds.append(clients.wait_for(version, begin, SECONDS_WHERE_BUSY))
                return end - begin

            for number in range(1, publishes + 1):
                usual = goes_live(partial(publish, store, runs[number % 2]))
                if number % (4 if campaign else 1) == 0:
                    goes_live(lambda: switching.rollback(store, NAME).version)
            killed = 0
            while killed < kills:
                before, run = repository.live_version(store, NAME), runs[killed % 2]
                new = repository.next_version(store, NAME)
                killed += killed_after(rng.uniform(0, usual), partial(publish, S3Store(store.location), run))
                live = repository.live_version(store, NAME)
                assert live in (before, new)
                with running(options(store.location, None)) as restarted:
                    guards.append(restarted.pid)
                    restarted.wait_live(time.monotonic() + 60)
                    assert client.models(restarted.http_url) == [ModelState(NAME, str(live), "READY", "")]
                assert verification.verify(store).problems == ()
                usual = goes_live(partial(publish, store, run))
                switching.prune(store, NAME, 2)
            assert clients.wrong() == []
    print(f"{clients.requests()} requests, {len(clients.wrong())} failed; {killed} publishers killed")
    print(f"{len(seconds)} switches, live within {max(seconds):.2f} s, {sum(seconds) / len(seconds):.2f} s on average")
    assert clients.wrong() == []
    assert_nothing_left(temporary, guards)
