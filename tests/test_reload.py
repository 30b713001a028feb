"""A server under explicit control takes up what it is told to, and what does not answer as recorded goes back."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command, wait_until
from test_serve import Serving, serving
from test_triton_server import MATRIX, add_version, expected, images, onnx_model

from pipeline.errors import InputError, ReloadError, ServerError
from pipeline.records import Published
from pipeline.triton import client, golden, publishing, reload, repository, switching
from pipeline.triton.store import Store, open_store

NAME = "digits"
OTHER = -MATRIX


class Zoo:
    """A repository under a server, and how a version of a matrix comes into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder / "models")

    @property
    def store(self) -> Store:
        return open_store(self.location)

    @property
    def live(self) -> int | None:
        return repository.live_version(self.store, NAME)

    def publish(self, matrix: np.ndarray, recorded: np.ndarray | None = None, *, cut_short: bool = False) -> Published:
        """`recorded` is the matrix of the answers that are recorded of it, where that is another one."""
        source = self.folder / f"source-{len(list(self.folder.glob('source-*')))}" / NAME / "1"
        add_version(source.parent, 1, "onnxruntime", onnx_model(matrix), instances=1)
        if cut_short:
            (source / "model.onnx").write_bytes((source / "model.onnx").read_bytes()[:100])
        asked = images(5)
        np.savez(
            source / golden.FILE,
            images=asked,
            probabilities=expected(asked, matrix if recorded is None else recorded),
        )
        hashes = {file.name: repository.sha256(file.read_bytes()) for file in source.iterdir()}
        return publishing.publish_version(self.store, NAME, source, json.dumps({"hashes": hashes}).encode())


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path)


@pytest.fixture
def served(zoo: Zoo) -> Iterator[Serving]:
    """With version 1, of `MATRIX`."""
    zoo.publish(MATRIX)
    with serving(Path(zoo.location), "--engine", "embedded", "--control", "explicit") as started:
        started.waits_for("^  digits version 1 ready$")
        yield started


def is_answered_by(url: str, matrix: np.ndarray) -> bool:
    asked = images(3)
    return np.allclose(client.classify(url, NAME, asked), expected(asked, matrix), atol=1e-5)


def go_back(zoo: Zoo) -> Callable[[Published], object]:
    return lambda published: switching.rollback(zoo.store, published.name)


def test_told_to_load_it_answers_by_the_new_version_and_else_by_the_one_before(zoo: Zoo, served: Serving) -> None:
    url = served.urls[0]
    zoo.publish(OTHER)
    assert is_answered_by(url, MATRIX)  # nobody has told it
    told = ("zoo", "promote", f"{NAME}:2", "--reload", f"http://{url}", "--model-repository", zoo.location)
    done = run_command(*told, cwd=zoo.folder)
    assert done.returncode == 0, done.stderr
    assert is_answered_by(url, OTHER)
    served.waits_for("^  digits version 2 ready$")
    events = zoo.store.events()
    again = run_command(*told, cwd=zoo.folder)
    assert (again.returncode, zoo.store.events()) == (0, events), again.stderr
    assert "version 2 is this very release" in again.stdout
    assert "already, and live: nothing was changed" in again.stdout

    # One that answers otherwise than was recorded.
    zoo.publish(MATRIX, recorded=OTHER)
    done = run_command(*told[:2], f"{NAME}:3", *told[3:], cwd=zoo.folder)
    assert done.returncode == 4
    for part in ("version 3 did not go live", "HTTP batch 1: largest difference", "version 2 is live again"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert zoo.live == 2
    assert is_answered_by(url, OTHER)

    # One that cannot be loaded, of two servers that are one here.
    with pytest.raises(ReloadError, match=r"loads: .*Error parsing.*version 2 is live again$"):
        reload.switch(zoo.store, (url, url), partial(zoo.publish, MATRIX, cut_short=True), go_back(zoo))
    assert zoo.live == 2
    assert is_answered_by(url, OTHER)

    # And a roll-back to one that answers as recorded, and to one that does not.
    reload.switch(zoo.store, (url,), partial(switching.rollback, zoo.store, NAME), None)
    assert (zoo.live, is_answered_by(url, MATRIX)) == (1, True)
    switching.promote(zoo.store, NAME, 3)
    reload.switch(zoo.store, (url,), partial(zoo.publish, OTHER), go_back(zoo))
    assert is_answered_by(url, OTHER)
    done = run_command("zoo", "rollback", NAME, *told[3:], cwd=zoo.folder)
    assert done.returncode == 4
    assert "version 5 is live again" in done.stderr
    assert (zoo.live, is_answered_by(url, OTHER)) == (5, True)

    # What was kept loaded stays so where that fails.
    switching.rollback(zoo.store, NAME)
    switching.promote(zoo.store, NAME, 5, keep_live=True)
    done = run_command("zoo", "rollback", NAME, *told[3:], cwd=zoo.folder)
    assert "version 5 is live again" in done.stderr
    assert repository.loaded_versions(zoo.store, NAME) == (3, 5)
    assert np.allclose(client.classify(url, NAME, images(3), 3), expected(images(3)), atol=1e-5)


def test_who_is_interrupted_goes_back(zoo: Zoo, served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    url = served.urls[0]
    original = golden.check_answers

    def interrupted(*arguments: object) -> None:
        monkeypatch.setattr(golden, "check_answers", original)
        raise KeyboardInterrupt

    monkeypatch.setattr(golden, "check_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reload.switch(zoo.store, (url,), partial(zoo.publish, OTHER), go_back(zoo))
    assert zoo.live == 1
    wait_until(lambda: is_answered_by(url, MATRIX), 10, "version 1 answers")


def test_nothing_is_changed_for_a_server_that_is_not_there_or_polls(zoo: Zoo) -> None:
    zoo.publish(MATRIX)
    before = zoo.store.events()
    with pytest.raises(ServerError, match="no Triton server answers"):
        reload.switch(zoo.store, ("127.0.0.1:1",), partial(zoo.publish, OTHER), go_back(zoo))
    with pytest.raises(InputError, match="expected host:port"):
        reload.switch(zoo.store, ("grpc://127.0.0.1:1",), partial(zoo.publish, OTHER), go_back(zoo))
    with (
        serving(Path(zoo.location), "--engine", "embedded") as started,
        pytest.raises(InputError, match="polls its repository"),
    ):
        reload.switch(zoo.store, (started.urls[0],), partial(zoo.publish, OTHER), go_back(zoo))
    assert zoo.store.events() == before
    assert zoo.live == 1


def test_a_first_version_has_none_to_go_back_to(zoo: Zoo, served: Serving) -> None:
    other = zoo.folder / "other"
    other.mkdir()
    elsewhere = Zoo(other)
    elsewhere.publish(OTHER)
    live = switching.already_live(elsewhere.store, NAME, 1)
    assert live is not None
    # The server has version 1 of another repository, which answers otherwise.
    with pytest.raises(ReloadError, match="there is no version to go back to, so version 1 stays live"):
        reload.switch(elsewhere.store, (served.urls[0],), lambda: live, go_back(elsewhere))
    assert elsewhere.live == 1
