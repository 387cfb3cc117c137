"""SentinelRoute: the way of clients that ask the Sentinels who is master, as `connect_master` does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import field, frozen

from resilience.arrivals import arrive
from resilience.concurrency import finish
from resilience.model.errors import RouteMoved, Unavailable
from resilience.model.failover import PhaseFloor
from resilience.model.findings import Finding
from resilience.model.groups import RouteFacts
from resilience.model.ids import checked_name
from resilience.model.json import Json
from resilience.model.show import as_span

from .client import Url, commands, parse_redis_url, parse_redis_urls
from .failover.finding import AGAIN_SECONDS, ASK_SECONDS, LOOK_SECONDS, Finder
from .failover.places import learn
from .failover.sentinels import Address, Sentinels
from .survey import SYSTEM, ask_info


@frozen
class SentinelRoute:
    """Clients that find the master of the group `watched` through its `sentinels`, with `connect_master`.

    `members` says which server is which member: `{"a": ("10.0.0.4", 6379)}`; `url` how servers are reached (scheme,
    user, password). There is nothing to hold and nothing to change: a switch waits, `deadline` seconds at the most,
    until who asks like a client arrives at the member, and that takes writes. That clients leave the old master is not
    its doing: `connect_master` does. Each look connects anew, as a new client does.
    """

    system: ClassVar[str] = SYSTEM

    name: str = field(converter=checked_name)
    sentinels: Sequence[Url] = field(converter=parse_redis_urls, kw_only=True)
    members: Mapping[str, Address] = field(kw_only=True)
    watched: str = field(default="mymaster", kw_only=True)
    url: Url = field(default=Url("redis://localhost"), converter=parse_redis_url, kw_only=True)
    seconds: float = field(default=1.0, kw_only=True)
    deadline: float = field(default=15.0, kw_only=True)

    async def survey(self) -> RouteFacts:
        """Look for the master as a client does; that nobody is found is a finding. Raises Refused."""
        try:
            return await self._reached()
        except Unavailable as error:
            silent = Finding(severity="warning", subject=self.name, text=f"clients find no master: {error.what}")
            return self._facts(None, silent)

    async def switch(self, to: str | None, *, expected: str) -> RouteFacts:
        """Wait until clients arrive at a member; holding them (None) does nothing.

        Raises RouteMoved, Refused, and TimedOut if they still arrive elsewhere, or nowhere, after `deadline`.
        """
        if to is None:
            return self._facts(None)
        if to not in self.members:
            raise ValueError(f"{self.name} knows no member {to!r}")
        if expected != self._version:
            text = "the Sentinels, or the group's name, are not those that this was decided with"
            raise RouteMoved(text, operation="switch", subject=self.name, hint="look at it again")
        return await arrive(self._reached, to, route=self.name, deadline=self.deadline, pause=LOOK_SECONDS)

    async def floor(self) -> tuple[PhaseFloor, ...]:
        """Return how long clients take to hear of it."""
        why = (
            f"{self.name}: who listens to the Sentinels hears it at once; who lost them asks every "
            f"{as_span(ASK_SECONDS)}, and listens again after {as_span(AGAIN_SECONDS)}"
        )
        return (PhaseFloor(phase="reconnect", seconds=LOOK_SECONDS, why=why),)

    @property
    def _version(self) -> str:
        text = f"{self.watched} {','.join(sorted(each.where for each in self.sentinels))}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def _details(self) -> dict[str, Json]:
        where: list[Json] = [*sorted(each.where for each in self.sentinels)]
        return {"sentinels": where, "watched": self.watched}

    async def _reached(self) -> RouteFacts:
        finder = Finder(
            Sentinels(tuple(self.sentinels), self.watched, self.seconds), self.url, tuple(self.members.values())
        )
        try:
            address = await finder.now()
        finally:
            await finish(finder.aclose())
        async with commands(self.url.at(*address), operation="survey", seconds=self.seconds) as client:
            info = await ask_info(client, "default")
        places = {(host, int(port)): name for name, (host, port) in self.members.items()}
        await learn(places, {address})
        return RouteFacts(
            route=self.name,
            to=places.get(address),
            version=self._version,
            follows=True,
            instance=info.text("run_id"),
            writable=info.master,
            details=self._details,
        )

    def _facts(self, to: str | None, *findings: Finding) -> RouteFacts:
        return RouteFacts(
            route=self.name,
            to=to,
            version=self._version,
            follows=True,
            findings=findings,
            details=self._details,
        )
