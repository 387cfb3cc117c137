"""Writing one object to Azure, create-only: small ones at once, others in blocks.

Two writers of one name never mix: every block's id begins with a random number of its writer, and the list of blocks is
committed only if there is no such object. Blocks that are never committed are seen by nobody, and gone after a week.
See "Put Blob", "Put Block" and "Put Block List" in the reference of Azure's storage services.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from io import BytesIO
from typing import cast

from attrs import define, field
from azure.core import MatchConditions
from azure.storage.blob import BlobBlock, StandardBlobTier
from azure.storage.blob.aio import BlobClient, ContainerClient

from resilience.concurrency import stop_tasks
from resilience.model.errors import AlreadyExists, ObjectMissing, Refused, StorageFailed
from resilience.model.retention import Tier
from resilience.primitives import ObjectInfo

from .azure_client import LARGEST_WHOLE, Answered, Asking, Container
from .azure_errors import EXISTS, NO_BLOCKS, NOT_PERMITTED, refusal
from .azure_pages import described
from .azure_transport import Body, Sent

BLOCKS_AT_ONCE = 2
MOST_BLOCKS = 50_000
GROWS_EVERY = 10_000
WRITER = "writer"
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
    _client: tuple[ContainerClient, BlobClient] | None = field(default=None, init=False)

    async def write(self, blocks: AsyncIterator[Body]) -> ObjectInfo:
        """Write an object of these blocks, all of one size but the last; see `ObjectStore.put`."""
        begun = await _begun(blocks)
        if len(begun) < 2:
            return await self._whole(begun.popleft() if begun else ())
        if self.permission.blocks is None:
            self.permission.blocks = await self._stage(self._next(begun[0]), begun[0])
            if self.permission.blocks:
                begun.popleft()
        if not self.permission.blocks:
            return await self._whole(await self._gathered(begun, blocks))
        return await self._in_blocks(begun, blocks)

    async def _in_blocks(self, begun: deque[Body], blocks: AsyncIterator[Body]) -> ObjectInfo:
        staging: set[asyncio.Task[bool]] = set()
        try:
            async with aclosing(_following(begun, blocks)) as following:
                async for block in following:
                    if len(staging) >= BLOCKS_AT_ONCE:
                        await self._some(staging)
                    staging.add(asyncio.create_task(self._stage(self._next(block), block)))
                    del block  # or it would stay in memory until the next one comes
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
        self._ids.append(f"{self.nonce}{len(self._ids):05d}")
        return self._ids[-1]

    async def _stage(self, id: str, block: Body) -> bool:
        """Write one block; say whether that is permitted."""
        length = sum(map(len, block))
        data = cast("Sequence[bytes]", Sent(block))  # the SDK's types forget what its transport takes

        async def stage(container: ContainerClient) -> object:
            return await self._blob(container).stage_block(id, data, length)

        try:
            await self.container.ask(stage, Asking(operation="put", key=self.key, accept=NOT_PERMITTED))
        except Answered:
            return False
        return True

    async def _commit(self) -> ObjectInfo:
        async def commit(container: ContainerClient) -> Mapping[str, object]:
            return await self._blob(container).commit_block_list(
                [BlobBlock(each) for each in self._ids],
                metadata={WRITER: self.nonce},
                match_condition=MatchConditions.IfMissing,
                standard_blob_tier=self._standard_tier,
            )

        try:
            return self._made(await self.container.ask(commit, self._creating))
        except Answered as answer:
            refused = answer
        if (info := await self._ours(refused)) is not None:
            return info
        if refused.code == NO_BLOCKS:
            what = "the account has lost blocks that it had confirmed"
            raise StorageFailed(what, operation="put", subject=self.key, hint="write the object again")
        raise refusal(refused.status, refused.code, operation="put", subject=self.key)

    async def _whole(self, body: Body) -> ObjectInfo:
        self._size, self._ids = sum(map(len, body)), []
        data = body[0] if len(body) == 1 and isinstance(body[0], bytes) else b"".join(body)

        async def upload(container: ContainerClient) -> Mapping[str, object]:
            return await self._blob(container).upload_blob(
                data,
                length=len(data),
                metadata={WRITER: self.nonce},
                overwrite=False,
                standard_blob_tier=self._standard_tier,
            )

        try:
            return self._made(await self.container.ask(upload, self._creating))
        except Answered as answer:
            refused = answer
        if (info := await self._ours(refused)) is not None:
            return info
        # It is said to exist and does not: blocks that somebody never committed stand under this name. They are no
        # obstacle for a list of blocks.
        self._size = 0
        self._allowed([not data or await self._stage(self._next([data]), [data])])
        return await self._commit()

    def _blob(self, container: ContainerClient) -> BlobClient:
        if self._client is None or self._client[0] is not container:  # to make one takes a third of a millisecond
            self._client = container, container.get_blob_client(self.key)
        return self._client[1]

    @property
    def _creating(self) -> Asking:
        return Asking(operation="put", key=self.key, accept=_THERE | NOT_PERMITTED | {NO_BLOCKS}, settle=True)

    @property
    def _standard_tier(self) -> StandardBlobTier | None:
        return StandardBlobTier(self.tier.capitalize()) if self.tier else None

    def _made(self, answer: Mapping[str, object]) -> ObjectInfo:
        modified = answer.get("last_modified")
        moment = modified.astimezone(UTC) if isinstance(modified, datetime) else datetime.fromtimestamp(0, UTC)
        return ObjectInfo(key=self.key, size=self._size, modified=moment, tier=self.tier)

    async def _ours(self, refused: Answered) -> ObjectInfo | None:
        """Return the object if it is ours, None if there is none. Raises AlreadyExists if it is somebody else's.

        The answer to an earlier attempt of ours may have been lost: then what exists is ours. Who may only add is told
        that he is not permitted to replace, instead of that the object exists.
        """
        forbidden = refused.code in NOT_PERMITTED
        asking = Asking(operation="stat", key=self.key, accept=NOT_PERMITTED if forbidden else frozenset())
        try:
            found = await self.container.ask(lambda container: self._blob(container).get_blob_properties(), asking)
        except (Answered, ObjectMissing):
            if not forbidden:
                return None
            raise refusal(refused.status, refused.code, operation="put", subject=self.key) from None
        if (found.metadata or {}).get(WRITER) != self.nonce:
            raise AlreadyExists("the object exists", operation="put", subject=self.key)
        return described(self.key, found)

    async def _gathered(self, begun: deque[Body], blocks: AsyncIterator[Body]) -> Body:
        """Collect a whole object in memory, where only that may be written."""
        gathered = BytesIO()  # gives all it holds away without copying
        async with aclosing(_following(begun, blocks)) as following:
            async for block in following:
                gathered.writelines(block)
                if gathered.tell() > LARGEST_WHOLE:
                    what = f"with this credential an object has to be written at once, up to {LARGEST_WHOLE >> 20} MiB"
                    hint = "give Archive a smaller object_size, or grant blobs/write (w in a signature)"
                    raise Refused(what, operation="put", subject=self.key, hint=hint)
        return [gathered.getvalue()]


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


async def _begun(blocks: AsyncIterator[Body]) -> deque[Body]:
    """Take two blocks, to be taken from there: who keeps a name for one keeps it in memory."""
    begun: deque[Body] = deque()
    while len(begun) < 2 and (block := await anext(blocks, None)) is not None:
        begun.append(block)
    return begun


async def _following(begun: deque[Body], blocks: AsyncIterator[Body]) -> AsyncGenerator[Body]:
    while begun:
        yield begun.popleft()
    async for block in blocks:
        yield block
        del block
