"""The journal of a group: numbered records that are only ever added, each at the one place that comes next.

    failover/<group>/journal/0000000001.json

Of two who write the same number one succeeds, and the other learns that it is not his turn: that is all the locking
there is. Whoever has stood still while somebody else took over loses at his next record.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from itertools import chain, repeat

import msgspec
from attrs import define

from resilience.concurrency import awaited_in_order, closing, finish
from resilience.model.errors import AlreadyExists, JournalConflict, ManifestInvalid, ObjectMissing, Unavailable
from resilience.model.ids import checked_name
from resilience.model.journal import Record
from resilience.model.json import from_json, to_json
from resilience.primitives import ObjectStore

AHEAD = 16
"""Records that are read at once."""
PATIENCE = 20.0
"""Seconds for which a record is tried to be written while the store does not answer."""
PAUSES = (0.02, 0.05, 0.2, 0.5, 1.0, 2.0)
_NUMBER = re.compile(r"[0-9]{10}")


@define
class Journal:
    """The journal of one group in a store."""

    store: ObjectStore
    group: str

    @property
    def prefix(self) -> str:
        """What the keys of its records begin with."""
        return f"failover/{checked_name(self.group)}/journal/"

    def key(self, number: int) -> str:
        """Return the key of a record."""
        return f"{self.prefix}{number:010d}.json"

    async def numbers(self) -> list[int]:
        """Return the numbers of all records, in order. Raises ManifestInvalid if one between them is missing."""
        found: list[int] = []
        async with closing(self.store.list(self.prefix)) as infos:
            async for info in infos:
                name = info.key.removeprefix(self.prefix).removesuffix(".json")
                if _NUMBER.fullmatch(name):
                    found.append(int(name))
        if found and found != list(range(found[0], found[-1] + 1)):
            missing = next(number for number in range(found[0], found[-1]) if number not in set(found))
            raise self._broken(missing, "it is missing, though there are later ones")
        return found

    async def read(self, number: int) -> Record:
        """Return one record. Raises ManifestInvalid if it is missing or cannot be read."""
        try:
            async with self.store.get(self.key(number)) as chunks:
                data = b"".join([chunk async for chunk in chunks])
            record = from_json(data, Record)
        except (msgspec.MsgspecError, ObjectMissing) as error:
            raise self._broken(number, f"it cannot be read: {error}") from error
        if (record.group, record.number, record.format) != (self.group, number, 1):
            raise self._broken(number, "it is the record of something else, or of a newer version")
        return record

    async def history(self) -> AsyncGenerator[Record]:
        """Yield all records in order."""
        numbers = await self.numbers()
        async with closing(awaited_in_order(_each(numbers), self.read, ahead=AHEAD)) as records:
            async for record in records:
                yield record

    async def last(self) -> tuple[Record, ...]:
        """Return the records of the last execution, in order; none if there has been none.

        Raises ManifestInvalid if one of them is missing or cannot be read, Unavailable if the store does not answer.
        """
        numbers = await self.numbers()
        records: list[Record] = []
        while numbers:
            numbers, some = numbers[:-AHEAD], numbers[-AHEAD:]
            async with closing(awaited_in_order(_each(some), self.read, ahead=AHEAD)) as read:
                records = [*[record async for record in read], *records]
            begun = [at for at, record in enumerate(records) if record.kind == "begun"]
            if begun:
                return tuple(records[begun[-1] :])
        if records:
            raise self._broken(records[0].number, "what it belongs to is missing")
        return ()

    async def epoch(self) -> int:
        """Return the newest epoch; 0 if there has been none."""
        records = await self.last()
        return records[-1].epoch if records else 0

    async def append(self, record: Record) -> None:
        """Write a record at its place. It is durable when this returns; also if cancelled, unless this raises.

        While the store does not answer it is tried again; a record that is found there is ours if its nonce is. Raises
        JournalConflict if it is somebody else's, Unavailable if the store did not answer in time: then it may be there.
        """
        await finish(self._append(record))

    async def confirm(self, number: int) -> None:
        """Raise JournalConflict if somebody has written after the record of that number: it is his turn then."""
        if await self.store.stat(self.key(number + 1)) is not None:
            there = await self.read(number + 1)
            raise self._others(there)

    async def _append(self, record: Record) -> None:
        key, data = self.key(record.number), [to_json(record)]
        until = time.monotonic() + PATIENCE
        for pause in _pauses():
            try:
                await self.store.put(key, data)
            except AlreadyExists:
                await self._compare(record, until)
            except Unavailable:
                if time.monotonic() + pause > until:
                    raise
                await asyncio.sleep(pause)
                continue
            return

    async def _compare(self, record: Record, until: float) -> None:
        for pause in _pauses():
            try:
                there = await self.read(record.number)
            except Unavailable:
                if time.monotonic() + pause > until:
                    raise
                await asyncio.sleep(pause)
                continue
            break
        if there.nonce != record.nonce:
            raise self._others(there)

    def _others(self, there: Record) -> JournalConflict:
        return JournalConflict(
            f"{there.actor or 'somebody else'} acts on this group: record {there.number} is of epoch {there.epoch}",
            operation="failover",
            subject=self.group,
            hint="nothing was begun after that; look at the journal, and resume() if nobody acts any more",
        )

    def _broken(self, number: int, text: str) -> ManifestInvalid:
        return ManifestInvalid(
            text,
            operation="read",
            subject=self.key(number),
            hint="the journal tells what was done to the group: bring the record back before anything else is done",
        )


def _pauses() -> Iterator[float]:
    return chain(PAUSES, repeat(PAUSES[-1]))


async def _each(numbers: Sequence[int]) -> AsyncIterator[int]:
    for number in numbers:
        yield number
