"""The state recorder: what it writes down is evidence, and where it cannot, it says so and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest
from attrs import define, evolve, field

from resilience.model.errors import Refused, Unreachable
from resilience.model.groups import GroupFacts, Sample, SyncSet
from resilience.model.json import from_json
from resilience.operations.group import FailoverGroup
from resilience.operations.recorder import StateRecorder
from resilience.operations.samples import Samples, last_sample
from resilience.planning.samples import Watch
from resilience.stores import MemoryStore

from .groups import ALIVE, forked, gone, group, moment, primary, sample, standby, sync_of


def seen(offset: int, *members: str, needed: int = 1, branch: int = 1) -> GroupFacts:
    """A group that lives, its primary at `offset`, waiting for `members`."""
    branches = forked(*[(str(number), number) for number in range(2, branch + 1)])
    sync = SyncSet(members=members, needed=needed, at=moment(0))
    return group(primary("a", offset, branches=branches), standby("b", offset), sightings=ALIVE, sync=sync)


def watched(*looks: GroupFacts) -> list[SyncSet | None]:
    watch, found = Watch(), []
    for number, facts in enumerate(looks):
        watch, taken = watch.seen(facts, at=moment(number))
        found.append(taken.sync)
    return found


def since(sync: SyncSet | None) -> int | None:
    return None if sync is None or sync.since is None else int(sync.since.offset)


def test_a_set_counts_from_where_it_was_seen_for_the_second_time() -> None:
    found = watched(seen(10, "b"), seen(20, "b"), seen(30, "b"))
    assert found[0] is None  # it may have changed just before
    assert [since(each) for each in found[1:]] == [20, 20]
    assert found[2] is not None and found[2].recorded


def test_a_set_that_changed_counts_anew_and_the_order_of_its_members_changes_nothing() -> None:
    found = watched(seen(10, "b", "c"), seen(20, "c", "b"), seen(30, "c"), seen(40, "c"), seen(50, "b", "c"))
    assert [since(each) for each in found] == [None, 20, None, 40, None]
    assert [each is None for each in found] == [True, False, True, False, True]


@pytest.mark.parametrize(
    "between",
    [
        group(gone(), standby("b", 30)),
        seen(30, "b", branch=2),
        evolve(group(primary("b", 30), sync=sync_of("b")), primary="b"),
    ],
)
def test_another_primary_or_none_makes_it_count_anew(between: GroupFacts) -> None:
    found = watched(seen(10, "b"), seen(20, "b"), between, seen(40, "b"), seen(50, "b"))
    assert [since(each) for each in found[3:]] == [None, 50]


def read_settings(offset: int, *, look: int, read: int | None, start: str = "1") -> GroupFacts:
    """A group whose primary, started as `start`, was looked at at one moment and had read its settings at another."""
    alive = seen(offset, "b")
    loaded_at = None if read is None else moment(read)
    here = tuple(evolve(each, instance=start) if each.name == "a" else each for each in alive.members)
    return evolve(alive, members=here, sync=evolve(sync_of("b"), at=moment(look), loaded_at=loaded_at))


@pytest.mark.parametrize(
    ("after", "counts"),
    [
        (read_settings(40, look=9, read=3), 20),
        (read_settings(40, look=9, read=6), None),  # another set may have held, and this one again
        (read_settings(40, look=9, read=4), None),  # read just as it was looked at
        (read_settings(40, look=9, read=None), None),
        (read_settings(40, look=9, read=3, start="2"), None),
    ],
)
def test_what_hung_goes_on_counting_if_it_has_not_read_its_settings_since(
    after: GroupFacts, counts: int | None
) -> None:
    before = [read_settings(10, look=2, read=1), read_settings(20, look=4, read=3)]
    found = watched(*before, group(gone(), standby("b", 30)), after)
    assert since(found[1]) == 20
    assert (found[3] is not None, since(found[3])) == (counts is not None, counts)


def test_that_a_primary_waits_for_nobody_is_recorded_at_once() -> None:
    (found,) = watched(seen(10, "b", needed=0))
    assert found is not None and found.needed == 0


@define
class Promoter:
    """A promoter, as far as a recorder is concerned."""

    name: str = "orders"
    system: str = "postgresql"
    members: tuple[str, ...] = ("a", "b")
    facts: GroupFacts = field(factory=lambda: seen(10, "b"))
    beats: list[str] = field(factory=list)
    broken: bool = False

    async def survey(self) -> GroupFacts:
        return self.facts

    async def beat(self, primary: str) -> None:
        if self.broken:
            raise Unreachable("it hangs")
        self.beats.append(primary)


@define
class Clock:
    """Tells a later time whenever it is asked."""

    now: datetime = field(factory=lambda: moment(0))

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@define
class Moody(MemoryStore):
    """A store that fails, or allows nobody to remove anything, when it is told to."""

    down: bool = False
    keeps: bool = False

    async def put(self, key, chunks):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        if self.down:
            raise Unreachable("the store is away")
        return await MemoryStore.put(self, key, chunks)

    async def delete(self, key: str) -> None:
        if self.keeps:
            raise Refused("it may add and nothing else")
        await MemoryStore.delete(self, key)


def recorder(promoter: Promoter, store: MemoryStore, clock: Clock) -> StateRecorder:
    group = FailoverGroup("orders", promoter=promoter, journal=store)  # type: ignore[arg-type]
    return StateRecorder(group, every=timedelta(milliseconds=5), kept=timedelta(hours=1), clock=clock)


@asynccontextmanager
async def running(recording: StateRecorder) -> AsyncIterator[None]:
    task = asyncio.create_task(recording.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def test_the_last_sample_is_found_again_and_each_look_leaves_a_heartbeat() -> None:
    promoter, store, clock = Promoter(), MemoryStore(), Clock()
    recording = recorder(promoter, store, clock)
    for number in range(4):
        clock.now = moment(number * 1000)  # over the hours' folders
        promoter.facts = seen(10 + number, "b")
        await recording.once()
    found, why = await last_sample(store, "orders", now=clock.now)
    assert why == "" and found == recording.last and found is not None
    assert found.position is not None and found.position.offset == 13
    assert found.sync is not None and since(found.sync) == 11
    assert promoter.beats == ["a"] * 4
    later, _ = await last_sample(store, "orders", now=moment(90 * 86400))  # nobody recorded for three months
    assert later == found
    assert (await last_sample(store, "invoices", now=clock.now))[0] is None


async def test_what_was_recorded_of_a_primary_outlives_it() -> None:
    promoter, store = Promoter(), MemoryStore()
    recording = recorder(promoter, store, Clock())
    alive = await recording.once()
    promoter.facts = group(gone(), standby("b", 30))
    await recording.once()
    assert (await last_sample(store, "orders", now=moment(0)))[0] == alive == recording.last


async def test_neither_a_store_nor_a_primary_that_fails_ends_it() -> None:
    promoter, store = Promoter(), Moody()
    recording = recorder(promoter, store, Clock())
    async with running(recording):
        await until(lambda: recording.last is not None)
        store.down = True
        await until(lambda: "the store is away" in recording.problem)
        store.down = False
        await until(lambda: recording.problem == "")
        assert recording.last is not None
        promoter.broken = True
        count = len(promoter.beats)
        await until(lambda: "it hangs" in recording.problem)
        last = recording.last
        await until(lambda: recording.last is not last)  # what was seen is recorded without a heartbeat too
        assert len(promoter.beats) == count


async def test_after_a_failure_nothing_is_taken_to_have_held_meanwhile() -> None:
    promoter, store = Promoter(), Moody()
    recording = recorder(promoter, store, Clock())
    async with running(recording):
        await until(lambda: recording.last is not None and recording.last.sync is not None)
        store.down = True
        await until(lambda: recording.problem)
        promoter.facts = seen(99, "b")
        store.down = False
        await until(lambda: recording.last is not None and since(recording.last.sync) == 99)


async def test_old_samples_are_removed_where_that_is_allowed_and_stay_where_it_is_not() -> None:
    for keeps in (False, True):
        promoter, store, clock = Promoter(), Moody(keeps=keeps), Clock()
        recording = recorder(promoter, store, clock)
        await recording.once()
        clock.now = moment(7200)
        promoter.facts = seen(20, "b")
        await recording.once()
        keys = [info.key async for info in store.list("failover/orders/samples/")]
        assert len(keys) == (2 if keeps else 1)
        assert (await last_sample(store, "orders", now=clock.now))[0] == recording.last


async def test_a_sample_that_cannot_be_read_hides_none_before_it() -> None:
    store = MemoryStore()
    samples = Samples(store, "orders")
    good = sample(5, sync=sync_of("b"))
    await samples.keep(good, writer="one")
    await store.put("failover/orders/samples/2026-11-22T03/0001.000000Z-two.json", [b"{"])
    assert await samples.last(now=moment(1)) == good


async def test_a_store_that_does_not_answer_is_told_and_not_raised() -> None:
    @define
    class Away(MemoryStore):
        async def list(self, prefix: str):  # type: ignore[no-untyped-def]  # noqa: ANN202, ARG002
            raise Unreachable("the store is away")
            yield

    found, why = await last_sample(Away(), "orders", now=moment(0))
    assert found is None and "the store is away" in why


def test_a_sample_travels_as_json() -> None:
    whole = sample(5, sync=sync_of("b"), members=(primary("a", 5), standby("b", 4, complete=1)))
    assert from_json(whole.to_json().encode(), Sample) == whole
