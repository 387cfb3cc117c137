"""Lists that stream in the order of the keys, and blocks: how many, how large, never more at once than promised."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest
from aiohttp import web
from azure.storage.blob import BlobProperties
from hypothesis import given
from hypothesis import strategies as st

from resilience.concurrency import stop_tasks
from resilience.model.errors import StorageFailed, Unsupported
from resilience.stores import AzureBlobStore, azure_blob, azure_pages, azure_transport, azure_upload
from resilience.testing.azurite import Azurite
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.fake_blob_account import FakeBlobAccount
from resilience.testing.http_faults import Fault
from resilience.testing.stores import content, listed, read

MODIFIED = datetime(2026, 11, 22, 4, tzinfo=UTC)


def blobs(*names: str, tier: str = "Hot") -> list[BlobProperties]:
    """Return a page as the SDK reads it."""
    return [
        BlobProperties(name=name, **{"Content-Length": 7, "Last-Modified": MODIFIED, "x-ms-access-tier": tier})
        for name in names
    ]


async def test_a_list_of_many_pages_is_complete_and_in_order(
    proxy: FakeBlobAccount, behind: AzureBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_blob, "FIRST_LISTED", 2)
    monkeypatch.setattr(azure_blob, "LISTED_AT_ONCE", 7)
    keys = [f"{'ab'[number % 2]}/{number:03d}" for number in range(40)]
    await asyncio.gather(*(behind.put(key, [b"data"]) for key in keys))
    async with nothing_left_running():
        assert [info.key for info in await listed(behind)] == sorted(keys)
        assert [info.key for info in await listed(behind, "b/")] == sorted(keys)[20:]


async def test_whoever_wants_the_first_asks_for_one_short_page(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    await asyncio.gather(*(behind.put(f"{number:03d}", [b"data"]) for number in range(25)))
    proxy.asked.clear()
    async with nothing_left_running():
        infos = behind.list("")
        assert isinstance(infos, AsyncGenerator)
        assert (await anext(infos)).key == "000"
        await infos.aclose()
    assert len(proxy.asked) == 1 and "maxresults=20" in proxy.asked[0]


async def test_a_list_that_is_left_while_a_page_is_on_its_way_leaves_nothing(
    behind: AzureBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_blob, "FIRST_LISTED", 1)
    monkeypatch.setattr(azure_blob, "LISTED_AT_ONCE", 1)
    await asyncio.gather(*(behind.put(f"{number}", [b"data"]) for number in range(5)))
    async with nothing_left_running():
        infos = behind.list("")
        assert isinstance(infos, AsyncGenerator)
        assert [(await anext(infos)).key, (await anext(infos)).key] == ["0", "1"]
        await infos.aclose()


async def test_blobs_that_are_not_ours_are_left_out(azurite: Azurite, store: AzureBlobStore, container: str) -> None:
    await store.put("object", [b"data"])
    for name in (".hidden", "with%20space", "%C3%A4", "folder/"):
        assert azurite.ask("PUT", f"{container}/{name}", x_ms_blob_type="BlockBlob") == 201
    assert [info.key for info in await listed(store)] == ["object"]


def test_an_account_that_lists_in_another_order_is_refused() -> None:
    assert [info.key for info in azure_pages.page(blobs("a-b", "a/b"), "", "").infos] == ["a-b", "a/b"]
    with pytest.raises(Unsupported, match="hierarchical namespace"):
        azure_pages.page(blobs("a/b", "a-b"), "", "")


@pytest.mark.parametrize("kind", ["text/html", "application/xml"])
@pytest.mark.parametrize("body", ["<html>please log in", "<html>please log in</html>", ""])
async def test_a_list_that_is_none_is_told(
    proxy: FakeBlobAccount, behind: AzureBlobStore, monkeypatch: pytest.MonkeyPatch, kind: str, body: str
) -> None:
    async def login(*_: object) -> web.Response:
        return web.Response(text=body, content_type=kind)

    monkeypatch.setattr(FakeBlobAccount, "answer", login)
    with pytest.raises(StorageFailed, match="list logs/: the storage account's list cannot be read"):
        await listed(behind, "logs/")


@pytest.mark.parametrize(("name", "tier"), [("Hot", "hot"), ("Cold", "cold"), ("Archive", "archive"), ("P10", None)])
def test_the_tiers_of_premium_accounts_are_none_of_ours(name: str, tier: str | None) -> None:
    (info,) = azure_pages.page(blobs("a", tier=name), "", "").infos
    assert (info.tier, info.size, info.modified.isoformat()) == (tier, 7, "2026-11-22T04:00:00+00:00")


@given(lengths=st.lists(st.integers(0, 50), max_size=20), size=st.integers(1, 40), growing=st.sampled_from([2, 10_000]))
def test_blocks_are_what_was_given_in_pieces_of_one_size(lengths: list[int], size: int, growing: int) -> None:
    pieces = [content(length, seed) for seed, length in enumerate(lengths)]

    async def blocks() -> list[bytes]:
        async def given_pieces() -> AsyncGenerator[bytes]:
            for piece in pieces:
                yield piece

        return [b"".join(block) async for block in azure_upload.cut(given_pieces(), size)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(azure_upload, "GROWS_EVERY", growing)
        made = asyncio.run(blocks())
    assert b"".join(made) == b"".join(pieces)
    wanted = [size << number // growing for number in range(len(made))]
    assert [len(block) for block in made[:-1]] == wanted[:-1]
    assert not made or 0 < len(made[-1]) <= wanted[-1]


async def test_no_more_blocks_are_on_their_way_at_once_than_promised(
    proxy: FakeBlobAccount, behind: AzureBlobStore
) -> None:
    data, taken = content(50_000 * 20), 0
    ahead: list[int] = []

    def slow(request: web.BaseRequest) -> Fault:
        return Fault(delay=random.uniform(0.005, 0.02))  # noqa: S311  # in any order

    async def chunks() -> AsyncGenerator[bytes]:
        nonlocal taken
        for start in range(0, len(data), 50_000):
            ahead.append(taken - len([asked for asked in proxy.asked if "comp=block&" in asked]))
            taken += 1
            yield data[start : start + 50_000]

    proxy.script = slow
    await behind.put("object", chunks())
    assert 1 < proxy.at_once <= azure_upload.BLOCKS_AT_ONCE
    assert max(ahead) <= azure_upload.BLOCKS_AT_ONCE + 2
    assert await read(behind, "object") == data


async def test_a_block_that_was_written_leaves_the_memory(behind: AzureBlobStore) -> None:
    alive, most = 0, 0

    class Piece(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    async def pieces() -> AsyncGenerator[bytes]:
        nonlocal alive, most
        for _ in range(20):
            alive += 1
            most = max(most, alive)
            yield Piece(behind.block_size)

    await behind.put("object", pieces())
    gc.collect()
    assert alive == 0
    assert most <= azure_upload.BLOCKS_AT_ONCE + 2


async def test_while_a_block_is_being_sent_other_tasks_have_their_turns() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    pieces = [bytes(piece) async for piece in azure_transport.Sent([bytes(azure_transport.SENT_AT_ONCE * 4 + 1)])]
    await stop_tasks([task])
    assert len(pieces) == 5
    assert turns >= 4


async def test_no_more_is_read_ahead_than_promised(
    proxy: FakeBlobAccount, behind: AzureBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_blob, "RANGE", 10_000)
    data = content(200_000)
    await behind.put("object", [data])
    proxy.asked.clear()
    proxy.at_once = 0
    got = b""
    async with behind.get("object") as chunks:
        async for chunk in chunks:
            got += chunk
            await asyncio.sleep(0.01)
            assert len(proxy.asked) <= len(got) // 10_000 + azure_blob.RANGES_AHEAD
    assert got == data
    assert len(proxy.asked) == 20
