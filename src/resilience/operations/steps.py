"""The steps of a failover, each one effect on the real system and what it returned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from attrs import define, evolve, frozen

from resilience.concurrency import stop_tasks
from resilience.model.errors import (
    Conflict,
    FencingUnproven,
    Interrupted,
    NotFollowing,
    Refused,
    ResilienceError,
    RouteMoved,
    StalePlan,
    TimedOut,
    Unavailable,
)
from resilience.model.failover import Divergence, Promoted, PromotionOrder, Step, StepKind
from resilience.model.findings import Finding
from resilience.model.groups import Fence, GroupFacts, RouteFacts, Sample
from resilience.planning.transitions import Execution
from resilience.primitives import TrafficSwitch

from .group import FailoverGroup
from .samples import last_sample

HEAVIER = ("none", "follow", "rewind", "rebuild")
"""The ways in which a member comes back; a failback never takes a heavier one than was confirmed."""
READING = 1.0
"""Seconds that reading the last sample may take; clients wait meanwhile."""


@frozen(kw_only=True)
class Came:
    """What an effect returned, and one line of it for a person."""

    text: str = ""
    fence: Fence | None = None
    route: RouteFacts | None = None
    settled: GroupFacts | None = None
    sample: Sample | None = None
    promoted: Promoted | None = None
    findings: tuple[Finding, ...] = ()


@define
class Effects:
    """Carries single steps of one execution out; every one of them may be repeated."""

    group: FailoverGroup
    execution: Execution
    actor: str
    clock: Callable[[], datetime]

    def of(self, step: Step) -> Awaitable[Came]:
        """Begin a step. Raises what the one raises who carries it out."""
        effects: dict[StepKind, Callable[[Step], Awaitable[Came]]] = {
            "prepare": self.prepare,
            "hold": self.hold,
            "fence": self.fence,
            "settle": self.settle,
            "promote": self.promote,
            "switch": self.switch,
            "verify": self.verify,
            "follow": self.follow,
            "rejoin": self.rejoin,
            "require": self.require,
            "lift": self.lift,
            "release": self.release,
        }
        return effects[step.kind](step)

    async def prepare(self, step: Step) -> Came:
        """Do beforehand what clients would have to wait for."""
        await self.group.promoter.prepare(step.subject, epoch=self.execution.epoch)
        return Came()

    async def hold(self, step: Step) -> Came:
        """Have the clients of a route wait."""
        route = await self._led(step.subject, None)
        return Came(text=str(route), route=route)

    async def fence(self, step: Step) -> Came:
        """Prove that a member cannot write; what cannot be proven is waived if somebody has accepted that by name."""
        terms, epoch = self.execution.terms, self.execution.epoch
        try:
            fence = await self._proven(step.subject)
        except Conflict:
            raise
        except ResilienceError as error:
            if not terms.accept_split_brain or self.execution.plan.kind != "failover":
                raise
            evidence = f"accepted by {self.actor or 'whoever began this'} though {error.what}"
            at = self.clock()
            fence = Fence(member=step.subject, kind="waived", epoch=epoch, at=at, evidence=evidence)
        return Came(text=f"{fence.kind}: {fence.evidence}", fence=fence)

    async def settle(self, _: Step) -> Came:
        """Have the standbys stop receiving, and look at how far each has come."""
        settling = asyncio.create_task(self.group.promoter.settle(epoch=self.execution.epoch))
        reading = asyncio.create_task(self._recorded())
        try:
            settled, sample = await asyncio.gather(settling, reading)
        finally:
            await stop_tasks([settling, reading])
        standbys = [f"{each.name} at {each.durable}" for each in settled.members if each.role == "standby"]
        return Came(text=", ".join(standbys), settled=settled, sample=sample)

    async def promote(self, _: Step) -> Came:
        """Give the role to whom it was decided to give it; the fences are looked at again first."""
        order = await self._order()
        try:
            promoted = await self.group.promoter.promote(order)
        except Refused as error:
            await self._still_standby(order.candidate, error)
            raise
        left = f", which left the old history at {promoted.forked_at}" if promoted.forked_at else ""
        text = f"{promoted.primary} takes writes at {promoted.point.position}{left}"
        return Came(text=text, promoted=promoted, findings=promoted.findings)

    async def switch(self, step: Step) -> Came:
        """Lead a route to the new primary, and compare whom a real connection through it has reached."""
        promoted = self.execution.promoted
        route = await self._led(step.subject, self.execution.primary)
        if not route.instance:
            raise TimedOut("no connection through it has reached a server", operation="switch", subject=step.subject)
        if promoted is not None and promoted.instance and route.instance != promoted.instance:
            text = f"a connection through it has reached another server than {promoted.primary}"
            raise RouteMoved(text, operation="switch", subject=step.subject)
        return Came(text=str(route), route=route)

    async def verify(self, _: Step) -> Came:
        """Write to the new primary and read it back."""
        point = await self.group.promoter.verify(self.execution.primary, epoch=self.execution.epoch)
        return Came(text=f"a mark was written and read back at {point.position}")

    async def follow(self, step: Step) -> Came:
        """Have a standby receive from whoever is primary."""
        primary = self.execution.primary
        await self.group.promoter.follow(step.subject, primary=primary, epoch=self.execution.epoch)
        return Came(text=f"receives from {primary}")

    async def rejoin(self, step: Step) -> Came:
        """Bring a member back behind the primary, in no heavier way than was confirmed; then let it do its part."""
        primary, epoch = self.execution.primary, self.execution.epoch
        found = await self.group.promoter.divergence(step.subject, primary=primary)
        self._refuse_heavier(found)
        await self.group.promoter.rejoin(found, epoch=epoch)
        if (fencer := self.group.fencer(step.subject)) is not None:
            await fencer.lift(step.subject, epoch=epoch)
        return Came(text=str(found))

    async def require(self, _: Step) -> Came:
        """Have the primary wait for its standbys again, as far as these are back."""
        plan, gone = self.execution.plan, self._not_back()
        back = [name for name in plan.required if name not in gone]
        needed = min(plan.required_needed, len(back))
        await self.group.promoter.require(
            self.execution.primary, members=back, needed=needed, epoch=self.execution.epoch
        )
        text = f"a write waits for {needed} of {', '.join(back)}" if needed else "a write waits for nobody"
        if needed == plan.required_needed:
            return Came(text=text)
        hint = "bring them back, and have the primary wait for them"
        finding = Finding(severity="warning", subject=self.execution.primary, text=f"only now: {text}", hint=hint)
        return Came(text=text, findings=(finding,))

    async def lift(self, step: Step) -> Came:
        """Let a member write again that was fenced for nothing."""
        if (fencer := self.group.fencer(step.subject)) is not None:
            await fencer.lift(step.subject, epoch=self.execution.epoch)
        return Came()

    async def release(self, step: Step) -> Came:
        """Let clients go where they were, whether somebody answers them there or not."""
        try:
            route = await self._led(step.subject, self.execution.plan.primary)
        except (Unavailable, Interrupted):
            route = await self._switch(step.subject).survey()
            if route.held:
                raise
        return Came(text=str(route), route=route)

    async def _recorded(self) -> Sample | None:
        """Read what was recorded of the primary last; the plan has what had been recorded until then."""
        try:
            async with asyncio.timeout(READING):
                return (await last_sample(self.group.samples, self.group.name, now=self.clock()))[0]
        except TimeoutError:
            return None

    async def _order(self) -> PromotionOrder:
        """Return the order in this epoch; where nobody knows what came of it the fences are proven again."""
        epoch = self.execution.epoch
        candidate = self.execution.plan.candidate  # a group that elects decides nothing again
        order = self.execution.order or PromotionOrder(candidate=candidate, epoch=epoch, fences=self.execution.fences)
        if self.execution.state != "in doubt":
            return evolve(order, epoch=epoch)
        again = [await self._proven(each.member) if each.kind != "waived" else each for each in order.fences]
        return evolve(order, epoch=epoch, fences=tuple(again))

    async def _still_standby(self, candidate: str | None, error: Refused) -> None:
        """Raise Interrupted unless a candidate that refused is seen to be a standby: all is undone only after that.

        Where the group elects, nobody but the old primary may be seen to take writes.
        """
        facts = await self.group.promoter.survey()
        if candidate is None:
            others = [each for each in facts.members if each.name != self.execution.plan.primary]
            if not any(each.role == "primary" or each.writable for each in others):
                return
        member = facts.member(candidate or "")
        if member is None or not member.reachable or member.role != "standby" or member.writable:
            text = f"nobody sees that it is still a standby, and yet: {error}"
            raise Interrupted(text, operation="promote", subject=candidate or self.group.name) from error

    async def _proven(self, member: str) -> Fence:
        fencer = self.group.fencer(member)
        if fencer is None:
            raise FencingUnproven("nobody can fence it", operation="fence", subject=member)
        clean = self.execution.plan.kind != "failover"
        return await fencer.fence(member, epoch=self.execution.epoch, clean=clean)

    async def _led(self, name: str, to: str | None) -> RouteFacts:
        """Lead a route from where it was last seen, or else from where it may be by our doing."""
        switch, known = self._switch(name), self.execution.route(name)
        if known is None or self.execution.resumed:
            known = await self._expected(switch)
        try:
            return await switch.switch(to, expected=known.version)
        except RouteMoved:
            known = await self._expected(switch)
            return await switch.switch(to, expected=known.version)

    async def _expected(self, switch: TrafficSwitch) -> RouteFacts:
        found = await switch.survey()
        if found.held or found.follows or found.to in {self.execution.plan.primary, self.execution.primary}:
            return found
        raise RouteMoved(
            f"somebody else led it to {found.to or 'nobody known'}",
            operation="switch",
            subject=switch.name,
            hint="find out who, and why; then lead it back or give it up by name",
        )

    def _switch(self, name: str) -> TrafficSwitch:
        switch = self.group.route(name)
        if switch is None:
            raise RouteMoved("the group has no such route", operation="switch", subject=name)
        return switch

    def _refuse_heavier(self, found: Divergence) -> None:
        confirmed = next(
            (each.way for each in self.execution.plan.divergences if each.member == found.member), "rewind"
        )
        if found.way == "none":
            raise NotFollowing(found.why, operation="rejoin", subject=found.member)
        if HEAVIER.index(found.way) > HEAVIER.index(confirmed):
            raise StalePlan(
                f"it has to be {found.way}-ed, and what was confirmed is {confirmed}: {found.why}",
                operation="rejoin",
                subject=found.member,
                hint="plan a failback, which shows what it takes",
            )

    def _not_back(self) -> set[str]:
        came = {
            each.step.subject: each.outcome for each in self.execution.done if each.step.kind in {"follow", "rejoin"}
        }
        return {member for member, outcome in came.items() if outcome != "done"}
