"""A container of Azure Blob Storage keeps what `ObjectStore` promises: on a real Azurite, over TLS and without."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from resilience.primitives import ObjectStore
from resilience.stores import AzureBlobStore
from resilience.testing.azurite import Azurite
from resilience.testing.stores import StoreSuite


class TestAzureBlobStore(StoreSuite):
    cancel_step = 3

    @pytest.fixture
    async def store(self, azurite: Azurite, container: str) -> AsyncIterator[ObjectStore]:
        connection = azurite.connection_string()
        async with (
            AzureBlobStore.from_connection_string(connection, container, ssl_context=azurite.trusted()) as store,
            AzureBlobStore.from_connection_string(connection, container, ssl_context=azurite.trusted()) as other,
        ):
            self.other = other
            yield store

    def again(self, store: ObjectStore) -> ObjectStore:  # noqa: ARG002
        return self.other


class TestAzureBlobStoreInBlocks(StoreSuite):
    cancel_step = 7

    @pytest.fixture
    async def store(self, azurite: Azurite, container: str) -> AsyncIterator[ObjectStore]:
        async with AzureBlobStore.from_connection_string(
            azurite.connection_string(), container, ssl_context=azurite.trusted()
        ) as store:
            store.block_size = 50_000
            yield store
