"""A cluster is backed up whole, with the moments of its shards told apart, and comes back as a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from resilience.archive import Archive
from resilience.concurrency import closing
from resilience.model.errors import Conflict, Refused, Unavailable
from resilience.model.findings import Level
from resilience.model.manifests import Manifest
from resilience.model.moments import utc_now
from resilience.operations.backup import backup
from resilience.operations.restore import restore
from resilience.operations.verify import verify
from resilience.planning.backup import plan_backup
from resilience.redis import RedisClusterDirectories, RedisClusterTarget, RedisClusterValidator
from resilience.redis.client import Url, ask, commands
from resilience.redis.cluster.nodes import Slots
from resilience.stores import MemoryStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.machine import owned_folder
from resilience.testing.redis import TestRedis

from .cluster import KEYS, RANGES, SETTINGS, client, filled, new_cluster, ready, small_port
from .conftest import MAJORS, NewRedis


@pytest.fixture(params=MAJORS, ids=lambda major: f"redis{major}")
def nodes(request: pytest.FixtureRequest, new_redis: NewRedis) -> list[TestRedis]:
    major: int = request.param
    return filled(new_cluster(new_redis, major))


@pytest.fixture
def own7(new_redis: NewRedis) -> list[TestRedis]:
    """A cluster of the test's own, to be broken at will."""
    return filled(new_cluster(new_redis))


@pytest.fixture
def nodes7(cluster7: list[TestRedis]) -> list[TestRedis]:
    """A cluster that nobody changes."""
    return cluster7


@pytest.fixture
def archive() -> Archive:
    return Archive(MemoryStore())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def target(nodes: list[TestRedis], *, disk: bool = False) -> RedisClusterTarget:
    return RedisClusterTarget("cache", url=nodes[1].url, disk=disk)


async def taken(nodes: list[TestRedis], archive: Archive) -> Manifest:
    return (await backup(target(nodes), archive)).manifest


async def test_a_cluster_comes_back_as_a_cluster(
    nodes: list[TestRedis], archive: Archive, tmp_owned: Path, stack: ExitStack
) -> None:
    report = await backup(target(nodes), archive)
    assert [part.name for part in report.manifest.parts] == ["shard-1.rdb", "shard-2.rdb", "shard-3.rdb"]
    ports = [small_port() for _ in RANGES]
    assert len(set(ports)) == len(ports)
    into = RedisClusterDirectories(
        tmp_owned / "cluster", addresses=[f"127.0.0.1:{port}" for port in ports], program=nodes[0].binary
    )
    restored = await restore(archive, "cache", into=into)
    assert any("apart" in finding.text for finding in restored.findings)
    assert sorted(path.name for path in into.path.iterdir()) == ["shard-1", "shard-2", "shard-3"]
    assert sorted(path.name for path in tmp_owned.iterdir()) == ["cluster"]
    settings = {name.replace("_", "-"): value for name, value in SETTINGS.items()}
    again = [
        TestRedis(into.path / f"shard-{number + 1}", nodes[0].binary, port=port, settings=settings)
        for number, port in enumerate(ports)
    ]
    for node in again:
        stack.callback(node.kill)
        node.start()
    ready(again)
    with client(again) as reading:
        assert [reading.get(f"key:{number}") for number in range(KEYS)] == [b"%d" % number for number in range(KEYS)]
        reading.set("writable", "again")


@pytest.mark.parametrize("disk", [False, True], ids=["one after the other", "at once"])
async def test_the_skew_is_told_and_everything_before_the_recovery_point_is_there(
    nodes7: list[TestRedis], archive: Archive, tmp_owned: Path, disk: bool
) -> None:
    report = await backup(target(nodes7, disk=disk), archive)
    manifest = report.manifest
    shards = manifest.details["shards"]
    assert isinstance(shards, list)
    assert [shard["slots"] for shard in shards if isinstance(shard, dict)] == list(RANGES)
    assert isinstance(manifest.details["skew_seconds"], float)
    assert any("of its own" in finding.text for finding in report.findings)
    point = manifest.recovery_point
    assert point.time is not None
    assert point.position.offset == sum(int(str(shard["offset"])) for shard in shards if isinstance(shard, dict))
    into = RedisClusterDirectories(tmp_owned / "cluster", program=nodes7[0].binary)
    await restore(archive, "cache", into=into)
    keys = set()
    async with into.live() as live:
        for shard in live.shards:
            async with commands(Url.parse(shard.url), operation="look") as asked:
                keys |= set(await ask(asked, "KEYS", "*"))
    assert keys == {b"key:%d" % number for number in range(KEYS)}


