"""What stands in for GitHub: releases, tags and deployments of one repository, over HTTP, as its API documents them.

Assets are uploaded to one host and come from another, which does not take the API's token.
"""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY = "someone/zoo"
LOCATION = f"github:{REPOSITORY}"
TOKEN = "unspoken"
LOST, UNANSWERED = -1, -2
HEAD = hashlib.sha1(b"head", usedforsecurity=False).hexdigest()


class GitHub:
    """The repository's state. `disturb` is called with each request, and may return an error's status in its place.

    Or LOST: the request does not arrive; or UNANSWERED: it is carried out, and the answer does not arrive.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.commits = {HEAD}
        self.refused: set[str] = set()  # as tags: their workflows are not those of any branch any more
        self.tags: dict[str, str] = {}
        self.releases: dict[int, dict[str, Any]] = {}
        self.files: dict[int, bytes] = {}
        self.deployments: list[dict[str, Any]] = []
        self.statuses: list[tuple[int, str]] = []
        self.latest: str | None = None
        self.disturb: Callable[[str, str], int | None] = lambda method, path: None
        self.writes = 0
        self.number = 0
        self.url = ""

    def next_id(self) -> int:
        self.number += 1
        return self.number

    def asset(self, tag: str, name: str) -> bytes:
        """The content of a visible release's file."""
        found = next(one for one in self.releases.values() if one["tag_name"] == tag and not one["draft"])
        return self.files[next(asset["id"] for asset in found["assets"] if asset["name"] == name)]

    # What is asked for, by method and the path below the repository's; an int is an error's status.

    def get(self, path: str, query: dict[str, str], may_write: bool) -> Any:
        if path == "":
            return {"full_name": REPOSITORY}
        if path == "/commits/HEAD":
            return {"sha": HEAD}
        if path == "/tags":
            return self.page([{"name": tag, "commit": {"sha": sha}} for tag, sha in self.tags.items()], query)
        if path == "/releases":
            seen = [one for one in self.releases.values() if may_write or not one["draft"]]
            return self.page(seen[::-1], query)
        if path == "/deployments":
            asked = [one for one in self.deployments if one["task"] == query.get("task", one["task"])]
            return self.page(asked[::-1], query)
        return 404

    def page(self, entries: list[Any], query: dict[str, str]) -> list[Any]:
        size, page = int(query.get("per_page", 30)), int(query.get("page", 1))
        return entries[(page - 1) * size : page * size]

    def post(self, path: str, content: dict[str, Any]) -> Any:
        if path == "/git/refs":
            tag = content["ref"].removeprefix("refs/tags/")
            if content["sha"] in self.refused:
                return 403
            if tag in self.tags or content["sha"] not in self.commits:
                return 422
            self.tags[tag] = content["sha"]
            return {"ref": content["ref"]}
        if path == "/releases":
            number = self.next_id()
            self.releases[number] = {
                "id": number,
                "assets": [],
                "upload_url": f"{self.url}/uploads/{number}/assets{{?name,label}}",
                # As GitHub does it, the time of the commit.
                "created_at": "2020-01-01T00:00:00Z",
                **content,
            }
            return self.releases[number]
        if path == "/deployments":
            if content["ref"] not in self.tags or content["required_contexts"] or content["auto_merge"]:
                return 422
            number = self.next_id()
            made = {**content, "id": number, "url": f"{self.url}/deployments/{number}"}
            self.deployments.append(made)
            return made
        if path.startswith("/deployments/"):
            self.statuses.append((int(path.split("/")[2]), content["state"]))
            return {}
        return 404

    def patch(self, path: str, content: dict[str, Any]) -> Any:
        release = self.releases[int(path.removeprefix("/releases/"))]
        visible = {one["tag_name"] for one in self.releases.values() if not one["draft"]}
        if not content["draft"] and release["tag_name"] in visible:
            return 422
        release.update(content)
        # What was asked of the draft is not remembered; of what is published, the default is to be the latest.
        if not content["draft"] and content.get("make_latest", "true") == "true":
            self.latest = release["tag_name"]
        return release

    def delete(self, path: str) -> Any:
        del self.releases[int(path.removeprefix("/releases/"))]

    def upload(self, release: int, name: str, content: bytes) -> Any:
        assets = self.releases[release]["assets"]
        if name in {asset["name"] for asset in assets} or not self.releases[release]["draft"]:
            return 422
        number = self.next_id()
        self.files[number] = content
        assets.append(
            {
                "id": number,
                "name": name,
                "size": len(content),
                "state": "uploaded",
                "url": f"{self.url}/assets/{number}",
            }
        )
        return assets[-1]


class _Handler(BaseHTTPRequestHandler):
    github: GitHub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        with self.github.lock:
            self.github.writes += self.command != "GET"
            disturbed = self.github.disturb(self.command, url.path)
            if disturbed in (None, UNANSWERED):
                answer = self._result(url.path, dict(urllib.parse.parse_qsl(url.query)), body)
            else:
                answer = disturbed
        if disturbed in (LOST, UNANSWERED):
            self.close_connection = True
        elif isinstance(answer, bytes):
            self._send(200, answer)
        elif isinstance(answer, str):
            self.send_response(302)
            self.send_header("Location", answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif isinstance(answer, int):
            self._send(answer, json.dumps({"message": f"Status {answer}."}).encode())
        else:
            self._send(200 if self.command == "GET" else 201, json.dumps(answer).encode())

    def _result(self, path: str, query: dict[str, str], body: bytes) -> Any:
        token = self.headers.get("Authorization")
        if path.startswith("/storage/"):
            return 400 if token else self.github.files[int(path.rpartition("/")[2])]
        if token not in (None, f"Bearer {TOKEN}"):
            return 401
        if self.command != "GET" and not token:
            return 404
        if path.startswith("/assets/"):
            return self.github.url.replace("127.0.0.1", "localhost") + path.replace("/assets/", "/storage/")
        if path.startswith("/uploads/"):
            return self.github.upload(int(path.split("/")[2]), query["name"], body)
        top = f"/repos/{REPOSITORY}"
        if not (path == top or path.startswith(f"{top}/")):
            return 404
        inner = path.removeprefix(top)
        if self.command == "GET":
            return self.github.get(inner, query, bool(token))
        if self.command == "DELETE":
            return self.github.delete(inner)
        act = self.github.post if self.command == "POST" else self.github.patch
        return act(inner, json.loads(body))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def served() -> Iterator[GitHub]:
    """A repository of its own, at `url`."""
    github = GitHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"github": github}))
    github.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield github
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
