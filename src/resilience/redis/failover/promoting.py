"""Promoting: one replica takes writes, by its Sentinels' election or by hand (REPLICAOF NO ONE)."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta

from resilience.model.errors import Interrupted, Refused, ResilienceError, Unavailable
from resilience.model.failover import Loss, Promoted, PromotionOrder
from resilience.model.findings import Finding
from resilience.model.groups import Fence
from resilience.model.moments import utc_now
from resilience.model.positions import RecoveryPoint

from .correcting import correct, guard, release
from .electing import elect, readmit, recheck
from .group import position
from .handing import HANDED_SECONDS, hold_on
from .looking import UNNOTED, Look
from .members import Members

OPERATION = "promote"
FENCE_SECONDS = 0.25
"""How long a fenced member may take to prove us wrong: one that does not answer does not take writes from anybody."""
MARK = "resilience:failover"
MARK_SECONDS = 60
"""How long the key stays that proves that writes are taken."""


async def promote(members: Members, order: PromotionOrder, *, seconds: float) -> Promoted:
    """Promote the candidate, or have the Sentinels elect; see `Promoter.promote`."""
    await recheck(members, order.fences, seconds=FENCE_SECONDS)
    _, council = await members.look_at_all(operation=OPERATION)
    if order.candidate is None or council.elects:
        try:
            name, order = await elect(members, order, seconds=seconds)
        except Refused:
            await release(members, operation=OPERATION)
            raise
        for fence in order.fences:  # clients are led away first, and that takes its time
            if fence.kind == "delegated" and fence.end is not None:
                await hold_on(members.links[fence.member], seconds=members.seconds)
        if order.candidate is not None:
            await readmit(members)
        return await _promoted(members, name, order)
    free = await _by_hand(members, order.candidate, order)
    return await _promoted(members, order.candidate, order, free)


async def verify(members: Members, primary: str, *, epoch: int) -> RecoveryPoint:
    """Write a key that soon expires and read it back; see `Promoter.verify`. Then have the Sentinels agree."""
    text = json.dumps({"epoch": epoch, "primary": primary})
    set_, read = await members.run(primary, ("SET", MARK, text, "EX", MARK_SECONDS), ("GET", MARK), operation="verify")
    look = await members.look(primary, operation="verify")
    if bytes(set_) != b"OK" or bytes(read or b"") != text.encode() or not look.master:
        raise Interrupted("a mark that was written is not there", operation="verify", subject=primary)
    with suppress(ResilienceError):  # what is still wrong with them a survey shows
        await correct(members, primary, seconds=0, operation="verify")
    return RecoveryPoint(position=position(look.replid, look.offset), time=look.now)


async def require(members: Members, primary: str, needed: int, *, epoch: int) -> None:
    """Have the master refuse writes while fewer than so many replicas are there; see `Promoter.require`."""
    look = await members.look(primary, operation="require")
    await members.stamp(primary, look, epoch=epoch, operation="require")
    if not look.master:
        raise Refused(f"{primary} is no master", operation="require", subject=primary)
    await members.run(primary, ("CONFIG", "SET", "min-replicas-to-write", needed), operation="require")
    await members.keep(primary, operation="require")


async def _by_hand(members: Members, name: str, order: PromotionOrder) -> tuple[str, ...]:
    """Promote a replica; return whom the Sentinels might elect by mistake once they come back."""
    look = await members.look(name, operation=OPERATION)
    await members.stamp(name, look, epoch=order.epoch, operation=OPERATION)
    if look.master:
        return ()
    free = await guard(members, name)
    await members.links[name].tell("REPLICAOF", "NO", "ONE", seconds=members.seconds, operation=OPERATION)
    await members.keep(name, operation=OPERATION)
    return free


async def _promoted(members: Members, name: str, order: PromotionOrder, free: tuple[str, ...] = ()) -> Promoted:
    """Ask the new master itself, and say what it is."""
    try:
        look = await members.look(name, operation=OPERATION)
    except (Unavailable, Refused) as error:
        text = f"it was promoted, and {error.what}"
        raise Interrupted(text, operation=OPERATION, subject=name) from error
    if not look.master:
        raise Interrupted("it was promoted, and says that it is none", operation=OPERATION, subject=name)
    at = utc_now()
    members.primary = name
    return Promoted(
        primary=name,
        epoch=order.epoch,
        instance=look.instance,
        point=RecoveryPoint(position=position(look.replid, look.offset), time=look.now),
        forked_at=position(look.parent, look.forked_at) if look.parent else None,
        at=at,
        loss=next((loss for fence in order.fences if (loss := _lost(name, fence, look, at)) is not None), None),
        findings=(*_unasked(name, order), *(_unguarded(each) for each in free)),
    )


def _lost(name: str, fence: Fence, look: Look, at: datetime) -> Loss | None:
    """Return what is lost although a master was handed over; None if that is nothing."""
    if fence.end is None:
        return None
    if look.parent == fence.end.branch and look.forked_at < fence.end.offset:
        text = f"{name} lacks what was handed over: {fence.member} had {fence.end}, and it left at {look.forked_at}"
        return Loss(kind="unknown", missing=fence.end.offset - look.forked_at, evidence=(text,))
    if fence.kind != "delegated":
        return None
    if fence.end.branch == look.replid:
        text = f"{fence.member} was a replica of {name} already: nobody knows what it had acknowledged before"
        return Loss(kind="unknown", evidence=(text,))
    if at > fence.at + timedelta(seconds=HANDED_SECONDS):
        text = f"{name} was the master only then: {fence.member} may have taken writes again by itself"
        return Loss(kind="bounded", since=fence.at, evidence=(text,))
    return None


def _unasked(name: str, order: PromotionOrder) -> tuple[Finding, ...]:
    if order.candidate in (None, name):
        return ()
    text = f"the Sentinels have elected it; {order.candidate} was asked for"
    return (Finding(severity="warning", subject=name, text=text, hint="a switchover gives the role away"),)


def _unguarded(name: str) -> Finding:
    text = f"Sentinels that come back may elect it, although another is master now: {UNNOTED}"
    return Finding(severity="warning", subject=name, text=text, hint="SentinelPromoter.correct, once they are back")
