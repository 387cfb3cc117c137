"""plan_restore() and what it is estimated from, on a system in memory."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from resilience import restore
from resilience.model.errors import DiskTooSmall, StorageFailed
from resilience.model.measured import RestoreMeasured
from resilience.model.targets import RecoveryTarget
from resilience.operations.plan import plan_restore
from resilience.stores import MemoryStore
from resilience.testing.faults import WatchedStore, change, flipped
from resilience.testing.memory import MemoryDestination

from .histories import History, at, said, usual
from .plans import name

Until = RecoveryTarget


async def test_a_plan_shows_what_would_be_done_and_does_nothing() -> None:
    history, into = await usual(), MemoryDestination()
    last = [manifest async for manifest in history.archive.manifests("orders")][-1]
    before = [info async for info in history.archive.store.list("")]
    plan = await plan_restore(history.archive, "orders", into=into, until=at(15))
    assert plan.chain == (last.id,)
    assert [each.branch for each in plan.replay] == ["1"]
    assert str(plan).splitlines() == [
        f"restore orders to {said(15)}, into memory",
        f"  unpack {last.id}",
        f"  replay {plan.replay[0]}, {plan.replay[0].size} B of log",
        f"  stop at {said(15)}, after about {plan.replayed} B of it",
        f"  read {last.stored} B of backups, write 1 B",
        "  how long it takes is not known yet: the first restore will show",
        "    unpack 1 B: unknown, no restore of this target has shown how fast",
        f"    replay {plan.replayed} B: unknown, no restore of this target has shown how fast",
    ]
    assert into.values == {}
    assert [info async for info in history.archive.store.list("")] == before
    assert '"kind":"time"' in plan.to_json()


async def test_a_plan_says_what_stands_in_the_way_of_the_restore() -> None:
    history = await usual()
    with pytest.raises(DiskTooSmall):
        await plan_restore(history.archive, "orders", into=MemoryDestination(room=0))


def measured(number: int, *, unpack: float, replay: float) -> RestoreMeasured:
    """Measure a restore of 10 MiB each, in so many seconds."""
    return RestoreMeasured(
        id=name(number),
        target="orders",
        system="memory",
        destination="memory",
        ended_at=at(number),
        unpacked=10 << 20,
        unpack_seconds=unpack,
        replayed=10 << 20,
        replay_seconds=replay,
    )


async def test_a_plan_estimates_from_the_median_of_the_last_restores_and_compares_with_the_objective() -> None:
    history, into = await usual(), MemoryDestination()
    await history.archive.remember(measured(0, unpack=1e-9, replay=1e-9))
    for number, seconds in enumerate((1, 2, 4, 8, 16), start=1):
        await history.archive.remember(measured(number, unpack=seconds, replay=10 * seconds))
    plan = await plan_restore(history.archive, "orders", into=into, until=at(15), rto=timedelta(seconds=1))
    assert plan.seconds == pytest.approx(1 / (10 << 20) * 4 + plan.replayed / (10 << 20) * 40)
    assert plan.arithmetic[0].startswith("unpack 1 B at 2.5 MiB/s (median of 5 restores): ")
    assert plan.arithmetic[1].startswith(f"replay {plan.replayed} B at 256.0 KiB/s (median of 5 restores): ")
    assert plan.arithmetic[-1].endswith("is within the objective (RTO) of 1 s")
    assert plan.findings == ()
    late = await plan_restore(history.archive, "orders", into=into, until=at(15), rto=timedelta(microseconds=1))
    assert late.arithmetic[-1].endswith("is over the objective (RTO) of 1e-06 s")
    assert [(each.severity, each.text) for each in late.findings] == [("warning", late.arithmetic[-1])]


async def test_what_a_restore_measured_is_kept_for_the_next_plan() -> None:
    history, into = await usual(), MemoryDestination()
    history.now = 40
    report = await restore(history.archive, "orders", into=into, until=at(15), clock=lambda: at(40))
    (kept,) = await history.archive.measured("orders")
    assert (kept.unpacked, kept.replayed, kept.destination) == (report.written, report.replayed, "memory")
    assert (kept.unpack_seconds, kept.replay_seconds) == (report.unpack_seconds, report.replay_seconds)
    assert kept.ended_at == at(40)


async def test_an_archive_that_may_only_be_read_is_restored_from_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    history, into = await usual(), MemoryDestination()

    async def readonly(operation: str, key: str) -> None:
        if operation == "put":
            raise StorageFailed("read-only", operation=operation, subject=key)

    archive = history.archive
    archive.store = WatchedStore(archive.store, readonly)
    with caplog.at_level(logging.WARNING, logger="resilience"):
        await restore(archive, "orders", into=into)
    assert into.values["minute"] == b"20"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the record of the restore was not kept in the archive"
    ]


async def test_a_damaged_measurement_costs_the_estimate_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    history, into = await usual(), MemoryDestination()
    await history.archive.remember(measured(1, unpack=1, replay=1))
    await change(history.archive.store, f"memory/orders/restores/{name(1)}.json", flipped(100))
    with caplog.at_level(logging.WARNING, logger="resilience"):
        plan = await plan_restore(history.archive, "orders", into=into)
    assert plan.seconds is None
    assert "what restores have measured cannot be read" in caplog.text


async def test_deciding_reads_few_heads_however_long_the_log_is() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(*range(2, 400))
    reads: list[str] = []

    async def noted(operation: str, key: str) -> None:
        if operation == "get" and "/log/" in key:
            reads.append(key)

    assert isinstance(history.archive.store, MemoryStore)
    history.archive.store = WatchedStore(history.archive.store, noted)
    plan = await plan_restore(history.archive, "orders", into=MemoryDestination(), until=at(200))
    assert len(reads) < 24
    exact = await plan_restore(history.archive, "orders", into=MemoryDestination(), until=Until.lsn("0/1000"))
    assert plan.replay == exact.replay
