"""Failovers of a group that Sentinels watch, with the verbs that are used for every system."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from attrs import evolve

from resilience.model.drills import Criterion
from resilience.model.errors import FencingUnproven
from resilience.model.failover import FailoverPlan, FailoverPolicy
from resilience.model.groups import GroupFacts
from resilience.operations.drill import drill
from resilience.operations.failback import failback
from resilience.operations.failover import failover
from resilience.operations.group import FailoverGroup
from resilience.operations.plan_failover import plan_failback, plan_failover, rto_budget
from resilience.operations.recorder import StateRecorder
from resilience.operations.resume import resume
from resilience.operations.switchover import switchover
from resilience.primitives import Fencer, ObjectStore
from resilience.redis.canary import RedisCanary
from resilience.redis.faults import HungRedis, KilledRedis
from resilience.redis.fencer import LocalFencer, SentinelFencer
from resilience.redis.master import connect_master
from resilience.redis.promoter import SentinelPromoter
from resilience.redis.route import SentinelRoute
from resilience.stores import LocalStore, MemoryStore
from resilience.testing.sentinels import TestSentinels

SOME_LOSS = FailoverPolicy(max_loss=timedelta(seconds=5), confirmation="FAIL OVER")
NOTICED_SECONDS = 20.0
every_kind = pytest.mark.parametrize("watched", ["redis6", "redis7", "redis8", "valkey9", "tls"], indirect=True)
plain_and_tls = pytest.mark.parametrize("watched", ["redis7", "tls"], indirect=True)


@asynccontextmanager
async def grouped(
    watched: TestSentinels, *, local: bool = False, journal: ObjectStore | None = None
) -> AsyncIterator[FailoverGroup]:
    members = watched.members()
    promoter = SentinelPromoter(
        "orders", members=members, sentinels=watched.addresses(), watched="orders", seconds=1, patience=20
    )
    async with promoter:
        fencers: Sequence[Fencer] = [LocalFencer(members)] if local else [SentinelFencer(promoter)]
        route = SentinelRoute(
            "clients",
            sentinels=watched.addresses(),
            members={each.name: each.address for each in members},
            watched="orders",
            url=watched.master.url,
            seconds=0.5,
        )
        yield FailoverGroup(
            "orders", promoter=promoter, fencers=fencers, switches=[route], journal=journal or MemoryStore()
        )


async def noticed(group: FailoverGroup, *but: str) -> FailoverPlan:
    """Plan until nothing stands in the way, `but` what is named."""
    async with asyncio.timeout(NOTICED_SECONDS):
        plan = await plan_failover(group, policy=SOME_LOSS)
        while {each.subject for each in plan.blockers} - set(but):
            await asyncio.sleep(0.02)
            plan = await plan_failover(group, policy=SOME_LOSS)
    return plan


async def operated(watched: TestSentinels, journal: Path, **more: str) -> asyncio.subprocess.Process:
    """Start an operator who switches over, in a process of his own."""
    given = {
        "members": {name: server.url for name, server in watched.servers.items()},
        "sentinels": watched.addresses(),
        "journal": str(journal),
        "when": "never",
        "effect": "",
        **more,
    }
    program = str(Path(__file__).with_name("killed_operator.py"))
    return await asyncio.create_subprocess_exec(sys.executable, program, json.dumps(given))


def promoter_of(group: FailoverGroup) -> SentinelPromoter:
    assert isinstance(group.promoter, SentinelPromoter)
    return group.promoter


async def agreed(group: FailoverGroup) -> GroupFacts:
    """Look until the whole group is well and every Sentinel names its master."""
    deadline = time.monotonic() + NOTICED_SECONDS
    while True:
        facts = await group.promoter.survey()
        named = {each["names"] for each in facts.details["sentinels"]}  # type: ignore[union-attr, index, call-overload]
        standbys = [each for each in facts.members if each.name != facts.primary]
        frozen = any(each.details.get("priority") == 0 for each in standbys)
        if named == {facts.primary} and all(each.receiving for each in standbys) and not frozen:
            return facts
        assert time.monotonic() < deadline, f"{facts}\n{facts.details}"
        await asyncio.sleep(0.05)


@every_kind
async def test_a_dead_master_is_replaced_by_whom_the_sentinels_elect(watched: TestSentinels) -> None:
    async with grouped(watched) as group:
        await StateRecorder(group).once()
        watched.kill("a")
        plan = await noticed(group)
        assert (plan.candidate, plan.primary, plan.loss.kind) == (None, "a", "bounded")
        assert [each.kind for each in plan.steps] == ["fence", "promote", "switch", "verify"]
        assert any("Sentinel" in each.vantage for each in plan.facts.sightings)
        report = await failover(group, plan, confirm=plan.confirmation, actor="anna", reason="it was killed")
        assert report.ending == "completed"
        assert report.primary in ("b", "c")
        (fence,) = report.fences
        assert fence.kind == "delegated"
        assert "Sentinels can make it a replica" in fence.evidence
        assert report.promoted is not None
        assert report.promoted.forked_at is not None
        watched.caught_up(report.primary, names=["c" if report.primary == "b" else "b"])  # it may be on its way still
        back = await plan_failback(group, policy=SOME_LOSS)
        assert ("a", "rebuild") in [(each.member, each.way) for each in back.divergences]
        again = await failback(group, back, confirm=back.confirmation)
        assert again.ending == "completed", str(again)
        assert (await agreed(group)).primary == report.primary


async def test_sentinels_that_were_quicker_have_done_what_was_planned(watched: TestSentinels) -> None:
    async with grouped(watched) as group:
        await StateRecorder(group).once()
        watched.kill("a")
        plan = await noticed(group)
        watched.until(lambda: watched.named("s1") in ("b", "c"), "nobody was elected")
        report = await failover(group, plan, confirm=plan.confirmation)
        assert (report.ending, report.primary) == ("completed", watched.named("s1"))
        later = await plan_failover(group, policy=SOME_LOSS)
        assert any("alive" in each.text for each in later.blockers), "it is not failed over once more"


@every_kind
async def test_a_switchover_loses_nothing_and_the_old_master_acknowledges_nothing_more(watched: TestSentinels) -> None:
    acknowledged: list[int] = []
    async with grouped(watched) as group:
        client = connect_master(watched.addresses(), "orders", url=watched.master.url)

        async def write() -> None:
            for number in range(1_000_000):
                try:
                    await client.sadd("written", number)
                    acknowledged.append(number)
                except redis.RedisError:
                    await asyncio.sleep(0.002)
                await asyncio.sleep(0.001)

        writing = asyncio.create_task(write())
        await asyncio.sleep(0.3)
        report = await switchover(group, policy=SOME_LOSS)
        await asyncio.sleep(0.3)
        writing.cancel()
        await asyncio.wait([writing])
        there = {int(each) for each in await client.smembers("written")}
        await client.aclose()
        assert report.ending == "completed"
        assert report.primary in ("b", "c")
        assert report.loss.kind == "nothing"
        assert set(acknowledged) <= there
        assert report.fences[0].end is not None
        facts = await agreed(group)
        assert facts.primary == report.primary
        assert not [each for each in facts.findings if each.subject == "split brain"]


@plain_and_tls
async def test_a_group_without_sentinels_is_failed_over_by_hand_and_they_agree_when_they_return(
    watched: TestSentinels,
) -> None:
    async with grouped(watched, local=True) as group:
        await StateRecorder(group).once()
        watched.kill("s1", "s2", "s3", "a")
        plan = await noticed(group)
        assert not plan.facts.elects
        assert plan.candidate in ("b", "c")
        assert [each.kind for each in plan.steps] == [
            "fence", "settle", "decide", "promote", "switch", "follow", "verify"
        ]  # fmt: skip
        report = await failover(group, plan, confirm=plan.confirmation)
        assert (report.ending, report.primary) == ("completed", plan.candidate)
        assert [each.kind for each in report.fences] == ["proven"]
        other = "c" if report.primary == "b" else "b"
        assert watched.servers[other].info("slave_priority") == "0", "nobody else may be elected meanwhile"
        watched.restart("s1", "s2", "s3")
        await asyncio.to_thread(
            watched.until,
            lambda: {watched.named(each) for each in watched.sentinels} == {report.primary},
            "no agreement",
        )
        await promoter_of(group).correct(report.primary)
        assert watched.servers[other].info("slave_priority") == "100"
        back = await plan_failback(group, policy=SOME_LOSS)
        await failback(group, back, confirm=back.confirmation)
        assert (await agreed(group)).primary == report.primary


async def test_without_sentinels_and_a_fence_of_its_own_nobody_is_promoted(watched: TestSentinels) -> None:
    async with grouped(watched) as group:
        watched.kill("s1", "s2", "a")
        plan = await noticed(group, "split brain", "data loss")
        assert any(each.subject == "split brain" and "nobody can fence a" in each.text for each in plan.blockers)
        with pytest.raises(FencingUnproven):
            await failover(group, plan, confirm=plan.confirmation, accept_data_loss=True)


async def test_what_stale_split_and_lost_sentinels_say_is_told_apart(watched: TestSentinels) -> None:
    async with grouped(watched) as group:
        watched.sentinels["s1"].pause()
        facts = await group.promoter.survey()
        assert facts.elects
        assert facts.primary == "a"
        assert any(watched.sentinels["s1"].url[8:] in each.subject for each in facts.findings)
        watched.sentinels["s2"].pause()
        facts = await group.promoter.survey()
        assert not facts.elects
        assert any("cannot fail over by themselves" in each.text for each in facts.findings)
        for name in ("s1", "s2"):
            watched.sentinels[name].resume()


async def test_an_old_master_that_returns_with_writes_gives_them_up_and_says_how_much(watched: TestSentinels) -> None:
    async with grouped(watched) as group:
        await StateRecorder(group).once()
        watched.master.pause()
        watched.until(lambda: watched.named("s1") in ("b", "c"), "nobody was elected")
        new = watched.named("s1")
        watched.master.resume()
        with watched.master.client() as client:
            client.set("only here", "x" * 100)
        facts = await group.promoter.survey()
        assert facts.primary == new
        assert any(each.subject == "split brain" and each.severity == "warning" for each in facts.findings)
        found = await group.promoter.divergence("a", primary=new)
        assert found.way == "rewind"
        assert (found.lost or 0) > 100
        await group.promoter.rejoin(found, epoch=1)
        assert watched.master.ask("EXISTS", "only here") == 0
        assert (await agreed(group)).primary == new


async def test_hostnames_that_no_longer_resolve_are_members_with_a_problem(watched: TestSentinels) -> None:
    members = [evolve(each, url=f"redis://{each.name}.invalid:6379") for each in watched.members()]
    urls = (*watched.addresses(), "redis://s4.invalid:26379")
    async with SentinelPromoter("orders", members=members, sentinels=urls, watched="orders", seconds=1) as promoter:
        began = time.monotonic()
        facts = await promoter.survey()
        assert time.monotonic() - began < 5
        assert not any(each.reachable for each in facts.members)
        assert any("s4.invalid" in each.subject for each in facts.findings)


@pytest.mark.parametrize(("when", "effect"), [("after", "fence"), ("before", "promote"), ("after", "promote")])
async def test_an_operator_that_was_killed_is_taken_over_wherever_that_was(
    watched: TestSentinels, tmp_path: Path, when: str, effect: str
) -> None:
    operator = await operated(watched, tmp_path, when=when, effect=effect)
    assert await operator.wait() == -signal.SIGKILL
    async with grouped(watched, journal=LocalStore(tmp_path)) as group:
        report = await resume(group, actor="bert", reason="anna's machine is dead")
        assert (report.ending, report.resumed) == ("completed", 1), str(report)
        assert report.primary in ("b", "c")
        assert (await agreed(group)).primary == report.primary
        with watched.servers[report.primary].client() as client:
            assert client.set("x", "y"), "nobody waits any more"


async def test_an_operator_who_was_killed_while_he_prepared_leaves_every_replica_electable(
    watched: TestSentinels, tmp_path: Path
) -> None:
    operator = await operated(watched, tmp_path, to="b")
    kept = watched.servers["c"]
    await asyncio.to_thread(watched.until, lambda: kept.info("slave_priority") == "0", "nobody prepares")
    operator.kill()
    assert await operator.wait() == -signal.SIGKILL
    assert kept.info("slave_priority") == "0", "as it was left"
    async with grouped(watched, journal=LocalStore(tmp_path)) as group:
        report = await resume(group, actor="bert", reason="anna's machine is dead")
        assert (report.ending, report.primary) == ("completed", "b"), str(report)
        facts = await agreed(group)
        assert facts.primary == "b"
        assert kept.info("slave_priority") == "100"


async def test_the_least_time_it_takes_comes_from_live_settings(watched: TestSentinels) -> None:
    async with grouped(watched) as group:
        budget = await rto_budget(group, policy=FailoverPolicy(rto=timedelta(seconds=10)))
        assert budget.possible
        assert "down-after-milliseconds is 1500" in str(budget)
        for sentinel in watched.sentinels.values():
            sentinel.ask("SENTINEL", "SET", "orders", "down-after-milliseconds", 800)
        hasty = "down-after-milliseconds is below 1000"
        assert any(hasty in each.text for each in (await group.promoter.survey()).findings)
        for sentinel in watched.sentinels.values():
            sentinel.ask("SENTINEL", "SET", "orders", "down-after-milliseconds", 30_000)
        assert not any(hasty in each.text for each in (await group.promoter.survey()).findings)
        budget = await rto_budget(group, policy=FailoverPolicy(rto=timedelta(seconds=10)))
        assert not budget.possible, "R17 wants less than 10 s of the default that takes 30 to notice"


@plain_and_tls
@pytest.mark.parametrize("fault", [KilledRedis, HungRedis])
async def test_a_drill_shows_what_clients_see(watched: TestSentinels, fault: type[KilledRedis | HungRedis]) -> None:
    first = watched.master.info("run_id")
    async with grouped(watched) as group:
        recording = asyncio.create_task(StateRecorder(group, every=timedelta(seconds=0.3)).run())
        await asyncio.sleep(0.5)
        report = await drill(
            group,
            fault=fault(member=watched.members()[0]),
            canary=RedisCanary(sentinels=watched.addresses(), watched="orders", url=watched.master.url),
            criterion=Criterion(rto=timedelta(seconds=10), rpo=timedelta(seconds=1)),
            policy=SOME_LOSS,
            watch_seconds=0.5,
        )
        recording.cancel()
        await asyncio.wait([recording])
        assert report.passed, str(report)
        assert report.canary is not None
        assert report.canary.missing is not None
        assert {each.instance for each in report.canary.missing} <= {first}, (
            "it acknowledges, and replicates after that"
        )
        assert report.canary.two_writers == ()
        assert (await agreed(group)).primary in ("b", "c")
        with watched.servers[(await agreed(group)).primary].client() as primary:  # its replicas follow
            assert list(primary.scan_iter("resilience:canary*")) == []
