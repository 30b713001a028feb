"""What `bin/zoo` tells a person: each of its answers as lines or a table."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import singledispatch
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from pipeline.records import Published, Record
from pipeline.triton.history import Event
from pipeline.triton.inspection import (
    Change,
    Chronicle,
    Difference,
    Listing,
    NameDetails,
    VersionDetails,
    VersionSummary,
    field,
)
from pipeline.triton.switching import Pruned
from pipeline.triton.transfer import Exported, Pulled
from pipeline.triton.verification import Verification

_NOTHING = "-"
_PIPE_WIDTH = 200  # where nobody sees the end of a line


def show(answer: Record) -> None:
    """Print an answer to stdout, within the terminal's width."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(text(answer), markup=False)


@singledispatch
def text(answer: Record) -> RenderableType:
    """An answer as rich prints it."""
    raise NotImplementedError(type(answer))


@text.register
def _(answer: Listing) -> RenderableType:
    if not answer.names:
        return f"nothing is released in {answer.repository}: run bin/train"
    rows = []
    for one in answer.names:
        live = str(one.live.version) if one.live else f"? {one.problem}"
        kept = ", ".join(str(version) for version in one.loaded[:-1])
        rows.append((one.name, live + (f" (and {kept})" if kept else ""), _ranges(one.versions), *_measures(one.live)))
    return _table("name", "live", "versions", "accuracy", "size", "age", "commit", rows=rows)


@text.register
def _(answer: NameDetails) -> RenderableType:
    rows = [(str(one.version), _role(one, answer.next_rollback), *_measures(one)) for one in answer.versions]
    return Group(
        f"{answer.name} in {answer.repository}",
        _table("version", "", "accuracy", "size", "age", "commit", rows=rows),
    )


@text.register
def _(answer: VersionDetails) -> RenderableType:
    summary, release = answer.summary, answer.release
    accuracy, size, age, commit = _measures(summary)
    state = _role(summary, None) or "not loaded"
    train, data = field(release, "config", "train"), field(release, "data")
    lines = [
        f"{answer.name} version {summary.version}, {state}",
        f"  served      {summary.served_format or _NOTHING}, {size}, accuracy {accuracy}",
        f"  released    {summary.created or _NOTHING} ({age} ago), commit {commit}",
        f"  proven by   {field(release, 'validated', 'server') or _NOTHING}",
        f"  trained     {field(train, 'model_id')}, {field(train, 'epochs')} epochs, seed {field(train, 'seed')}",
        f"  data        {field(data, 'dataset_id')}, {field(data, 'train_images')} images, "
        f"SHA-256 {str(field(data, 'sha256'))[:12]}",
    ]
    gates = [
        (gate["name"], _measured(gate["measured"], gate["unit"]), f"{gate['relation']} {gate['threshold']:g}")
        for gate in field(release, "gated", "gates") or ()
    ]
    return Group(*lines, *([_table("gate", "measured", "threshold", rows=gates)] if gates else []))


@text.register
def _(answer: Chronicle) -> RenderableType:
    rows = [
        (
            event.when,
            event.action,
            str(event.version),
            str(event.previous or _NOTHING),
            "unfinished" if event.state == "intent" else event.state,
            event.who,
            "; ".join(filter(None, (event.reason, event.origin and f"from {event.origin}"))),
        )
        for event in answer.events
    ]
    return _table("when", "what", "version", "after", "state", "who", "why", rows=rows)


@text.register
def _(answer: Difference) -> RenderableType:
    same = "the same data" if answer.same_data else "other data"
    parts: list[RenderableType] = [f"{answer.name}: version {answer.after} against {answer.before}, on {same}"]
    for title, changes in (
        ("metrics", answer.metrics),
        ("recall", answer.recall),
        ("config", answer.config),
        ("data", answer.data),
    ):
        if changes:
            parts += ["", _table(title, str(answer.before), str(answer.after), "", rows=map(_change, changes))]
    if answer.triton:
        parts += ["", *answer.triton]
    return Group(*parts)


