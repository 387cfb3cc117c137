"""Switchovers of a group that Sentinels watch, when they take longer than they should, break off, or are overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from attrs import evolve, frozen
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience.model.errors import FencingUnproven, Refused
from resilience.model.failover import FailoverPolicy, PromotionOrder
from resilience.model.groups import Fence
from resilience.operations.group import FailoverGroup
from resilience.operations.switchover import switchover
from resilience.redis.failover.electing import exclude
from resilience.redis.fencer import SentinelFencer
from resilience.redis.promoter import SentinelPromoter
from resilience.stores import MemoryStore
from resilience.testing.sentinels import TestSentinels, running_sentinels

POLICY = FailoverPolicy(max_loss=timedelta(seconds=5), confirmation="FAIL OVER")


@pytest.fixture
def patient(tmp_owned: Path, redis_program: Callable[[int], Path]) -> Iterator[TestSentinels]:
    """A group whose Sentinels do not act by themselves for as long as a test takes."""
    with running_sentinels(tmp_owned / "group", redis_program(7), down_after=30_000) as group:
        yield group


def promoter_of(watched: TestSentinels) -> SentinelPromoter:
    return SentinelPromoter(
        "orders", members=watched.members(), sentinels=watched.addresses(), watched="orders", seconds=1, patience=20
    )


async def test_a_pause_that_has_lapsed_is_begun_anew_before_anybody_is_promoted(watched: TestSentinels) -> None:
    async with promoter_of(watched) as promoter:
        await promoter.survey()
        fence = await SentinelFencer(promoter).fence("a", epoch=1, clean=True)
        watched.master.ask("CLIENT", "UNPAUSE")  # as it does by itself after a while
        watched.master.ask("SET", "late", "x")
        promoted = await promoter.promote(PromotionOrder(candidate=None, epoch=1, fences=(fence,)))
        assert watched.servers[promoted.primary].ask("EXISTS", "late") == 1
        assert promoted.loss is None
        watched.master.ask("CLIENT", "UNPAUSE")
        await promoter.promote(PromotionOrder(candidate=None, epoch=1, fences=(fence,)))
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(port=watched.master.port, socket_timeout=0.3, retry=once)
        with client, pytest.raises(redis.TimeoutError):
            client.set("later", "x")


async def test_nobody_is_promoted_while_the_master_cannot_hand_over_what_it_took_since(
    patient: TestSentinels,
) -> None:
    watched = patient
    async with promoter_of(watched) as promoter:
        await promoter.survey()
        fence = await SentinelFencer(promoter).fence("a", epoch=1, clean=True)
        watched.master.pause()
        long_ago = evolve(fence, at=fence.at - timedelta(minutes=1))
        order = PromotionOrder(candidate=None, epoch=1, fences=(long_ago,))
        with pytest.raises(FencingUnproven, match="what it has acknowledged since"):
            await promoter.promote(order)
        assert {watched.named(each) for each in watched.sentinels} == {"a"}
        watched.master.resume()


@frozen
class Slow:
    """Fences like the real one; then it takes a minute, and meanwhile the Sentinels fail over by themselves."""

    real: SentinelFencer
    group: TestSentinels

    @property
    def members(self) -> Collection[str]:
        return self.real.members

    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence:
        fence = await self.real.fence(member, epoch=epoch, clean=clean)
        self.group.sentinels["s1"].ask("SENTINEL", "FAILOVER", "orders")
        self.group.until(
            lambda: "master" in {self.group.servers[name].info("role") for name in "bc"}, "nobody was elected"
        )
        return evolve(fence, at=fence.at - timedelta(minutes=1))

    async def lift(self, member: str, *, epoch: int) -> None:
        await self.real.lift(member, epoch=epoch)


async def test_where_nobody_can_vouch_for_it_a_switchover_does_not_say_that_nothing_is_lost(
    watched: TestSentinels,
) -> None:
    async with promoter_of(watched) as promoter:
        fencer = Slow(SentinelFencer(promoter), watched)
        group = FailoverGroup("orders", promoter=promoter, fencers=[fencer], journal=MemoryStore())
        report = await switchover(group, policy=POLICY)
        assert report.ending == "completed"
        assert report.primary in ("b", "c")
        assert report.loss.kind == "bounded"
        assert "may have taken writes again" in report.loss.evidence[0]


async def test_a_switchover_that_is_stopped_leaves_every_replica_electable(patient: TestSentinels) -> None:
    """The Sentinels ask a replica for its priority every 10 s, and this one does not wait as long."""
    promoter = evolve(promoter_of(patient), patience=0.3)
    async with promoter:
        group = FailoverGroup("orders", promoter=promoter, fencers=[SentinelFencer(promoter)], journal=MemoryStore())
        report = await switchover(group, policy=POLICY, to="b")
        assert report.ending == "stopped"
        assert "might still elect c" in report.why
    assert priorities(patient) == ["100", "100"]


async def test_what_was_prepared_by_one_who_died_is_undone_with_the_fence(patient: TestSentinels) -> None:
    async with promoter_of(patient) as promoter:
        await promoter.survey()
        preparing = asyncio.create_task(promoter.prepare("b", epoch=1))
        await asyncio.to_thread(patient.until, lambda: priorities(patient) == ["100", "0"], "c is electable")
        preparing.cancel()
        await asyncio.wait([preparing])
        assert priorities(patient) == ["100", "100"], "cancelled, it undoes what it did"
        await exclude(promoter.known, "c")
        assert priorities(patient) == ["100", "0"]
        await SentinelFencer(promoter).lift("a", epoch=2)
        assert priorities(patient) == ["100", "100"]


async def test_while_a_sentinel_is_wrong_a_lift_lets_nobody_be_elected_by_mistake(patient: TestSentinels) -> None:
    async with promoter_of(patient) as promoter:
        await promoter.survey()
        await exclude(promoter.known, "c")
        stale = patient.sentinels["s1"]
        stale.ask("SENTINEL", "REMOVE", "orders")
        stale.ask("SENTINEL", "MONITOR", "orders", "127.0.0.1", patient.servers["c"].port, 3)
        await SentinelFencer(promoter).lift("a", epoch=1)
        assert priorities(patient) == ["100", "0"]


async def test_where_nothing_can_be_noted_it_is_said_that_nobody_is_guarded(patient: TestSentinels) -> None:
    for server in patient.servers.values():
        server.ask("ACL", "SETUSER", "op", "on", ">pw", "~*", "&*", "+@all", "-config")
    members = [evolve(each, url=each.url.text.replace("redis://", "redis://op:pw@")) for each in patient.members()]
    promoter = evolve(promoter_of(patient), members=members)
    async with promoter:
        facts = await promoter.survey()
        assert {each.name for each in facts.members if "takes no note" in str(each.findings)} == {"a", "b", "c"}
        with pytest.raises(Refused, match="might elect c"):
            await promoter.prepare("b", epoch=1)
        patient.kill("s1", "s2", "s3", "a")
        promoted = await promoter.promote(PromotionOrder(candidate="b", epoch=1))
        assert [each.subject for each in promoted.findings if "may elect it" in each.text] == ["c"]


def priorities(group: TestSentinels) -> list[str]:
    return [group.servers[name].info("slave_priority") for name in "bc"]
