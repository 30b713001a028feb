"""Writes the reference of the command line; for those who change it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import cloup

from pipeline.commands import CONTEXT, NAMES, load
from pipeline.errors import InputError


@cloup.command("docs", hidden=True, context_settings=CONTEXT)
@cloup.option("--check", is_flag=True, help="Fail where the file differs")
def command(check: bool) -> None:
    """Write the reference of the command line, doc/Cli.md."""
    path = Path(__file__).parent.parent.parent / "doc" / "Cli.md"
    text = reference()
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path} is out of date: run bin/python -m pipeline docs")


def reference() -> str:
    """The text of doc/Cli.md."""
    sections = ["# Command line\n\nMade by `bin/python -m pipeline docs`.\n"]
    for title, shown in _visible({f"bin/{name}": load(name) for name in NAMES}):
        context = shown.context_class(shown, info_name=title, terminal_width=110, **CONTEXT)
        sections.append(f"## `{title}`\n\n```text\n{shown.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def _visible(commands: Mapping[str, click.Command]) -> Iterator[tuple[str, click.Command]]:
    for title, shown in commands.items():
        if isinstance(shown, click.Group):
            yield from _visible({f"{title} {name}": inner for name, inner in shown.commands.items()})
        elif not shown.hidden:
            yield title, shown
