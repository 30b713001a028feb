"""Who made which version live, when and why. A store keeps the events; a file system in `history.jsonl`."""

import getpass
import os
import socket
import uuid
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.records import Record

Action = Literal["publish", "install", "promote", "rollback", "finish", "retire"]
PROMOTIONS: tuple[Action, ...] = ("publish", "install", "promote", "rollback")
State = Literal["intent", "done", "superseded", "abandoned"]


class Event(Record):
    """One line. An intent is written before the switch; what became of it after, under the same id.

    Superseded: published, and another version stayed live: a higher one, or as was wanted. `previous` is the version
    that was live before; `kept` are those that stayed loaded beside it. `release_sha256` is of the version's
    release.json; `origin` says where an installed version came from.
    """

    id: str
    state: State
    action: Action
    name: str
    version: int
    previous: int | None
    who: str
    when: str
    release_sha256: str
    kept: tuple[int, ...] = ()
    origin: str = ""
    reason: str = ""

    @property
    def brings_in(self) -> bool:
        """Whether the version is a new one."""
        return self.action in ("publish", "install")

    def ended(self, state: State, previous: int | None = None) -> Self:
        """The event that says how this intent ended; `previous` where another version was live than expected."""
        return self.model_copy(update={"state": state, "previous": previous or self.previous})


def intent(
    action: Action,
    name: str,
    version: int,
    previous: int | None,
    release_sha256: str,
    *,
    kept: tuple[int, ...] = (),
    origin: str = "",
    reason: str = "",
) -> Event:
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
        kept=kept,
        origin=origin,
        reason=reason,
    )


def _user() -> str:
    """In a job of GitHub's whoever began it, as all of them have the same user."""
    try:
        return os.environ.get("GITHUB_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())


def parse(lines: bytes, path: str) -> list[Event]:
    """The events in a `history.jsonl`, but for half a line of a killed writer; InputError of any other line."""
    events = []
    for number, line in enumerate(lines.splitlines(), start=1):
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
    """Versions that went live, were not rolled back and are still there, oldest first: the last one is live.

    What was live before the first event, as where a tar file was unpacked by hand, is the first one.
    """
    live: list[int] = []
    done: dict[str, Event] = {}
    for event in events:
        if event.name == name and event.state == "done":
            # It may be said twice, by the intent's writer and by the next one before him: the first time counts.
            done.setdefault(event.id, event)
    for event in done.values():
        if event.action == "rollback":
            # Of two at once, the second goes to where the first has gone.
            while live and live[-1] != event.version:
                live.pop()
            live = live or [event.version]
        elif event.action == "retire":
            left = [version for version in live if version != event.version]
            # What came before and after the one that is gone may be the same version.
            live = [version for version, before in zip(left, [None, *left], strict=False) if version != before]
        elif event.action != "finish":
            if not live and event.previous is not None:
                live.append(event.previous)
            # It is the last one already where another one went live by hand, without an event.
            if live[-1:] != [event.version]:
                live.append(event.version)
    return live


def next_rollback(events: list[Event], name: str) -> int | None:
    """The version that a roll-back goes to; None where there is none."""
    promoted = promotions(events, name)
    return promoted[-2] if len(promoted) > 1 else None
