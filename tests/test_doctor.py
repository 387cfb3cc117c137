"""doctor() on a system in memory, and how a diagnosis reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar

import pytest
from attrs import define, evolve

from resilience import Archive
from resilience.model.diagnosis import Checkup, Diagnosis, Reading, judged, worst_first
from resilience.model.errors import StorageFailed, Unreachable
from resilience.model.findings import Finding
from resilience.model.log import Branch, LogEntry
from resilience.model.objectives import Objective
from resilience.operations import doctor as doctoring
from resilience.operations.doctor import doctor
from resilience.primitives import Diagnosable, ObjectInfo
from resilience.reference import POSTGRESQL
from resilience.stores import MemoryStore
from resilience.stores.keys import each
from resilience.testing.faults import change, flipped

from .test_planning_health import CHECKUP, LINEAGE, NOW, at

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def finding(severity: str, subject: str, text: str = "it is wrong", hint: str = "") -> Finding:
    return Finding(severity=severity, subject=subject, text=text, hint=hint)  # type: ignore[arg-type]


def test_the_worst_comes_first_and_marks_the_reading_it_is_about() -> None:
    findings = [finding("note", "b"), finding("blocker", "b"), finding("warning", "c"), finding("blocker", "a")]
    assert [each.subject for each in worst_first(findings)] == ["b", "a", "c", "b"]
    readings = [Reading(name=name, value="1") for name in "bcd"] + [Reading(name="b", value="", standing="unseen")]
    assert [each.standing for each in judged(readings, findings)] == ["blocker", "warning", "good", "unseen"]


TOLD = """\
orders: NOT HEALTHY (1 blocker, 2 notes)
  Memory 1.0
  at memory, lineage 7400000000000000001
  objective: RPO 1 h, RTO 1 h

BLOCKER  first: it is wrong in so many words that one line of a hundred characters does not hold
    them all
    -> do this;
       do that;

note  second: good to know

note  third: it is wrong

          is    should be
ok first  good  good
   plain  a