async def test_a_backup_verifies_to_servers_that_start(
    nodes7: list[TestRedis], archive: Archive, tmp_owned: Path
) -> None:
    manifest = await taken(nodes7, archive)
    scratch = RedisClusterDirectories(tmp_owned / "scratch", program=nodes7[0].binary)
    verdict = await verify(archive, manifest, validators=[RedisClusterValidator(keys=KEYS)], scratch=scratch)
    assert verdict.passed, verdict
    assert verdict.level == Level.STARTS
    assert list(tmp_owned.iterdir()) == []
    verdict = await verify(archive, manifest, validators=[RedisClusterValidator(keys=KEYS + 1)])
    assert not verdict.passed


async def test_a_slot_that_moves_meanwhile_makes_it_no_backup(own7: list[TestRedis], archive: Archive) -> None:
    one, two, three = own7
    plan = plan_backup(await target(own7).survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    with pytest.raises(Conflict, match="slots moved"):
        async with target(own7).capture(plan) as capture:
            async for part in capture.parts():
                async for _ in part.chunks:
                    pass
            there = two.ask("CLUSTER", "MYID")
            assert isinstance(there, bytes)
            # An empty slot, moved as redis-cli --cluster reshard does.
            slot = next(each for each in range(5461) if not one.ask("CLUSTER", "COUNTKEYSINSLOT", each))
            for node in (two, one, three):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", there)
            await capture.finish()


async def test_slots_on_their_way_are_refused_before_anything_is_read(own7: list[TestRedis], archive: Archive) -> None:
    one, two, _ = own7
    there = two.ask("CLUSTER", "MYID")
    assert isinstance(there, bytes)
    one.ask("CLUSTER", "SETSLOT", 1, "MIGRATING", there)
    with pytest.raises(Refused, match="slots are being moved"):
        await taken(own7, archive)


async def test_slots_that_nobody_holds_are_refused(own7: list[TestRedis], archive: Archive) -> None:
    for node in own7:
        node.ask("CLUSTER", "DELSLOTS", 16383)
    with pytest.raises(Refused, match="1 slots are held by nobody"):
        await taken(own7, archive)


async def test_a_master_that_is_gone_makes_it_no_backup(own7: list[TestRedis], archive: Archive) -> None:
    own7[2].kill()
    with pytest.raises(Unavailable, match=str(own7[2].port)):
        await taken(own7, archive)
    assert [manifest async for manifest in archive.manifests("cache")] == []


@pytest.mark.parametrize("disk", [False, True], ids=["one after the other", "at once"])
async def test_leaving_early_ends_every_snapshot(nodes7: list[TestRedis], disk: bool) -> None:
    plan = plan_backup(await target(nodes7).survey(), id="20260101T000000.000Z-aaaaaa", now=utc_now())
    async with nothing_left_running():
        with pytest.raises(KeyError):
            async with target(nodes7, disk=disk).capture(plan) as capture, closing(capture.parts()) as parts:
                async for part in parts:
                    await anext(part.chunks)
                    raise KeyError
    deadline = time.monotonic() + 10
    while any(node.info("connected_slaves") != "0" for node in nodes7):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_single_server_is_no_cluster(redis7: TestRedis, archive: Archive) -> None:
    with pytest.raises(Refused, match="it is in no cluster"):
        await taken([redis7, redis7], archive)


async def test_an_interrupted_restore_is_discarded_and_somebody_elses_folder_is_not(
    nodes7: list[TestRedis], archive: Archive, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await taken(nodes7, archive)
    into = RedisClusterDirectories(tmp_owned / "cluster", program=nodes7[0].binary)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RedisClusterDirectories, "_finish", fail)
        with pytest.raises(Unavailable, match="No space left"):
            await restore(archive, "cache", into=into)
    assert not into.path.exists()
    assert not (await into.survey([manifest])).empty
    await into.discard()
    assert (await into.survey([manifest])).empty
    owned_folder(into.path).joinpath("theirs").write_text("data")
    with pytest.raises(Refused, match="not put here by this object"):
        await into.discard()
    assert into.path.joinpath("theirs").exists()


async def test_addresses_have_to_be_as_many_as_shards(
    nodes7: list[TestRedis], archive: Archive, tmp_owned: Path
) -> None:
    await taken(nodes7, archive)
    into = RedisClusterDirectories(tmp_owned / "cluster", addresses=["10.0.0.1:6379"], program=nodes7[0].binary)
    with pytest.raises(Refused, match="3 shards, and there are 1 addresses"):
        await restore(archive, "cache", into=into)
    with pytest.raises(ValueError, match="no address"):
        RedisClusterDirectories(tmp_owned / "cluster", addresses=["nowhere"])


def test_slots_are_read_as_they_are_written() -> None:
    assert str(Slots.parse(["9000", "0-5460"])) == "0-5460 9000"
    assert Slots.parse(["9000", "0-5460"]).count == 5462
