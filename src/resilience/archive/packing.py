"""What is stored of a log: bytes compressed and sealed on the way in, proven, opened and expanded on the way out."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing

from attrs import field, frozen

from resilience.concurrency import in_order, in_thread
from resilience.model.errors import ChecksumMismatch
from resilience.model.log import LogEntry
from resilience.streams.frames import Compressor, Cutter, expand
from resilience.streams.seals import Sealer

from .entries import EntrySealing, FileHead, Head, described, file_head_of, head_of, opening, prove, stored
from .keys import DataKey
from .records import Records, unsealed

FRAMES_AHEAD = 8
SALT = 32


@frozen(kw_only=True)
class Packing:
    """Makes the objects of one lineage's log, and reads them. With a key it reads only what is sealed with one."""

    records: Records
    lineage: str
    pool: Executor = field(repr=False)
    compressor: Compressor = field(repr=False)
    frame_size: int

    async def entry(self, key: str, entry: LogEntry, data: Sequence[bytes | memoryview]) -> list[bytes]:
        """Return what to store of an entry under `key`: a head and frames."""
        cut = _cut(data, Cutter(self.frame_size))
        async with aclosing(in_order(cut, self.compressor, pool=self.pool, ahead=FRAMES_AHEAD)) as compressed:
            frames = [frame async for frame in compressed]
        by = await self._key()
        return await in_thread(self._entry, key, entry, frames, by)

    async def file(self, key: str, name: str, data: bytes) -> list[bytes]:
        """Return what to store of a small file under `key`: one frame, behind a head if it is sealed."""
        frame = await in_thread(self.compressor, [data])
        if (by := await self._key()) is None:
            return [frame]
        sealing = _sealing(by)
        head = FileHead(target=self._target, lineage=self.lineage, name=name, size=len(data), sealing=sealing)
        sealed = _sealer(by, sealing, key).seal(frame, number=0, last=True)
        return [stored(head, key=key, by=by), sealed]

    async def head(self, key: str, data: bytes | bytearray) -> tuple[Head, int] | None:
        """Return the proven head of an entry, and its length; None if there is not enough data yet."""
        if (found := head_of(data, key)) is not None:
            await self._prove(key, data, found[0].sealing)
        return found

    async def plain(self, key: str, head: Head, body: memoryview) -> list[bytes]:
        """Return the bytes of an entry whose head is proven, in verified pieces. Raises KeyMissing without its key."""
        sealer = await self._opener(key, head.sealing)
        steps = _each(opening(head, body, key, sealer))
        async with aclosing(in_order(steps, _call, pool=self.pool, ahead=FRAMES_AHEAD)) as plain:
            _, *frames = [frame async for frame in plain]
        return frames

    async def holds(self, key: str, data: bytes, plain: bytes) -> bool:
        """Tell whether what is stored of a file are these bytes."""
        try:
            head, length = file_head_of(data, key) or (None, 0)
            sealing = None if head is None else head.sealing
            await self._prove(key, data, sealing)
            sealer = await self._opener(key, sealing)
            frame = data[length:] if sealer is None else sealer.open(data[length:], number=0, last=True)
            return await in_thread(expand, frame, len(plain)) == plain
        except ChecksumMismatch:
            return False

    @property
    def _target(self) -> str:
        return self.records.target

    async def _key(self) -> DataKey | None:
        return await self.records.keyring.for_log(self.records.system, self._target)

    async def _prove(self, key: str, data: bytes | bytearray, sealing: EntrySealing | None) -> None:
        if self.records.keyring.key is None:
            return
        if sealing is None:
            raise unsealed(key)
        prove(data, key, await self.records.authority(key, sealing.key))

    async def _opener(self, key: str, sealing: EntrySealing | None) -> Sealer | None:
        return None if sealing is None else _sealer(await self.records.authority(key, sealing.key), sealing, key)

    def _entry(self, key: str, entry: LogEntry, frames: list[bytes], by: DataKey | None) -> list[bytes]:
        sealing = None if by is None else _sealing(by)
        if by is not None and sealing is not None:
            sealer, last = _sealer(by, sealing, key), len(frames) - 1
            frames = [sealer.seal(frame, number=each, last=each == last) for each, frame in enumerate(frames)]
        head = described(entry, frames, self.frame_size, target=self._target, lineage=self.lineage, sealing=sealing)
        return [stored(head, key=key, by=by), *frames]


def _sealing(by: DataKey) -> EntrySealing:
    return EntrySealing(key=by.name, salt=secrets.token_hex(SALT))


def _sealer(by: DataKey, sealing: EntrySealing, key: str) -> Sealer:
    try:
        salt = bytes.fromhex(sealing.salt)
    except ValueError as error:
        raise ChecksumMismatch("its salt is none", operation="read log", subject=key) from error
    return Sealer(by.for_frames(salt), key)


async def _cut(data: Sequence[bytes | memoryview], cutter: Cutter) -> AsyncGenerator[Sequence[bytes | memoryview]]:
    for piece in data:
        for frame in cutter.feed(piece):
            yield frame
    for frame in cutter.finish():
        yield frame


async def _each(steps: Iterable[Callable[[], bytes]]) -> AsyncGenerator[Callable[[], bytes]]:
    for step in steps:
        yield step


def _call(step: Callable[[], bytes]) -> bytes:
    return step()
