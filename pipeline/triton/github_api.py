"""GitHub's REST API of one repository, as far as a zoo needs it; JSON in and out."""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from pipeline.errors import InputError, StorageError

_LOCATION = re.compile(r"github:([A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+)")
_API_URL = "https://api.github.com"
_URL = re.compile(r"https?://[!-~]+")
_VERSION = "2022-11-28"

_SECONDS_TO_ANSWER = 60
_ATTEMPTS = 4  # to read
_PAUSE_SECONDS = 1.0  # before the second, then twice as long each time
_PER_PAGE = 100  # the most that there can be

_REFUSED = {
    401: "the token is not valid: set GH_TOKEN or GITHUB_TOKEN",
    403: "set GH_TOKEN or GITHUB_TOKEN to one that may write contents and deployments, or wait where it says a limit",
    404: "check the name, or set GH_TOKEN or GITHUB_TOKEN to one that may read it, and to publish, write to it",
    429: "wait, and try again",
}


class GithubApi:
    """The repository that `github:OWNER/NAME` names, at `GITHUB_API_URL`, with the token in GH_TOKEN or GITHUB_TOKEN.

    InputError for another location or address. What fails is a StorageError; reading is tried again, writing is not.
    """

    def __init__(self, location: str) -> None:
        match = _LOCATION.fullmatch(location)
        if match is None:
            raise InputError(f"{location} is no repository at GitHub: expected github:OWNER/NAME")
        self.location = location
        url = os.environ.get("GITHUB_API_URL") or _API_URL
        if not _URL.fullmatch(url):
            raise InputError(f"GITHUB_API_URL {url!r}: expected an address as https://ghe.example.org/api/v3")
        self._address = f"{url}/repos/{match[1]}"
        self._token = os.environ.get("GH_TOKEN") or os.environ.get("GITHUB_TOKEN")

    def demand_token(self) -> None:
        """InputError where there is none, as nothing can be written then."""
        if not self._token:
            raise InputError(
                f"nothing can be published to {self.location} without a token: set GH_TOKEN or GITHUB_TOKEN"
            )

    def get(self, path: str) -> Any:
        return self._parsed(self._read(self._address + path, "application/vnd.github+json"))

    def pages(self, path: str, **query: str) -> Iterator[Any]:
        """All entries of a list."""
        for page in range(1, 1 << 30):
            entries = self.get(f"{path}?{urllib.parse.urlencode({**query, 'per_page': _PER_PAGE, 'page': page})}")
            yield from entries
            if len(entries) < _PER_PAGE:
                return

    def download(self, url: str) -> bytes:
        """An asset's content."""
        return self._read(url, "application/octet-stream")

    def post(self, path: str, content: dict[str, Any]) -> Any:
        return self._write("POST", self._address + path, json.dumps(content).encode(), "application/json")

    def patch(self, path: str, content: dict[str, Any]) -> Any:
        return self._write("PATCH", self._address + path, json.dumps(content).encode(), "application/json")

    def delete(self, path: str) -> None:
        self._write("DELETE", self._address + path, None, "application/json")

    def upload(self, url: str, name: str, content: bytes) -> None:
        """`url` as a release has it, with a pattern for the rest."""
        address = f"{url.partition('{')[0]}?{urllib.parse.urlencode({'name': name})}"
        asset = self._write("POST", address, content, "application/octet-stream")
        if (asset["state"], asset["size"]) != ("uploaded", len(content)):
            raise StorageError(f"{self.location} has not taken all of {name}: nothing went live; try again")

    def _read(self, url: str, accept: str) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._ask(urllib.request.Request(url, headers={"Accept": accept}))
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempt == _ATTEMPTS:
                    raise self._refused(error) from None
            except (OSError, http.client.HTTPException) as error:
                if attempt == _ATTEMPTS:
                    raise self._unreachable(error) from None
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _write(self, method: str, url: str, content: bytes | None, kind: str) -> Any:
        request = urllib.request.Request(url, content, {"Content-Type": kind}, method=method)
        try:
            return self._parsed(self._ask(request) or b"null")
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _ask(self, request: urllib.request.Request) -> bytes:
        request.add_header("User-Agent", "triton-model-zoo")
        request.add_header("X-GitHub-Api-Version", _VERSION)
        if self._token:
            # Not to be sent to where an asset's address leads.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER) as response:
            content: bytes = response.read()
            return content

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise StorageError(
                f"{self.location}: what has answered is not GitHub's API, as it is no JSON: check GITHUB_API_URL and "
                "the proxy"
            ) from None

    def _refused(self, error: urllib.error.HTTPError) -> StorageError:
        try:
            message = json.loads(error.read())["message"]
        except (ValueError, KeyError, TypeError, OSError):
            message = error.reason
        advice = _REFUSED.get(error.code, "try again, or see githubstatus.com")
        return StorageError(f"{self.location}: {error.code} {str(message).rstrip('.')}; {advice}")

    def _unreachable(self, error: Exception) -> StorageError:
        reason = getattr(error, "reason", error)
        return StorageError(f"{self.location} cannot be reached ({reason}): check the network, then try again")
