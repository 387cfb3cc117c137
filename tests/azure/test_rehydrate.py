"""A backup in the Archive tier of a real Azurite: planned for, refused, brought back as a copy, restored."""

from __future__ import annotations

import pytest

from resilience import Archive, backup, plan_restore, restore
from resilience.model.errors import NotRehydrated
from resilience.operations.rehydrate import rehydrate
from resilience.stores import AzureBlobStore
from resilience.testing.azurite import Azurite
from resilience.testing.memory import MemoryDestination, MemoryTarget


async def test_an_archived_backup_comes_back_as_a_copy(azurite: Azurite, container: str) -> None:
    async with AzureBlobStore.from_connection_string(
        azurite.connection_string(),
        container,
        ssl_context=azurite.trusted(),
        tiers={"memory/orders/base/": "archive"},
        patience=10.0,
    ) as store:
        archive, into = Archive(store, workers=1), MemoryDestination()
        manifest = (await backup(MemoryTarget("orders", {"minute": b"12" * 500}), archive)).manifest
        objects = [stored for part in manifest.parts for stored in part.objects]
        plan = await plan_restore(archive, "orders", into=into)
        assert plan.rehydration is not None
        assert (plan.rehydration.objects, plan.rehydration.bytes) == (len(objects), manifest.stored)
        with pytest.raises(NotRehydrated):
            await restore(archive, "orders", into=into)
        assert into.values == {}

        left = await rehydrate(archive, "orders", into=into)
        assert left.objects == 0  # Azurite copies at once; Azure takes hours
        await restore(archive, "orders", into=into)
        assert into.values["minute"] == b"12" * 500
        # The originals lie where they lay: nothing is paid for leaving Archive early.
        tiers = {info.tier async for info in store.list("memory/orders/base/")}
        assert tiers == {"archive"}
