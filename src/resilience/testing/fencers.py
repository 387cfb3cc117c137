"""The conformance suite of fencers: what `primitives.Fencer` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio

import pytest

from resilience.model.errors import FencedOff, FencingUnproven
from resilience.primitives import Fencer

from .cancellation import nothing_left_running


class FencerSuite:
    """Subclass it, override the fixture `fencer` and the methods, and pytest proves every promise of `Fencer`.

    `fencer` fences one member that runs and takes writes.
    """

    @pytest.fixture
    def fencer(self) -> Fencer:
        """Return a fencer of one member that takes writes."""
        raise NotImplementedError("override the fixture `fencer`")

    async def writes(self, fencer: Fencer) -> bool:
        """Say whether the member takes a write now."""
        raise NotImplementedError("override `writes`")

    async def restart(self, fencer: Fencer) -> None:
        """Do what the member's machine does when it starts again: start the member, if that is possible."""
        raise NotImplementedError("override `restart`")

    async def hang(self, fencer: Fencer) -> None:
        """Stop the member's processes without ending them, so that it answers nobody and may wake up."""
        pytest.skip(f"{type(fencer).__name__} cannot be tried with a member that hangs")

    def member(self, fencer: Fencer) -> str:
        """Name the member."""
        (name,) = fencer.members
        return name

    async def test_a_fenced_member_takes_no_write(self, fencer: Fencer) -> None:
        assert await self.writes(fencer)
        async with nothing_left_running():
            fence = await fencer.fence(self.member(fencer), epoch=3)
        assert not await self.writes(fencer)
        assert (fence.member, fence.kind, fence.epoch) == (self.member(fencer), "proven", 3)
        assert fence.evidence

    async def test_one_that_hangs_is_fenced_too(self, fencer: Fencer) -> None:
        await self.hang(fencer)
        assert (await fencer.fence(self.member(fencer), epoch=1)).kind == "proven"
        assert not await self.writes(fencer)

    async def test_one_that_may_finish_what_it_does_is_fenced_too(self, fencer: Fencer) -> None:
        fence = await fencer.fence(self.member(fencer), epoch=1, clean=True)
        assert fence.kind == "proven"
        assert not await self.writes(fencer)

    async def test_fencing_may_be_repeated_and_says_the_same(self, fencer: Fencer) -> None:
        first = await fencer.fence(self.member(fencer), epoch=1)
        again = await fencer.fence(self.member(fencer), epoch=2)
        assert again.at <= first.at or not await self.writes(fencer)
        assert again.epoch == 2

    async def test_it_stays_fenced_when_its_machine_starts_again(self, fencer: Fencer) -> None:
        await fencer.fence(self.member(fencer), epoch=1)
        await self.restart(fencer)
        assert not await self.writes(fencer)
        assert (await fencer.fence(self.member(fencer), epoch=1)).kind == "proven"

    async def test_once_lifted_it_takes_writes_again(self, fencer: Fencer) -> None:
        await fencer.fence(self.member(fencer), epoch=1)
        for _ in range(2):
            await fencer.lift(self.member(fencer), epoch=1)
        assert await self.writes(fencer)

    async def test_lifting_what_is_not_fenced_does_nothing(self, fencer: Fencer) -> None:
        await fencer.lift(self.member(fencer), epoch=1)
        assert await self.writes(fencer)

    async def test_an_older_epoch_neither_fences_nor_lifts(self, fencer: Fencer) -> None:
        await fencer.fence(self.member(fencer), epoch=5)
        with pytest.raises(FencedOff):
            await fencer.fence(self.member(fencer), epoch=4)
        with pytest.raises(FencedOff):
            await fencer.lift(self.member(fencer), epoch=4)
        assert not await self.writes(fencer)

    async def test_nobody_proves_anything_of_a_stranger(self, fencer: Fencer) -> None:
        with pytest.raises(FencingUnproven):
            await fencer.fence("stranger", epoch=1)

    async def test_a_fence_that_was_begun_is_finished_though_cancelled(self, fencer: Fencer) -> None:
        fencing = asyncio.create_task(fencer.fence(self.member(fencer), epoch=1))
        await asyncio.sleep(0)
        async with nothing_left_running():
            fencing.cancel()
            await asyncio.wait([fencing])
        again = await fencer.fence(self.member(fencer), epoch=1)
        assert again.kind == "proven"
        assert not await self.writes(fencer)
