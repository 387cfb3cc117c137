"""Which backups every moment since a certain one starts from, on every branch that was written since."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from attrs import field, frozen

from resilience.concurrency import in_order_of
from resilience.model.json import Offset
from resilience.model.log import LogEntry, LogFacts, Stretch
from resilience.model.manifests import Manifest
from resilience.model.positions import Position
from resilience.model.stock import LogObjects, StoredEntry

from .course import settled_at
from .log import LogView, Path, on_path, runs


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
        if log.lineage == lineage and (on := on_path(by_lineage[lineage], LogView(facts=_facts(log)).path(branch))):
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
    """Return what a survey saw of a log as a view of it, in which an entry is all that goes on without a hole."""
    listed = {name: [_entry(each) for each in joined(name, entries)] for name, entries in log.entries.items()}
    return LogView(
        facts=_facts(log),
        runs={name: runs(some, [gap for gap in log.gaps if gap.branch == name]) for name, some in listed.items()},
    )


def _facts(log: LogObjects) -> LogFacts:
    return LogFacts(lineage=log.lineage, branches=log.branches, gaps=log.gaps)


def _entry(stretch: Stretch) -> LogEntry:
    return LogEntry(begins=stretch.begins, ends=stretch.ends)


def joined(branch: str, entries: Iterable[StoredEntry]) -> tuple[Stretch, ...]:
    """Return the stretches that entries cover together."""
    spans: list[tuple[int, int]] = []
    for each in in_order_of([*entries], place_of):
        if spans and each.begins <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], each.ends)
        else:
            spans.append((each.begins, each.ends))
    return tuple(Stretch(begins=place(branch, begins), ends=place(branch, ends)) for begins, ends in spans)


def place_of(entry: StoredEntry) -> tuple[int, int]:
    """Return what entries are sorted by."""
    return entry.begins, entry.ends


def place(branch: str, offset: int) -> Position:
    """Return a position of which only the offset is known."""
    return Position(branch=branch, offset=Offset(offset), text=f"{offset:016X}")