@text.register
def _(answer: Verification) -> RenderableType:
    where = f"{answer.versions} version{'' if answer.versions == 1 else 's'} in {answer.repository}"
    if not answer.problems:
        return f"{where}: all as released"
    rows = [(problem.name, str(problem.version or _NOTHING), problem.problem) for problem in answer.problems]
    return Group(f"{where}:", _table("name", "version", "problem", rows=rows))


@text.register
def _event(answer: Event) -> str:
    name, version = answer.name, answer.version
    kept = f"; version {', '.join(map(str, answer.kept))} stays loaded" if answer.kept else ""
    return {
        "promote": f"{name}: version {version} is live, after version {answer.previous}{kept}",
        "rollback": f"{name}: version {version} is live again, after version {answer.previous}{kept}",
        "finish": f"{name}: version {version} is live, and no other is loaded",
        "retire": f"{name}: version {version} is removed; version {answer.previous} is live",
    }[answer.action]


@text.register
def _(answer: Pruned) -> RenderableType:
    return "\n".join(map(_event, answer.retired)) or "there was nothing to remove"


@text.register
def published(answer: Published) -> str:
    """Where it is, and what to do with it."""
    name, location = answer.name, answer.repository
    where = f"  version     {name} version {answer.version}"
    if not answer.new and answer.live and answer.previous != answer.version:
        return f"{where} is live again in {location}, after version {answer.previous}"
    if not answer.new:
        state = "live" if answer.live else f"not live, which version {answer.previous} is"
        return f"{where} is this very release, in {location} already, and {state}: nothing was changed"
    if not answer.live and answer.previous is not None and answer.previous < answer.version:
        return (
            f"{where}, in {location}; version {answer.previous} stays live\n"
            f"  make live   bin/zoo promote {name}:{answer.version} --model-repository {shlex.quote(location)}"
        )
    if not answer.live:
        return f"{where}, not live in {location}: the higher version {answer.previous} came meanwhile"
    there = f"--model-repository {shlex.quote(location)}"
    if location.startswith("github:"):
        return f"{where}, live in {location}\n  follow      bin/zoo pull {name} {location}"
    lines = [
        f"{where}, live in {location}",
        f"  serve       bin/serve {there}",
        f"  ask         bin/infer --name {name} {there}",
    ]
    if answer.previous is not None:
        lines.append(f"  roll back   bin/zoo rollback {name} {there}")
    return "\n".join(lines)


@text.register
def _(answer: Pulled) -> RenderableType:
    refused = (f"  refused     {one.name}: {one.reason}" for one in answer.refused)
    return "\n".join([*map(published, answer.names), *refused])


@text.register
def _(answer: Exported) -> RenderableType:
    return f"{answer.name} version {answer.version}: {answer.file}, {_megabytes(answer.bytes)}, SHA-256 {answer.sha256}"


def _role(one: VersionSummary, next_rollback: int | None) -> str:
    if one.live:
        return "live"
    if one.loaded:
        return "loaded"
    return "next roll-back" if one.version == next_rollback else ""


def _measures(one: VersionSummary | None) -> tuple[str, str, str, str]:
    """Accuracy, size, age and commit."""
    if one is None:
        return (_NOTHING,) * 4
    return (
        _NOTHING if one.accuracy is None else f"{one.accuracy:.2%}",
        _NOTHING if one.bytes is None else _megabytes(one.bytes),
        _age(one.created),
        (one.commit or _NOTHING)[:12],
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _age(created: str | None) -> str:
    if created is None:
        return _NOTHING
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _ranges(numbers: Sequence[int]) -> str:
    """1-3, 5: ascending numbers in few characters."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _change(change: Change) -> tuple[str, str, str, str]:
    before, after = change.before, change.after
    gain = f"{after - before:+.4g}" if isinstance(before, int | float) and isinstance(after, int | float) else ""
    return change.what, _value(before), _value(after), gain


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _NOTHING if value is None else str(value)


def _measured(value: float | None, unit: str) -> str:
    return _NOTHING if value is None else f"{value:.4g} {unit}"


def _table(*titles: str, rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
