"""The simulated group keeps the promises of the real ones; journals keep theirs on every store."""

# ruff: noqa: ARG002  # what the suites hand over is simulated, and at hand already

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from resilience.primitives import Fencer, ObjectStore, Promoter, TrafficSwitch
from resilience.stores import LocalStore, MemoryStore
from resilience.testing import FencerSuite, PromoterSuite, SwitchSuite
from resilience.testing.groups import SimulatedGroup
from resilience.testing.journals import JournalSuite
from resilience.testing.simulated import SimulatedFencer, SimulatedPromoter, SimulatedSwitch


class TestSimulatedPromoter(PromoterSuite):
    survey_step = 1

    @pytest.fixture
    def promoter(self) -> Promoter:
        self.world = SimulatedGroup.of("a", "b", "c", sync=("b", "c"), needed=1)
        self.number = 0
        return SimulatedPromoter(self.world)

    async def state(self, promoter: Promoter) -> object:
        return {name: (each.role, each.upstream, list(each.log)) for name, each in self.world.servers.items()}

    async def write(self, promoter: Promoter, member: str) -> bool:
        self.number += 1
        return self.world.write(member, f"write {self.number}")

    async def count(self, promoter: Promoter, member: str) -> int:
        return len([what for what in self.world.servers[member].log if what.startswith("write")])

    async def kill(self, promoter: Promoter, member: str) -> None:
        self.world.kill(member)

    async def revive(self, promoter: Promoter, member: str) -> None:
        self.world.revive(member)


class TestSimulatedSwitch(SwitchSuite):
    @pytest.fixture
    def switch(self) -> TrafficSwitch:
        self.world = SimulatedGroup.of("a", "b")
        self.world.servers["b"].role = "primary"
        self.made = SimulatedSwitch(self.world, "a")
        return self.made

    def instances(self) -> Mapping[str, str]:
        return {name: server.instance for name, server in self.world.servers.items()}

    async def client(self, switch: TrafficSwitch) -> str:
        return await self.made.client()


class TestSimulatedFencer(FencerSuite):
    @pytest.fixture
    def fencer(self) -> Fencer:
        self.world = SimulatedGroup.of("a")
        return SimulatedFencer(self.world, ("a",))

    async def writes(self, fencer: Fencer) -> bool:
        return self.world.write("a", "one more")

    async def restart(self, fencer: Fencer) -> None:
        self.world.revive("a")

    async def hang(self, fencer: Fencer) -> None:
        self.world.servers["a"].reachable = False


class TestJournalInMemory(JournalSuite):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


class TestJournalInADirectory(JournalSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return LocalStore(tmp_path)
