"""Which backups every moment since a certain one starts from, on every branch that was written since."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from attrs import field, frozen

from resilience.model.json import Offset
from resilience.model.log import LogEntry, LogFacts
from resilience.model.manifests import Manifest
from resilience.model.positions import Position
from resilience.model.stock import LogObjects, StoredEntry

from .course import settled_at
from .log import LogView, Path, leg_of, runs


@frozen(kw_only=True)
class Starts:
    """What the moments since the window `opens` start from.

    `bases` are the newest backups before it, one a branch that was written since, or last of all; the log is needed
    from them on.
    `bridges` are those behind a hole of the log, where nothing else leads on.
    """

    opens: datetime
    bases: tuple[Manifest, ...] = ()
    bridges: tuple[Manifest, ...] = field(default=())


def window_starts(usable: Iterable[Manifest], logs: Sequence[LogObjects], opens: datetime) -> Starts:
    """Find what the moments from `opens` on start from, among backups that can be restored and replayed on."""
    by_lineage: dict[str, list[Manifest]] = defaultdict(list)
    for each in usable:
        by_lineage[each.lineage].append(each)
    bases: dict[str, Manifest] = {}
    bridges: dict[str, Manifest] = {}
    last = last_moved(logs, by_lineage)
    for log in logs:
        own = by_lineage[log.lineage]
        view = viewed(log)
        moved = {name for name, moment in moves(log, own).items() if moment > opens}
        for branch in sorted(moved | ({last[1]} if last is not None and last[0] == log.lineage else set())):
            path = view.path(branch)
            on = on_path(own, path)
            if not on:
                continue
            first = max((number for number, each in enumerate(on) if settled_at(each) <= opens), default=0)
            bases[on[first].id] = on[first]
            for each in _bridges(view, path, on[first:]):
                bridges[each.id] = each
    return Starts(opens=opens, bases=tuple(bases.values()), bridges=tuple(bridges.values()))


def on_path(own: Iterable[Manifest], path: Path) -> list[Manifest]:
    """Return the backups on a path, in the order of what they bring back."""
    found = [
        (number, each.recovery_point.position.offset, each.ended_at, each.id, each)
        for each in own
        if (number := leg_of(path, each.recovery_point.position)) is not None
    ]
    return [each for *_, each in sorted(found, key=lambda item: item[:-1])]


def moves(log: LogObjects, own: Iterable[Manifest]) -> dict[str, datetime]:
    """Return until when each branch has moved, or was known to be complete though nothing was written."""
    found = {name: max(each.modified for each in entries) for name, entries in log.entries.items() if entries}
    times = [(each.recovery_point.position.branch, each.ended_at) for each in own]
    times += [(mark.branch, mark.complete_at) for mark in log.watermarks if mark.complete_at is not None]
    for name, moment in times:
        found[name] = max(found.get(name, moment), moment)
    return found


def last_moved(logs: Sequence[LogObjects], own: Mapping[str, Sequence[Manifest]]) -> tuple[str, str] | None:
    """Return the lineage and the branch that moved last: what is restored as the latest, however long ago it was."""
    found = [
        (moment, len(name), name, log.lineage)
        for log in logs
        for name, moment in moves(log, own.get(log.lineage, ())).items()
    ]
    if not found:
        return None
    _, _, name, lineage = max(found)
    return lineage, name


def newest_on(logs: Sequence[LogObjects], usable: Iterable[Manifest]) -> tuple[str, Manifest] | None:
    """Return the branch that moved last, and the newest backup that leads to it; None if there is none."""
    by_lineage: dict[str, list[Manifest]] = defaultdict(list)
    for each in usable:
        by_lineage[each.lineage].append(each)
    if (last := last_moved(logs, by_lineage)) is None:
        return None
    lineage, branch = last
    for log in logs:
        if log.lineage == lineage and (on := on_path(by_lineage[lineage], viewed(log).path(branch))):
            return branch, on[-1]
    return None


def _bridges(view: LogView, path: Path, on: Sequence[Manifest]) -> Iterable[Manifest]:
    """Yield the backups that no log leads to from those before them."""
    reached = -1
    for number, each in enumerate(on):
        here = each.recovery_point.position
        if number and here.offset <= reached:
            continue
        if number:
            yield each
        steps = view.follow(path, here)
        reached = max(reached, steps[-1].ends.offset if steps else here.offset)


def viewed(log: LogObjects) -> LogView:
    """Return what a survey saw of a log as a view of it."""
    listed = {name: _entries(name, entries) for name, entries in log.entries.items()}
    lost: Mapping[str, list[LogEntry]] = listed
    return LogView(
        facts=LogFacts(lineage=log.lineage, branches=log.branches, gaps=log.gaps),
        runs={name: runs(some, [gap for gap in log.gaps if gap.branch == name]) for name, some in lost.items()},
    )


def _entries(branch: str, entries: Iterable[StoredEntry]) -> list[LogEntry]:
    return [LogEntry(begins=place(branch, each.begins), ends=place(branch, each.ends)) for each in entries]


def place(branch: str, offset: int) -> Position:
    """Return a position of which only the offset is known."""
    return Position(branch=branch, offset=Offset(offset), text=f"{offset:016X}")
