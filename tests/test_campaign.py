"""Releases while clients ask: nobody notices a publish, a roll-back, another backend or a refused candidate.

One server and four clients for all tests, and one repository, which goes on from test to test. `bin/test campaign`
runs the full counts.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import candidates
import onnx
import pytest
from conftest import NAME, Workplace
from publishers import DONE, fork
from service import SECONDS_WHERE_BUSY, Service, serving
from test_repository import tree

from pipeline.errors import VerdictError
from pipeline.triton import model_config, repository, switching


@pytest.fixture(scope="module")
def runs(released: Workplace, campaign: bool, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Candidates whose answers differ, the second one TorchScript."""
    folder = tmp_path_factory.mktemp("runs")
    shares = (0.8, 0.6, 0.4) if campaign else ()
    return [
        released.run,
        candidates.softened(released.run, folder / "torchscript", 0.5, "torchscript"),
        *(candidates.softened(released.run, folder / str(share), share) for share in shares),
    ]


@pytest.fixture(scope="module")
def service(runs: list[Path], campaign: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(runs[0], tmp_path_factory.mktemp("service"), clients=4, campaign=campaign) as started:
        yield started


def test_nobody_notices_that_versions_come_and_go(service: Service, runs: list[Path], campaign: bool) -> None:
    publishes, rollbacks = (20, 5) if campaign else (1, 1)
    seconds, seen = [], [service.live]

    def goes_live(act: Callable[[], int]) -> None:
        seconds.append(service.goes_live(act))
        seen.append(service.live)

    def promote(served_format: str) -> int:
        return switching.promote(service.store, NAME, newest(service, served_format)).version

    for number in range(1, publishes + 1):
        goes_live(partial(service.publish, runs[number % len(runs)]))
        if number % (publishes // rollbacks) == 0:
            goes_live(lambda: switching.rollback(service.store, NAME).version)
    for served_format in ("torchscript", "onnx"):
        goes_live(partial(promote, served_format))
    print(f"{len(seconds)} switches, live within {max(seconds):.2f} s, {sum(seconds) / len(seconds):.2f} s on average")
    assert max(seconds) < service.seconds_to_live, [round(each, 1) for each in seconds]
    # Each client saw these, and no other in between.
    assert [versions[-len(seen) :] for versions in service.clients.versions()] == [seen] * 4
    service.assert_sound()


def newest(service: Service, served_format: str) -> int:
    """The newest version of a format that is not live."""
    versions = repository.versions(service.store, NAME)
    return max(
        version
        for version in versions
        if repository.release(service.store, NAME, version).config.served_format == served_format
        and version != service.live
    )


def truncate(version: Path) -> None:
    os.truncate(version / "model.onnx", (version / "model.onnx").stat().st_size // 2)


def widen(version: Path) -> None:
    config = model_config.read(version / "config.pbtxt")
    config.output[0].dims[:] = [config.output[0].dims[0] + 1]
    (version / "config.pbtxt").write_text(model_config.to_text(config), encoding="utf-8")


def make_newer(version: Path) -> None:
    model = onnx.load_model(version / "model.onnx")
    model.ir_version = 12
    onnx.save_model(model, version / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "not a whole ONNX file"),
        (widen, "disagree on outputs"),
        (make_newer, "ONNX IR version 12"),
    ],
)
def test_a_bad_version_never_becomes_live(
    service: Service, released: Workplace, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    bad, before = candidates.spoiled(released.run, tmp_path / "bad", spoil), tree(service.root)
    versions = service.clients.versions()
    with pytest.raises(VerdictError, match=reason):
        service.publish(bad)
    assert tree(service.root) == before
    assert service.clients.versions() == versions
    service.assert_sound()


def test_a_config_from_the_future_does_not_keep_a_version_from_going_live(service: Service, runs: list[Path]) -> None:
    """Triton compares times, and the last publisher's clock was an hour ahead."""
    future = time.time() + 3600
    os.utime(service.root / NAME / "config.pbtxt", (future, future))
    time.sleep(1.5)  # more than one period of the server, which loads it again
    seconds = service.goes_live(lambda: service.publish(runs[0]))
    print(f"live within {seconds:.2f} s")
    assert seconds < service.seconds_to_live
    service.assert_sound()


def test_four_publishers_at_once_lose_nothing(service: Service, runs: list[Path], campaign: bool) -> None:
    releases, begun = 10 if campaign else 1, len(service.store.events())
    first = max(repository.versions(service.store, NAME)) + 1

    def publish_all() -> int:
        for number in range(releases):
            assert service.publish(runs[number % len(runs)])
        return DONE

    publishers = [fork(publish_all) for _ in range(4)]
    assert [os.waitpid(publisher, 0)[1] for publisher in publishers] == [DONE] * 4
    last = first + 4 * releases - 1
    # The server may be loading one of the first when the last one comes.
    service.clients.wait_for(last, time.monotonic(), SECONDS_WHERE_BUSY)
    events = service.store.events()[begun:]
    assert [(event.action, event.state, event.version) for event in events] == [
        ("publish", state, version) for version in range(first, last + 1) for state in ("intent", "done")
    ]
    # Each one replaced the one before it: the pointer went up and never down.
    assert [event.previous for event in events[2::2]] == [*range(first, last)]
    for versions in service.clients.versions():
        after = [version for version in versions if version >= first]
        assert after == sorted(after)
    service.assert_sound()
