"""Shipped with the library: conformance suites, a system in memory, faults to order, real servers for tests.

Whoever writes a store, an archiver or a system of their own subclasses the suite for it, and pytest proves every
promise of its Protocol:

    class TestMyStore(StoreSuite):
        @pytest.fixture
        def store(self) -> ObjectStore:
            return MyStore(...)

The suites need pytest and pytest-asyncio in its auto mode; the rest does not. The names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .archivers import ArchiverSuite
    from .cancellation import Attempt, cancellations, nothing_left_running
    from .drills import CanarySuite, FaultSuite
    from .faults import WatchedStore, change, changed
    from .fencers import FencerSuite
    from .journals import JournalSuite
    from .keys import KeySuite
    from .logs import LogSuite
    from .memory import MemoryDestination, MemoryTarget
    from .promoters import PromoterSuite
    from .stores import StoreSuite
    from .switches import SwitchSuite
    from .systems import RoundTripSuite

__all__ = [
    "ArchiverSuite",
    "Attempt",
    "CanarySuite",
    "FaultSuite",
    "FencerSuite",
    "JournalSuite",
    "KeySuite",
    "LogSuite",
    "MemoryDestination",
    "MemoryTarget",
    "PromoterSuite",
    "RoundTripSuite",
    "StoreSuite",
    "SwitchSuite",
    "WatchedStore",
    "cancellations",
    "change",
    "changed",
    "nothing_left_running",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ArchiverSuite": "archivers",
        "Attempt": "cancellation",
        "CanarySuite": "drills",
        "FaultSuite": "drills",
        "FencerSuite": "fencers",
        "JournalSuite": "journals",
        "KeySuite": "keys",
        "LogSuite": "logs",
        "MemoryDestination": "memory",
        "MemoryTarget": "memory",
        "PromoterSuite": "promoters",
        "RoundTripSuite": "systems",
        "StoreSuite": "stores",
        "SwitchSuite": "switches",
        "WatchedStore": "faults",
        "cancellations": "cancellation",
        "change": "faults",
        "changed": "faults",
        "nothing_left_running": "cancellation",
    },
)
