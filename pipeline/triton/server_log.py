"""The log of a running Triton, which says some things that its answers do not."""

import fcntl
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import FolderError

# A line of Triton's log that begins with E, for error: "E1121 01:52:32.362396 5247 file.cc:42] ...";
# or what a container engine says where it cannot run the image: "docker: Error response from daemon: ...".
_ERROR = re.compile(r"^(?:E\d{4} \S+ +\d+ \S+\]|docker:|Error:) *(.+)$", re.MULTILINE)
# The one for a model whose config.pbtxt, or the version that it names, is not there or cannot be read.
_NOT_TRIED = re.compile(
    r"^E.*\"(?:Poll failed for model directory|failed to load model) '([^']+)': (.+?)\"?$", re.MULTILINE
)
_RECENT_BYTES = 1 << 16
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class ServerLog:
    """What the server appends to `file`; without a `path` that has no name and ends with the server."""

    path: Path | None
    file: IO[bytes]

    def __post_init__(self) -> None:
        # The server inherits this; else, when the file was emptied, it would go on at its old position, behind a hole.
        fcntl.fcntl(self.file, fcntl.F_SETFL, fcntl.fcntl(self.file, fcntl.F_GETFL) | os.O_APPEND)

    @classmethod
    def open(cls, path: Path | None) -> "ServerLog":
        """For writing and for reading back; FolderError where it cannot be written."""
        try:
            return cls(path, path.open("w+b") if path else tempfile.TemporaryFile())
        except OSError as error:
            where = path or f"in {tempfile.gettempdir()}"
            raise FolderError(f"cannot write the server's log {where}: {error.strerror or error}") from error

    def empty_if_large(self) -> None:
        """One without a name grows where nobody sees it: a server that polls logs a bad model each time."""
        if self.path is None and os.fstat(self.file.fileno()).st_size > _MOST_BYTES:
            os.ftruncate(self.file.fileno(), 0)

    def tail(self, lines: int) -> str:
        """The last lines, at most so many, of its recent part."""
        return "\n".join(self._text(_RECENT_BYTES).splitlines()[-lines:])

    def errors(self) -> str:
        """The errors, or the last line where none was logged, in one line."""
        text = self._text()
        errors = _ERROR.findall(text) or text.strip().splitlines()[-1:]
        return "; ".join(dict.fromkeys(error.strip() for error in errors)) or "its log is empty"

    def models_not_tried(self) -> dict[str, str]:
        """By its recent part, the models that could not even be tried, and why."""
        return dict(_NOT_TRIED.findall(self._text(_RECENT_BYTES)))

    def where(self) -> str:
        """The end of a message that a reader of the log may want to know more of."""
        return f"; its log is {self.path}" if self.path else "; give --log-file to keep its log"

    def _text(self, last_bytes: int | None = None) -> str:
        size = os.fstat(self.file.fileno()).st_size
        wanted = min(size, last_bytes or size)
        return os.pread(self.file.fileno(), wanted, size - wanted).decode(errors="replace")
