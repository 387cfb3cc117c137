"""The conformance suite of promoters: what `primitives.Promoter` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

import pytest

from resilience.model.errors import FencedOff, FencingUnproven, NotFollowing
from resilience.model.failover import Promoted, PromotionOrder
from resilience.model.groups import Fence, GroupFacts, MemberFacts
from resilience.model.ids import checked_name
from resilience.primitives import Promoter

from .cancellation import cancellations, nothing_left_running


class PromoterSuite:
    """Subclass it, override the fixture `promoter` and the methods, and pytest proves every promise of `Promoter`.

    `promoter` has a group of three members: `primary` takes writes, `candidate` and `other` are standbys that receive
    from it, and have all that it has. With the group's own elections this suite is not for it.
    """

    primary, candidate, other = "a", "b", "c"
    waits: ClassVar[bool] = True
    """Whether a write can be made to wait for a standby before it is acknowledged; if not, that is never claimed."""
    survey_step = 5
    """Cancelling at each await point of a real survey takes long; this many are skipped."""

    @pytest.fixture
    def promoter(self) -> Promoter:
        """Return a promoter of a group of three that is well."""
        raise NotImplementedError("override the fixture `promoter`")

    async def state(self, promoter: Promoter) -> object:
        """Return all that a survey could have changed: settings, positions, files."""
        raise NotImplementedError("override `state`")

    async def write(self, promoter: Promoter, member: str) -> bool:
        """Write something to a member, and say whether that was acknowledged."""
        raise NotImplementedError("override `write`")

    async def count(self, promoter: Promoter, member: str) -> int:
        """Return how many of these writes a member shows, also a standby."""
        raise NotImplementedError("override `count`")

    async def kill(self, promoter: Promoter, member: str) -> None:
        """Have a member die, so that it takes no write until `revive`."""
        raise NotImplementedError("override `kill`")

    async def revive(self, promoter: Promoter, member: str) -> None:
        """Start a member that died as what it was, as nobody should."""
        raise NotImplementedError("override `revive`")

    def fence(self, epoch: int) -> Fence:
        """Return the proof that the primary is dead."""
        return Fence(member=self.primary, kind="proven", epoch=epoch, at=datetime.now(UTC), evidence="it was killed")

    def order(self, epoch: int = 1, *, sync: tuple[str, ...] = (), needed: int = 0) -> PromotionOrder:
        """Return the order to promote the candidate."""
        fences = (self.fence(epoch),)
        return PromotionOrder(candidate=self.candidate, epoch=epoch, fences=fences, sync=sync, sync_needed=needed)

    async def promoted(self, promoter: Promoter, epoch: int = 1) -> Promoted:
        """Have the primary die and promote the candidate."""
        await self.kill(promoter, self.primary)
        await promoter.settle(epoch=epoch)
        return await promoter.promote(self.order(epoch))

    def seen(self, facts: GroupFacts, member: str) -> MemberFacts:
        """Return what was seen of a member."""
        found = facts.member(member)
        assert found is not None
        return found

    async def test_a_group_that_is_well_looks_well(self, promoter: Promoter) -> None:
        facts = await promoter.survey()
        assert checked_name(promoter.name) == facts.group
        assert checked_name(promoter.system) == facts.system
        assert tuple(each.name for each in facts.members) == promoter.members
        assert facts.primary == self.primary
        assert [each.name for each in facts.members if each.writable] == [self.primary]
        assert {self.seen(facts, name).upstream for name in (self.candidate, self.other)} == {self.primary}
        assert not [each for each in facts.findings if each.severity == "blocker"]
        assert any(each.alive for each in facts.sightings)

    async def test_surveying_writes_nothing(self, promoter: Promoter) -> None:
        await promoter.survey()
        before = await self.state(promoter)
        await promoter.survey()
        assert await self.state(promoter) == before

    async def test_a_survey_can_be_cancelled_anywhere(self, promoter: Promoter) -> None:
        await promoter.survey()
        async with nothing_left_running():
            for attempt in cancellations(step=self.survey_step):
                await attempt(promoter.survey())
        assert (await promoter.survey()).primary == self.primary

    async def test_a_member_that_does_not_answer_is_one_with_a_problem(self, promoter: Promoter) -> None:
        await promoter.survey()
        await self.kill(promoter, self.primary)
        facts = await promoter.survey()
        assert facts.primary == self.primary
        assert self.seen(facts, self.primary).problem
        assert self.seen(facts, self.candidate).reachable
        assert not any(each.alive for each in facts.sightings)

    async def test_what_settled_standbys_have_a_primary_cannot_change(self, promoter: Promoter) -> None:
        await self.write(promoter, self.primary)
        settled = await promoter.settle(epoch=1)
        for name in (self.candidate, self.other):
            found = self.seen(settled, name)
            assert found.durable == found.applied
            assert not found.receiving
        await self.write(promoter, self.primary)
        again = await promoter.settle(epoch=1)
        for name in (self.candidate, self.other):
            assert self.seen(again, name).durable == self.seen(settled, name).durable

    async def test_a_settled_standby_can_be_put_back(self, promoter: Promoter) -> None:
        await promoter.settle(epoch=1)
        for name in (self.candidate, self.other):
            await promoter.follow(name, primary=self.primary, epoch=1)
        facts = await promoter.survey()
        assert self.seen(facts, self.candidate).receiving
        assert self.seen(facts, self.candidate).upstream == self.primary

    async def test_nothing_that_was_acknowledged_is_lost(self, promoter: Promoter) -> None:
        acknowledged = [await self.write(promoter, self.primary) for _ in range(3)].count(True)
        assert acknowledged
        promoted = await self.promoted(promoter)
        assert promoted.primary == self.candidate
        assert promoted.forked_at is not None
        assert await self.count(promoter, self.candidate) >= acknowledged
        assert await self.write(promoter, self.candidate)

    async def test_what_was_promoted_is_the_very_server_that_a_survey_sees(self, promoter: Promoter) -> None:
        promoted = await self.promoted(promoter)
        facts = await promoter.survey()
        assert facts.primary == self.candidate
        assert self.seen(facts, self.candidate).instance == promoted.instance
        assert self.seen(facts, self.candidate).writable

    async def test_a_promotion_may_be_repeated(self, promoter: Promoter) -> None:
        first = await self.promoted(promoter)
        again = await promoter.promote(self.order())
        assert (again.primary, again.instance) == (first.primary, first.instance)
        assert len(self.seen(await promoter.survey(), self.candidate).branches) == 2

    async def test_an_older_epoch_is_over(self, promoter: Promoter) -> None:
        await self.promoted(promoter, epoch=5)
        with pytest.raises(FencedOff):
            await promoter.settle(epoch=4)
        with pytest.raises(FencedOff):
            await promoter.promote(self.order(4))
        with pytest.raises(FencedOff):
            await promoter.follow(self.other, primary=self.candidate, epoch=4)

    async def test_a_fence_that_does_not_hold_is_no_fence(self, promoter: Promoter) -> None:
        await promoter.settle(epoch=1)
        with pytest.raises(FencingUnproven):
            await promoter.promote(self.order())
        facts = await promoter.survey()
        assert [each.name for each in facts.members if each.writable] == [self.primary]

    async def test_who_is_waited_for_is_set_before_the_promotion(self, promoter: Promoter) -> None:
        await self.kill(promoter, self.primary)
        await promoter.settle(epoch=1)
        await promoter.promote(self.order(sync=(self.other,), needed=1))
        await promoter.follow(self.other, primary=self.candidate, epoch=1)
        sync = (await promoter.survey()).sync
        assert sync is not None
        assert (sync.members, sync.needed) == (((self.other,), 1) if self.waits else ((), 0))
        assert await self.write(promoter, self.candidate)

    async def test_others_follow_and_are_waited_for_when_required(self, promoter: Promoter) -> None:
        await self.promoted(promoter)
        for _ in range(2):
            await promoter.follow(self.other, primary=self.candidate, epoch=1)
            await promoter.require(self.candidate, members=(self.other,), needed=1, epoch=1)
        assert await self.write(promoter, self.candidate)
        facts = await promoter.survey()
        assert self.seen(facts, self.other).upstream == self.candidate
        assert facts.sync is not None
        assert facts.sync.needed == (1 if self.waits else 0)
        assert await self.count(promoter, self.other) == await self.count(promoter, self.candidate)

    async def test_a_mark_is_written_and_read_back(self, promoter: Promoter) -> None:
        promoted = await self.promoted(promoter)
        first = await promoter.verify(self.candidate, epoch=1)
        again = await promoter.verify(self.candidate, epoch=1)
        assert promoted.point.position.offset < first.position.offset < again.position.offset

    async def test_one_that_has_what_the_primary_has_not_does_not_follow_but_rejoins(self, promoter: Promoter) -> None:
        await promoter.settle(epoch=1)
        await self.write(promoter, self.primary)
        await self.promoted(promoter)
        await self.write(promoter, self.candidate)
        found = await promoter.divergence(self.primary, primary=self.candidate)
        assert found.way in ("rewind", "rebuild")
        assert found.lost is None or found.lost > 0  # of one that is dead nobody may be able to tell
        for _ in range(2):
            await promoter.rejoin(found, epoch=1)
        facts = await promoter.survey()
        assert facts.primary == self.candidate
        assert self.seen(facts, self.primary).role == "standby"
        assert await self.count(promoter, self.primary) == await self.count(promoter, self.candidate)

    async def test_one_that_came_back_by_itself_does_not_follow(self, promoter: Promoter) -> None:
        await self.promoted(promoter)
        await self.revive(promoter, self.primary)
        await self.write(promoter, self.primary)
        with pytest.raises(NotFollowing):
            await promoter.follow(self.primary, primary=self.candidate, epoch=1)

    async def test_what_is_done_beforehand_changes_nobody(self, promoter: Promoter) -> None:
        await self.write(promoter, self.primary)
        await promoter.prepare(self.candidate, epoch=1)
        facts = await promoter.survey()
        assert facts.primary == self.primary
        assert self.seen(facts, self.candidate).upstream == self.primary

    async def test_floors_are_told_with_their_arithmetic(self, promoter: Promoter) -> None:
        floors = await promoter.floor()
        assert "promotion" in {each.phase for each in floors}
        assert all(each.seconds >= 0 and each.why for each in floors)
