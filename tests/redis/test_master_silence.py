"""connect_master(): a switch that nobody heard of, since no Sentinel was heard meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from resilience.redis.master import MasterPool, connect_master
from resilience.testing.sentinels import running_sentinels

from .middle import middle


async def test_a_switch_during_a_silence_is_noticed_once_a_sentinel_is_heard_again(
    tmp_owned: Path, redis_program: Callable[[int], Path]
) -> None:
    """Both take writes, so only what the Sentinel says tells them apart; the connection itself never breaks."""
    with running_sentinels(tmp_owned / "group", redis_program(7), 1, 0) as group:
        old, new = group.servers["a"], group.servers["b"]
        new.ask("REPLICAOF", "NO", "ONE")
        sentinel = group.add_sentinel("s1", quorum=1)
        async with middle(sentinel) as way:
            client = connect_master([way.url], "orders", max_connections=1)
            await client.set("before", "x")
            assert isinstance(client.connection_pool, MasterPool)
            way.mute()
            sentinel.ask("SENTINEL", "REMOVE", "orders")
            sentinel.ask("SENTINEL", "MONITOR", "orders", "127.0.0.1", new.port, 1)
            await client.set("during", "x")
            assert old.ask("EXISTS", "during") == 1, "connections that there are go on"
            way.speak()
            async with asyncio.timeout(5):
                while client.connection_pool.finder.generation == 1:
                    await asyncio.sleep(0.02)
            await client.set("after", "x")
            assert (old.ask("EXISTS", "after"), new.ask("EXISTS", "after")) == (0, 1)
            await client.aclose()