?  third  ?     seen"""


def test_a_diagnosis_reads_well() -> None:
    text = "it is wrong in so many words that one line of a hundred characters does not hold them all"
    diagnosis = Diagnosis(
        checkup=CHECKUP,
        objective=Objective(rpo=HOUR, rto=HOUR),
        readings=(
            Reading(name="first", value="good", reference="good"),
            Reading(name="plain", value="a"),
            Reading(name="third", value="?", reference="seen", standing="unseen"),
        ),
        findings=(
            finding("blocker", "first", text, "do this;\ndo that;"),
            finding("note", "second", "good to know"),
            finding("note", "third"),
        ),
    )
    assert str(diagnosis) == TOLD
    assert not diagnosis.healthy
    html = diagnosis._repr_html_()
    assert "NOT HEALTHY" in html and "<td style='text-align:left'>third</td>" in html
    assert '"severity":"blocker"' in diagnosis.to_json()


def test_notes_alone_are_healthy() -> None:
    objective = Objective(rpo=HOUR, rto=HOUR)
    assert Diagnosis(checkup=CHECKUP, objective=objective, findings=(finding("note", "a"),)).healthy
    assert str(Diagnosis(checkup=CHECKUP, objective=objective)).startswith("orders: healthy\n")


@define
class Patient:
    """A system in memory that can be asked how it is."""

    system: ClassVar[str] = "memory"
    name: str = "orders"
    checkup: Checkup = CHECKUP
    asked: Objective | None = None

    async def diagnose(self, objective: Objective) -> Checkup:
        self.asked = objective
        await asyncio.sleep(0)
        return self.checkup


ASKED: Diagnosable = Patient()
HOURLY = Objective(rpo=15 * MINUTE, rto=HOUR, every=HOUR)
UNARCHIVED = finding("blocker", "WAL", "none is archived")


async def test_the_doctor_looks_at_a_target_alone() -> None:
    patient = Patient(checkup=evolve(CHECKUP, findings=(finding("note", "a"),), unarchived=UNARCHIVED))
    diagnosis = await doctor(patient, objective=HOURLY)
    assert [each.subject for each in diagnosis.findings] == ["WAL", "a"]
    assert (diagnosis.target, diagnosis.objective, diagnosis.assumed) == ("orders", HOURLY, False)
    assert patient.asked is HOURLY


async def test_the_doctor_needs_an_objective_that_somebody_has_declared() -> None:
    with pytest.raises(ValueError, match="the reference has no objective for memory: declare one"):
        await doctor(ASKED)


async def test_the_doctor_takes_the_references_objective_where_there_is_one() -> None:
    class Database(Patient):
        system: ClassVar[str] = "postgresql"

    diagnosis = await doctor(Database())
    assert diagnosis.objective is POSTGRESQL and diagnosis.assumed
    assert "the reference's objective: RPO 15 min" in str(diagnosis)


async def test_a_log_that_is_there_shows_that_it_is_archived() -> None:
    archive = Archive(MemoryStore())
    async with archive.log("orders", system="memory", lineage=LINEAGE) as log:
        await log.record(Branch(name="1"))
        await log.append(LogEntry(begins=at(0), ends=at(1024), complete_at=NOW), [bytes(1024)])
    patient = Patient(checkup=evolve(CHECKUP, position=at(1024), unarchived=UNARCHIVED))
    diagnosis = await doctor(patient, archive=archive, objective=HOURLY, clock=lambda: NOW)
    assert [each.subject for each in diagnosis.findings] == ["backups"]
    assert [each.value for each in diagnosis.readings if each.name == "log"] == ["restores to nowhere"]


async def test_a_damaged_entry_of_the_log_is_named() -> None:
    archive = Archive(MemoryStore())
    async with archive.log("orders", system="memory", lineage=LINEAGE) as log:
        await log.record(Branch(name="1"))
        await log.append(LogEntry(begins=at(0), ends=at(1024), complete_at=NOW), [bytes(1024)])
    (entry,) = [info.key async for info in archive.store.list("memory/orders/log/")]
    await change(archive.store, entry, flipped(50))
    patient = Patient(checkup=evolve(CHECKUP, position=at(1024), unarchived=UNARCHIVED))
    diagnosis = await doctor(patient, archive=archive, objective=HOURLY, clock=lambda: NOW)
    assert [each.severity for each in diagnosis.findings if each.subject == entry] == ["warning"]


async def test_an_empty_archive_is_looked_at_as_well() -> None:
    diagnosis = await doctor(ASKED, archive=Archive(MemoryStore()), objective=HOURLY, clock=lambda: NOW)
    assert [each.text for each in diagnosis.findings] == ["there is none: nothing of this server can be restored"]


class Broken(MemoryStore):
    """A store that is down, or hangs."""

    hangs = False

    async def stat(self, key: str) -> ObjectInfo | None:
        if self.hangs:
            await asyncio.Event().wait()
        raise StorageFailed(f"no answer about {key}", hint="try again")

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        await self.stat(f"{key} {offset}")
        yield each(())


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_archive_that_does_not_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    monkeypatch.setattr(doctoring, "ARCHIVE_SECONDS", 0.05)
    store = Broken()
    store.hangs = hangs
    patient = Patient(checkup=evolve(CHECKUP, unarchived=UNARCHIVED))
    diagnosis = await doctor(patient, archive=Archive(store), objective=HOURLY)
    why = "no answer within the deadline" if hangs else "no answer about "
    assert [each.subject for each in diagnosis.findings] == ["archive", "WAL"]
    assert diagnosis.findings[0].text.startswith(f"it could not be looked at: {why}")


async def test_a_target_that_does_not_answer_is_an_error() -> None:
    class Gone(Patient):
        async def diagnose(self, objective: Objective) -> Checkup:
            raise Unreachable(f"no connection to examine against {objective}")

    with pytest.raises(Unreachable):
        await doctor(Gone(), objective=HOURLY)
