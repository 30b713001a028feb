"""Let servers under explicit control load what has become live, and go back where one does not answer as recorded."""

import io
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from pipeline.errors import ReloadError, ServerError, ZooError
from pipeline.triton import client, golden, repository
from pipeline.triton.store import Store

_log = logging.getLogger(__name__)


class Switched(Protocol):
    """What a change of the live version came to. `previous` is the one that was live before, if any was."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def previous(self) -> int | None: ...


S = TypeVar("S", bound=Switched)


def switch(store: Store, urls: tuple[str, ...], change: Callable[[], S], back: Callable[[S], object] | None) -> S:
    """Make the change, and have each server load and prove what is live then.

    Where one fails, or we are interrupted, `back` undoes the change and all servers are told again; without it the
    change stays. Before anything is changed, ServerError where a server is not there, InputError where it polls;
    then ReloadError says what failed and what is live now.
    """
    servers = [client.http_address(url) for url in urls]
    for url in servers:
        client.demand_explicit_control(url)
    switched = change()
    try:
        for url in servers:
            _prove(store, switched.name, url)
            _log.info("%s serves %s version %d and answers as recorded", url, switched.name, switched.version)
    except ZooError as error:
        now = _gone_back(store, servers, switched, back)
        raise ReloadError(f"{switched.name} version {switched.version} did not go live: {error}; {now}") from None
    except BaseException:
        _log.info("%s", _gone_back(store, servers, switched, back))
        raise
    return switched


def _prove(store: Store, name: str, url: str) -> None:
    """ServerError where the server does not load what is live, or answers otherwise than was recorded."""
    version = repository.loaded_versions(store, name)[-1]
    recorded = golden.load(io.BytesIO(repository.read(store, name, version, golden.FILE)))
    labels = repository.labels_in(repository.read(store, name, version, repository.LABELS))
    sizes = (1, 3, repository.own_config(store, name, version).max_batch_size)
    checks = [golden.check_load(url, name, version)]
    if checks[0].passed:
        checks += golden.check_answers(url, name, version, recorded, sizes)
        checks.append(golden.check_labels(url, name, version, recorded, labels))
    failed = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.passed)
    if failed:
        raise ServerError(f"{url}: {failed}")


def _gone_back(store: Store, urls: list[str], switched: S, back: Callable[[S], object] | None) -> str:
    """Undo the change, as far as that can be done, and say what is so now."""
    name, version = switched.name, switched.version
    if back is None or switched.previous is None:
        return f"there is no version to go back to, so version {version} stays live in {store.location}"
    if repository.live_version(store, name) != version:
        return f"somebody else has changed {name} meanwhile, so nothing was undone"
    try:
        back(switched)
    except ZooError as error:
        return f"going back to version {switched.previous} failed too: {error}"
    said = f"version {switched.previous} is live again"
    for url in urls:
        try:
            _prove(store, name, url)
        except ZooError as error:
            said += f"; but {error}"
    return said
