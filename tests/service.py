"""A repository that a real Triton serves, and clients that ask for one name in it without a pause."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from clients import Clients, Protocol, asking
from conftest import NAME, assert_nothing_left

from pipeline import publication
from pipeline.runfolder import RunFolder
from pipeline.triton import client, history, repository, verification
from pipeline.triton.file_store import FileStore
from pipeline.triton.server import Server, ServerOptions, running

# From the moment at which a publisher begins until the last client is answered by the new version: what is promised,
# and for a machine that runs other tests meanwhile.
SECONDS_TO_LIVE, SECONDS_WHERE_BUSY = 5, 60


@dataclass(frozen=True)
class Service:
    root: Path
    clients: Clients
    seconds_to_live: int
    guards: list[int]

    @property
    def store(self) -> FileStore:
        return FileStore(self.root)

    @property
    def live(self) -> int:
        version = repository.live_version(self.store, NAME)
        assert version is not None
        return version

    def publish(self, run: Path) -> int:
        return publication.publish_run(RunFolder(run), self.store).version

    def goes_live(self, act: Callable[[], int]) -> float:
        """The seconds until the version that this makes live answers all clients."""
        begin = time.monotonic()
        version = act()
        assert self.live == version
        return self.clients.wait_for(version, begin, SECONDS_WHERE_BUSY)

    def assert_sound(self) -> None:
        """No request has failed; the repository is as it was released, and nothing else is there."""
        assert self.clients.wrong() == []
        assert verification.verify(self.store).problems == ()
        assert history.open_intents(self.store.events()) == []
        assert {path.name for path in self.root.parent.iterdir()} == {self.root.name}
        files = {".lock", "history.jsonl", *repository.names(self.store)}
        assert {path.name for path in self.root.iterdir()} == files

    def assert_a_new_server_serves_all(self) -> None:
        """It starts on what is there now, and answers by what the repository says is live."""
        with running(options(self.root, None)) as server:
            self.guards.append(server.pid)
            server.wait_live(time.monotonic() + 60)
            index = {model.name: (model.version, model.state) for model in client.models(server.http_url)}
            live = {name: repository.live_version(self.store, name) for name in repository.names(self.store)}
            assert index == {name: (str(version), "READY") for name, version in live.items()}
            for name, version in live.items():
                with np.load(self.root / name / str(version) / "golden.npz") as golden:
                    images, expected = golden["images"][:3], golden["probabilities"][:3]
                np.testing.assert_allclose(client.classify(server.http_url, name, images), expected, atol=1e-4)


@contextmanager
def serving(run: Path, folder: Path, *, clients: int, campaign: bool) -> Iterator[Service]:
    """A repository with one version. At the end no request has failed and nothing is left of the server."""
    root, temporary = folder / "zoo" / "models", folder / "tmp"
    root.parent.mkdir()
    temporary.mkdir()
    publication.publish_run(RunFolder(run), FileStore(root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("TMPDIR", str(temporary))
        with running(options(root, folder / "triton.log")) as server:
            server.wait_live(time.monotonic() + 60)
            with asking(str(root), NAME, _urls(server)[:clients], folder / "clients") as asked:
                guards = [server.pid]
                yield Service(root, asked, SECONDS_TO_LIVE if campaign else SECONDS_WHERE_BUSY, guards)
        print(f"{asked.requests()} requests, {len(asked.wrong())} failed, {len(guards)} servers")
        assert asked.wrong() == []
        assert_nothing_left(temporary, guards)


def _urls(server: Server) -> list[tuple[Protocol, str]]:
    return [("http", server.http_url), ("grpc", server.grpc_url), ("http", server.http_url), ("grpc", server.grpc_url)]


def options(repository: Path | str, log_file: Path | None) -> ServerOptions:
    """As bin/serve has them."""
    return ServerOptions(
        repository=repository,
        log_file=log_file,
        control="poll",
        exit_on_error=False,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        drain_seconds=0,
    )
