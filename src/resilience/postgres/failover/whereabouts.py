"""Whom a standby means by where it receives from: a server may be known by names and by addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from time import monotonic

from attrs import define, field

from resilience.arrivals import resolved
from resilience.postgres.members import PostgresMember

from .conninfo import Upstream
from .looking import Look

AGAIN_SECONDS = 10.0
"""So long a place that is nobody's is not looked up again."""
Place = tuple[str, str]


@define(eq=False)
class Whereabouts:
    """Where the members of a group are: as their dsn says, and where names lead, once that was asked for."""

    members: tuple[PostgresMember, ...]
    _said: dict[Place, str] = field(factory=dict, init=False)
    _found: dict[Place, str] = field(factory=dict, init=False)
    _asked: dict[Place, float] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        for member in self.members:
            for dsn in (member.dsn, member.replication):
                for place in Upstream(dsn.parameters).places if dsn is not None else ():
                    self._said.setdefault(place, member.name)
        self._said.update({member.address: member.name for member in self.members})

    async def sources(self, name: str, look: Look) -> tuple[str, ...]:
        """Name the members that a standby receives from, or may once it does again; none if they are no members."""
        for places in ([look.sender] if look.sender else [], look.upstream.places):
            named = await self._named(places)
            if found := tuple(each for each in named if each != name):
                return found
        return ()

    async def _named(self, places: Sequence[Place]) -> tuple[str, ...]:
        """Nothing is looked up where all are known as they are written."""
        since = monotonic() - AGAIN_SECONDS
        if unknown := [each for each in places if not self._whose(each) and self._asked.get(each, since) <= since]:
            await self._learn(unknown)
        return tuple(dict.fromkeys(whose for each in places if (whose := self._whose(each))))

    def _whose(self, place: Place) -> str:
        return self._said.get(place) or self._found.get(place, "")

    async def _learn(self, unknown: Sequence[Place]) -> None:
        """Look up where members are, and where `unknown` leads; what two members share is neither's."""
        self._asked.update(dict.fromkeys(unknown, monotonic()))
        said = list(self._said)
        found = await asyncio.gather(*(_resolved(each) for each in (*said, *unknown)))
        owners: dict[Place, set[str]] = {}
        for place, addresses in zip(said, found, strict=False):
            for address in addresses:
                owners.setdefault(address, set()).add(self._said[place])
        self._found.update({place: next(iter(names)) for place, names in owners.items() if len(names) == 1})
        for place, addresses in zip(unknown, found[len(said) :], strict=True):
            if len(names := {name for each in addresses for name in owners.get(each, ())}) == 1:
                self._found[place] = names.pop()


async def _resolved(place: Place) -> Iterable[Place]:
    """Return the addresses that a host and its port have; a socket's path has none."""
    host, port = place
    if host.startswith(("/", "@")) or not port.isdecimal():
        return ()
    return {(address, str(number)) for address, number in await resolved(host, int(port))}
