"""What the doctor says of a target: what was read, what it should be, what to change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from textwrap import wrap
from typing import Literal

from attrs import evolve, field, frozen

from .findings import Finding, Severity
from .moments import aware
from .objectives import Objective
from .positions import Position
from .show import Shown

Standing = Literal["good", "note", "warning", "blocker", "unseen"]
WORST_FIRST: tuple[Severity, ...] = ("blocker", "warning", "note")
_MARKS = {"good": "ok", "note": "·", "warning": "!", "blocker": "X", "unseen": "?"}
_WIDTH = 100


@frozen(kw_only=True)
class Reading(Shown):
    """One thing that was read, beside what the reference or the objective wants; `unseen`: it may not be looked at."""

    name: str
    value: str
    reference: str = ""
    standing: Standing = "good"


@frozen(kw_only=True)
class Checkup(Shown):
    """What a system says of itself, held against the reference and an objective.

    `now` is its own clock, `position` where its log has got to and `log_rate` how fast that grows, in bytes a second;
    None where it cannot tell. `writes`: it is the one that writes, no replica. `only_full` says why it cannot give an
    incremental backup; empty where it can. `replays` are the kinds of backup that its log continues. `unarchived` is
    what to say, unless an archive shows otherwise, where nothing takes its log away.
    """

    target: str
    system: str
    where: str
    description: str
    lineage: str
    now: datetime = field(validator=aware)
    position: Position | None = None
    log_rate: float | None = None
    writes: bool = True
    unarchived: Finding | None = None
    only_full: str = "it knows no incremental backups"
    replays: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    findings: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class Diagnosis(Shown):
    """What the doctor found, the worst first.

    A blocker stops backups, breaks the objective or endangers data now; a warning will when something else happens; a
    note is good to know. `hint` of each says what to change. `assumed`: no objective was declared, this is the
    reference's.
    """

    checkup: Checkup
    objective: Objective
    assumed: bool = False
    readings: tuple[Reading, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def target(self) -> str:
        """The target's name."""
        return self.checkup.target

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong: neither blockers nor warnings. A program exits with 0 if so, else with 1."""
        return not any(finding.severity != "note" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([*self._head(), *_told(self.findings), "", *_table(self.readings)])

    def _head(self) -> list[str]:
        whose = "the reference's objective" if self.assumed else "objective"
        return [
            f"{self.target}: {self._verdict()}",
            f"  {self.checkup.description}",
            f"  at {self.checkup.where}, lineage {self.checkup.lineage}",
            *wrap(f"{whose}: {self.objective}", _WIDTH, initial_indent="  ", subsequent_indent="    "),
        ]

    def _verdict(self) -> str:
        counts = [(severity, sum(each.severity == severity for each in self.findings)) for severity in WORST_FIRST]
        told = ", ".join(f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts if count)
        return ("healthy" if self.healthy else "NOT HEALTHY") + (f" ({told})" if told else "")

    def _repr_html_(self) -> str:
        head = "<br>".join(map(escape, self._head()))
        findings = "".join(
            _html_row(finding.severity, finding.subject, finding.text, finding.hint) for finding in self.findings
        )
        readings = "".join(
            _html_row(_mark(reading), reading.name, reading.value, reading.reference) for reading in self.readings
        )
        return f"<p>{head}</p><table>{findings}</table><table>{readings}</table>"


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings by severity; those of one severity stay in their order."""
    return tuple(sorted(findings, key=lambda finding: WORST_FIRST.index(finding.severity)))


def judged(readings: Iterable[Reading], findings: Sequence[Finding]) -> tuple[Reading, ...]:
    """Give every reading that has none yet the standing of the worst finding about it, whose subject is its name."""
    worst = {finding.subject: finding.severity for finding in reversed(worst_first(findings))}
    return tuple(
        reading if reading.standing != "good" else evolve(reading, standing=worst.get(reading.name, "good"))
        for reading in readings
    )


def _told(findings: Iterable[Finding]) -> list[str]:
    """Write findings for a person: what is wrong, and on lines of its own, ready to be copied, what to change."""
    lines = []
    for finding in findings:
        word = finding.severity.upper() if finding.severity == "blocker" else finding.severity
        lines += ["", *wrap(f"{word}  {finding.subject}: {finding.text}", _WIDTH, subsequent_indent="    ")]
        arrows = ("->", *[""] * finding.hint.count("\n"))
        lines += [f"    {arrow:2} {line}" for arrow, line in zip(arrows, finding.hint.splitlines(), strict=False)]
    return lines


def _table(readings: Sequence[Reading]) -> list[str]:
    if not readings:
        return []
    name, value = (max(len(text) for text in column) for column in _columns(readings))
    lines = [f"   {'':{name}}  {'is':{value}}  should be"]
    lines += [f"{_mark(each):2} {each.name:{name}}  {each.value:{value}}  {each.reference}" for each in readings]
    return [line.rstrip() for line in lines]


def _mark(reading: Reading) -> str:
    """Mark what is good only where something was wanted of it."""
    return "" if reading.standing == "good" and not reading.reference else _MARKS[reading.standing]


def _columns(readings: Sequence[Reading]) -> tuple[list[str], list[str]]:
    return [each.name for each in readings], [each.value for each in readings]


def _html_row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in cells) + "</tr>"
