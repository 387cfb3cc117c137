"""Where to go on archiving: from what the archive has and the timelines that the server has come along. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from resilience.model.errors import LineageBroken
from resilience.model.log import Branch, LogFacts, Watermark
from resilience.postgres.lsn import format_lsn

from .names import parse_history

_NAMES = re.compile(r'"(?:[^"]|"")*"|[^\s,()"]+')
_LIST = re.compile(r"\s*(?:(?:first|any)\s+)?\d+\s*\((.*)\)\s*", re.IGNORECASE | re.DOTALL)


@frozen(kw_only=True)
class Leg:
    """One timeline of the server's history; it was left at `ends`, None for the one that it is on."""

    timeline: int
    ends: int | None
    branch: Branch


@frozen(kw_only=True)
class Start:
    """Stream `timeline` from `begins`, where a segment begins; up to `durable` the archive has it already."""

    timeline: int
    begins: int
    durable: int
    watermark: Watermark | None = None


def legs(timeline: int, history: str) -> list[Leg]:
    """Return the timelines that lead to the server's own, oldest first (26.3.6). Raises Corrupt.

    A history repeats the one of its parent and adds a line, so what an ancestor's file says can be told from it.
    """
    found: list[Leg] = []
    branch = parse_history(timeline, history) if timeline > 1 else Branch(name="1")
    ends = None
    while True:
        found.insert(0, Leg(timeline=int(branch.name), ends=ends, branch=branch))
        if branch.parent is None or branch.forked_at is None:
            return found
        ends = branch.forked_at.offset
        rest = _without_last(branch.text)
        branch = parse_history(branch.parent, rest) if rest else Branch(name=branch.parent)


def go_on(facts: LogFacts, path: Sequence[Leg], segment_size: int) -> Start | None:
    """Return where the archive's log goes on: on the newest timeline it has anything of; None if it has nothing.

    What it has of a timeline beyond the point at which the server left it was lost by a failover and stays as it is.
    """
    watermarks = {watermark.branch: watermark for watermark in facts.watermarks}
    for number in reversed(range(len(path))):
        leg, watermark = path[number], watermarks.get(str(path[number].timeline))
        if watermark is None:
            continue
        if leg.ends is None or watermark.ends.offset < leg.ends:
            return _start(leg.timeline, watermark.ends.offset, segment_size, watermark)
        begins = leg.ends - leg.ends % segment_size
        return Start(timeline=path[number + 1].timeline, begins=begins, durable=begins)
    return None


def fresh(timeline: int, lsn: int, segment_size: int) -> Start:
    """Return where a new chain begins, at the start of the segment that holds `lsn`."""
    begins = lsn - lsn % segment_size
    return Start(timeline=timeline, begins=begins, durable=begins)


def unrecorded(facts: LogFacts, path: Sequence[Leg], upto: int) -> Iterator[Leg]:
    """Yield the timelines up to `upto` that the archive does not know yet. Raises LineageBroken if it knows others."""
    known = {branch.name: branch for branch in facts.branches}
    for leg in path:
        found = known.get(leg.branch.name)
        if found is None and leg.timeline <= upto:
            yield leg
        elif found is not None and evolve(found, text="") != evolve(leg.branch, text=""):
            raise LineageBroken(
                f"the archive's timeline {leg.timeline} forked at {_fork(found)}, the server's at {_fork(leg.branch)}",
                operation="archive wal",
                subject=facts.lineage,
                hint="another server of this lineage was archived here: give one of them a name of its own",
            )


def names_standby(setting: str, application: str) -> bool:
    """Tell whether synchronous_standby_names (20.6.2) would make a client of that name a synchronous standby."""
    listed = _LIST.fullmatch(setting)
    for match in _NAMES.finditer(listed[1] if listed else setting):
        name = match[0].strip('"').replace('""', '"')
        if name == "*" or name.lower() == application.lower():  # in quotes too: the server compares the text
            return True
    return False


def _start(timeline: int, durable: int, segment_size: int, watermark: Watermark) -> Start:
    begins = durable - durable % segment_size
    return Start(timeline=timeline, begins=begins, durable=durable, watermark=watermark)


def _without_last(text: str) -> str:
    """Return the history that a history's last line was added to (writeTimeLineHistory puts an empty line between)."""
    lines = text.splitlines(keepends=True)
    while lines and not lines[-1].split("#", 1)[0].strip():
        lines.pop()
    rest = "".join(lines[:-1])
    return rest[:-1] if rest.endswith("\n\n") else rest


def _fork(branch: Branch) -> str:
    return "its beginning" if branch.forked_at is None else format_lsn(branch.forked_at.offset)
