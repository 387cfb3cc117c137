"""Writing one object to Azure, create-only: small ones at once, others in blocks.

Two writers of one name never mix: every block's id begins with a random number of its writer, and the list of blocks is
committed only if there is no such object. Blocks that are never committed are seen by nobody, and gone after a week.
See "Put Blob", "Put Block" and "Put Block List" in the reference of Azure's storage services.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from attrs import define, field

from resilience.concurrency import stop_tasks
from resilience.model.errors import AlreadyExists, ObjectMissing, Refused, StorageFailed
from resilience.model.retention import Tier
from resilience.primitives import ObjectInfo

from .azure_errors import EXISTS, NO_BLOCKS, NOT_PERMITTED, refusal
from .azure_pages import described
from .azure_rest import Answer, Body, Container, Request

BLOCKS_AT_ONCE = 4
MOST_BLOCKS = 50_000
LARGEST_WHOLE = 256 << 20
"""An object that can only be written at once is held in memory; this much at the most."""
GROWS_EVERY = 10_000
WRITER = "x-ms-meta-writer"
_THERE = EXISTS | {"ConditionNotMet", "BlobImmutableDueToPolicy"}


@define
class Permission:
    """Whether blocks may be written; None while nobody knows. Adding alone is not enough for that."""

    blocks: bool | None = None


@define(kw_only=True)
class Upload:
    """One object on its way."""

    container: Container
    key: str
    tier: Tier | None
    permission: Permission
    nonce: str = field(factory=lambda: secrets.token_hex(8))
    _size: int = field(default=0, init=False)
    _ids: list[str] = field(factory=list, init=False)

    async def write(self, blocks: AsyncIterator[Body]) -> ObjectInfo:
        """Write an object of these blocks, all of one size but the last; see `ObjectStore.put`."""
        first = await anext(blocks, None) or ()
        second = await anext(blocks, None)
        if second is None:
            return await self._whole(first)
        if self.permission.blocks is None:
            self.permission.blocks = await self._stage(self._next(first), first)
            rest = [second] if self.permission.blocks else [first, second]
        else:
            rest = [first, second]
        if not self.permission.blocks:
            return await self._whole(await self._gathered(rest, blocks))
        return await self._in_blocks(rest, blocks)

    async def _in_blocks(self, begun: Sequence[Body], blocks: AsyncIterator[Body]) -> ObjectInfo:
        staging: set[asyncio.Task[bool]] = set()
        try:
            async with aclosing(_following(begun, blocks)) as following:
                async for block in following:
                    if len(staging) >= BLOCKS_AT_ONCE:
                        await self._some(staging)
                    staging.add(asyncio.create_task(self._stage(self._next(block), block)))
            while staging:
                await self._some(staging)
        finally:
            await stop_tasks(staging)
        return await self._commit()

    async def _some(self, staging: set[asyncio.Task[bool]]) -> None:
        """Wait for some blocks and forget those that were written."""
        await asyncio.wait(staging, return_when=asyncio.FIRST_COMPLETED)
        for task in [each for each in staging if each.done()]:
            self._allowed([task.result()])
            staging.remove(task)

    def _allowed(self, permitted: Iterable[bool]) -> None:
        if not all(permitted):
            raise refusal(403, "AuthorizationPermissionMismatch", operation="put", subject=self.key)

    def _next(self, block: Body) -> str:
        if len(self._ids) >= MOST_BLOCKS:
            raise Refused(f"it has more than {MOST_BLOCKS} blocks", operation="put", subject=self.key)
        self._size += sum(map(len, block))
        self._ids.append(base64.b64encode(f"{self.nonce}{len(self._ids):05d}".encode()).decode())
        return self._ids[-1]

    async def _stage(self, id: str, block: Body) -> bool:
        """Write one block; say whether that is permitted."""
        query = {"comp": "block", "blockid": id}
        request = Request(operation="put", key=self.key, method="PUT", query=query, body=block, accept=NOT_PERMITTED)
        return (await self.container.ask(request)).code not in NOT_PERMITTED

    async def _commit(self) -> ObjectInfo:
        listed = "".join(f"<Uncommitted>{each}</Uncommitted>" for each in self._ids)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        answer = await self._create({"comp": "blocklist"}, {}, [body])
        if (info := await self._made(answer)) is not None:
            return info
        if answer.code == NO_BLOCKS:
            what = "the account has lost blocks that it had confirmed"
            raise StorageFailed(what, operation="put", subject=self.key, hint="write the object again")
        raise refusal(answer.status, answer.code, operation="put", subject=self.key)

    async def _whole(self, body: Body) -> ObjectInfo:
        self._size, self._ids = sum(map(len, body)), []
        info = await self._made(await self._create({}, {"x-ms-blob-type": "BlockBlob"}, body))
        if info is not None:
            return info
        # It is said to exist and does not: blocks that somebody never committed stand under this name. They are no
        # obstacle for a list of blocks.
        self._size = 0
        self._allowed([not body or await self._stage(self._next(body), body)])
        return await self._commit()

    async def _create(self, query: dict[str, str], headers: dict[str, str], body: Body) -> Answer:
        headers |= {"If-None-Match": "*", WRITER: self.nonce}
        if self.tier:
            headers["x-ms-access-tier"] = self.tier.capitalize()
        request = Request(
            operation="put",
            key=self.key,
            method="PUT",
            query=query,
            headers=headers,
            body=body,
            accept=_THERE | NOT_PERMITTED | {NO_BLOCKS},
            settle=True,
        )
        return await self.container.ask(request)

    async def _made(self, answer: Answer) -> ObjectInfo | None:
        """Return what was made, None if there is nothing. Raises AlreadyExists if somebody else's object is there.

        The answer to an earlier attempt of ours may have been lost: then what exists is ours. Who may only add is told
        that he is not permitted to replace, instead of that the object exists.
        """
        if answer.status < 400:
            return ObjectInfo(key=self.key, size=self._size, modified=answer.modified, tier=self.tier)
        forbidden = answer.code in NOT_PERMITTED
        try:
            asked = Request(
                operation="stat", key=self.key, method="HEAD", accept=NOT_PERMITTED if forbidden else frozenset()
            )
            found = await self.container.ask(asked)
        except ObjectMissing:
            found = answer
        if forbidden and found.status >= 400:
            raise refusal(answer.status, answer.code, operation="put", subject=self.key)
        if found.status >= 400:
            return None
        if found.headers.get(WRITER) != self.nonce:
            raise AlreadyExists("the object exists", operation="put", subject=self.key)
        return described(self.key, found)

    async def _gathered(self, begun: Sequence[Body], blocks: AsyncIterator[Body]) -> Body:
        """Collect a whole object in memory, where only that may be written."""
        pieces: list[bytes | memoryview] = []
        size = 0
        async with aclosing(_following(begun, blocks)) as following:
            async for block in following:
                pieces += block
                size += sum(map(len, block))
                if size > LARGEST_WHOLE:
                    what = f"with this credential an object has to be written at once, up to {LARGEST_WHOLE >> 20} MiB"
                    hint = "give Archive a smaller object_size, or grant blobs/write (w in a signature)"
                    raise Refused(what, operation="put", subject=self.key, hint=hint)
        return pieces


async def cut(pieces: AsyncIterator[bytes], size: int) -> AsyncGenerator[Body]:
    """Cut pieces into blocks of `size` bytes, without copying; twice as many after 10,000, so that any object fits."""
    held: list[bytes | memoryview] = []
    room, number = size, 0
    async for piece in pieces:
        view = memoryview(piece)
        while view:
            held.append(view[:room])
            view, room = view[room:], room - len(held[-1])
            if not room:
                yield held
                number += 1
                held, room = [], size << number // GROWS_EVERY
    if held:
        yield held


async def _following(begun: Sequence[Body], blocks: AsyncIterator[Body]) -> AsyncGenerator[Body]:
    for block in begun:
        yield block
    async for block in blocks:
        yield block
