"""The commands of the command line: one file for each, of its name; it holds `command`."""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import click

from pipeline import options

NAMES = ("train", "evaluate", "infer", "serve", "bench", "zoo", "release-changed", "doctor", "docs")

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": False}


def load(name: str) -> click.Command:
    """One of `NAMES`; the others' files are not even read."""
    command: click.Command = import_module(f"pipeline.commands.{name.replace('-', '_')}").command
    return command


def with_console(command: Callable[..., Any]) -> Callable[..., Any]:
    """Sets up logging before the command, which is then not asked about --debug."""

    @wraps(command)
    def run(quiet: bool, debug: bool, **flags: Any) -> Any:
        from pipeline import console

        console.set_up(quiet=quiet)
        return command(quiet=quiet, **flags)

    return run


def declares(declared: tuple[options.Option, ...]) -> options.Option:
    """The command has all of these options, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(declared):
            command = option(command)
        return command

    return decorate
