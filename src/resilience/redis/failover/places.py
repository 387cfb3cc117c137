"""Which server is meant by an address: members may be known by names, and Sentinels say what these resolve to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from typing import TypeVar

from .sentinels import Address

RESOLVE_SECONDS = 0.5
T = TypeVar("T")


async def learn(places: dict[Address, T], said: Collection[Address]) -> None:
    """Find out who is meant by addresses that are not among `places`, and put those there that are found.

    Nothing is looked up where all are there. A name that is not resolved, or not in time, means nobody.
    """
    unknown = [each for each in said if each not in places]
    if not unknown:
        return
    known = dict(places)
    resolved = await asyncio.gather(*(_resolved(each) for each in (*known, *unknown)))
    for whose, addresses in zip(known.values(), resolved[: len(known)], strict=True):
        for address in addresses:
            places.setdefault(address, whose)
    for each, addresses in zip(unknown, resolved[len(known) :], strict=True):
        for address in addresses:
            if address in places:
                places.setdefault(each, places[address])


async def _resolved(address: Address) -> list[Address]:
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return []
    return [(str(each[4][0]), int(each[4][1])) for each in found]
