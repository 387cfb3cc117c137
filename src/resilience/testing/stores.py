"""The conformance suite of stores: what `primitives.ObjectStore` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import ClassVar

import pytest

from resilience.model.errors import AlreadyExists, ObjectMissing
from resilience.primitives import ObjectInfo, ObjectStore

from .cancellation import cancellations, nothing_left_running

KEYS = ["A/z", "_x", "a-b/c", "a.b", "a/b-c", "a/b.c", "a/b/c", "a/b/d=e", "a/b0", "a0", "ab/c", "b"]
NO_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "../a",
    "a/../b",
    ".a",
    "a/.b",
    "-a",
    "a b",
    "a\0b",
    "a\nb",
    "ä",
    "a.",
    "a./b",
    "a" * 1001,
]
SIZES = [0, 1, 4096, (1 << 20) + 1, (3 << 20) + 17]


def content(size: int, seed: int = 1) -> bytes:
    """Return bytes that are always the same and cannot be compressed."""
    return random.Random(seed).randbytes(size)  # noqa: S311  # nothing secret


async def read(store: ObjectStore, key: str, *, offset: int = 0) -> bytes:
    """Read an object at once."""
    async with store.get(key, offset=offset) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def listed(store: ObjectStore, prefix: str = "") -> list[ObjectInfo]:
    """List objects at once."""
    return [info async for info in store.list(prefix)]


class StoreSuite:
    """Subclass it, override the fixture `store`, and pytest proves every promise of `ObjectStore` on it.

    `store` is an empty store. `again` returns another handle to the same objects, as another process would have.
    `cancel_step` skips await points where cancelling at each of them takes too long.
    """

    cancel_step: ClassVar[int] = 1

    @pytest.fixture
    def store(self) -> ObjectStore:
        """Make an empty store."""
        raise NotImplementedError("override the fixture `store`")

    def again(self, store: ObjectStore) -> ObjectStore:
        """Return another handle to the same objects; the same handle where there can be no other."""
        return store

    @pytest.mark.parametrize("size", SIZES)
    async def test_what_is_put_is_got_back(self, store: ObjectStore, size: int) -> None:
        data = content(size)
        await store.put("folder/object", [data[:1000], data[1000:]])
        assert await read(self.again(store), "folder/object") == data

    async def test_put_takes_chunks_that_come_over_time(self, store: ObjectStore) -> None:
        await store.put("object", _slowly([b"one", b"", b"two"]))
        assert await read(store, "object") == b"onetwo"

    async def test_put_says_what_is_stored_and_stat_says_the_same(self, store: ObjectStore) -> None:
        stored = await store.put("folder/object", [content(5000)])
        assert (stored.key, stored.size) == ("folder/object", 5000)
        assert stored.modified.utcoffset() is not None
        assert await self.again(store).stat("folder/object") == stored
        assert await listed(self.again(store)) == [stored]

    async def test_an_object_is_never_overwritten(self, store: ObjectStore) -> None:
        await store.put("object", [b"first"])
        with pytest.raises(AlreadyExists, match="object"):
            await self.again(store).put("object", [b"second"])
        assert await read(store, "object") == b"first"

    async def test_of_writers_at_once_exactly_one_succeeds(self, store: ObjectStore) -> None:
        handles = [store, self.again(store), store, self.again(store)]
        contents = [content(200_000, seed) for seed in range(len(handles))]
        writers = zip(handles, contents, strict=True)
        ends = await asyncio.gather(
            *(handle.put("object", _slowly([data[:9], data[9:]])) for handle, data in writers), return_exceptions=True
        )
        winners = [data for data, end in zip(contents, ends, strict=True) if isinstance(end, ObjectInfo)]
        assert sum(isinstance(end, AlreadyExists) for end in ends) == len(handles) - 1
        assert winners == [await read(store, "object")]

    async def test_an_object_is_not_visible_before_it_is_whole(self, store: ObjectStore) -> None:
        seen: list[object] = []

        async def chunks() -> AsyncGenerator[bytes]:
            for _ in range(3):
                yield content(100_000)
                seen.append(await self.again(store).stat("folder/object"))
                seen.extend(await listed(self.again(store)))

        await store.put("folder/object", chunks())
        assert seen == [None] * 3

    async def test_a_source_that_fails_leaves_nothing(self, store: ObjectStore) -> None:
        async def chunks() -> AsyncGenerator[bytes]:
            yield content(100_000)
            raise KeyError("the source failed")

        async with nothing_left_running():
            with pytest.raises(KeyError, match="the source failed"):
                await store.put("object", chunks())
        assert await listed(self.again(store)) == []
        await store.put("object", [b"now"])
        assert await read(store, "object") == b"now"

    async def test_put_cancelled_anywhere_leaves_the_object_whole_or_absent(self, store: ObjectStore) -> None:
        data = content(100_000)
        async with nothing_left_running():
            for number, attempt in enumerate(cancellations(step=self.cancel_step)):
                key = f"folder/{number}"
                completed = await attempt(store.put(key, _slowly([data[:10], data[10:]])))
                there = await self.again(store).stat(key)
                assert there is not None or not completed
                if there is None:
                    await store.put(key, [data])
                assert await read(self.again(store), key) == data

    @pytest.mark.parametrize("size", [1, 4096, (1 << 20) + 1])
    async def test_get_begins_at_an_offset(self, store: ObjectStore, size: int) -> None:
        data = content(size)
        await store.put("object", [data])
        for offset in (0, 1, size // 2, size - 1, size, size + 1):
            assert await read(store, "object", offset=offset) == data[offset:]

    async def test_an_offset_before_the_beginning_is_refused(self, store: ObjectStore) -> None:
        await store.put("object", [b"data"])
        with pytest.raises(ValueError, match="-1"):
            await read(store, "object", offset=-1)

    async def test_get_yields_chunks_that_are_neither_empty_nor_large(self, store: ObjectStore) -> None:
        await store.put("object", [content(5 << 20)])
        async with store.get("object") as chunks:
            lengths = [len(chunk) async for chunk in chunks]
        assert min(lengths) > 0
        assert max(lengths) <= 2 << 20

    async def test_get_of_what_is_not_there_raises_when_entered(self, store: ObjectStore) -> None:
        await store.put("folder/object", [b"data"])
        for key in ("object", "folder", "folder/object/more"):
            with pytest.raises(ObjectMissing, match=key):
                await store.get(key).__aenter__()

    async def test_get_can_be_left_and_cancelled_anywhere(self, store: ObjectStore) -> None:
        await store.put("object", [content((2 << 20) + 1)])

        async def read_one_chunk() -> None:
            async with store.get("object") as chunks:
                await anext(chunks)

        async with nothing_left_running():
            await read_one_chunk()
            for attempt in cancellations(step=self.cancel_step):
                await attempt(read(store, "object"))

    async def test_list_is_in_the_order_of_the_keys_under_any_prefix(self, store: ObjectStore) -> None:
        for key in reversed(KEYS):
            await store.put(key, [b""])
        cuts = {key[:length] for key in KEYS for length in range(len(key) + 1)}
        for prefix in {*cuts, "zz", "a/b/c/d", "b/", "/", "//", "a//", "..", "../", "./", ".", " ", "a\0"}:
            names = [info.key for info in await listed(self.again(store), prefix)]
            assert names == sorted(key for key in KEYS if key.startswith(prefix)), prefix

    async def test_list_goes_on_while_objects_come_and_go(self, store: ObjectStore) -> None:
        for key in KEYS:
            await store.put(key, [b""])
        names = []
        async for info in store.list(""):
            names.append(info.key)
            await store.delete(info.key)
        assert names == KEYS
        assert await listed(store) == []

    async def test_stat_of_what_is_not_there_is_none(self, store: ObjectStore) -> None:
        assert await store.stat("folder/object") is None
        await store.put("folder/object", [b"data"])
        assert await store.stat("folder") is None
        assert await store.stat("folder/object/more") is None

    async def test_delete_removes_one_object_and_may_be_repeated(self, store: ObjectStore) -> None:
        for key in ("folder/object", "folder/object2"):
            await store.put(key, [b"data"])
        for key in ("folder/object", "folder/object", "folder", "other/object"):
            await store.delete(key)
        assert [info.key for info in await listed(self.again(store))] == ["folder/object2"]
        await store.put("folder/object", [b"again"])
        assert await read(store, "folder/object") == b"again"

    async def test_delete_cancelled_anywhere_leaves_the_object_whole_or_absent(self, store: ObjectStore) -> None:
        async with nothing_left_running():
            for number, attempt in enumerate(cancellations(step=self.cancel_step)):
                key = f"folder/{number}"
                await store.put(key, [b"data"])
                completed = await attempt(store.delete(key))
                if await self.again(store).stat(key) is not None:
                    assert not completed
                    assert await read(store, key) == b"data"

    @pytest.mark.parametrize("key", [*NO_KEYS, 1001 * "a"], ids=ascii)
    async def test_what_is_no_key_is_refused_everywhere(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(ValueError, match="key"):
            await store.put(key, [b"data"])
        with pytest.raises(ValueError, match="key"):
            await store.stat(key)
        with pytest.raises(ValueError, match="key"):
            await store.delete(key)
        with pytest.raises(ValueError, match="key"):
            await read(store, key)
        assert await listed(store) == []


async def _slowly(chunks: list[bytes]) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
