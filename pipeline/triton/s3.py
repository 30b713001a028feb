"""A model repository in an object store.

    s3://<bucket>/<prefix>/<name>/...                  as on a file system
    s3://<bucket>/<prefix>.history/0000000001.json     one object per event, counted up; beside the repository,
                                                       as Triton takes every folder in it for a model

Nothing can be renamed or locked there. But an object appears whole or not at all, and can be written on the
condition that nobody else was faster: that is all that publishers need in order to agree.
"""

import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.errors import ConflictError, InputError, StorageError
from pipeline.triton import storage
from pipeline.triton.bucket import CONNECTIONS, Bucket
from pipeline.triton.history import Event

RELEASE = "release.json"
CONFIG = "config.pbtxt"

# A publisher that is slower does not go live; one that is open for longer is dead for all others. The time between
# is for clocks that differ (S3 refuses requests of those that are 15 minutes wrong) and for a process that is stopped.
TIME_TO_GO_LIVE = timedelta(hours=1)
TIME_TO_ABANDON = timedelta(days=1)

_APPENDS = 100  # of one event, while others append theirs


class S3Store:
    """What `Bucket` says of the location and of errors holds here."""

    def __init__(self, location: str) -> None:
        self._bucket = Bucket(location)
        self._models = f"{self._bucket.prefix}/"
        self._history = f"{self._bucket.prefix}.history/"
        self._events: dict[int, Event] = {}  # by number; an event never changes
        self._claimed = datetime.now(UTC)

    @property
    def location(self) -> str:
        return self._bucket.location

    def check_writable(self) -> None:
        """That it can be read at all; whether it can be written, only writing tells."""
        self._bucket.folders(self._models)

    def folders(self, path: str = "") -> list[str]:
        return self._bucket.folders(f"{self._models}{path}/" if path else self._models)

    def files(self, folder: str) -> dict[str, int]:
        prefix = f"{self._models}{folder}/"
        sizes = self._bucket.sizes(prefix)
        # A key that ends with a slash is what some tools make for an empty folder.
        return {key.removeprefix(prefix): size for key, size in sizes.items() if not key.endswith("/")}

    def read(self, path: str) -> bytes:
        return self._bucket.get(f"{self._models}{path}").content

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody can be kept out."""
        return nullcontext()

    def staging(self) -> AbstractContextManager[Path]:
        return storage.temporary_folder()

    def events(self) -> list[Event]:
        after = f"{self._history}{max(self._events, default=0):010d}.json"
        keys = list(self._bucket.sizes(self._history, after))
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for key, found in zip(keys, pool.map(self._bucket.get, keys), strict=True):
                number = re.fullmatch(r"([0-9]{10})\.json", key.removeprefix(self._history))
                if number is None:
                    raise InputError(f"{key} in the bucket of {self.location} is not an event: remove it")
                self._events[int(number[1])] = Event.parse(found.content, f"{key} in the bucket of {self.location}")
        return [self._events[number] for number in sorted(self._events)]

    def append(self, event: Event) -> None:
        """Under the next number, if nobody takes it first; then what he has written there is looked at."""
        content = event.model_dump_json().encode()
        for _ in range(_APPENDS):
            earlier = self.events()
            if _is_excluded(event, earlier):
                raise ConflictError(
                    f"another one is at work on {event.name} version {event.version} in {self.location}: try again"
                )
            key = f"{self._history}{1 + max(self._events, default=0):010d}.json"
            if self._bucket.create(key, content):
                if not earlier:
                    self._bucket.demand_conditions(key, content)
                if event.state == "intent":
                    self._claimed = datetime.fromisoformat(event.when)
                return
        raise StorageError(f"others have been faster {_APPENDS} times to write into {key}: try again")

    def is_abandoned(self, intent: Event) -> bool:
        """Nobody says that a publisher is dead; this one will not go live any more."""
        return datetime.now(UTC) - datetime.fromisoformat(intent.when) > TIME_TO_ABANDON

    def add(self, name: str, version: int, source: Path, config: str | None) -> None:
        """release.json comes last: a version without it is not complete."""
        folder = f"{self._models}{name}/{version}/"
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == RELEASE):
            self._bucket.upload(folder + path.relative_to(source).as_posix(), path)
        if config is not None:
            self._demand_in_time(name)
            if not self._bucket.create(f"{self._models}{name}/{CONFIG}", _unique(config)):
                raise self._conflict(name)

    def point(self, name: str, config: str, expected: bytes) -> None:
        key = f"{self._models}{name}/{CONFIG}"
        try:
            seen = self._bucket.get(key)
        except FileNotFoundError:
            raise self._conflict(name) from None
        if seen.content != expected:
            raise self._conflict(name)
        # Triton sees a change by its time, of which S3 tells whole seconds.
        time.sleep(max(0.0, 1 - seen.age))
        self._demand_in_time(name)
        if not self._bucket.replace(key, _unique(config), seen.etag):
            raise self._conflict(name)

    def remove(self, name: str, version: int) -> None:
        folder = f"{self._models}{name}/{version}/"
        # What makes it complete comes first: half of it is never taken for a version.
        self._bucket.delete([folder + RELEASE])
        self._bucket.delete(self._bucket.sizes(folder))

    def _demand_in_time(self, name: str) -> None:
        if datetime.now(UTC) - self._claimed > TIME_TO_GO_LIVE:
            raise StorageError(
                f"{name} did not go live in {self.location}: it took more than {TIME_TO_GO_LIVE}, after which others "
                "may give its number up; try again"
            )

    def _conflict(self, name: str) -> ConflictError:
        return ConflictError(f"another publisher has changed what is live of {name} in {self.location}: try again")


def _unique(config: str) -> bytes:
    """With a comment, so that no two configs are equal and an ETag that was seen never comes back."""
    return f"{config}# {uuid.uuid4().hex}\n".encode()


def _is_excluded(event: Event, earlier: list[Event]) -> bool:
    """Whether an intent cannot come after these.

    A number is taken once; a version that another one brings in or removes does not go live; and one on which another
    one is at work is not removed.
    """
    if event.state != "intent":
        return False
    ended = {other.id: other.state for other in earlier if other.state != "intent"}
    others = [
        other
        for other in earlier
        if other.state == "intent" and (other.name, other.version) == (event.name, event.version)
    ]
    if event.brings_in:
        return any(other.brings_in for other in others)
    if event.action == "retire":
        return any(other.id not in ended for other in others)
    return any(
        (other.action == "retire" and ended.get(other.id) != "abandoned") or (other.brings_in and other.id not in ended)
        for other in others
    )
