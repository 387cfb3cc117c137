"""A real Azurite over TLS for the session, and a container of its own for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest

from resilience.stores import AzureBlobStore
from resilience.testing.azurite import Azurite, MissingAzurite, running_azurite
from resilience.testing.fake_blob_account import FakeBlobAccount

from ..conftest import TESTBED, missing

_numbers = count(1)


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """The session's Azurite over TLS. Shared: leave it running."""
    yield from _running(tls=True)


@pytest.fixture(scope="session")
def plain_azurite() -> Iterator[Azurite]:
    """The session's Azurite without TLS, to put a proxy before. Shared: leave it running."""
    yield from _running(tls=False)


@pytest.fixture
def own_azurite() -> Iterator[Azurite]:
    """An Azurite of the test's own without TLS, to be killed at will."""
    yield from _running(tls=False)


def _running(*, tls: bool) -> Iterator[Azurite]:
    try:
        with running_azurite(TESTBED, tls=tls) as running:
            yield running
    except MissingAzurite as error:
        missing(str(error))


@pytest.fixture
def container(azurite: Azurite) -> str:
    """The name of an empty container."""
    name = f"backups-{next(_numbers)}"
    azurite.create_container(name)
    return name


@pytest.fixture
def proxy(plain_azurite: Azurite) -> Iterator[FakeBlobAccount]:
    """A storage account that misbehaves as it is told."""
    with FakeBlobAccount(f"http://127.0.0.1:{plain_azurite.port}").running() as running:
        yield running


@pytest.fixture
async def behind(plain_azurite: Azurite, proxy: FakeBlobAccount) -> AsyncIterator[AzureBlobStore]:
    """A store behind the proxy, in an empty container of its own. Its blocks are small."""
    name = f"backups-{next(_numbers)}"
    plain_azurite.create_container(name)
    connection = plain_azurite.connection_string().replace(f":{plain_azurite.port}/", f":{proxy.port}/")
    async with AzureBlobStore.from_connection_string(connection, name, patience=10.0) as opened:
        opened.block_size = 50_000
        yield opened


@pytest.fixture
async def store(azurite: Azurite, container: str) -> AsyncIterator[AzureBlobStore]:
    """A store in an empty container, with the account's key."""
    async with AzureBlobStore.from_connection_string(
        azurite.connection_string(), container, ssl_context=azurite.trusted(), patience=10.0
    ) as opened:
        yield opened
