"""Promoting where Sentinels do it: they are told to fail over, or have already, and whom they elect is looked for.

A Sentinel that is told (SENTINEL FAILOVER) asks nobody: it takes the next epoch and fails over. Another one that elects
at the same time may take the same epoch. So they are told only while none of them is about to elect by itself.

The Sentinels elect whose replica-priority is lowest, and of equals who has most. So a candidate that was asked for is
given the only priority that is not 0, for as long as that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic

from attrs import evolve

from resilience.model.errors import FencingUnproven, Interrupted, Refused, ResilienceError, Unavailable
from resilience.model.failover import PromotionOrder
from resilience.model.groups import Fence
from resilience.model.moments import utc_now

from .group import Seen, position
from .handing import HANDED_SECONDS, hand_over
from .looking import UNNOTED
from .members import LOOK_AGAIN_SECONDS, Members
from .sentinels import Council, Opinion

OPERATION = "promote"
AGAIN = ("INPROG", "NOGOODSLAVE")
"""What a Sentinel says that fails over already, and one that knows no replica that would do: yet."""


async def elect(members: Members, order: PromotionOrder, *, seconds: float) -> tuple[str, PromotionOrder]:
    """Have the Sentinels elect a new master unless they have; return its name once it takes writes by its own word.

    The order is returned with the fences as they were renewed. Raises Refused if they cannot and nobody was promoted,
    Interrupted if nobody can tell.
    """
    gone = {fence.member for fence in order.fences}
    seen, council = await members.look_at_all(operation=OPERATION)
    if name := elected(members, seen, council, gone):
        return name, order
    if not council.elects:
        text = f"{len(council.answering)} of {council.size} Sentinels answer: they cannot elect anybody"
        raise Refused(text, operation=OPERATION, subject=members.primary, hint="plan again, and promote by hand")
    for each in seen:
        if each.look is not None:
            await members.stamp(each.name, each.look, epoch=order.epoch, operation=OPERATION)
    if order.candidate is not None:
        await steer(members, order.candidate, seconds=seconds)
    order = evolve(order, fences=tuple([await _renewed(members, fence) for fence in order.fences]))
    seen, council = await members.look_at_all(operation=OPERATION)
    if name := elected(members, seen, council, gone):
        return name, order
    await _refuse_behind(seen, order)
    if any(fence.end is not None for fence in order.fences):
        seconds = min(seconds, HANDED_SECONDS)
    return await _ask_and_wait(members, gone, seconds), order


async def _renewed(members: Members, fence: Fence) -> Fence:
    """Have a master that was handed over be so from now on once more: a pause ends by itself, and nobody notices.

    What it has acknowledged since, its replicas have then. One that does not answer is taken at its word for as long as
    it cannot have taken it back. Raises FencingUnproven.
    """
    look = members.seen[fence.member].look
    if fence.kind != "delegated" or fence.end is None or (look is not None and not look.master):
        return fence
    if look is None and utc_now() < fence.at + timedelta(seconds=HANDED_SECONDS):
        return fence
    try:
        look = await hand_over(members.members, fence.member, seconds=2 * HANDED_SECONDS)
    except ResilienceError as error:
        text = f"nobody can tell what it has acknowledged since it was handed over: {error.what}"
        hint = "once it does not answer it is a failover"
        raise FencingUnproven(text, operation=OPERATION, subject=fence.member, hint=hint) from error
    return evolve(fence, at=utc_now(), end=position(look.replid, look.offset))


def elected(members: Members, seen: Sequence[Seen], council: Council, gone: set[str]) -> str:
    """Name the master that the newest configuration names, or that is just being promoted; empty if there is none.

    What counts is that it says itself that it is one.
    """
    for address in (council.named, council.chosen):
        name = members.places.get(address, "") if address is not None else ""
        look = next((each.look for each in seen if each.name == name), None)
        if name and name not in gone and look is not None and look.master:
            return name
    return ""


async def steer(members: Members, candidate: str, *, seconds: float) -> None:
    """Have no other replica be electable, and wait until the Sentinels know; each asks only every so often."""
    for name in members.links:
        look = members.seen[name].look
        electable = look is not None and not look.master and look.priority > 0
        if electable and name != candidate and not await exclude(members, name):
            text = f"the Sentinels might elect {name}: {UNNOTED}"
            hint = "leave it to them whom they elect"
            raise Refused(text, operation=OPERATION, subject=candidate, hint=hint)
    await _until_known(members, candidate, seconds)


async def exclude(members: Members, name: str) -> bool:
    """Have a replica not be elected until `readmit`; what its priority was is written down on it first.

    False if it cannot be written down: then it stays as it is.
    """
    look = await members.look(name, operation=OPERATION)
    if look.master or not look.priority:
        return True
    if not look.stampable:
        return False
    await members.mark(name, evolve(look.stamp, priority=look.priority), operation=OPERATION)
    await members.run(name, ("CONFIG", "SET", "replica-priority", 0), operation=OPERATION)
    return True


async def readmit(members: Members) -> None:
    """Give the members back the priorities that `exclude` took, those that answer. Cancelled: some may have theirs."""
    for name in members.links:
        try:
            look = await members.look(name, operation=OPERATION)
            if look.stamp.priority is not None:
                await members.run(name, ("CONFIG", "SET", "replica-priority", look.stamp.priority), operation=OPERATION)
                await members.mark(name, evolve(look.stamp, priority=None), operation=OPERATION)
                await members.keep(name, operation=OPERATION)
        except ResilienceError:
            continue  # it keeps its stamp, which a survey shows


async def _until_known(members: Members, candidate: str, seconds: float) -> None:
    """Wait until every Sentinel that answers would elect nobody else."""
    deadline = monotonic() + seconds
    while True:
        council = await members.sentinels.ask(operation=OPERATION)
        wrong = {name for each in council.answering for name in electable(members, each) if name != candidate}
        if not wrong:
            return
        if monotonic() > deadline:
            text = f"the Sentinels might still elect {', '.join(sorted(wrong))}"
            raise Refused(text, operation=OPERATION, subject=candidate, hint="they ask replicas every 10 s")
        await asyncio.sleep(LOOK_AGAIN_SECONDS * 10)


def electable(members: Members, opinion: Opinion) -> list[str]:
    """Name those that a Sentinel would elect, as far as it is known from outside."""
    return [
        members.places.get((each.get("ip", ""), int(each.get("port", 0))), each.get("name", "?"))
        for each in opinion.replicas
        if each.get("slave-priority") != "0" and not {"s_down", "disconnected"} & set(each.get("flags", "").split(","))
    ]


async def _refuse_behind(seen: Sequence[Seen], order: PromotionOrder) -> None:
    """Refuse while a replica that might be elected has less than what the old master had when it stopped writes."""
    for fence in order.fences:
        if fence.end is None:
            continue
        for each in seen:
            electable = each.look is not None and not each.look.master and each.look.priority > 0
            behind = each.look is not None and each.look.offset < fence.end.offset
            if electable and behind and each.look is not None and each.look.replid == fence.end.branch:
                text = f"{each.name} has not all that {fence.member} had: {each.look.offset} of {fence.end.offset}"
                raise Refused(text, operation=OPERATION, subject=each.name, hint="let it catch up, then try again")


async def _ask_and_wait(members: Members, gone: set[str], seconds: float) -> str:
    deadline = monotonic() + seconds
    asked = False
    said = ""
    while monotonic() < deadline:
        # Two that fail over at once may take the same epoch and choose differently, and nothing puts that right. So
        # where they are about to elect by themselves they are let.
        if not asked and (members.council.calm or late(deadline, seconds)) and not members.council.at_work:
            asked, said = await _ask(members)
        seen, council = await members.look_at_all(operation=OPERATION)
        if name := elected(members, seen, council, gone):
            return name
        asked = asked and (council.at_work or not late(deadline, seconds))
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    if not asked and not members.council.at_work and said:
        raise Refused(f"the Sentinels elect nobody: {said}", operation=OPERATION, subject=members.sentinels.watched)
    text = f"the Sentinels were told to fail over, and have not named anybody within {seconds:.3g} s"
    raise Interrupted(text, operation=OPERATION, subject=members.sentinels.watched, hint="resume looks again")


def late(deadline: float, seconds: float) -> bool:
    """Tell whether most of the time is over."""
    return monotonic() > deadline - seconds / 4


async def _ask(members: Members) -> tuple[bool, str]:
    """Tell the first Sentinel that can to fail over; return whether one does, and what was said."""
    said = "none of them answers"
    able = {each.sentinel for each in members.council.answering if each.able}
    for link in members.sentinels.links:
        if link.url.where not in able:
            continue
        try:
            await members.sentinels.tell(link, "FAILOVER", members.sentinels.watched, operation=OPERATION)
        except Interrupted as error:
            return True, error.what  # another one would take the same epoch
        except Unavailable as error:
            said = error.what
            continue
        except Refused as error:
            said = error.what
            if error.what.startswith("INPROG"):
                return True, said
            if not error.what.startswith(AGAIN):
                raise
            continue
        return True, "OK"
    return False, said


async def recheck(members: Members, fences: Sequence[Fence], *, seconds: float) -> None:
    """Refuse if a member that was proven fenced takes writes. Raises FencingUnproven."""
    for fence in fences:
        if fence.kind != "proven":
            continue
        try:
            look = await members.look(fence.member, operation=OPERATION, seconds=seconds)
        except Unavailable:
            continue  # one that does not answer does not take writes from anybody
        except ResilienceError as error:
            text = f"it answers: {error.what}"
            raise FencingUnproven(text, operation=OPERATION, subject=fence.member) from error
        if look.master:
            raise FencingUnproven("it takes writes", operation=OPERATION, subject=fence.member, hint="fence it again")
