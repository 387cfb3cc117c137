"""restore(until=…) and plan_restore(), on a system in memory: exactly what was asked for, or a reason."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve

from resilience import coverage, restore
from resilience.model.capture import Restored
from resilience.model.errors import Corrupt, Interrupted, NoBackup, NotRecoverable
from resilience.model.events import Event
from resilience.model.plans import RestorePlan
from resilience.model.positions import RecoveryPoint
from resilience.model.targets import RecoveryTarget
from resilience.operations.plan import plan_restore
from resilience.primitives import Log, Reached, StoredBackup
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import change, flipped
from resilience.testing.memory import MemoryDestination, MemoryTarget

from .histories import History, at, said, usual
from .plans import name

Until = RecoveryTarget


async def restored(history: History, until: RecoveryTarget | None = None) -> bytes:
    into = MemoryDestination()
    await restore(history.archive, "orders", into=into, until=until)
    return into.values["minute"]


async def test_every_moment_comes_back_as_it_was() -> None:
    history = await usual()
    for minute in range(2, 21):
        expected = {2: "1", 10: "9"}.get(minute, str(minute)).encode()
        assert await restored(history, Until.time(at(minute))) == expected
        if minute < 20:
            assert await restored(history, Until.time(at(minute + 0.5))) == expected
    assert await restored(history) == b"20"
    assert await restored(history, Until.latest(timeline="1")) == b"20"


async def test_a_datetime_is_a_target_and_what_is_neither_is_refused() -> None:
    history, into = await usual(), MemoryDestination()
    report = await restore(history.archive, "orders", into=into, until=at(5))
    assert into.values["minute"] == b"5"
    assert report.until == Until.time(at(5))
    assert (report.reached.time, report.reached.position.branch) == (at(5), "1")
    assert f"asked for {said(5)}; reached " in str(report)
    with pytest.raises(ValueError, match="naive"):
        await restore(history.archive, "orders", into=into, until=at(5).replace(tzinfo=None))
    with pytest.raises(TypeError, match="until is a datetime or a RecoveryTarget, not str"):
        await restore(history.archive, "orders", into=into, until="yesterday")  # type: ignore[arg-type]


async def test_a_moment_at_which_nothing_was_written_any_more_comes_back_too() -> None:
    history = await usual()
    async with history.log() as log:
        (last,) = (await log.survey()).watermarks
        await log.record(evolve(last, complete_at=at(60)))
    assert await restored(history, Until.time(at(60))) == b"20"
    with pytest.raises(NotRecoverable, match=f"complete until {said(60)}"):
        await restored(history, Until.time(at(61)))


async def test_a_position_and_a_name_come_back_as_they_were() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2)
    there = history.target.mark("before the release", at=at(2))
    await history.write(3, 4)
    assert await restored(history, Until.lsn(f"0/{there:X}")) == b"2"
    assert await restored(history, Until.name("before the release")) == b"2"
    with pytest.raises(NotRecoverable, match="'after the release' is not in the log"):
        await restored(history, Until.name("after the release"))


async def test_one_backup_alone_can_be_asked_for() -> None:
    history = await usual()
    first, last = [manifest async for manifest in history.archive.manifests("orders")]
    assert await restored(history, Until.backup(first.id)) == b"1"
    assert await restored(history, Until.backup(last.id)) == b"9"
    with pytest.raises(NoBackup, match=f"there is no backup {name(1)}"):
        await restored(history, Until.backup(name(1)))


@pytest.mark.parametrize(
    ("until", "reason"),
    [
        (Until.time(at(1)), "lies before the earliest backup, base "),
        (Until.time(at(21)), f"beyond what the archive holds: its log is complete until {said(20)}, "),
        (Until.time(at(1e6)), f"beyond what the archive holds: its log is complete until {said(20)}, "),
        (Until.lsn("0/1"), "lies before the earliest backup"),
        (Until.lsn("F/0"), "beyond what the archive holds: its log ends at "),
        (Until.latest(timeline="2"), "there is no timeline 2 .the archive knows 1"),
        (Until.xid(7), "no backup is known to have been taken before transaction 7 began"),
    ],
    ids=str,
)
async def test_what_cannot_be_reached_is_refused_before_anything_is_touched(until: RecoveryTarget, reason: str) -> None:
    history, into = await usual(), MemoryDestination()
    for attempt in (plan_restore, restore):
        with pytest.raises(NotRecoverable, match=reason):
            await attempt(history.archive, "orders", into=into, until=until)
    assert into.values == {}


@pytest.mark.parametrize("reason", ["", "the disk was full"])
async def test_no_restore_crosses_a_hole_and_the_next_backup_leads_on(reason: str) -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2, 3)
    await history.write(4, 5, ship=False)
    await history.lose(reason=reason)
    await history.write(6, 7)
    for until in (None, Until.time(at(5)), Until.time(at(7))):
        with pytest.raises(NotRecoverable, match=f"written after {said(3)} and before {said(6)}") as refusal:
            await restored(history, until)
        assert (f"acknowledged as lost: {reason}" in str(refusal.value)) == bool(reason)
    assert await restored(history, Until.time(at(3))) == b"3"
    await history.back_up(8)
    await history.write(9)
    assert await restored(history) == b"9"
    assert await restored(history, Until.time(at(8))) == b"7"
    with pytest.raises(NotRecoverable, match="the next backup after it, base"):
        await restored(history, Until.time(at(7)))


async def test_two_timelines_are_never_mixed_up() -> None:
    history = History()
    await history.write(0)
    await history.back_up(1)
    await history.write(2, 3)
    promoted = history.target.promoted("2")
    await history.write(4, 5)
    await history.write(6, 7, target=promoted)
    assert await restored(history) == b"7"
    assert await restored(history, Until.time(at(3))) == b"3"
    assert await restored(history, Until.time(at(6))) == b"6"
    assert await restored(history, Until.latest(timeline="1")) == b"5"
    assert await restored(history, Until.time(at(5), timeline="2")) == b"3"
    assert await restored(history, Until.time(at(5), timeline="1")) == b"5"
    with pytest.raises(NotRecoverable, match="exists on timelines 1 and 2 .say which one: timeline='1' or timeline"):
        await restored(history, Until.time(at(5)))
    into = MemoryDestination()
    report = await restore(history.archive, "orders", into=into)
    assert [each.severity for each in report.findings] == ["warning"]
    assert f"timeline 1 has been written until {said(5)}" in str(report)


async def test_several_histories_under_one_name_are_told_apart_and_said() -> None:
    history = await usual()
    other = MemoryTarget("orders", {"minute": b"other"}, lineage="99")
    await history.write(30, target=other)
    await history.back_up(31, other)
    await history.write(32, target=other)
    into = MemoryDestination()
    report = await restore(history.archive, "orders", into=into)
    assert into.values["minute"] == b"32"
    (finding,) = report.findings
    assert finding.severity == "warning"
    assert f"several histories under this name; this is 99, not {history.lineage}" in finding.text
    assert await restored(history, Until.time(at(15))) == b"15"
    with pytest.raises(NotRecoverable, match=f"complete until {said(20)}"):
        await restored(history, Until.time(at(30)))
    first, *_ = [manifest async for manifest in history.archive.manifests("orders")]
    assert await restored(history, Until.lsn("0/300", base=first.id)) != b"other"


async def test_a_destination_that_replays_nothing_gets_the_newest_backup_and_refuses_a_moment() -> None:
    class Simple(MemoryDestination):
        replays = ()

    history, into = await usual(), Simple()
    first, last = [manifest async for manifest in history.archive.manifests("orders")]
    report = await restore(history.archive, "orders", into=into)
    assert (into.values["minute"], report.manifest, report.replayed) == (b"9", last, 0)
    with pytest.raises(NotRecoverable, match="needs a log to be replayed") as refusal:
        await restore(history.archive, "orders", into=Simple(), until=at(5))
    assert f"the last one before it is {first.id}" in refusal.value.hint
    assert f"the first one after it is {last.id}" in refusal.value.hint


async def test_an_archive_with_backups_and_no_log_refuses_what_lies_between_them() -> None:
    history = History()
    first = await history.back_up(1)
    await history.back_up(5)
    with pytest.raises(NotRecoverable, match="backups bring back single moments") as refusal:
        await restored(history, Until.time(at(3)))
    assert first.id in refusal.value.hint
    with pytest.raises(NotRecoverable, match="no backup lies on timeline 2"):
        await restored(history, Until.latest(timeline="2"))


async def test_an_empty_archive_has_nothing() -> None:
    history = History()
    for until in (None, Until.time(at(3)), Until.latest(timeline="1")):
        with pytest.raises(NoBackup, match="the archive holds no backup of it"):
            await restored(history, until)
    await history.write(1)
    with pytest.raises(NoBackup, match="the archive holds no backup of it"):
        await restored(history, None)


async def test_progress_goes_on_from_bytes_unpacked_to_bytes_replayed_up_to_their_total() -> None:
    history, told = await usual(), list[Event]()
    into = MemoryDestination()
    report = await restore(history.archive, "orders", into=into, until=at(13), observer=told.append)
    replaying = [event for event in told if event.text.startswith("replayed to ")]
    assert [event.text.rpartition(", ")[2] for event in replaying] == ["33%", "67%", "100%"]
    assert [event.done for event in told] == sorted(event.done for event in told)
    assert all(event.total is None or event.done <= event.total for event in told)
    assert told[-1].done == told[-1].total == report.written + report.replayed


async def test_a_replay_cancelled_anywhere_cannot_start() -> None:
    history, into = await usual(), MemoryDestination()
    async with nothing_left_running():
        for attempt in cancellations():
            completed = await attempt(restore(history.archive, "orders", into=into, until=at(12)))
            assert into.startable or not completed
            assert not into.startable or into.values["minute"] == b"12"
            await into.discard()


async def test_a_flipped_entry_of_the_log_is_refused() -> None:
    history, into = await usual(), MemoryDestination()
    keys = [info.key async for info in history.archive.store.list("memory/orders/log/")]
    await change(history.archive.store, keys[-3], flipped(-1))
    with pytest.raises(Corrupt, match=keys[-3]):
        await restore(history.archive, "orders", into=into)
    assert not into.startable


class Elsewhere(MemoryDestination):
    """Says that it reached something else."""

    reach: RecoveryPoint

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored:
        done = await super().apply(plan, chain=chain, log=log, reached=reached)
        position = done.reached.position
        moved = {
            "time": evolve(done.reached, time=at(19)),
            "branch": evolve(done.reached, position=evolve(position, branch="7")),
        }
        short = evolve(done.reached, position=evolve(position, offset=1))
        return Restored(reached=moved.get(self.name, short))


@pytest.mark.parametrize(
    ("how", "until", "wrong"),
    [
        ("time", Until.time(at(12)), "it went past that"),
        ("offset", Until.lsn("0/200"), "it stopped before that"),
        ("branch", Until.latest(), "not on the way, which ends on timeline 1"),
        ("offset", Until.latest(), "it did not get as far as the backup itself"),
    ],
)
async def test_a_restore_that_went_elsewhere_is_an_error(how: str, until: RecoveryTarget, wrong: str) -> None:
    history = await usual()
    with pytest.raises(Interrupted, match=f"asked for {until}, it reached .*: .*{wrong}"):
        await restore(history.archive, "orders", into=Elsewhere(how), until=until)


@pytest.mark.parametrize(("damaged", "known_until"), [(0, 20), (9, 20), (10, 20), (-1, 19)])
async def test_a_damaged_head_of_the_log_refuses_nothing_that_does_not_need_it(damaged: int, known_until: int) -> None:
    """The first, one that a search for the moment comes by, and the last, which the watermark is told from."""
    history = await usual()
    store = history.archive.store
    key = [info.key async for info in store.list("memory/orders/log/")][damaged]
    await change(store, key, flipped(9))
    for minute in (5, 8.5):
        plan = await plan_restore(history.archive, "orders", into=MemoryDestination(), until=at(minute))
        assert {(finding.severity, finding.subject) for finding in plan.findings} <= {("warning", key)}
        assert len(plan.findings) == 1 or damaged != -1
        assert await restored(history, Until.time(at(minute))) == str(int(minute)).encode()
    found = await coverage(history.archive, "orders")
    assert [each.ends.time for each in found.ranges] == [at(known_until)]
    if damaged in (0, -1):
        (finding,) = found.findings
        assert (finding.severity, finding.subject) == ("warning", key)
        assert "when this part of the log was written is not known" in finding.text
    if damaged:
        with pytest.raises(Corrupt, match=key):
            await restored(history)
