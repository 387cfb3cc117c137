"""Where a backup that cannot be used could change the answer: there a restore is refused, elsewhere it is only told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from resilience.model.errors import NoBackup, NotIncremental, NotRecoverable
from resilience.model.findings import Doubt, Finding
from resilience.model.ids import planned_at
from resilience.model.log import LogFacts
from resilience.model.manifests import Manifest
from resilience.model.targets import RecoveryTarget

from .course import Course
from .restore import newer

MANY = 8
"""Doubts: of more than these only the newest are told one by one."""


def as_findings(doubts: Sequence[Doubt]) -> tuple[Finding, ...]:
    """Return doubts as findings; of very many, as with a wrong key, the newest and how many more there are."""
    findings = [doubt.finding for doubt in doubts[-MANY:]]
    if len(doubts) > MANY:
        text = f"{len(doubts) - MANY} more backups cannot be used"
        findings.insert(0, Finding(severity="warning", subject="", text=text, hint="is this the right key?"))
    return tuple(findings)


def refuse_asked_for(until: RecoveryTarget, known: Sequence[Manifest], doubts: Sequence[Doubt], *, target: str) -> None:
    """Raise NotRecoverable if the very backup that was asked for cannot be used, or none can."""
    named = [doubt for doubt in doubts if doubt.backup is not None and doubt.backup == until.base]
    if named:
        raise NotRecoverable(named[0].text, operation="restore", subject=target, hint=named[0].hint)
    if doubts and not known:
        raise NotRecoverable(
            f"none of its backups can be used: {_sentence(doubts)}",
            operation="restore",
            subject=target,
            hint=doubts[-1].hint,
        )


def refuse_doubtful(course: Course, known: Sequence[Manifest], doubts: Sequence[Doubt], log: LogFacts | None) -> None:
    """Raise NotRecoverable if all that there is was asked for, and a backup that cannot be used may be of later.

    It is, for all that anybody can tell, if it was planned after everything that the course reaches had been written,
    or if a backup that is newer than those of the course builds on it.
    """
    if course.until.kind != "latest" or not doubts:
        return
    last = course.chain[-1]
    reached = _reached(course, log)
    built = _built_on({doubt.backup for doubt in doubts}, known) if reached is None else {}
    for doubt in doubts:
        if doubt.backup is None:
            continue
        later = planned_at(doubt.backup) > reached if reached is not None else doubt.backup > last.id
        newest = [each for each in built.get(doubt.backup, ()) if newer(last, each) is each]
        if not later and not newest:
            continue
        end = course.steps[-1].ends if course.steps else None
        instead = f"RecoveryTarget.lsn({end.text!r})" if end is not None else f"RecoveryTarget.backup({last.id!r})"
        what = f"{newest[-1].id} builds on it" if newest else "it may be the newest"
        raise NotRecoverable(
            f"what the latest is cannot be told: {doubt.backup}: {doubt.text}; {what}",
            operation="restore",
            subject=last.target,
            hint="; ".join([*filter(None, [doubt.hint]), f"{instead} restores the latest that can be trusted"]),
        )


@contextmanager
def explained(doubts: Sequence[Doubt]) -> Iterator[None]:
    """Say with a refusal which backups could not be used: one of them may be what is missing."""
    try:
        yield
    except (NotRecoverable, NoBackup, NotIncremental) as error:
        if not doubts:
            raise
        said = f"of these nothing can be used: {_sentence(doubts)}"
        raise type(error)(
            error.what,
            operation=error.operation,
            subject=error.subject,
            hint=f"{error.hint}; {said}" if error.hint else said,
        ) from error


def _reached(course: Course, log: LogFacts | None) -> datetime | None:
    """Return until when everything that was written lies on a course; None if only its backups say."""
    if not course.steps:
        return None
    last = course.steps[-1]
    # A watermark is recorded also when nothing was written and only time has passed.
    marks = log.watermarks if log is not None else ()
    here = [mark for mark in marks if mark.branch == last.run.branch and mark.ends.offset <= last.ends.offset]
    moments = [last.complete_at, *(mark.complete_at for mark in here)]
    return max((moment for moment in moments if moment is not None), default=None)


def _built_on(backups: set[str | None], known: Iterable[Manifest]) -> dict[str, list[Manifest]]:
    """Return what builds on some backups, directly or not."""
    on = {backup: backup for backup in backups if backup is not None}
    found: dict[str, list[Manifest]] = {}
    for each in sorted(known, key=lambda manifest: manifest.id):  # a child is planned after its parent
        if each.parent is not None and each.parent in on:
            on[each.id] = on[each.parent]
            found.setdefault(on[each.id], []).append(each)
    return found


def _sentence(doubts: Sequence[Doubt]) -> str:
    newest = doubts[-3:]
    more = f" and {len(doubts) - 3} more" if len(doubts) > 3 else ""
    return "; ".join(f"{doubt.backup or doubt.subject}: {doubt.text}" for doubt in newest) + more
