"""The conformance suite of routes: what `primitives.TrafficSwitch` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

import pytest

from resilience.model.errors import RouteMoved
from resilience.primitives import TrafficSwitch

from .cancellation import cancellations, nothing_left_running

HELD_SECONDS = 0.05


class SwitchSuite:
    """Subclass it, override what is abstract, and pytest proves every promise of `TrafficSwitch`.

    `switch` is a route that leads to the first of `members`; both take writes. `client` is one request of a client,
    which returns the instance that it has reached; `instances` are those of the members. Where clients follow by
    themselves, `lead` has the group tell them whither. `again` returns another handle to the same route, as another
    process would have. `cancel_step` skips await points where cancelling at each of them takes too long.
    """

    members: ClassVar[tuple[str, str]] = ("a", "b")
    cancel_step: ClassVar[int] = 1

    @pytest.fixture
    def switch(self) -> TrafficSwitch:
        """Make a route that leads to the first member."""
        raise NotImplementedError("override the fixture `switch`")

    def instances(self) -> Mapping[str, str]:
        """Return every member's instance."""
        raise NotImplementedError("override `instances`")

    async def client(self, switch: TrafficSwitch) -> str:
        """Have a client write something, and return the instance that took it."""
        raise NotImplementedError("override `client`")

    def lead(self, to: str) -> None:
        """Make `to` the member that takes writes; nothing, where the route is what decides."""

    def again(self, switch: TrafficSwitch) -> TrafficSwitch:
        """Return another handle to the same route; the same handle where there can be no other."""
        return switch

    async def test_a_survey_says_where_clients_go_and_changes_nothing(self, switch: TrafficSwitch) -> None:
        async with nothing_left_running():
            facts = await switch.survey()
            assert facts == await self.again(switch).survey()
            assert facts.route == switch.name
            assert facts.to == self.members[0]
            assert facts.instance == self.instances()[self.members[0]] == await self.client(switch)
            assert facts.writable
            assert not facts.held
            assert not [finding for finding in facts.findings if finding.severity == "blocker"]

    async def test_clients_are_led_to_another_member_and_back(self, switch: TrafficSwitch) -> None:
        for to in (self.members[1], self.members[0]):
            self.lead(to)
            async with nothing_left_running():
                facts = await switch.switch(to, expected=(await switch.survey()).version)
            assert facts.to == to
            assert facts.writable
            assert not facts.held
            assert facts.instance == self.instances()[to] == await self.client(switch)
            assert facts == await self.again(switch).survey()

    async def test_who_is_there_already_may_switch_again(self, switch: TrafficSwitch) -> None:
        before = await switch.survey()
        self.lead(self.members[1])
        done = await switch.switch(self.members[1], expected=before.version)
        assert await self.again(switch).switch(self.members[1], expected=before.version) == done

    async def test_a_route_that_was_moved_is_left_alone(self, switch: TrafficSwitch) -> None:
        before = await switch.survey()
        with pytest.raises(RouteMoved):
            await switch.switch(self.members[1], expected="of another route")
        assert await switch.survey() == before
        if not before.follows:
            with pytest.raises(RouteMoved):
                await switch.switch(None, expected="of another route")
            assert await switch.survey() == before
            moved = await self.again(switch).switch(self.members[1], expected=before.version)
            with pytest.raises(RouteMoved):
                await switch.switch(self.members[0], expected=before.version)
            assert await switch.survey() == moved

    async def test_a_member_that_nobody_knows_is_a_mistake(self, switch: TrafficSwitch) -> None:
        before = await switch.survey()
        with pytest.raises(ValueError, match="nobody"):
            await switch.switch("nobody", expected=before.version)
        assert await switch.survey() == before

    async def test_clients_that_are_held_wait_and_arrive_at_the_new_place(self, switch: TrafficSwitch) -> None:
        before = await switch.survey()
        held = await switch.switch(None, expected=before.version)
        if before.follows:
            assert held.follows
            assert not held.held
            return
        assert held.held
        assert held.to == self.members[0]
        assert (await self.again(switch).survey()).held
        waiting = [asyncio.create_task(self.client(switch)) for _ in range(3)]
        _, pending = await asyncio.wait(waiting, timeout=HELD_SECONDS)
        assert len(pending) == len(waiting)
        facts = await switch.switch(self.members[1], expected=before.version)
        assert not facts.held
        assert set(await asyncio.gather(*waiting)) == {self.instances()[self.members[1]]}

    async def test_clients_that_are_held_may_be_let_go_where_they_were(self, switch: TrafficSwitch) -> None:
        before = await switch.survey()
        for _ in range(2):
            await self.again(switch).switch(None, expected=before.version)
        facts = await switch.switch(self.members[0], expected=before.version)
        assert facts.to == self.members[0]
        assert not facts.held
        assert await self.client(switch) == self.instances()[self.members[0]]

    async def test_the_least_time_it_takes_is_known_and_says_why(self, switch: TrafficSwitch) -> None:
        async with nothing_left_running():
            floors = await switch.floor()
        assert floors
        assert all(each.seconds >= 0 and switch.name in each.why for each in floors)

    async def test_cancelled_anywhere_it_leads_to_the_old_place_or_to_the_new_one(self, switch: TrafficSwitch) -> None:
        before = await switch.survey()
        there = before.to
        for attempt in cancellations(step=self.cancel_step):
            to = self.members[1] if there == self.members[0] else self.members[0]
            self.lead(to)
            async with nothing_left_running():
                await attempt(self._held_and_switched(switch, to))
            found = await self.again(switch).survey()
            assert found.to in (there, to)
            done = await self.again(switch).switch(to, expected=found.version)
            assert done.to == to
            assert not done.held
            there = to

    async def _held_and_switched(self, switch: TrafficSwitch, to: str) -> None:
        version = (await switch.survey()).version
        await switch.switch(None, expected=version)
        await switch.switch(to, expected=version)
