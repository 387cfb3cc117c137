"""A storage account that is busy, slow, cut off or killed: a put is whole or absent, and every end is told clearly."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from resilience.model.errors import AlreadyExists, ResilienceError, StorageFailed, Throttled, TimedOut, Unreachable
from resilience.stores import AzureBlobStore, azure_client
from resilience.testing.azurite import Azurite
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.fake_blob_account import FakeBlobAccount
from resilience.testing.http_faults import Fault, times
from resilience.testing.stores import content, listed, read

DATA = content(230_000)
CHUNKS = [DATA[:70_000], DATA[70_000:]]
BUSY = Fault(status=503, code="ServerBusy")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once, where the account does not say how long to wait."""
    monkeypatch.setattr(azure_client, "_jitter", lambda _: 0.005)


def block(request: web.BaseRequest) -> bool:
    return "comp=block&" in request.raw_path


def commit(request: web.BaseRequest) -> bool:
    return "comp=blocklist" in request.raw_path


def blob(request: web.BaseRequest) -> bool:
    return request.method == "PUT" and not request.query_string


def reading(request: web.BaseRequest) -> bool:
    return request.method == "GET"


@pytest.mark.parametrize("fault", [BUSY, Fault(status=429), Fault(status=500, code="InternalError"), Fault(status=408)])
async def test_what_passes_is_waited_for(proxy: FakeBlobAccount, behind: AzureBlobStore, fault: Fault) -> None:
    proxy.script = times(25, fault)
    async with nothing_left_running():
        await behind.put("object", CHUNKS)
        proxy.script = times(12, fault)
        assert await read(behind, "object") == DATA
        proxy.script = times(5, fault)
        assert [info.size for info in await listed(behind)] == [len(DATA)]
        proxy.script = times(5, fault)
        assert await behind.stat("object")
        proxy.script = times(5, fault)
        await behind.delete("object")
    assert await listed(behind) == []


