"""Histories to plan with: what an archive could hold, in few words. Offsets and minutes are small numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from attrs import evolve

from resilience.model.json import Offset
from resilience.model.log import Branch, Gap, LogEntry, LogFacts
from resilience.model.manifests import Manifest
from resilience.model.positions import Position, RecoveryPoint
from resilience.model.targets import RecoveryTarget
from resilience.planning.course import Holdings, holdings
from resilience.planning.log import LogView, runs

from .test_model import MANIFEST

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
Times = tuple[float | None, float | None]


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def place(offset: int, branch: str = "1") -> Position:
    return Position(branch=branch, offset=Offset(offset), text=f"0/{offset:X}")


def entry(
    begins: int, ends: int, branch: str = "1", *, complete: float | None = -1, latest: float | None = -1
) -> LogEntry:
    """Make an entry; unless told otherwise its server wrote a byte a minute."""
    complete, latest = (ends if each == -1 else each for each in (complete, latest))
    return LogEntry(
        begins=place(begins, branch),
        ends=place(ends, branch),
        complete_at=None if complete is None else at(complete),
        latest=None if latest is None else at(latest),
    )


def entries(*bounds: int, branch: str = "1", later: float = 0) -> list[LogEntry]:
    """Make entries between neighbouring bounds, by a server whose clock is so many minutes ahead of a byte a minute."""
    return [
        entry(begins, ends, branch, complete=ends + later, latest=ends + later) for begins, ends in pairwise(bounds)
    ]


def fork(name: str, offset: int, parent: str = "1") -> Branch:
    return Branch(name=name, parent=parent, forked_at=place(offset, parent))


def gap(begins: int, ends: int, branch: str = "1", reason: str = "the slot was lost") -> Gap:
    return Gap(begins=place(begins, branch), ends=place(ends, branch), reason=reason, noted_at=at(ends))


def view(logs: Mapping[str, Sequence[LogEntry]], *forks: Branch, gaps: Sequence[Gap] = ()) -> LogView:
    recorded = {branch.name for branch in forks}
    roots = [Branch(name=name) for name in logs if name not in recorded]
    facts = LogFacts(lineage="1", branches=(*roots, *forks), gaps=tuple(gaps))
    return LogView(
        facts=facts,
        runs={name: runs(some, [each for each in gaps if each.branch == name]) for name, some in logs.items()},
    )


def taken(
    number: int, offset: int, branch: str = "1", *, ended: float | None = None, parent: int | None = None, xid: str = ""
) -> Manifest:
    """Make a backup that restores to an offset; it ended a minute a byte after the start."""
    time = at(offset if ended is None else ended)
    return evolve(
        MANIFEST,
        id=name(number),
        kind="base" if parent is None else "incremental",
        parent=None if parent is None else name(parent),
        lineage="1",
        started_at=time,
        ended_at=time,
        begins=place(max(0, offset - 1), branch),
        recovery_point=RecoveryPoint(position=place(offset, branch)),
        details={"next_xid": xid} if xid else {},
    )


def name(number: int) -> str:
    return f"20261121T120000.000Z-{number:06x}"


def held(log: LogView, *known: Manifest) -> Holdings:
    return holdings("orders", known, log, kinds=("base", "incremental"))


def lsn(offset: int, *, timeline: str | None = None, base: int | None = None) -> RecoveryTarget:
    return RecoveryTarget.lsn(f"0/{offset:X}", timeline=timeline, base=None if base is None else name(base))


def moment(minutes: float, *, timeline: str | None = None) -> RecoveryTarget:
    return RecoveryTarget.time(at(minutes), timeline=timeline)
