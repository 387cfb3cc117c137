"""What lies in a tier that cannot be read: plans say so, restores refuse to begin, and rehydrate() brings it back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from attrs import define, evolve, field

from resilience import Archive, plan_restore, restore
from resilience.model.errors import NotRehydrated, ResilienceError, Unsupported
from resilience.model.events import Event
from resilience.model.rehydration import Rehydration
from resilience.model.retention import Tier
from resilience.operations.rehydrate import rehydrate
from resilience.primitives import ObjectInfo, Rehydrating
from resilience.stores import MemoryStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.memory import MemoryDestination

from .histories import at, usual

GIB = 1 << 30


@define
class TieredStore(MemoryStore):
    """Objects in Archive cannot be read until their copies are ready; `thaw` makes those that were asked for ready."""

    archived: set[str] = field(factory=set)
    asked: dict[str, bool] = field(factory=dict)
    ready: set[str] = field(factory=set)
    begun: int = 0
    refusing: ResilienceError | None = None

    async def stat(self, key: str) -> ObjectInfo | None:
        info = await MemoryStore.stat(self, key)
        tier: Tier = "archive" if key in self.archived else "hot"
        return None if info is None else evolve(info, tier=tier)

    @asynccontextmanager
    async def get(self, key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        if key in self.archived - self.ready:
            raise NotRehydrated("it lies in the Archive tier", operation="get", subject=key)
        async with MemoryStore.get(self, key, offset=offset) as chunks:
            yield chunks

    async def rehydrate(self, key: str, *, to: Tier = "hot", urgent: bool = False) -> bool:  # noqa: ARG002
        if self.refusing is not None:
            raise self.refusing
        if key in self.archived and key not in self.asked:
            self.asked[key] = urgent
            self.begun += 1
        return key not in self.archived - self.ready

    def thaw(self, *keys: str) -> None:
        self.ready |= set(keys or self.asked)


async def frozen(*, log: bool = False) -> tuple[Archive, TieredStore, int]:
    """An archive whose backups, or whose log, were archived; with how many bytes the last restore needs of it."""
    history = await usual()
    store = TieredStore(clock=lambda: at(0))
    wanted = "/log/" if log else "/base/"
    size = 0
    last = [manifest async for manifest in history.archive.manifests("orders")][-1]
    async for info in history.archive.store.list(""):
        async with history.archive.store.get(info.key) as chunks:
            await store.put(info.key, [chunk async for chunk in chunks])
        if wanted in info.key:
            store.archived.add(info.key)
        if f"/{last.id}/" in info.key and wanted in info.key:
            size += info.size
    return Archive(store, workers=1), store, size


async def test_a_plan_says_what_has_to_be_rehydrated_and_that_it_comes_before_everything_else() -> None:
    archive, store, size = await frozen()
    plan = await plan_restore(archive, "orders", into=MemoryDestination(), rto=timedelta(hours=2))
    assert plan.rehydration == Rehydration(objects=1, bytes=size)
    assert str(plan).splitlines()[1] == (
        f"  before that: 1 objects ({size} B) lie in the Archive tier: to rehydrate them takes up to 15 h, "
        "or about 1 h if urgent"
    )
    assert plan.arithmetic[0] == f"rehydrate {size} B in 1 objects: up to 15 h"
    assert plan.arithmetic[-1] == "at least 15 h is over the objective (RTO) of 2 h"
    assert [each.severity for each in plan.findings] == ["warning", "warning"]
    assert store.begun == 0


async def test_a_restore_refuses_before_it_touches_anything() -> None:
    archive, _, _ = await frozen()
    into = MemoryDestination()
    with pytest.raises(NotRehydrated, match="1 objects .* lie in the Archive tier") as error:
        await restore(archive, "orders", into=into)
    assert into.values == {}
    assert "rehydrate()" in error.value.hint
    assert error.value.exit_status == 10


async def test_what_was_rehydrated_is_restored() -> None:
    archive, store, size = await frozen()
    into = MemoryDestination()
    events: list[Event] = []
    by = {"actor": "jane", "reason": "a drill"}
    begun = await rehydrate(archive, "orders", into=into, observer=events.append, actor="jane", reason="a drill")
    assert begun == Rehydration(objects=1, bytes=size)
    assert all(by == {"actor": event.actor, "reason": event.reason} for event in events)
    assert await rehydrate(archive, "orders", into=into) == Rehydration(objects=1, bytes=size)
    assert store.begun == 1 and set(store.asked.values()) == {False}
    store.thaw()
    assert await rehydrate(archive, "orders", into=into) == Rehydration(objects=0, bytes=0)
    assert (await plan_restore(archive, "orders", into=into)).rehydration is None
    await restore(archive, "orders", into=into)
    assert into.values["minute"] == b"20"
    assert [event.stage for event in events] == ["started", "progress", "completed"]


async def test_only_what_the_restore_needs_is_brought_back() -> None:
    archive, store, _ = await frozen()
    await rehydrate(archive, "orders", into=MemoryDestination(), until=at(5), urgent=True)
    first, *_ = [manifest async for manifest in archive.manifests("orders")]
    assert list(store.asked) == [stored.key for stored in first.parts[0].objects]
    assert set(store.asked.values()) == {True}


async def test_an_archived_log_is_seen_and_brought_back_too() -> None:
    archive, store, _ = await frozen(log=True)
    into = MemoryDestination()
    plan = await plan_restore(archive, "orders", into=into)
    assert plan.rehydration is not None and 0 < plan.rehydration.objects < len(store.archived)
    await rehydrate(archive, "orders", into=into)
    store.thaw()
    # What lies before the backup is not needed, and was not asked for.
    assert len(store.asked) == plan.rehydration.objects
    assert (await plan_restore(archive, "orders", into=into)).rehydration is None


async def test_a_store_without_tiers_is_not_asked() -> None:
    history = await usual()
    assert not isinstance(history.archive.store, Rehydrating)
    assert await rehydrate(history.archive, "orders", into=MemoryDestination()) == Rehydration(objects=0, bytes=0)
    with pytest.raises(Unsupported, match="no tier that objects could be brought back from"):
        await history.archive.rehydrate("some/key")


async def test_what_the_store_refuses_is_raised_and_nothing_is_left_running() -> None:
    archive, store, _ = await frozen()
    store.refusing = ResilienceError("the credential may not write")
    async with nothing_left_running():
        with pytest.raises(ResilienceError, match="may not write"):
            await rehydrate(archive, "orders", into=MemoryDestination())


async def test_an_object_that_is_missing_is_not_waited_for() -> None:
    archive, store, _ = await frozen()
    for key in list(store.archived):
        await store.delete(key)
    assert (await plan_restore(archive, "orders", into=MemoryDestination())).rehydration is None


@pytest.mark.parametrize(("size", "hours"), [(1, 1), (10 * GIB, 1), (25 * GIB, 2.5)])
def test_an_account_gets_ten_gib_an_hour_back_with_high_priority(size: int, hours: float) -> None:
    rehydration = Rehydration(objects=7, bytes=size)
    assert rehydration.urgent == timedelta(hours=hours)
    assert rehydration.standard == timedelta(hours=15)


def test_where_everything_can_be_read_nothing_is_waited_for() -> None:
    nothing = Rehydration(objects=0, bytes=0)
    assert nothing.standard == nothing.urgent == timedelta(0)
    assert str(nothing) == "everything can be read"
