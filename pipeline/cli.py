"""Ids, paths and flags in, exit status out. Only this module exits, and only the commands print."""

import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from pipeline import commands
from pipeline.errors import FolderError, StorageError, ZooError

_log = logging.getLogger("pipeline")

# A path that was given cannot be used, as opposed to a disk that fails.
_UNUSABLE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class Terminated(BaseException):
    """SIGTERM arrived; everything that was started is stopped on the way out."""


def main() -> NoReturn:
    """Run one command and exit: 0 done, 1 unexpected, 2 input, 3 refused, 4 service, 130 and 143 interrupted.

    141, as by SIGPIPE, where who reads the output has gone; that signal itself would leave behind what was started.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(sys.argv[1:])
        print(end="", flush=True)  # while an error can still be told; print knows a stdout that is None
        _exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else error)
        _exit(2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "python -m pipeline"
        _end(2, f"{error.format_message()} See {path} --help")
    except ZooError as error:
        _end(error.exit_status, str(error))
    except (KeyboardInterrupt, click.exceptions.Abort):
        _end(130, "interrupted; everything that was started is stopped")
    except Terminated:
        _end(143, "terminated; everything that was started is stopped")
    except (BrokenPipeError, SystemExit):  # click and rich make the second of the first
        _exit(141)
    except OSError as error:
        kind = FolderError if error.errno in _UNUSABLE else StorageError
        where = error.filename or "standard output or a file"
        _end(kind.exit_status, f"{where}: {error.strerror or error}: check the path, its rights and the disk")
    except Exception as error:
        _end(1, f"unexpected {type(error).__name__}: {error}; --debug shows the traceback")


def _run(arguments: list[str]) -> None:
    """Each command stands for itself, so that its usage reads as it is typed: `bin/train`."""
    if arguments and arguments[0] in commands.NAMES:
        commands.load(arguments[0]).main(arguments[1:], prog_name=f"bin/{arguments[0]}", standalone_mode=False)
    else:
        _Commands(help=_Commands.__doc__, context_settings=commands.CONTEXT).main(
            arguments, prog_name="python -m pipeline", standalone_mode=False
        )


class _Commands(click.Group):
    """Train, release and serve image classifiers."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(commands.NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return commands.load(cmd_name) if cmd_name in commands.NAMES else None


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _end(status: int, message: str) -> NoReturn:
    _log.debug("ended with status %d: %s\n%s", status, message, traceback.format_exc())
    line = " ".join(message.split())
    reply = os.environ.get("TORCHELASTIC_ERROR_FILE")
    with suppress(OSError):  # where it cannot be told, the status still tells
        if "--debug" in sys.argv:
            traceback.print_exc()
        if reply:  # torchrun tells it
            Path(reply).write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
        else:
            print(f"error: {line}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End at once: taking torch's modules apart one by one would take two seconds, for nothing."""
    logging.shutdown()
    with suppress(OSError):
        print(end="", flush=True)
    os._exit(status)
