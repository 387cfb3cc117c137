"""What gets into the log out of order, and what fails: how far it is durable, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
from attrs import define, field

from resilience.model.errors import Interrupted, Refused
from resilience.model.log import LogEntry
from resilience.postgres.wal.assembly import Assembly
from resilience.postgres.wal.start import fresh
from resilience.postgres.wal.stream import Wal
from resilience.primitives import Log

SIZE = 1 << 20


@define
class ByHand:
    """A log whose entries are stored when a test says so, each by where it begins."""

    lineage: str = "7"
    turns: dict[int, asyncio.Future[bool]] = field(factory=dict)

    async def append(self, entry: LogEntry, data: Sequence[memoryview]) -> bool:
        assert sum(map(len, data)) == entry.size
        return await self.turns.setdefault(entry.begins.offset, asyncio.get_running_loop().create_future())


@asynccontextmanager
async def three_segments() -> AsyncGenerator[tuple[ByHand, Assembly, list[int]]]:
    """Have three segments on their way; the list is told each time that more is durable."""
    log, moves = ByHand(), []
    assembly = Assembly(
        log=cast(Log, log),
        start=fresh(1, 0, SIZE),
        segment_size=SIZE,
        kept=b"",
        moved=lambda: moves.append(assembly.durable),
        failing=lambda _: None,
    )
    assembly.add(Wal(begins=0, data=bytes(3 * SIZE), latest=0, flushed=3 * SIZE, proof=None))
    await asyncio.sleep(0)
    try:
        yield log, assembly, moves
    finally:
        await assembly.close()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_stored_ahead_of_its_turn_is_not_durable_yet() -> None:
    async with three_segments() as (log, assembly, moves):
        log.turns[SIZE].set_result(True)
        await settle()
        assert (assembly.durable, moves) == (0, [])
        log.turns[0].set_result(True)
        await settle()
        assert (assembly.durable, moves) == (2 * SIZE, [2 * SIZE])


async def test_nothing_behind_a_failure_counts_as_durable() -> None:
    async with three_segments() as (log, assembly, moves):
        log.turns[0].set_exception(Refused("no", operation="put", subject="it"))
        await settle()
        log.turns[SIZE].set_result(True)
        log.turns[2 * SIZE].set_result(True)
        await settle()
        assert (assembly.durable, moves) == (0, [])
        with pytest.raises(Refused, match="no"):
            await assembly.flush()


async def test_what_was_stored_before_a_failure_still_counts() -> None:
    async with three_segments() as (log, assembly, moves):
        log.turns[SIZE].set_exception(Refused("no", operation="put", subject="it"))
        log.turns[0].set_result(True)
        await settle()
        assert (assembly.durable, moves) == (SIZE, [SIZE])
        with pytest.raises(Refused, match="no"):
            await assembly.flush()


async def test_a_failure_of_the_very_last_bytes_is_not_forgotten() -> None:
    async with three_segments() as (log, assembly, _):
        for at in (0, SIZE):
            log.turns[at].set_result(True)
        log.turns[2 * SIZE].set_exception(Refused("no", operation="put", subject="it"))
        await settle()
        with pytest.raises(Refused, match="no"):
            await assembly.flush()


async def test_an_entry_that_the_store_cancels_is_no_entry() -> None:
    async with three_segments() as (log, assembly, moves):
        log.turns[0].cancel()
        await settle()
        log.turns[SIZE].set_result(True)
        await settle()
        assert (assembly.durable, moves) == (0, [])
        with pytest.raises(Interrupted, match="gave up"):
            await assembly.flush()
