"""The checklists before and after a failover: every line in good order, and every line that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta

import pytest
from attrs import define, evolve

from resilience.archive import Archive
from resilience.model.approvals import Approval
from resilience.model.drills import DrillReport
from resilience.model.errors import Unreachable
from resilience.model.failover import FailoverPlan, FailoverPolicy
from resilience.model.findings import Finding
from resilience.model.groups import GroupFacts, RouteFacts
from resilience.model.measured import RestoreMeasured
from resilience.model.reports import Coverage
from resilience.operations.checklist import looked
from resilience.operations.checks import (
    ApplicationsConnected,
    Approved,
    Asserted,
    DatabaseWritable,
    DiskSpace,
    DrillOnRecord,
    FreshRecoveryPoint,
    LagWithin,
    LogConsistent,
    Notified,
    PrimaryUnrecoverable,
    RollbackReady,
    RunbookCurrent,
    StandbyHealthy,
)
from resilience.operations.drill_records import DrillRecords
from resilience.planning import checklist
from resilience.primitives import Check
from resilience.stores import MemoryStore

from .groups import forked, gone, group, moment, planned, primary, sample, standby, sync_of

NOW = moment(5)
GB = 1 << 30


def ready() -> FailoverPlan:
    """A plan that nothing speaks against."""
    facts = group(gone(), evolve(standby("b", 9), free=40 * GB), evolve(standby("c", 9), free=40 * GB))
    policy = FailoverPolicy(approvals=("manager", "DBA", "CTO"))
    return planned(facts, recorded=sample(5, sync=sync_of("b", "c")), policy=policy)


async def found(check: Check, plan: FailoverPlan) -> list[str]:
    """What one check says, for a person; each blocker and warning has to say what to do."""
    findings = await looked([check], plan, unable="blocker")
    assert all(each.hint for each in findings if not each.text.startswith("it could not look"))
    return [str(each) for each in findings]


async def test_a_plan_that_nothing_speaks_against_passes_every_line() -> None:
    plan, store = ready(), MemoryStore()
    await DrillRecords(store, "orders").ended(drill("passed", seconds=-3600))

    async def approvals(plan: FailoverPlan) -> Collection[Approval]:
        return [Approval(role=role, actor="ada", code=plan.code, at=NOW) for role in ("manager", "DBA", "CTO")]

    async def told(plan: FailoverPlan) -> Collection[str]:
        return ["DevOps", "SRE", "support"]

    lines: list[Check] = [
        PrimaryUnrecoverable(),
        Approved(given=approvals),
        Notified(tell=told),
        LagWithin(),
        StandbyHealthy(),
        DiskSpace(),
        DrillOnRecord(store=store, clock=lambda: NOW),
        RollbackReady(fenceable=("a", "b", "c")),
        RunbookCurrent(reviewed=moment(-1000), clock=lambda: NOW),
    ]
    assert await looked(lines, plan, unable="blocker") == ()


async def test_an_approval_counts_for_the_plan_that_was_shown_and_for_no_other() -> None:
    plan = ready()

    async def given(asked: FailoverPlan) -> Collection[Approval]:
        return [
            Approval(role="manager", actor="ada", code=asked.code, at=NOW),
            Approval(role="DBA", actor="bob", code="0000", at=NOW),
        ]

    dba, cto = await found(Approved(given=given), plan)
    assert f"the approval of DBA is not on record for this plan ({plan.code}); bob approved another plan (0000)" in dba
    assert dba.startswith("blocker") and "the approval of CTO is not on record" in cto
    assert await found(Approved(given=given), evolve(plan, policy=FailoverPolicy())) == []


async def test_that_somebody_could_not_be_told_stops_nobody() -> None:
    async def some(plan: FailoverPlan) -> Collection[str]:
        return ["SRE"]

    async def broken(plan: FailoverPlan) -> Collection[str]:
        raise Unreachable("the pager is down")

    assert (await found(Notified(tell=some), ready()))[0].startswith(
        "warning: notices: DevOps, support could not be told"
    )
    assert "the pager is down" in (await found(Notified(tell=broken), ready()))[0]
    assert (await found(Notified(tell=broken, severity="blocker"), ready()))[0].startswith("blocker")


async def test_a_line_that_cannot_be_looked_at_is_not_ticked_off() -> None:
    async def hangs(plan: FailoverPlan) -> str:
        await asyncio.sleep(60)
        return ""

    (line,) = await found(Asserted("orders add up", hangs, seconds=0.01), ready())
    assert line == "blocker: orders add up: it could not look: check orders add up: no answer within 0.01 s"


async def test_what_only_the_caller_can_check_is_a_line_like_any_other() -> None:
    async def wrong(plan: FailoverPlan) -> str:
        return "14 orders have no customer"

    async def right(plan: FailoverPlan) -> str:
        return ""

    assert await found(Asserted("orders add up", right), ready()) == []
    (line,) = await found(Asserted("orders add up", wrong, hint="call the DBA"), ready())
    assert line == "blocker: orders add up: 14 orders have no customer (call the DBA)"


@pytest.mark.parametrize(
    ("check", "facts", "words"),
    [
        (PrimaryUnrecoverable(), group(gone(), standby("b", 9), sightings=()), "nobody has seen a dead"),
        (DiskSpace(), group(gone(), evolve(standby("b", 9), free=GB // 2)), "b has 512.0 MiB free, 1.0 GiB are wanted"),
        (DiskSpace(), group(gone(), standby("b", 9)), "how much room b has nobody can tell"),
        (
            StandbyHealthy(),
            group(primary("a", 9), evolve(standby("b", 9), receiving=False)),
            "b does not receive from a",
        ),
        (StandbyHealthy(), group(primary("a", 9), evolve(standby("b", 9), version="16.1")), "b runs 16.1, a 17.2"),
        (LagWithin(), group(gone(), standby("b", 9)), "how far b lags in time nobody can tell"),
        (LagWithin(limit=timedelta(seconds=2)), group(gone(), standby("b", 9, complete=1)), "b may lag by 4 s"),
        (
            LagWithin(behind=10),
            group(primary("a", 50), standby("b", 9, complete=4)),
            "b is 41 B behind a as it is known",
        ),
        (RollbackReady(fenceable=("a",)), group(gone(), standby("b", 9)), "nobody can fence b"),
    ],
)
async def test_a_line_says_what_is_wrong(check: Check, facts: GroupFacts, words: str) -> None:
    lines = await found(check, planned(facts))
    assert any(words in line for line in lines), lines


def drill(ending: str, *, seconds: float) -> DrillReport:
    return DrillReport(
        id="20261122T020000.000Z-5f3a9c",
        group="orders",
        system="postgresql",
        ending=ending,  # type: ignore[arg-type]
        began_at=moment(seconds - 60),
        ended_at=moment(seconds),
    )


async def test_a_drill_has_to_be_on_record_to_have_passed_and_not_to_be_old() -> None:
    store = MemoryStore()
    check = DrillOnRecord(store=store, clock=lambda: NOW)
    assert "none is on record" in (await found(check, ready()))[0]
    await DrillRecords(store, "orders").ended(drill("failed", seconds=0))
    assert "did not pass" in (await found(check, ready()))[0]
    old = checklist.drilled([drill("passed", seconds=-90000)], now=NOW, within=timedelta(days=1))
    assert "one is due every 1 d" in str(next(old))


async def test_the_archive_has_to_have_a_recovery_point_that_is_young_and_a_restore_to_have_been_shown() -> None:
    archive = Archive(MemoryStore())
    check = FreshRecoveryPoint(archive=archive, target="orders", clock=lambda: NOW)
    empty, unproven = await found(check, ready())
    assert empty.startswith("blocker") and "younger than 1 h is wanted, and there is none" in empty
    assert unproven.startswith("warning") and "there has been none" in unproven


def test_a_restore_that_failed_shows_nothing() -> None:
    measured = RestoreMeasured(
        id="1",
        target="orders",
        system="postgresql",
        destination="scratch",
        ended_at=moment(-60),
        unpacked=1,
        unpack_seconds=1,
    )

    def said(*restores: RestoreMeasured) -> list[Finding]:
        day = timedelta(days=1)
        empty = Coverage(target="orders")
        found = checklist.recoverable(empty, restores, now=NOW, within=day, shown_within=day, severity="warning")
        return [each for each in found if "a restore proven" in each.text]

    assert not said(measured)
    assert said(evolve(measured, outcome="failed"))
    assert said(evolve(measured, ended_at=moment(-200000)))


@define
class Seen:
    """A promoter, as far as checks are concerned, that sees what it is told."""

    facts: GroupFacts

    async def survey(self) -> GroupFacts:
        return self.facts


@define
class Route:
    facts: RouteFacts

    async def survey(self) -> RouteFacts:
        return self.facts


AFTER = forked(("2", 9))


def promoted(named: str = "b") -> GroupFacts:
    """The group after b was promoted; c follows it."""
    b = primary("b", 20, branches=AFTER)
    facts = group(gone(), b, evolve(standby("c", 20, branches=AFTER), upstream="b"))
    return evolve(facts, primary=named)


async def test_after_it_exactly_one_member_takes_writes_and_clients_reach_it() -> None:
    facts = promoted()
    route = RouteFacts(route="pgbouncer", to="b", version="2", instance="b-1", writable=True)
    lines: list[Check] = [
        DatabaseWritable(promoter=Seen(facts)),  # type: ignore[arg-type]
        ApplicationsConnected(promoter=Seen(facts), switches=[Route(route)]),  # type: ignore[arg-type,list-item]
        LogConsistent(promoter=Seen(facts)),  # type: ignore[arg-type]
    ]
    assert await looked(lines, ready(), unable="blocker") == ()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (group(primary("a", 30), primary("b", 20, branches=AFTER)), "a and b take writes at once"),
        (promoted(""), "nobody is primary, and takes no writes"),
        (group(primary("a", 30), standby("b", 20)), "a is still the primary"),
    ],
)
async def test_after_it_the_database_may_not_be_writable(facts: GroupFacts, words: str) -> None:
    lines = await found(DatabaseWritable(promoter=Seen(facts)), ready())  # type: ignore[arg-type]
    assert any(words in line for line in lines), lines


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (RouteFacts(route="pgbouncer", to="b", version="2", held=True), "its clients still wait"),
        (RouteFacts(route="pgbouncer", to="a", version="2", instance="a-1", writable=True), "another server than b"),
        (RouteFacts(route="pgbouncer", to="b", version="2"), "no connection through it has reached a server"),
        (RouteFacts(route="pgbouncer", to="b", version="2", instance="b-1", writable=False), "takes no writes"),
    ],
)
async def test_after_it_a_route_may_lead_astray(route: RouteFacts, words: str) -> None:
    check = ApplicationsConnected(promoter=Seen(promoted()), switches=[Route(route)])  # type: ignore[arg-type,list-item]
    (line,) = await found(check, ready())
    assert words in line


async def test_after_it_the_new_history_goes_on_where_the_candidate_stood() -> None:
    other = group(gone(), primary("b", 20, branches=forked(("2", 4))), standby("c", 9))
    lines = await found(LogConsistent(promoter=Seen(evolve(other, primary="b"))), ready())  # type: ignore[arg-type]
    assert any("which does not contain 0/9 on 1" in line for line in lines)
    assert any(line.startswith("warning: c: it is on 1, and b on 2") for line in lines)
    check = LogConsistent(promoter=Seen(promoted()), archive=Archive(MemoryStore()))  # type: ignore[arg-type]
    assert "the archive has nothing of branch 2 yet" in (await found(check, ready()))[0]
