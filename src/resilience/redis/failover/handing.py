"""Handing over: a master takes no more writes, and its replicas receive all it has (CLIENT PAUSE WRITE, Redis 6.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

from resilience.model.errors import Refused, ResilienceError, TimedOut
from resilience.redis.client import from_server
from resilience.redis.members import RedisMember

from .links import Link, refused
from .looking import COMMANDS, Look, parsed

OPERATION = "fence"
HANDED_SECONDS = 15.0
"""How long a master that was handed over takes no writes at least: half of the shortest pause."""
LOOK_AGAIN_SECONDS = 0.003
ANSWER_SECONDS = 2.0


async def hand_over(members: Sequence[RedisMember], name: str, *, seconds: float) -> Look:
    """Have a master take no writes for `seconds`, and wait until its replicas have all it had; return how it was then.

    Who writes meanwhile waits. Replicas that it does not reach are not waited for. Raises TimedOut where one has not
    caught up in half of that time, or there is none; then it takes writes again.
    """
    links = {each.name: Link(each.url) for each in members}
    master = links.pop(name)
    try:
        return await _handed_over(master, links, name, seconds)
    except BaseException:
        await let_write(master, seconds=ANSWER_SECONDS)
        raise
    finally:
        for link in (master, *links.values()):
            await link.aclose()


async def hold_on(link: Link, *, seconds: float) -> None:
    """Have a server that was handed over go on taking no writes until it is a replica, if it answers."""
    with suppress(ResilienceError):
        await link.ask("CLIENT", "PAUSE", int(2000 * HANDED_SECONDS), "WRITE", seconds=seconds, operation=OPERATION)


async def let_write(link: Link, *, seconds: float) -> None:
    """Let a server take writes again, if it answers: the pause ends by itself too."""
    with suppress(ResilienceError):
        await link.ask("CLIENT", "UNPAUSE", seconds=seconds, operation="lift")


async def _handed_over(master: Link, others: dict[str, Link], name: str, seconds: float) -> Look:
    pause = ("CLIENT", "PAUSE", int(seconds * 1000), "WRITE")
    look = await _look(master, pause)
    if not look.master:
        raise Refused("it is no master", operation=OPERATION, subject=name)
    deadline = monotonic() + seconds / 2
    while others:
        seen = await asyncio.gather(*(_tried(link) for link in others.values()))
        behind = {
            each: found.offset if found is not None else -1
            for each, found in zip(others, seen, strict=True)
            if found is not None and found.receiving and (found.replid, found.offset) < (look.replid, look.offset)
        }
        receiving = [found for found in seen if found is not None and found.receiving]
        if receiving and all(each.replid == look.replid and each.offset >= look.offset for each in receiving):
            return look
        if monotonic() > deadline:
            text = f"its replicas have not caught up with {look.offset}: {behind or 'none receives from it'}"
            raise TimedOut(text, operation=OPERATION, subject=name, hint="look at INFO replication")
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    return look


async def _look(link: Link, *before: Sequence[str | int]) -> Look:
    answers = await link.several([*before, *COMMANDS], seconds=ANSWER_SECONDS, operation=OPERATION)
    for answer in answers[: len(before) + 2]:
        if (said := refused(answer)) is not None:
            raise from_server(str(said), where=link.url.where, operation=OPERATION)
    return parsed(*answers[len(before) :])


async def _tried(link: Link) -> Look | None:
    try:
        return await _look(link)
    except ResilienceError:
        return None
