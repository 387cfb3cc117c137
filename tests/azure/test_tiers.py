"""Tiers, rehydration, holds and the secondary; what Azurite lacks is played by `FakeBlobAccount` before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from resilience import Archive, backup, restore
from resilience.model.errors import NotRehydrated, ObjectMissing, Refused, StorageFailed
from resilience.model.retention import Tier
from resilience.stores import AzureBlobStore
from resilience.testing import MemoryDestination, MemoryTarget
from resilience.testing.azurite import ACCOUNT, KEY, Azurite
from resilience.testing.fake_blob_account import FakeBlobAccount
from resilience.testing.http_faults import Fault, times
from resilience.testing.stores import content, listed, read

DATA = content(120_000)
TIERS: dict[str, Tier] = {"full/": "cool", "full/old/": "archive", "logs/": "cold", "hot/": "hot"}


@pytest.mark.parametrize("chunks", [[DATA[:9]], [DATA]], ids=["whole", "blocks"])
async def test_the_longest_prefix_chooses_the_tier(behind: AzureBlobStore, chunks: list[bytes]) -> None:
    behind.tiers = TIERS
    wanted = {"full/a": "cool", "full/old/a": "archive", "hot/a": "hot", "logs/a": "cold", "other/a": None}
    put = {key: (await behind.put(key, chunks)).tier for key in wanted}
    stated = {key: info.tier for key in wanted if (info := await behind.stat(key))}
    assert put == stated == {info.key: info.tier for info in await listed(behind)} == wanted


async def test_an_archived_object_is_read_once_its_copy_is_ready(
    proxy: FakeBlobAccount, behind: AzureBlobStore
) -> None:
    behind.tiers = {"": "archive"}
    await behind.put("folder/object", [DATA])
    with pytest.raises(NotRehydrated, match=r"get folder/object: .* Archive tier, .*rehydrate\(\)"):
        await read(behind, "folder/object")
    assert not await behind.rehydrate("folder/object", to="cool", urgent=True)
    assert len(proxy.urgent) == 1
    with pytest.raises(NotRehydrated, match="get folder/object: .* asked for and is not ready yet"):
        await read(behind, "folder/object")
    assert not await behind.rehydrate("folder/object")
    proxy.thaw()
    assert await behind.rehydrate("folder/object")
    assert await read(behind, "folder/object") == DATA
    assert await read(behind, "folder/object", offset=100_000) == DATA[100_000:]
    assert [(info.key, info.tier) for info in await listed(behind)] == [("folder/object", "archive")]
    await behind.forget_rehydrated("folder/object")
    with pytest.raises(NotRehydrated):
        await read(behind, "folder/object")


async def test_what_is_not_archived_needs_no_copy(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    await behind.put("object", [DATA])
    proxy.asked.clear()
    assert await behind.rehydrate("object")
    assert [asked.partition(" ")[0] for asked in proxy.asked] == ["HEAD"]
    with pytest.raises(ObjectMissing, match="rehydrate nothing: there is no such object"):
        await behind.rehydrate("nothing")


async def test_a_copy_whose_start_was_not_heard_of_is_not_started_twice(
    proxy: FakeBlobAccount, behind: AzureBlobStore
) -> None:
    behind.tiers = {"": "archive"}
    await behind.put("object", [DATA])
    proxy.script = times(1, Fault(status=503), when=lambda asked: "x-ms-copy-source" in asked.headers)
    assert not await behind.rehydrate("object")
    assert not await behind.rehydrate("object")
    proxy.thaw()
    assert await behind.rehydrate("object")
    assert await read(behind, "object") == DATA


async def test_a_copy_that_failed_is_told(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    behind.tiers = {"": "archive"}
    await behind.put("object", [DATA])
    assert not await behind.rehydrate("object")
    proxy.failed = "500 InternalError"
    with pytest.raises(StorageFailed, match=r"rehydrate object: .* 500 InternalError \(.*forget_rehydrated"):
        await behind.rehydrate("object")


async def test_a_hold_forbids_to_remove_and_is_told(proxy: FakeBlobAccount, behind: AzureBlobStore) -> None:
    await behind.put("object", [DATA])
    name = behind.container_url.rpartition("/")[2]
    proxy.held.add(f"{name}/object")
    with pytest.raises(Refused, match="delete object: a legal hold or a retention policy of the container forbids"):
        await behind.delete("object")
    with pytest.raises(Exception, match="put object: the object exists"):
        await behind.put("object", [DATA[:9]])
    assert await read(behind, "object") == DATA


async def test_a_lease_or_a_snapshot_forbids_to_remove_and_is_told(
    plain_azurite: Azurite, behind: AzureBlobStore
) -> None:
    name = behind.container_url.rpartition("/")[2]
    for key in ("leased", "copied"):
        await behind.put(key, [DATA])
    lease = {"x_ms_lease_action": "acquire", "x_ms_lease_duration": "60"}
    assert plain_azurite.ask("PUT", f"{name}/leased?comp=lease", **lease) == 201
    assert plain_azurite.ask("PUT", f"{name}/copied?comp=snapshot") == 201
    with pytest.raises(Refused, match="delete leased: somebody holds a lease on it"):
        await behind.delete("leased")
    with pytest.raises(Refused, match="delete copied: it has snapshots"):
        await behind.delete("copied")


def signed(container: str) -> str:
    """Have the SDK sign that whoever has this may read; it signs no request to an emulator's secondary."""
    return generate_container_sas(
        ACCOUNT,
        container,
        account_key=KEY,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


@pytest.fixture
async def secondary(proxy: FakeBlobAccount, behind: AzureBlobStore) -> AsyncIterator[AzureBlobStore]:
    url = behind.container_url.replace("devstoreaccount1/", "devstoreaccount1-secondary/")
    async with AzureBlobStore(url, credential=signed(url.rpartition("/")[2]), patience=1) as store:
        yield store


async def test_the_secondary_can_be_read_and_not_written(behind: AzureBlobStore, secondary: AzureBlobStore) -> None:
    target = MemoryTarget("orders", {"large": content(3 << 20), "small": b"data"})
    await backup(target, Archive(behind))
    destination = MemoryDestination()
    await restore(Archive(secondary), "orders", into=destination)
    assert destination.values == target.values
    for asking in (secondary.put("a", [b""]), secondary.delete("a"), secondary.rehydrate("a")):
        with pytest.raises(Refused, match="a: this is the account's read-only secondary .use the account's primary"):
            await asking


async def test_a_manifest_that_came_to_the_secondary_before_its_objects_is_told(
    proxy: FakeBlobAccount, behind: AzureBlobStore, secondary: AzureBlobStore
) -> None:
    target = MemoryTarget("orders", {"large": content(3 << 20), "small": b"data"})
    manifest = (await backup(target, Archive(behind))).manifest
    late = manifest.parts[0].objects[0].key
    name = behind.container_url.rpartition("/")[2]
    proxy.behind.add(f"{name}/{late}")
    destination = MemoryDestination()
    with pytest.raises(ObjectMissing, match=f"get {late}: .*secondary .*has not arrived"):
        await restore(Archive(secondary), "orders", into=destination)
    assert not destination.startable
    proxy.behind.clear()
    await destination.discard()
    await restore(Archive(secondary), "orders", into=destination)
    assert destination.values == target.values
