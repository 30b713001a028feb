"""Publishers that are killed while clients ask: the server that runs notices nothing, nor does one that starts then.

The same at every step, on synthetic versions and without a server, is in `test_repository`. `bin/test campaign` runs
the full counts.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import candidates
import pytest
from conftest import NAME, ROOT, Workplace, environment
from publishers import DONE, count_steps, die, disturb, fork, killed_after
from service import Service, serving

from pipeline import publication
from pipeline.runfolder import RunFolder
from pipeline.triton import repository, switching, verification
from pipeline.triton.file_store import FileStore

NEW = "a-new-name"


@pytest.fixture(scope="module")
def service(released: Workplace, campaign: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(released.run, tmp_path_factory.mktemp("service"), clients=2, campaign=campaign) as started:
        started.goes_live(lambda: started.publish(released.run))  # so that there is something to go back to
        yield started


@pytest.fixture(scope="module")
def runs(released: Workplace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A candidate for the name that is served, and for one that is not yet."""
    new = candidates.renamed(released.run, tmp_path_factory.mktemp("runs") / "new", NEW)
    return {NAME: released.run, NEW: new}


def test_a_publisher_killed_at_any_moment_harms_nothing(
    service: Service, runs: dict[str, Path], campaign: bool
) -> None:
    """Of three, one is the command, at a moment of its life; two are publishing already."""
    wanted = 100 if campaign else 2
    rng = random.Random(1)
    killed, inside, usual = 0, 0, 0.2
    while killed < wanted or 2 * inside < wanted:
        name = rng.choice([NAME, NEW])
        before = repository.live_version(service.store, name)
        new = repository.next_version(service.store, name)
        if killed % 3 == 2:
            was_killed = kill_command(runs[name], service.root, rng.uniform(0, 5))
            killed += was_killed
        else:
            was_killed = killed_after(rng.uniform(0, usual), partial(service.publish, runs[name]))
            killed, inside = killed + was_killed, inside + was_killed
        assert repository.live_version(service.store, name) in ((before, new) if was_killed else (new,))
        service.assert_a_new_server_serves_all()
        usual = goes_on(service, name, runs[name])
    print(f"{killed} publishers killed, {inside} of them inside publish")


def kill_command(run: Path, root: Path, seconds: float) -> bool:
    """Whether it still ran after so many seconds, and was killed."""
    publish = ["zoo", "publish", "--quiet", "--run", str(run), "--model-repository", str(root)]
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *publish], cwd=ROOT, env=environment())
    time.sleep(seconds)
    process.kill()
    status = process.wait()
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("action", ["first publish", "next publish", "rollback"])
def test_a_publisher_killed_at_any_step_harms_nobody(
    service: Service, runs: dict[str, Path], tmp_path: Path, campaign: bool, action: str
) -> None:
    name = NEW if action == "first publish" else NAME

    def act(root: Path) -> None:
        if action == "rollback":
            switching.rollback(FileStore(root), NAME)
        else:
            publication.publish_run(RunFolder(runs[name]), FileStore(root))

    copy = tmp_path / "copy" / "models"
    shutil.copytree(service.root, copy)
    steps = count_steps(lambda: act(copy))
    assert steps > 5, "there are fewer steps than the protocol has"
    found: set[tuple[bool, tuple[str, ...]]] = set()
    chosen = range(1, steps + 1) if campaign else random.Random(action).sample(range(1, steps + 1), 1)
    for step in chosen:
        before, known = repository.live_version(service.store, name), repository.versions(service.store, name)

        def run(step: int = step) -> int:
            disturb(step, die)
            act(service.root)
            return DONE

        assert os.WIFSIGNALED(os.waitpid(fork(run), 0)[1])
        live = repository.live_version(service.store, name)
        new = tuple(
            path.partition("/")[2]
            for path in sorted(service.store.files(name))
            if path.partition("/")[0] not in map(str, known)
        )
        # A server at its start sees nothing else than this.
        if (live == before, new) not in found:
            found.add((live == before, new))
            service.assert_a_new_server_serves_all()
        goes_on(service, name, runs[name])
    print(f"{action}: killed at {len(chosen)} of {steps} steps, which left {len(found)} different contents")


def goes_on(service: Service, name: str, run: Path) -> float:
    """After a publisher was killed the repository is sound, and the next one succeeds and leaves nothing else.

    Returns the seconds that this one took.
    """
    assert verification.verify(service.store).problems == ()
    live = repository.live_version(service.store, name)
    begin = time.monotonic()
    published = publication.publish_run(RunFolder(run), service.store)
    seconds = time.monotonic() - begin
    assert (published.previous, published.live) == (live, True)
    if name == NEW:
        take_out(service, NEW)
    else:
        service.clients.wait_for(published.version, time.monotonic(), service.seconds_to_live)
        switching.prune(service.store, NAME, 2)
    service.assert_sound()
    return seconds


def take_out(service: Service, name: str) -> None:
    """As if there had never been such a name: the next publish is a first one again."""
    (service.root / name).rename(service.root.parent.parent / f"{name} {time.monotonic_ns()}")
    path = service.root / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if f'"{name}"' not in line), encoding="utf-8")
