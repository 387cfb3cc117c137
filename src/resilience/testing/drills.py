"""The conformance suites of faults and canaries: what their Protocols promise, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import ClassVar

import pytest

from resilience.model.drills import FaultProof
from resilience.model.errors import Refused, ResilienceError
from resilience.model.moments import utc_now
from resilience.primitives import Fault
from resilience.primitives.drills import Canary

from .cancellation import cancellations, nothing_left_running

HEALED_WITHIN_SECONDS = 10.0


class FaultSuite:
    """Subclass it, override the fixture and the methods below it, and pytest proves every promise of `Fault`.

    `heals` says whether the subject works again once the fault was left; what is never healed is `revive`d between the
    tests' attempts. `step` skips points of cancellation, where there are very many.
    """

    heals: ClassVar[bool] = True
    step: ClassVar[int] = 1

    @pytest.fixture
    def fault(self) -> Fault:
        """Make a fault whose subject works."""
        raise NotImplementedError("override the fixture `fault`")

    async def works(self, fault: Fault) -> bool:
        """Say whether the subject does its work now, within a second or so."""
        raise NotImplementedError("override `works`")

    async def revive(self, fault: Fault) -> None:
        """Make the subject work again, where healing does not."""
        await fault.heal()

    async def remove(self, fault: Fault) -> None:
        """Take the subject away, so that there is nothing that could fail."""
        raise NotImplementedError("override `remove`")

    def again(self, fault: Fault) -> Fault:
        """Return another handle to the same fault, as another process would have."""
        raise NotImplementedError("override `again`")

    async def test_it_is_proven_when_it_is_entered_and_not_before(self, fault: Fault) -> None:
        assert await self.works(fault)
        before = utc_now()
        async with nothing_left_running():
            async with fault.inject() as proof:
                assert not await self.works(fault)
                self._check(proof)
                assert proof.subject == fault.subject
                assert before <= proof.at <= utc_now()
            assert await self._healed(fault) == self.heals

    async def test_an_error_in_the_middle_heals_it_too(self, fault: Fault) -> None:
        with pytest.raises(KeyError, match="why"):
            await self._fail(fault)
        assert await self._healed(fault) == self.heals

    async def test_healing_may_be_repeated_and_hurts_nothing_that_works(self, fault: Fault) -> None:
        await fault.heal()
        assert await self.works(fault)
        async with fault.inject():
            await fault.heal()
            assert await self._healed(fault) == self.heals
        await fault.heal()
        assert await self._healed(fault) == self.heals

    async def test_another_heals_it_after_the_one_that_injected_it_has_died(self, fault: Fault) -> None:
        held = fault.inject()
        await held.__aenter__()
        await self.again(fault).heal()
        assert await self._healed(fault) == self.heals
        await held.__aexit__(None, None, None)

    async def test_where_there_is_nothing_that_could_fail_it_is_refused(self, fault: Fault) -> None:
        await self.remove(fault)
        with pytest.raises(Refused):
            async with fault.inject():
                raise AssertionError("it was injected into nothing")

    async def test_it_can_be_cancelled_anywhere(self, fault: Fault) -> None:
        async with nothing_left_running():
            for attempt in cancellations(step=self.step):
                await attempt(self._inject(fault))
                if not self.heals:
                    await self.revive(fault)
                assert await self._healed(fault), attempt

    def test_it_says_what_it_is(self, fault: Fault) -> None:
        assert fault.name
        assert fault.system
        assert fault.subject

    def _check(self, proof: FaultProof) -> None:
        assert proof.fault
        assert proof.subject in str(proof)
        assert len(proof.evidence) > 20, "a proof says what it rests on"

    async def _fail(self, fault: Fault) -> None:
        async with fault.inject():
            raise KeyError("why")

    async def _inject(self, fault: Fault) -> None:
        async with fault.inject():
            await asyncio.sleep(0)

    async def _healed(self, fault: Fault) -> bool:
        if not self.heals:
            return await self.works(fault)
        deadline = time.monotonic() + HEALED_WITHIN_SECONDS
        while not await self.works(fault):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)  # a real system tells nobody that it works again
        return True


class CanarySuite:
    """Subclass it, override the fixture and the methods below it, and pytest proves every promise of `Canary`."""

    @pytest.fixture
    def canary(self) -> Canary:
        """Make a canary whose route leads to a server that takes writes."""
        raise NotImplementedError("override the fixture `canary`")

    async def lose(self, canary: Canary, count: int) -> None:
        """Remove the first so many of its acknowledged writes behind its back."""
        raise NotImplementedError("override `lose`")

    async def left(self, canary: Canary) -> int:
        """Count what the canary has left behind in the system."""
        raise NotImplementedError("override `left`")

    async def restart(self, canary: Canary) -> None:
        """Restart the server: its connections break, and it is another run of it."""
        raise NotImplementedError("override `restart`")

    async def stop(self, canary: Canary) -> None:
        """Make nobody answer on the route any more."""
        raise NotImplementedError("override `stop`")

    async def test_every_acknowledged_write_is_there(self, canary: Canary) -> None:
        async with nothing_left_running():
            async with canary.writing() as watching:
                assert watching.seen.acknowledged > 0
                await asyncio.sleep(0.1)
            found = await watching.examine()
        assert found.missing == ()
        assert found.acknowledged > 1
        assert not found.two_writers
        assert len(found.served) == 1
        assert found.began_at <= found.served[0].first <= found.served[0].last <= found.ended_at

    async def test_what_was_acknowledged_and_is_not_there_is_missed(self, canary: Canary) -> None:
        async with canary.writing() as watching:
            await asyncio.sleep(0.2)
        await self.lose(canary, 3)
        found = await watching.examine()
        assert len(found.missing or ()) == 3
        assert (found.lost or timedelta(0)) > timedelta(0)
        assert "LOST: 3" in str(found)

    async def test_it_survives_a_restart_and_knows_the_server_for_another(self, canary: Canary) -> None:
        async with nothing_left_running():
            async with canary.writing() as watching:
                (first,) = watching.seen.served
                assert await watching.another(than=first.instance, seconds=0.05) is None
                await self.restart(canary)
                second = await watching.another(than=first.instance, seconds=30)
            assert second is not None
            found = await watching.examine()
        assert found.missing == ()
        assert not found.two_writers
        assert [each.instance for each in found.served] == [first.instance, second.instance]
        assert found.longest > 0

    async def test_cleaning_removes_what_it_wrote_and_may_be_repeated(self, canary: Canary) -> None:
        await canary.clean()
        before = await self.left(canary)
        async with canary.writing():
            assert await self.left(canary) > before
        for _ in range(2):
            await canary.clean()
            assert await self.left(canary) == before

    async def test_with_nobody_there_it_does_not_begin(self, canary: Canary) -> None:
        await self.stop(canary)
        async with nothing_left_running():
            with pytest.raises(ResilienceError):
                async with canary.writing():
                    raise AssertionError("it claims that something was acknowledged")

    async def test_it_can_be_cancelled_anywhere(self, canary: Canary) -> None:
        async with nothing_left_running():
            for attempt in cancellations(step=7):
                await attempt(self._write(canary))

    async def _write(self, canary: Canary) -> None:
        async with canary.writing():
            pass
