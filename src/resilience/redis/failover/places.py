"""Which server is meant by an address: members may be known by names, and Sentinels say what these resolve to."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

from resilience.arrivals import resolved

from .sentinels import Address

T = TypeVar("T")


async def learn(places: dict[Address, T], said: Collection[Address]) -> None:
    """Find out who is meant by addresses that are not among `places`, and put those there that are found.

    Nothing is looked up where all are there. A name that is not resolved, or not in time, means nobody.
    """
    unknown = [each for each in said if each not in places]
    if not unknown:
        return
    known = dict(places)
    found = await asyncio.gather(*(resolved(*each) for each in (*known, *unknown)))
    for whose, addresses in zip(known.values(), found[: len(known)], strict=True):
        for address in addresses:
            places.setdefault(address, whose)
    for each, addresses in zip(unknown, found[len(known) :], strict=True):
        for address in addresses:
            if address in places:
                places.setdefault(each, places[address])
