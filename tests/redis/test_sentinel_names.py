"""Members that are known by name, where the Sentinels and the replicas say addresses."""

from __future__ import annotations

from datetime import timedelta

from attrs import evolve

from resilience.model.failover import FailoverPolicy
from resilience.operations.group import FailoverGroup
from resilience.operations.switchover import switchover
from resilience.redis.fencer import SentinelFencer
from resilience.redis.master import MasterPool, connect_master
from resilience.redis.promoter import SentinelPromoter
from resilience.redis.route import SentinelRoute
from resilience.stores import MemoryStore
from resilience.testing.sentinels import TestSentinels


async def test_a_group_of_names_is_switched_over_and_its_clients_arrive(watched: TestSentinels) -> None:
    members = [evolve(each, url=each.url.at("localhost", each.url.address[1])) for each in watched.members()]
    places = {each.name: each.address for each in members}
    assert {host for host, _ in places.values()} == {"localhost"}
    promoter = SentinelPromoter(
        "orders", members=members, sentinels=watched.addresses(), watched="orders", seconds=1, patience=20
    )
    route = SentinelRoute("clients", sentinels=watched.addresses(), members=places, watched="orders")
    assert (await route.survey()).to == "a"
    async with promoter:
        group = FailoverGroup(
            "orders",
            promoter=promoter,
            fencers=[SentinelFencer(promoter)],
            switches=[route],
            journal=MemoryStore(),
        )
        report = await switchover(group, policy=FailoverPolicy(max_loss=timedelta(seconds=5)))
        assert report.ending == "completed"
        assert [each.step.kind for each in report.steps if each.outcome != "done"] == []
        assert (await route.survey()).to == report.primary != "a"
        facts = await promoter.survey()
        assert {each.upstream for each in facts.members if each.role == "standby"} == {report.primary}


async def test_without_sentinels_the_members_that_are_asked_may_be_names(watched: TestSentinels) -> None:
    places = [("localhost", each.port) for each in watched.servers.values()]
    client = connect_master(watched.addresses(), "orders", members=places, patience=5, seconds=0.5)
    pool = client.connection_pool
    assert isinstance(pool, MasterPool)
    await client.set("x", "y")
    watched.kill("s1", "s2", "s3")
    pool.finder.doubt(("127.0.0.1", watched.master.port))
    await pool.disconnect(inuse_connections=False)
    await client.set("x", "z")
    assert watched.master.ask("GET", "x") == b"z"
    assert pool.finder.generation == 1, "under another name it is no other"
    await client.aclose()
