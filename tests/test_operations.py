"""The verbs, on systems in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

import resilience.testing
from resilience import Archive
from resilience.model.moments import utc_now
from resilience.primitives import BackupTarget, RestoreDestination
from resilience.testing.memory import MemoryDestination, MemoryServer, MemoryTarget
from resilience.testing.systems import RoundTripSuite

from .faults import VALUES, small_archive


class TestMemorySystem(RoundTripSuite[MemoryServer]):
    @pytest.fixture
    def target(self) -> BackupTarget:
        return MemoryTarget("orders", dict(VALUES), chunk_size=1024)

    @pytest.fixture
    def destination(self) -> RestoreDestination[MemoryServer]:
        return MemoryDestination()

    @pytest.fixture
    def archive(self) -> Archive:
        return small_archive()

    async def state(self, target: BackupTarget) -> object:
        assert isinstance(target, MemoryTarget)
        return target.capturing, dict(target.values), target.revision

    async def content(self, destination: RestoreDestination[MemoryServer]) -> object:
        assert isinstance(destination, MemoryDestination)
        return dict(destination.values), destination.startable

    async def occupy(self, destination: RestoreDestination[MemoryServer]) -> None:
        assert isinstance(destination, MemoryDestination)
        destination.values["theirs"] = b"data"

    async def startable(self, destination: RestoreDestination[MemoryServer]) -> bool:
        assert isinstance(destination, MemoryDestination)
        return destination.startable

    @asynccontextmanager
    async def archiving(self, target: BackupTarget, archive: Archive) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        assert isinstance(target, MemoryTarget)
        async with archive.log(target.name, system=target.system, lineage=target.lineage) as log:
            target.write("one", b"before", at=utc_now())
            await target.ship(log, at=utc_now())

            async def change() -> None:
                target.write("one", b"after", at=utc_now())
                await target.ship(log, at=utc_now())

            yield change

    async def check(self, target: BackupTarget, live: MemoryServer) -> None:
        assert isinstance(target, MemoryTarget)
        assert live.values == target.values


@pytest.mark.parametrize("name", resilience.testing.__all__)
def test_what_testing_offers_can_be_had_by_its_name(name: str) -> None:
    assert getattr(resilience.testing, name).__name__ == name


def test_what_testing_does_not_offer_is_said_so() -> None:
    with pytest.raises(AttributeError, match="'resilience.testing' has no attribute 'nothing'"):
        resilience.testing.nothing  # noqa: B018  # looking is the test