async def test_an_account_that_stays_busy_is_told_once_patience_has_ended(
    proxy: FakeBlobAccount, behind: AzureBlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    await behind.put("object", CHUNKS)
    behind._container.patience = 0.1
    proxy.script = times(1_000_000, BUSY)
    async with nothing_left_running():
        with (
            caplog.at_level(logging.WARNING, "resilience"),
            pytest.raises(Throttled, match="put other: .* 503 ServerBu"),
        ):
            await behind.put("other", CHUNKS)
        for asking in (read(behind, "object"), listed(behind), behind.stat("object"), behind.delete("object")):
            with pytest.raises(Throttled, match="too busy"):
                await asking
    assert "503 ServerBusy" in caplog.text
    proxy.script = times(0, BUSY)
    assert await read(behind, "object") == DATA
    assert [info.key for info in await listed(behind)] == ["object"]


@pytest.mark.parametrize("header", ["Retry-After", "x-ms-retry-after-ms", "date"])
async def test_the_account_is_left_alone_for_as_long_as_it_asks(
    proxy: FakeBlobAccount, behind: AzureBlobStore, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(azure_client, "_sleep", sleep)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    headers = {
        "Retry-After": {"Retry-After": "3"},
        "x-ms-retry-after-ms": {"x-ms-retry-after-ms": "3500"},
        "date": {"Retry-After": later},
    }[header]
    proxy.script = times(1, Fault(status=503, code="ServerBusy", headers=headers))
    await behind.put("object", [DATA[:100]])
    assert len(pauses) == 1
    assert 2 < pauses[0] <= 4


async def test_who_asks_for_more_patience_than_there_is_is_not_waited_for(
    proxy: FakeBlobAccount, behind: AzureBlobStore
) -> None:
    proxy.script = times(1, Fault(status=503, code="ServerBusy", headers={"Retry-After": "3600"}))
    with pytest.raises(Throttled):
        await behind.put("object", [DATA[:100]])


async def test_a_slow_answer_is_not_waited_for_for_ever(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    behind._container.timeout, behind._container.patience = 1.0, 2.5
    proxy.script = times(1, Fault(delay=5))
    await behind.put("object", CHUNKS)
    assert await read(behind, "object") == DATA
    proxy.script = times(1_000_000, Fault(delay=5))
    async with nothing_left_running():
        with pytest.raises(TimedOut, match="stat object: 127.0.0.1:.* did not answer within 1 s"):
            await behind.stat("object")


@pytest.mark.parametrize("sent", [0, 1, 30_000])
async def test_half_sent_blocks_are_sent_again(proxy: FakeBlobAccount, behind: AzureBlobStore, sent: int) -> None:
    proxy.script = times(4, Fault(sent=sent), when=block)
    async with nothing_left_running():
        await behind.put("object", CHUNKS)
    assert await read(behind, "object") == DATA


@pytest.mark.parametrize("when", [block, commit, blob], ids=lambda when: when.__name__)
@pytest.mark.parametrize("answered", [0, 10])
async def test_an_answer_that_is_lost_is_no_failure(
    proxy: FakeBlobAccount, behind: AzureBlobStore, when: object, answered: int
) -> None:
    assert callable(when)
    proxy.script = times(2, Fault(answered=answered), when=when)
    chunks = [DATA[:10]] if when is blob else CHUNKS
    stored = await behind.put("object", chunks)
    assert stored == await behind.stat("object")
    assert await read(behind, "object") == b"".join(chunks)


@pytest.mark.parametrize("chunks", [[DATA[:10]], CHUNKS], ids=["whole", "blocks"])
async def test_of_two_writers_whose_answers_are_lost_one_is_told_of_the_other(
    proxy: FakeBlobAccount, behind: AzureBlobStore, chunks: list[bytes]
) -> None:
    proxy.script = times(4, Fault(answered=0), when=lambda request: blob(request) or commit(request))
    other = [piece[::-1] for piece in reversed(chunks)]
    ends = await asyncio.gather(behind.put("object", chunks), behind.put("object", other), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["AlreadyExists", "ObjectInfo"]
    won = chunks if isinstance(ends[1], AlreadyExists) else other
    assert await read(behind, "object") == b"".join(won)


async def test_a_read_that_is_cut_goes_on(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    data = content(9 << 20)
    behind.block_size = 4 << 20
    await behind.put("object", [data])
    proxy.script = times(3, Fault(answered=100_000), when=reading)
    async with nothing_left_running():
        assert await read(behind, "object") == data


async def test_a_read_is_of_one_object_or_fails(
    proxy: FakeBlobAccount, behind: AzureBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(300_000)
    monkeypatch.setattr("resilience.stores.azure_blob.RANGE", 10_000)
    await behind.put("object", [data])
    async with behind.get("object") as chunks:
        assert await anext(chunks) == data[:10_000]
        await behind.delete("object")
        await behind.put("object", [content(300_000, seed=2)])
        with pytest.raises(ResilienceError, match="get object: it was replaced meanwhile"):
            _ = [chunk async for chunk in chunks]


async def test_blocks_of_a_put_that_failed_are_no_obstacle(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    behind._container.patience = 0.05
    proxy.script = times(1_000_000, BUSY, when=commit)
    for name in ("whole", "blocks"):
        with pytest.raises(Throttled):
            await behind.put(name, CHUNKS)
    assert await listed(behind) == []
    proxy.script = times(0, BUSY)
    await behind.put("whole", [DATA[:10]])
    await behind.put("blocks", CHUNKS)
    assert (await read(behind, "whole"), await read(behind, "blocks")) == (DATA[:10], DATA)


async def test_blocks_that_the_account_lost_are_told(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    proxy.script = times(1, Fault(status=400, code="InvalidBlockList"), when=commit)
    with pytest.raises(StorageFailed, match="put object: the account has lost blocks that it had confirmed"):
        await behind.put("object", CHUNKS)


async def test_a_server_that_is_not_there_is_unreachable_soon(plain_azurite: Azurite) -> None:
    connection = plain_azurite.connection_string().replace(f":{plain_azurite.port}/", ":1/")
    async with AzureBlobStore.from_connection_string(connection, "backups", patience=0.05) as store:
        with pytest.raises(Unreachable, match="stat object: no connection to 127.0.0.1:1: "):
            await store.stat("object")


@pytest.fixture
async def own(own_azurite: Azurite) -> AzureBlobStore:
    own_azurite.create_container("backups")
    store = AzureBlobStore.from_connection_string(own_azurite.connection_string(), "backups", patience=20.0)
    store.block_size = 50_000
    return store


async def test_a_server_that_is_restarted_while_it_is_written_to_gets_all_of_it(
    own: AzureBlobStore, own_azurite: Azurite
) -> None:
    async def chunks() -> object:
        yield DATA[:120_000]
        own_azurite.stop()
        restart = asyncio.create_task(asyncio.to_thread(own_azurite.start))
        yield DATA[120_000:]
        await restart

    async with own:
        await own.put("object", chunks())  # type: ignore[arg-type]
        assert await read(own, "object") == DATA


async def test_a_server_that_is_killed_while_it_is_written_to_has_the_object_whole_or_not_at_all(
    own: AzureBlobStore, own_azurite: Azurite
) -> None:
    async def chunks() -> object:
        yield DATA[:120_000]
        own_azurite.kill()
        restart = asyncio.create_task(asyncio.to_thread(own_azurite.start))
        yield DATA[120_000:]
        await restart

    async with own:
        await own.put("before", CHUNKS)
        try:
            await own.put("object", chunks())  # type: ignore[arg-type]
            assert await read(own, "object") == DATA
        except ResilienceError:
            # Azurite forgets its last seconds when it is killed, even that there is such a container.
            own_azurite.ask("PUT", "backups?restype=container")
            assert await own.stat("object") is None
            await own.put("object", CHUNKS)
            assert await read(own, "object") == DATA


async def test_tls_that_breaks_is_tried_again_and_is_no_matter_of_trust(plain_azurite: Azurite) -> None:
    connection = plain_azurite.connection_string().replace("=http;", "=https;").replace("http://", "https://")
    async with AzureBlobStore.from_connection_string(connection, "backups", patience=0.2) as spoken:
        with pytest.raises(Unreachable, match="stat object: no connection to"):
            await spoken.stat("object")
