"""Finding the master, and hearing at once when it is another: all Sentinels are asked, and the server itself.

What counts is the newest configuration that any of them has, as long as a majority answers; and then the server's own
ROLE. Between an election and its end the one that was elected is known already (`+selected-slave`): it is asked every
few milliseconds, and used as soon as it says that it is the master.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic

import redis
from attrs import define, field

from resilience.concurrency import stop_tasks
from resilience.model.errors import ResilienceError, Unreachable
from resilience.redis.client import Url, connect

from .links import Link
from .places import learn
from .sentinels import Address, Council, Sentinels

OPERATION = "find the master"
SWITCHED = ("+switch-master", "+selected-slave", "+promoted-slave")
ASK_SECONDS = 0.1
"""How often the Sentinels are asked while there is no master, if nothing is heard from them."""
LOOK_SECONDS = 0.003
"""How often one that was elected is asked whether it is the master by now."""
AGAIN_SECONDS = 0.5
"""How long it takes until a Sentinel is listened to again that went away."""
ROLE_SECONDS = 0.5
HOPE_SECONDS = 5.0
log = logging.getLogger("resilience")


@define(eq=False)
class Finder:
    """Knows the master of a group: `master`, and by `generation` how often it has been another.

    `login` says how servers are reached, `members` where they are: they are asked only where no majority of the
    Sentinels answers, and then one is the master that a majority of the members follows. `moved` is called at once when
    it is another.
    """

    sentinels: Sentinels
    login: Url
    members: Sequence[Address] = ()
    moved: Callable[[], None] = field(default=lambda: None, repr=False)
    master: Address | None = field(default=None, init=False)
    generation: int = field(default=0, init=False)
    problem: str = field(default="", init=False)
    _last: Address | None = field(default=None, init=False)
    _hoped: Address | None = field(default=None, init=False)
    _hoped_until: float = field(default=0.0, init=False)
    _heard: set[str] = field(factory=set, init=False)
    _links: dict[Address, Link] = field(factory=dict, init=False)
    _watching: list[asyncio.Task[None]] = field(factory=list, init=False)
    _seeking: asyncio.Task[Address] | None = field(default=None, init=False)
    _news: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def find(self, *, seconds: float) -> Address:
        """Return where the master is. Raises Unreachable if nobody is found to be it within so many seconds."""
        self._watch()
        if self.master is not None and len(self._heard) > len(self.sentinels.links) // 2:
            return self.master
        seeking = self._seek()
        await asyncio.wait([seeking], timeout=seconds)
        if not seeking.done():
            text = f"no master was found within {seconds:.3g} s: {self.problem or 'nobody answers'}"
            raise Unreachable(text, operation=OPERATION, subject=self.sentinels.watched)
        return seeking.result()

    async def now(self) -> Address:
        """Look once where the master is. Raises Unreachable if nobody is it now."""
        if (address := await self._look()) is None:
            text = f"there is no master now: {self.problem or 'nobody answers'}"
            raise Unreachable(text, operation=OPERATION, subject=self.sentinels.watched)
        return address

    def doubt(self, address: Address) -> None:
        """Look again before this one is used the next time: it does not answer, or is no master."""
        if self.master == address:
            self.master = None

    async def aclose(self) -> None:
        """End all watching and close all connections; it begins anew when it is asked again."""
        tasks = [*self._watching, *([self._seeking] if self._seeking is not None else [])]
        self._watching, self._seeking, self.master = [], None, None
        self._heard.clear()
        await stop_tasks(tasks)
        await self.sentinels.aclose()
        for link in self._links.values():
            await link.aclose()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = [asyncio.create_task(self._listen(link)) for link in self.sentinels.links]

    def _seek(self) -> asyncio.Task[Address]:
        if self._seeking is None or self._seeking.done():
            self._seeking = asyncio.create_task(self._sought())
        return self._seeking

    async def _sought(self) -> Address:
        while True:
            self._news.clear()
            if (address := await self._look()) is not None and not self._news.is_set():
                self._settle(address)
                return address
            await self._hope()

    def _settle(self, address: Address) -> None:
        self.master, self.problem = address, ""
        if address != self._last:
            self._last = address
            self.generation += 1
            self.moved()

    async def _look(self) -> Address | None:
        """Ask the Sentinels, and whom they promote or name; None if nobody is master by both."""
        council = await self.sentinels.ask(operation=OPERATION, hurry=True)
        if not council.complete:
            self.problem = f"{len(council.answering)} of {council.size} Sentinels answer{_why(council)}"
            return await self._followed()
        address = council.chosen or council.named  # whoever is being replaced would lose what is written there now
        return address if address is not None and await self._is_master(address) else None

    async def _look_until_news(self) -> Address | None:
        """Look, but wait for nobody who hangs once a Sentinel says something: it is to be looked anew then."""
        looking, hearing = asyncio.create_task(self._look()), asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait([looking, hearing], return_when=asyncio.FIRST_COMPLETED)
            return looking.result() if looking.done() else None
        finally:
            await stop_tasks([looking, hearing])

    async def _is_master(self, address: Address) -> bool:
        try:
            role = await self._role(address)
        except ResilienceError as error:
            self.problem = f"{address[0]}:{address[1]}: {error.what}"
            return False
        if role[0] != b"master":
            self.problem = f"{address[0]}:{address[1]} is named, and is no master"
        return bool(role[0] == b"master")

    async def _followed(self) -> Address | None:
        """Return the member that is master and that, with itself, a majority of the members follows."""
        if not self.members:
            return None
        tasks = {address: asyncio.create_task(self._role(address)) for address in self.members}
        await asyncio.wait(tasks.values())
        roles = {each: task.result() for each, task in tasks.items() if task.exception() is None}
        upstreams = [upstream for each in roles.values() if (upstream := _upstream(each)) is not None]
        places = {address: address for address in self.members}
        await learn(places, [*upstreams, *([self._last] if self._last is not None else [])])
        followed = [places.get(upstream) for upstream in upstreams]
        for address, role in roles.items():
            if role[0] == b"master" and 1 + followed.count(address) > len(self.members) // 2:
                # Under the name that it had before: it is no other.
                return self._last if self._last is not None and places.get(self._last) == address else address
        return None

    async def _role(self, address: Address) -> list[bytes | int]:
        link = self._links.setdefault(address, Link(self.login.at(*address)))
        role: list[bytes | int] = await link.ask("ROLE", seconds=ROLE_SECONDS, operation=OPERATION)
        return role

    async def _hope(self) -> None:
        """Wait until somebody says something, or the one that was elected is the master; not for long."""
        until = monotonic() + ASK_SECONDS
        while monotonic() < until and not self._news.is_set():
            if self._hoped is not None and monotonic() < self._hoped_until:
                if await self._is_master(self._hoped):
                    return
                await asyncio.sleep(LOOK_SECONDS)
            else:
                waiting = asyncio.create_task(self._news.wait())
                try:
                    await asyncio.wait([waiting], timeout=max(0.0, until - monotonic()))
                finally:
                    await stop_tasks([waiting])

    async def _listen(self, link: Link) -> None:
        """Hear from one Sentinel what it does, for ever; after a silence it is looked again who is master."""
        where = link.url.where
        while True:
            client = connect(link.url, seconds=None, within=ROLE_SECONDS)
            try:
                async with client.pubsub() as pubsub:
                    await pubsub.subscribe(*SWITCHED)
                    async for message in pubsub.listen():
                        if message.get("type") == "subscribe" and message.get("data") == len(SWITCHED):
                            self._hears(where)
                        self._said(message)
            except (redis.RedisError, OSError, TimeoutError) as error:
                log.debug("the Sentinel %s is not heard any more: %s", where, error)
            finally:
                self._heard.discard(where)
                await client.aclose()
            await asyncio.sleep(AGAIN_SECONDS)

    def _hears(self, where: str) -> None:
        """From now on nothing is missed; what was said before nobody has heard, so it is looked again."""
        self._heard.add(where)
        self._news.set()
        self._seek_another()

    def _said(self, message: dict[str, object]) -> None:
        if message.get("type") != "message":
            return
        channel, words = _text(message.get("channel")), _text(message.get("data")).split()
        if (address := announced(channel, words, self.sentinels.watched)) is not None and address != self.master:
            self._hoped, self._hoped_until = address, monotonic() + HOPE_SECONDS
            self._news.set()
            self._seek_another()

    def _seek_another(self) -> None:
        """Look who is master although one is known; whoever is in the middle of looking hears of it anyway."""
        if self._seeking is None or self._seeking.done():
            self._seeking = asyncio.create_task(self._sought_another())

    async def _sought_another(self) -> Address:
        """Look until another than now is master, as long as there is hope; or find the same."""
        before = self.master
        while True:
            self._news.clear()
            address = await self._look_until_news()
            another = address != before or monotonic() > self._hoped_until
            if address is not None and another and not self._news.is_set():
                self._settle(address)
                return address
            await self._hope()


def announced(channel: str, words: Sequence[str], watched: str) -> Address | None:
    """Return who is, or becomes, master by what a Sentinel publishes; None if it is of another group.

    `+switch-master <group> <old> <port> <new> <port>`; the others name an instance: `slave <name> <ip> <port> @ <group>
    <ip> <port>`.
    """
    if channel == "+switch-master" and len(words) == 5 and words[0] == watched and words[4].isdecimal():
        return words[3], int(words[4])
    if channel != "+switch-master" and len(words) >= 6 and words[4:6] == ["@", watched] and words[3].isdecimal():
        return words[2], int(words[3])
    return None


def _upstream(role: Sequence[bytes | int]) -> Address | None:
    """Return whom a replica receives from by its ROLE; a master has an offset there."""
    host, port = role[1], role[2]
    return (host.decode(), int(port)) if isinstance(host, bytes) else None


def _why(council: Council) -> str:
    errors = [f"{each.sentinel}: {each.error.what}" for each in council.opinions if each.error is not None]
    return f" ({'; '.join(errors)})" if errors else ""


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
