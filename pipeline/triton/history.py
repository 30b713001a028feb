"""Who made which version live, when and why: `history.jsonl`, a plain file in the repository's root."""

import getpass
import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.records import Record

Action = Literal["publish", "rollback"]


class Event(Record):
    """One line. An intent is written before the switch; what became of it after, under the same id.

    `previous` is the version that was live before; `release_sha256` is of the version's release.json.
    """

    id: str
    state: Literal["intent", "done", "abandoned"]
    action: Action
    name: str
    version: int
    previous: int | None
    who: str
    when: str
    release_sha256: str


def intent(action: Action, name: str, version: int, previous: int | None, release_sha256: str) -> Event:
    return Event(
        id=uuid.uuid4().hex,
        state="intent",
        action=action,
        name=name,
        version=version,
        previous=previous,
        who=f"{_user()}@{socket.gethostname()}",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        release_sha256=release_sha256,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())


def append(root: Path, event: Event) -> None:
    """On disk when this returns."""
    path = root / "history.jsonl"
    with path.open("a+b") as file:
        # A writer that was killed may have left half a line: end it, so that it harms no other.
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")
        file.write(event.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(root: Path) -> list[Event]:
    """All events, oldest first; half a line of a killed writer is passed over."""
    path = root / "history.jsonl"
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            events.append(Event.model_validate_json(line))
        except ValidationError:
            if line.endswith(b"}"):
                raise InputError(f"{path} line {number} is not an event: restore the file from a copy") from None
    return events


def open_intents(events: list[Event]) -> list[Event]:
    settled = {event.id for event in events if event.state != "intent"}
    return [event for event in events if event.id not in settled]


def promotions(events: list[Event], name: str) -> list[int]:
    """Versions that went live and were not rolled back, oldest first: the last one is live."""
    live: list[int] = []
    for event in events:
        if event.name == name and event.state == "done":
            live = [*live, event.version] if event.action == "publish" else live[:-1]
    return live
