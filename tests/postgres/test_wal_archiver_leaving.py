"""How an archiver is left: by its body's end, an error, a cancellation at any moment, or because it cannot go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from resilience import Archive
from resilience.model.errors import Refused
from resilience.postgres.wal import streaming as wal_streaming
from resilience.stores import MemoryStore
from resilience.testing.cancellation import cancellations
from resilience.testing.faults import WatchedStore
from resilience.testing.postgres import TestServer
from resilience.testing.stores import listed

from .conftest import idle
from .wal import (
    NEVER,
    archiver,
    archiving,
    as_the_server_has_it,
    drop_slot,
    durable,
    fill,
    received,
    write,
)


@pytest.fixture
def primary(postgres16: TestServer) -> Iterator[TestServer]:
    """The session's PostgreSQL 16, at a checkpoint; the archiver's slot is dropped afterwards."""
    fill(postgres16)
    postgres16.psql("checkpoint")
    yield postgres16
    drop_slot(postgres16)


class Stop(BaseException):
    """Something that a body fails with."""


def that_breaks(gate: asyncio.Event) -> WatchedStore:
    """Make a store in which every slice fails for good once the gate is open."""

    async def before(operation: str, key: str) -> None:
        if gate.is_set() and operation == "put" and "/slices/" in key:
            raise Refused("the container was deleted", operation="put", subject=key)

    return WatchedStore(MemoryStore(), before)


async def test_what_makes_going_on_impossible_cancels_the_body_and_is_raised(primary: TestServer) -> None:
    gate, seen = asyncio.Event(), ""
    with pytest.raises(Refused, match="the container was deleted"):
        async with archiving(primary, Archive(that_breaks(gate))) as wal:
            gate.set()
            write(primary)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen = wal.status.last_error
                raise
    assert "the container was deleted" in seen
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_body_that_swallows_its_cancellation_still_learns_why(primary: TestServer) -> None:
    gate = asyncio.Event()
    with pytest.raises(Refused, match="the container was deleted"):
        async with archiving(primary, Archive(that_breaks(gate))):
            gate.set()
            write(primary)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(60)


async def test_what_the_body_fails_with_comes_first(primary: TestServer) -> None:
    gate = asyncio.Event()
    with pytest.raises(ValueError, match="mine") as caught:
        async with archiving(primary, Archive(that_breaks(gate))):
            gate.set()
            write(primary)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ValueError("mine") from None
    assert "the container was deleted" in "".join(caught.value.__notes__)


async def test_a_body_that_fails_leaves_what_came_durable(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    with pytest.raises(Stop):
        async with archiving(primary, archive, interval=NEVER) as wal:
            end = write(primary)
            await received(wal, end)
            raise Stop
    await as_the_server_has_it(archive, primary, ends=end)


async def test_what_is_found_wrong_with_the_last_bytes_is_raised(primary: TestServer) -> None:
    gate = asyncio.Event()
    with pytest.raises(Refused, match="the container was deleted"):
        async with archiving(primary, Archive(that_breaks(gate)), interval=NEVER) as wal:
            gate.set()
            await received(wal, write(primary))


async def test_a_cancellation_from_outside_stays_one(primary: TestServer) -> None:
    archive = Archive(MemoryStore())
    streams = asyncio.Event()
    ends: list[int] = []

    async def body() -> None:
        async with archiving(primary, archive, interval=NEVER) as wal:
            ends.append(write(primary))
            await received(wal, ends[0])
            streams.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await streams.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await as_the_server_has_it(archive, primary, ends=ends[0])


async def test_cancelled_anywhere_it_leaves_nothing_running(
    primary: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_streaming, "FLUSH_SECONDS", 5.0)

    async def run(store: MemoryStore) -> None:
        async with archiver(primary, Archive(store), interval=0.01) as wal:
            await durable(wal, write(primary, 1))

    for attempt in cancellations(step=7):
        store = MemoryStore()
        await attempt(run(store))
        if await listed(store, "postgresql/orders/slices/"):
            await as_the_server_has_it(Archive(store), primary)
    assert await idle(primary)
