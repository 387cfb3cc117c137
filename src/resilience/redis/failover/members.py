"""The members of a group with their links, and what all steps of a failover do to them: look, stamp, run commands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from attrs import define, evolve, field

from resilience.concurrency import stop_tasks
from resilience.model.errors import FencedOff, Refused, ResilienceError, Unsupported
from resilience.redis.client import from_server
from resilience.redis.members import RedisMember

from .group import Seen, primary_of
from .links import Link, refused
from .looking import COMMANDS, Look, Stamp, parsed
from .places import learn
from .sentinels import Address, Council, Sentinels

LOOK_AGAIN_SECONDS = 0.005


@define(eq=False)
class Members:
    """All members of a group and its Sentinels, and what is known of each by the last look."""

    members: tuple[RedisMember, ...]
    sentinels: Sentinels
    seconds: float
    links: dict[str, Link] = field(init=False)
    seen: dict[str, Seen] = field(factory=dict, init=False)
    council: Council = field(factory=lambda: Council(opinions=()), init=False)
    primary: str = field(default="", init=False)
    _places: dict[Address, str] = field(factory=dict, init=False)
    _epoch: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"two members have one name: {', '.join(names)}")
        self.links = {member.name: Link(member.url) for member in self.members}
        self._places = {member.address: member.name for member in self.members}

    def __getitem__(self, name: str) -> RedisMember:
        for member in self.members:
            if member.name == name:
                return member
        raise Refused(f"there is no member {name!r}", operation="failover", hint=f"they are {', '.join(self.links)}")

    @property
    def places(self) -> Mapping[Address, str]:
        """The members by the addresses that they are known to have."""
        return self._places

    async def who(self, look: Look) -> str:
        """Name the member that a replica was told to receive from; empty if it is nobody known."""
        if look.upstream is None or look.frozen:
            return ""
        await learn(self._places, {look.upstream})
        return self._places.get(look.upstream, "")

    async def look_at_all(self, *, operation: str, seconds: float | None = None) -> tuple[list[Seen], Council]:
        """Look at all members and ask all Sentinels, side by side; an error is part of what was seen."""
        looks = [asyncio.create_task(self._seen(name, operation, seconds)) for name in self.links]
        asking = asyncio.create_task(self.sentinels.ask(operation=operation))
        try:
            seen = [await task for task in looks]
            self.council = await asking
        finally:
            await stop_tasks([*looks, asking])
        await self._resolve(seen)
        self.primary = primary_of(seen, self.council, self._places, self.primary)
        return seen, self.council

    async def look(self, name: str, *, operation: str, seconds: float | None = None) -> Look:
        """Look at one. Raises Unavailable or Refused."""
        answers = await self.links[self[name].name].several(
            COMMANDS, seconds=seconds or self.seconds, operation=operation
        )
        for words, answer in zip(COMMANDS, answers, strict=True):
            if (said := refused(answer)) is not None and words[0] != "CONFIG":
                raise from_server(str(said), where=self[name].url.where, operation=operation)
        return parsed(*answers)

    async def run(self, name: str, *commands: Sequence[str | int], operation: str, atomic: bool = False) -> list[Any]:
        """Run commands on one, each once. Raises what the first says that is refused; the others may have been run."""
        link = self.links[self[name].name]
        answers = await link.several(commands, seconds=self.seconds, operation=operation, atomic=atomic)
        for answer in answers:
            if (said := refused(answer)) is not None:
                raise from_server(str(said), where=self[name].url.where, operation=operation)
        return answers

    async def stamp(self, name: str, look: Look, *, epoch: int, operation: str) -> None:
        """Have a server remember the epoch. Raises FencedOff if it, or we, have heard of a newer one."""
        known = max(self._epoch, look.stamp.epoch)
        if epoch < known:
            raise FencedOff(f"epoch {epoch} is over: {name} has heard of {known}", operation=operation, subject=name)
        self._epoch = epoch
        if look.stampable and look.stamp.epoch != epoch:
            await self.mark(name, evolve(look.stamp, epoch=epoch), operation=operation)

    async def mark(self, name: str, stamp: Stamp, *, operation: str) -> None:
        """Leave a stamp on a server."""
        await self.run(name, ("CONFIG", "SET", "proc-title-template", str(stamp)), operation=operation)

    async def keep(self, name: str, *, operation: str) -> None:
        """Have a server write what it is into its configuration file, if it has one: it starts again as that."""
        try:
            await self.run(name, ("CONFIG", "REWRITE"), operation=operation)
        except (Refused, Unsupported):  # it runs without a file, or may not write it
            return

    async def aclose(self) -> None:
        """Close all connections."""
        for link in self.links.values():
            await link.aclose()
        await self.sentinels.aclose()

    async def _seen(self, name: str, operation: str, seconds: float | None) -> Seen:
        began = monotonic()
        member = self[name]
        free = _free(member)
        try:
            look = await self.look(name, operation=operation, seconds=seconds)
        except ResilienceError as error:
            found = Seen(member=member, error=error, free=free)
        else:
            found = Seen(member=member, look=look, seconds=monotonic() - began, free=free)
        self.seen[name] = found
        return found

    async def _resolve(self, seen: Sequence[Seen]) -> None:
        """Find out who is meant where a Sentinel or a replica says an address that is nobody's by its name."""
        said = {each.named for each in self.council.answering if each.named}
        said |= {each.look.upstream for each in seen if each.look and each.look.upstream and not each.look.frozen}
        for each in self.council.answering:  # its own name for this run of that server
            runid = each.master.get("runid", "")
            who = next((one.name for one in seen if one.look and one.look.instance == runid), "")
            if who and each.named and (each.master.get("ip"), int(each.master.get("port", 0))) == each.named:
                self._places.setdefault(each.named, who)
        await learn(self._places, said)


def _free(member: RedisMember) -> int | None:
    if member.server is None:
        return None
    try:
        found = os.statvfs(member.server.data)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
