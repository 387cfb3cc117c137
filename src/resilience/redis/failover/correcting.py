"""Correcting: Sentinels that come back after a promotion by hand watch the old master, and would elect once more.

Until all of them agree, no replica but the new master can be elected: the others' replica-priority is 0. So a majority
that comes back elects nobody else. One of those that are fewer is told to fail over (SENTINEL FAILOVER): it, too, can
only choose who is master already, and gives that choice an epoch of its own, which the others follow.

SENTINEL REMOVE and MONITOR are not used: they forget the epoch, so that a Sentinel which comes back later with an older
configuration would win.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from resilience.model.errors import Interrupted, Refused, ResilienceError, TimedOut

from .electing import electable, exclude, readmit
from .members import LOOK_AGAIN_SECONDS, Members
from .sentinels import FORCED_SECONDS, Council, Opinion


async def guard(members: Members, primary: str) -> tuple[str, ...]:
    """Have no Sentinel elect anybody but `primary`, whenever it comes back; return of whom that cannot be had."""
    free = []
    for name in members.links:
        if name != primary:
            try:
                if not await exclude(members, name):
                    free.append(name)
            except ResilienceError:
                continue  # it is not there; a survey shows who could be elected
    return tuple(free)


async def release(members: Members, *, operation: str) -> None:
    """Let all members be elected again that were kept from it, if no Sentinel is wrong about who is master."""
    _, council = await members.look_at_all(operation=operation)
    await _release(members, members.primary, council)


async def _release(members: Members, primary: str, council: Council) -> None:
    complete = council.elects or len(council.answering) == len(council.opinions)
    if complete and not _wrong(members, primary, council):
        await readmit(members)


def _wrong(members: Members, primary: str, council: Council) -> list[Opinion]:
    return [each for each in council.answering if members.places.get(each.named or ("", 0)) != primary]


async def correct(members: Members, primary: str, *, seconds: float, operation: str) -> str:
    """Have all Sentinels that answer name `primary`, the master by its own word; return what was done.

    With no `seconds` nobody is waited for who learns it by himself. Raises Refused if it is no master, or if they have
    agreed on another that takes writes; TimedOut if one still names another after `seconds`.
    """
    deadline = monotonic() + seconds
    told, wait_until = False, 0.0
    while True:
        _, council = await members.look_at_all(operation=operation)
        _refuse_rival(members, primary, council)
        if not (wrong := _wrong(members, primary, council)):
            await _release(members, primary, council)
            return "they were told to elect it, and have" if told else ""
        by_themselves = council.at_work or members.places.get(council.named or ("", 0)) == primary
        if by_themselves and not seconds:
            return "they learn it from each other"
        if not by_themselves and not told:
            await guard(members, primary)
        due = not by_themselves and (council.calm or not council.elects) and monotonic() > wait_until
        if due and await _told(members, primary, wrong, operation):
            told, wait_until = True, monotonic() + FORCED_SECONDS
        if monotonic() > deadline:
            names = ", ".join(each.sentinel for each in wrong)
            text = f"Sentinels still name another than {primary}: {names}"
            raise TimedOut(text, operation=operation, subject=primary, hint="SentinelPromoter.correct tries again")
        await asyncio.sleep(LOOK_AGAIN_SECONDS * 10)


def _refuse_rival(members: Members, primary: str, council: Council) -> None:
    look = members.seen[primary].look
    if look is None or not look.master:
        raise Refused(f"{primary} does not say that it is the master", operation="correct", subject=primary)
    named = members.places.get(council.named, "") if council.named else ""
    rival = members.seen[named].look if named in members.seen else None
    if council.complete and named != primary and rival is not None and rival.master:
        text = f"the Sentinels have agreed on {named}, which takes writes as well"
        raise Refused(text, operation="correct", subject=primary, hint="fence the one that is wrong, and rejoin it")


async def _told(members: Members, primary: str, wrong: list[Opinion], operation: str) -> bool:
    """Tell one that would elect `primary` and nobody else to fail over."""
    for opinion in wrong:
        if "failover_in_progress" in opinion.flags or electable(members, opinion) != [primary]:
            continue
        link = next(each for each in members.sentinels.links if each.url.where == opinion.sentinel)
        try:
            await members.sentinels.tell(link, "FAILOVER", members.sentinels.watched, operation=operation)
        except Interrupted:
            return True  # it may have begun: another one would take the same epoch
        except ResilienceError:
            continue
        return True
    return False
