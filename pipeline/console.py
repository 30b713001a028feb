"""What a person sees while a command works: progress bars and log lines, on stderr; a log file beside them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_stderr = Console(stderr=True, highlight=False)
_root = logging.getLogger("pipeline")


class _AboveBar(logging.Handler):
    """Log lines go above a running bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        _stderr.print(self.format(record), markup=False, soft_wrap=True)


def set_up(*, quiet: bool) -> None:
    """Lines of level INFO go to stderr, or nothing where `quiet`."""
    logging.raiseExceptions = False  # that the disk is full is said once, by what needs it
    _root.setLevel(logging.DEBUG)
    _root.propagate = False
    screen = _AboveBar(logging.INFO)
    screen.setFormatter(logging.Formatter("%(message)s"))
    _stderr.quiet = quiet
    _root.handlers[:] = [screen]
    # That it can keep no list of fonts, as in a home folder that is not there, is no error.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def log_to(path: Path) -> None:
    """From now on every line, of all levels, also goes to this file, and to none that was named before."""
    for earlier in _root.handlers[1:]:  # the first one is the screen's
        _root.removeHandler(earlier)
        earlier.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _root.addHandler(handler)


@contextmanager
def progress(title: str, total: int, unit: str = "") -> Iterator[Callable[..., None]]:
    """A bar while the block runs; the value is called as `advance(steps, text="")`.

    Nothing is shown where stderr is no terminal.
    """
    count = DownloadColumn() if unit == "B" else MofNCompleteColumn()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        count,
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=_stderr, transient=True, disable=not _stderr.is_terminal or _stderr.quiet) as bar:
        task = bar.add_task(title, total=total or None, text="")

        def advance(steps: int, text: str = "") -> None:
            bar.update(task, advance=steps, text=text)

        yield advance
