"""A repository's versions as releases at GitHub: from where hosts take them. No Triton reads there.

    tag <name>/v<N>     a number that is taken; made first, so that nobody else takes it
    its release         <name>-v<N>.tar (see `archive`), release.json, and config.pbtxt as it makes this version live
    a deployment        an event of the history, in the environment <name>; the last promotion tells what is live

One request makes a tag, shows a release with all its files, or makes a deployment: what is half done is not seen.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.config import RELEASE_NAME
from pipeline.errors import ConflictError, InputError, StorageError
from pipeline.triton import archive, history, model_config, storage
from pipeline.triton.github_api import GithubApi
from pipeline.triton.history import Event

RELEASE = "release.json"
CONFIG = "config.pbtxt"

_TAG = re.compile(rf"({RELEASE_NAME.pattern})/v([1-9][0-9]*)")
_TASK = "model-zoo"
_TIME_TO_ABANDON = timedelta(days=1)
_LONGEST_DESCRIPTION = 140  # GitHub's limit
_BEGUN = "begun "  # of a draft, and then when

Version = tuple[str, int]


class GithubStore:
    """What `GithubApi` says of the location and of errors holds here. What was read is kept until something is written.

    GitHub has no condition on what is live: of two who change that at once both are recorded, and the later one counts.
    """

    def __init__(self, location: str) -> None:
        self._api = GithubApi(location)
        self._intent: Event | None = None
        self._recorded = ""
        self._forget()

    def _forget(self) -> None:
        self._events: list[Event] | None = None
        self._assets: dict[Version, dict[str, str]] | None = None
        self._unpacked: dict[Version, dict[str, bytes]] = {}
        self._sizes: dict[Version, dict[str, int]] = {}

    @property
    def location(self) -> str:
        return self._api.location

    def check_writable(self) -> None:
        """That it can be read and a token is there; what that may write, only writing tells. InputError without one."""
        self._api.demand_token()
        self._api.get("")

    def folders(self, path: str = "") -> list[str]:
        known = self._released()
        return [str(version) for name, version in known if name == path] if path else [*{name for name, _ in known}]

    def files(self, folder: str) -> dict[str, int]:
        name, _, number = folder.partition("/")
        if number:
            version = (name, int(number))
            if version not in self._sizes:
                self._sizes[version] = {path: len(content) for path, content in self._content(version).items()}
            return self._sizes[version]
        found = {}
        with suppress(FileNotFoundError):
            found[CONFIG] = len(self.read(f"{name}/{CONFIG}"))
        for number in self.folders(name):
            # Of a tar file that was altered, no file is known: who reads that version is told.
            with suppress(InputError):
                found |= {f"{number}/{path}": size for path, size in self.files(f"{name}/{number}").items()}
        return found

    def read(self, path: str) -> bytes:
        name, _, inner = path.partition("/")
        if inner == CONFIG:
            live = self._live(name)
            if live is None:
                raise FileNotFoundError(f"nothing of {name} is live in {self.location}")
            return self._asset((name, live), CONFIG)
        number, _, file = inner.partition("/")
        version = (name, int(number))
        # This one alone, so that a list of what there is needs no tar file.
        alone = file == RELEASE and version not in self._unpacked
        content = self._asset(version, RELEASE) if alone else self._content(version).get(file)
        if content is None:
            raise FileNotFoundError(f"{path} is not in {self.location}")
        return content

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody can be kept out."""
        return nullcontext()

    def staging(self) -> AbstractContextManager[Path]:
        return storage.temporary_folder()

    def events(self) -> list[Event]:
        """Of a number that was taken and not released there is only a tag; nobody else may take it."""
        if self._events is None:
            found = [_event(made) for made in self._api.pages("/deployments", task=_TASK)][::-1]
            known = {(event.name, event.version) for event in found} | self._released().keys()
            taken = [tagged for tag in self._api.pages("/tags") if (tagged := _version(tag["name"])) not in known]
            self._events = [_abandoned(*version) for version in taken if version] + found
        return self._events

    def append(self, event: Event) -> None:
        """An intent is kept until the switch, which writes down who makes it and why."""
        if event.state == "intent":
            if event.brings_in:
                self._take(event.name, event.version)
            self._intent = event
        elif event.state != "abandoned" and event.id != self._recorded:
            self._record(event)

    def is_abandoned(self, intent: Event) -> bool:
        """A change that got no answer may have happened."""
        return False

    def add(self, name: str, version: int, source: Path, config: str | None) -> None:
        """As a draft, which others do not see, until all files have come."""
        self._remove_drafts()
        files = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
        tar = source.with_suffix(".tar")
        archive.write(tar, name, version, ((path, files[path].read_bytes()) for path in sorted(files)))
        own = model_config.read(files[CONFIG])
        draft = self._api.post(
            "/releases",
            {
                "tag_name": _tag(name, version),
                "name": _BEGUN + datetime.now(UTC).isoformat(),
                "body": f"Unpack the tar file into a model repository, or run `bin/zoo pull {name} {self.location}`.",
                "draft": True,
            },
        )
        for file, content in (
            (f"{name}-v{version}.tar", tar.read_bytes()),
            (RELEASE, files[RELEASE].read_bytes()),
            (CONFIG, model_config.to_text(model_config.pointed_at(own, version)).encode()),
        ):
            self._api.upload(draft["upload_url"], file, content)
        # The latest would be that of all names together, which says nothing.
        published = {"draft": False, "name": f"{name} version {version}", "make_latest": "false"}
        self._api.patch(f"/releases/{draft['id']}", published)
        self._forget()
        if config is not None:
            if self._live(name):
                raise self._conflict(name)
            self._switch(None)

    def point(self, name: str, config: str, expected: bytes) -> None:
        live = model_config.loaded_versions(expected, CONFIG)[-1]
        if len(model_config.loaded_versions(config.encode(), CONFIG)) > 1:
            raise InputError(f"nothing is loaded in {self.location}: --keep-live is for what a Triton reads")
        self._forget()
        if self._live(name) != live:
            raise self._conflict(name)
        self._switch(live)

    def remove(self, name: str, version: int) -> None:
        """Never: a tag and what is attested of it stay known."""
        raise InputError(f"{self.location} keeps what was released: if {_tag(name, version)} must go, delete it there")

    def _live(self, name: str) -> int | None:
        live = next(reversed(history.promotions(self.events(), name)), None)
        return live if (name, live) in self._released() else None

    def _released(self) -> dict[Version, dict[str, str]]:
        """Addresses of files by their names, for each version that can be seen."""
        if self._assets is None:
            self._assets = {
                version: {asset["name"]: asset["url"] for asset in release["assets"]}
                for release in self._api.pages("/releases")
                if not release["draft"] and (version := _version(release["tag_name"]))
            }
        return self._assets

    def _asset(self, version: Version, file: str) -> bytes:
        url = self._released().get(version, {}).get(file)
        if url is None:
            raise FileNotFoundError(f"the release {_tag(*version)} in {self.location} has no {file}")
        return self._api.download(url)

    def _content(self, version: Version) -> dict[str, bytes]:
        """All files of a version, by path; {} where it is not there, or has lost its tar file or release.json."""
        name, number = version
        tar = f"{name}-v{number}.tar"
        if not {tar, RELEASE} <= self._released().get(version, {}).keys():
            return {}
        if version not in self._unpacked:
            with storage.temporary_folder() as folder:
                (folder / tar).write_bytes(self._asset(version, tar))
                packed = archive.read(folder / tar)
            if (packed.name, packed.version) != version:
                raise InputError(f"{tar} in {self.location} holds version {packed.version} of {packed.name}")
            if packed.files.get(RELEASE) != self._asset(version, RELEASE):
                raise InputError(f"{RELEASE} in {tar} is not the one beside it in {self.location}: one was altered")
            self._unpacked = {version: packed.files}  # of the last one; they may be large
        return self._unpacked[version]

    def _take(self, name: str, version: int) -> None:
        tag, refused = _tag(name, version), None
        for commit in self._commits():
            try:
                self._api.post("/git/refs", {"ref": f"refs/tags/{tag}", "sha": commit})
                return
            except StorageError as error:
                refused = error
                self._forget()
                if tag in {found["name"] for found in self._api.pages("/tags")}:
                    raise ConflictError(f"{tag} is taken in {self.location}: try again") from None
        assert refused is not None
        raise refused

    def _commits(self) -> Iterator[str]:
        """What a tag may be of, best first; which commit a version was made of, its release.json says, too.

        GitHub lets no workflow tag its own commit once another push has changed the workflows.
        """
        if self.location == f"github:{os.environ.get('GITHUB_REPOSITORY')}" and "GITHUB_SHA" in os.environ:
            yield os.environ["GITHUB_SHA"]
        yield self._api.get("/commits/HEAD")["sha"]

    def _switch(self, previous: int | None) -> None:
        assert self._intent is not None
        self._record(self._intent.ended("done", previous))
        self._recorded = self._intent.id

    def _record(self, event: Event) -> None:
        self._forget()
        live = f"version {event.version} is live" if event.state == "done" else f"version {event.version} is not live"
        made = self._api.post(
            "/deployments",
            {
                "ref": _tag(event.name, event.version),
                "environment": event.name,
                "task": _TASK,
                "payload": event.model_dump(),
                "description": f"{event.action}: {live}; {event.reason}"[:_LONGEST_DESCRIPTION],
                "auto_merge": False,
                "required_contexts": [],
            },
        )
        # GitHub's pages show it; nothing here reads it.
        with suppress(StorageError):
            state = "success" if event.state == "done" else "inactive"
            self._api.post(f"/deployments/{made['id']}/statuses", {"state": state})

    def _remove_drafts(self) -> None:
        """Of publishers that were killed. GitHub's own time of a release is that of its commit."""
        for release in self._api.pages("/releases"):
            begun = (release["name"] or "").removeprefix(_BEGUN)
            is_ours = release["draft"] and _version(release["tag_name"]) and begun != release["name"]
            if is_ours and datetime.now(UTC) - datetime.fromisoformat(begun) > _TIME_TO_ABANDON:
                self._api.delete(f"/releases/{release['id']}")

    def _conflict(self, name: str) -> ConflictError:
        return ConflictError(f"another publisher has changed what is live of {name} in {self.location}: try again")


def _tag(name: str, version: int) -> str:
    return f"{name}/v{version}"


def _version(tag: str) -> Version | None:
    """The version whose tag it is; None of other tags."""
    match = _TAG.fullmatch(tag)
    return (match[1], int(match[2])) if match else None


def _event(deployment: dict[str, Any]) -> Event:
    payload = deployment["payload"]
    return Event.parse(
        payload.encode() if isinstance(payload, str) else json.dumps(payload).encode(), deployment["url"]
    )


def _abandoned(name: str, version: int) -> Event:
    """That the number is taken; more is not known."""
    return Event(
        id=_tag(name, version),
        state="abandoned",
        action="publish",
        name=name,
        version=version,
        previous=None,
        who="",
        when="",
        release_sha256="",
    )
