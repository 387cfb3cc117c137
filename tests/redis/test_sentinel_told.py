"""What is told once: where the connection breaks before the answer nobody knows whether it was done."""

from __future__ import annotations

import pytest
from attrs import evolve

from resilience.model.errors import Interrupted, Unreachable
from resilience.model.failover import PromotionOrder
from resilience.redis.client import Url
from resilience.redis.failover.links import Link
from resilience.redis.fencer import SentinelFencer
from resilience.redis.promoter import SentinelPromoter
from resilience.testing.machine import free_port
from resilience.testing.redis import TestRedis
from resilience.testing.sentinels import TestSentinels

from .middle import middle


async def test_one_sentinel_is_told_though_it_was_cut_off_before_it_answered(watched: TestSentinels) -> None:
    """Another would take the same epoch, and could choose differently."""
    async with middle(watched.sentinels["s1"], cut_at=b"FAILOVER") as way:
        urls = [way.url, *watched.addresses()[1:]]
        promoter = SentinelPromoter(
            "orders", members=watched.members(), sentinels=urls, watched="orders", seconds=1, patience=15
        )
        async with promoter:
            fence = await SentinelFencer(promoter).fence("a", epoch=1)
            promoted = await promoter.promote(PromotionOrder(candidate=None, epoch=1, fences=(fence,)))
        assert promoted.primary in ("b", "c")
        assert [_told(each) for each in watched.sentinels.values()] == [1, 0, 0]


async def test_a_promotion_by_hand_whose_answer_is_lost_may_have_happened(watched: TestSentinels) -> None:
    watched.kill("s1", "s2", "s3", "a")
    async with middle(watched.servers["b"], cut_at=b"REPLICAOF") as way:
        members = [evolve(each, url=way.url) if each.name == "b" else each for each in watched.members()]
        promoter = SentinelPromoter("orders", members=members, sentinels=watched.addresses(), seconds=1)
        async with promoter:
            with pytest.raises(Interrupted, match="may have done"):
                await promoter.promote(PromotionOrder(candidate="b", epoch=1))
        assert watched.servers["b"].info("role") == "master"


async def test_where_there_was_no_connection_nothing_was_told(redis7: TestRedis) -> None:
    link = Link(Url.parse(f"redis://127.0.0.1:{free_port()}"))
    with pytest.raises(Unreachable):
        await link.tell("SET", "x", "y", seconds=1, operation="test")
    link = Link(Url.parse(redis7.url))
    assert await link.tell("SET", "x", "y", seconds=1, operation="test") == b"OK"
    redis7.kill()
    with pytest.raises(Unreachable):
        await link.tell("SET", "x", "z", seconds=1, operation="test")
    await link.aclose()


def _told(sentinel: TestRedis) -> int:
    return sentinel.log.read_text().count("Executing user requested FAILOVER")
