"""Sealed with a key of a vault, kept in a real Azurite: backed up, rotated, pruned, restored by another process.

The vault is a fake (resilience.testing.fake_key_vault); the client libraries are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from resilience import Archive, backup, prune, restore, rotate, verify
from resilience.keys import KeyVaultKey
from resilience.model.errors import KeyMissing, Refused
from resilience.model.retention import RetentionPolicy, RetentionRule
from resilience.stores import AzureBlobStore
from resilience.testing.fake_key_vault import FakeKeyVault
from resilience.testing.memory import MemoryDestination, MemoryTarget
from resilience.testing.stores import content, listed, read

NEWEST = RetentionPolicy(rules=(RetentionRule(system="memory", kind="base", keep=()),), grace=timedelta())


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[FakeKeyVault]:
    with FakeKeyVault.running(tmp_path) as running:
        yield running


def opened(vault: FakeKeyVault, key_id: str) -> KeyVaultKey:
    return KeyVaultKey(key_id, vault.credential(), ca_file=vault.ca_file, verify_challenge_resource=False)


async def restored(archive: Archive) -> dict[str, bytes]:
    destination = MemoryDestination()
    await restore(archive, "orders", into=destination)
    return destination.values


async def test_a_backup_sealed_by_a_vault_comes_back_from_a_storage_account(
    store: AzureBlobStore, vault: FakeKeyVault
) -> None:
    first, second = vault.create("backups"), vault.create("backups")
    target = MemoryTarget("orders", {"large": content(3 << 20), "small": b"plainly readable"})
    sealing = Archive(store, workers=1, key=opened(vault, first))
    for _ in range(2):
        manifest = (await backup(target, sealing)).manifest
    stored = [await read(store, info.key) for info in await listed(store, "memory/orders/base/")]
    assert stored and not any(b"plainly readable" in each for each in stored)
    verdict = await verify(Archive(store, workers=1, key=opened(vault, first)), manifest)
    assert verdict.passed, verdict

    rotating = Archive(store, workers=1, key=opened(vault, second), older=[opened(vault, first)])
    assert (await rotate(rotating, "orders")).complete
    archive = Archive(store, workers=1, key=opened(vault, second))
    assert len((await prune(archive, "orders", policy=NEWEST)).removed) == 1
    assert [each.id async for each in archive.manifests("orders")] == [manifest.id]
    assert await restored(archive) == target.values

    other = Archive(store, workers=1, key=opened(vault, vault.create("others")))
    with pytest.raises((KeyMissing, Refused)):
        await restored(other)
    with pytest.raises(KeyMissing):
        await restored(Archive(store, workers=1))
