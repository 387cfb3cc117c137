"""What the Sentinels of a group say, each for itself, and what they say together (Redis: High availability, Sentinel).

One Sentinel may be stale, cut off or wrong. The newest configuration wins: it has the highest config-epoch, which a
majority of them has agreed on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from resilience.concurrency import stop_tasks
from resilience.model.errors import Refused, ResilienceError, TimedOut
from resilience.redis.client import Url, from_server

from .links import Link, refused

Address = tuple[str, int]
LATE_SECONDS = 0.01
"""How long, in a hurry, those are waited for that answer after a majority has."""
FORCED_SECONDS = 4.0
"""How long a Sentinel takes at most, in practice, from SENTINEL FAILOVER until the others know of it."""


@frozen(kw_only=True)
class Opinion:
    """One Sentinel's: `named` is the master by it, `epoch` that of its configuration; `error` says why it has none."""

    sentinel: str
    error: ResilienceError | None = None
    named: Address | None = None
    epoch: int = -1
    master: Mapping[str, str] = field(factory=dict)
    replicas: tuple[Mapping[str, str], ...] = ()
    quorum: str = ""

    @property
    def flags(self) -> frozenset[str]:
        """What it thinks of the master: `s_down`, or `failover_in_progress`."""
        return frozenset(self.master.get("flags", "").split(","))

    @property
    def watches_named(self) -> bool:
        """Whether what it says of the master is of the one that it names: at the end of a failover it is not."""
        return (self.master.get("ip", ""), self.number("port")) == self.named

    @property
    def chosen(self) -> Address | None:
        """The replica that it is promoting, as the one that was elected to; None if it promotes nobody."""
        found = (each for each in self.replicas if "promoted" in each.get("flags", "").split(","))
        return next(((each["ip"], int(each["port"])) for each in found), None)

    def number(self, name: str) -> int:
        """Return one of its numbers about the master; 0 if it does not say it."""
        text = self.master.get(name, "")
        return int(text) if text.isdecimal() else 0

    @property
    def patient(self) -> bool:
        """Whether it does not take the master for dead for some time to come."""
        if self.flags & {"s_down", "o_down"}:
            return False
        answers = "disconnected" not in self.flags and not self.number("last-ping-sent")
        left = self.number("down-after-milliseconds") - self.number("last-ok-ping-reply")
        return answers or left > FORCED_SECONDS * 1000

    @property
    def able(self) -> bool:
        """Whether it sees enough others to fail over (SENTINEL CKQUORUM)."""
        return self.quorum.startswith("OK")


@frozen(kw_only=True)
class Council:
    """What all of them say together."""

    opinions: tuple[Opinion, ...]

    @property
    def answering(self) -> tuple[Opinion, ...]:
        """Those that answer and watch this group."""
        return tuple(each for each in self.opinions if each.error is None and each.named is not None)

    @property
    def size(self) -> int:
        """How many there are, also by what they know of each other."""
        return max([len(self.opinions), *(each.number("num-other-sentinels") + 1 for each in self.answering)])

    @property
    def majority(self) -> int:
        """How many have to agree before anybody is promoted."""
        return self.size // 2 + 1

    @property
    def epoch(self) -> int:
        """The newest configuration's epoch; -1 if nobody answers."""
        return max((each.epoch for each in self.answering), default=-1)

    @property
    def named(self) -> Address | None:
        """The master by the newest configuration; None if nobody answers. Of two in one epoch, the one most name."""
        newest = [each.named for each in self.answering if each.epoch == self.epoch]
        return Counter(newest).most_common(1)[0][0] if newest else None

    @property
    def chosen(self) -> Address | None:
        """The replica that is being promoted in the newest election; None if nobody is."""
        choosing = [each for each in self.answering if each.chosen is not None]
        newest = max(choosing, key=lambda each: each.number("failover-epoch") or each.epoch, default=None)
        return newest.chosen if newest is not None else None

    @property
    def complete(self) -> bool:
        """Whether a majority of them answers."""
        return len(self.answering) >= self.majority

    @property
    def elects(self) -> bool:
        """Whether they can fail the group over by themselves."""
        return self.complete and any(each.able for each in self.answering)

    @property
    def stale(self) -> tuple[Opinion, ...]:
        """Those that name another master than the newest configuration does."""
        return tuple(each for each in self.answering if each.named != self.named)

    @property
    def at_work(self) -> bool:
        """Whether one of them is failing the group over now."""
        return any("failover_in_progress" in each.flags for each in self.answering)

    @property
    def calm(self) -> bool:
        """Whether none of them is about to elect: who is told to fail over takes an epoch without asking the others."""
        return not self.at_work and all(each.patient for each in self.answering)

    @property
    def settings(self) -> Opinion | None:
        """One that knows how the group is watched."""
        return max(self.answering, key=lambda each: each.epoch, default=None)


@define(eq=False)
class Sentinels:
    """All Sentinels of a group, which they know as `watched`."""

    urls: tuple[Url, ...]
    watched: str
    seconds: float
    links: tuple[Link, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        if not self.urls:
            raise ValueError("there is no Sentinel to ask")
        self.links = tuple(Link(url) for url in self.urls)

    async def ask(self, *, operation: str, hurry: bool = False) -> Council:
        """Ask all of them side by side; who does not answer in time has an error, and nothing is raised.

        In a `hurry` the others are not waited for long once a majority has answered.
        """
        tasks = [asyncio.create_task(self._opinion(link, operation)) for link in self.links]
        try:
            await (self._enough(tasks) if hurry else asyncio.wait(tasks))
            late = TimedOut("it has not answered yet", operation=operation)
            return Council(
                opinions=tuple(
                    task.result() if task.done() else Opinion(sentinel=link.url.where, error=late)
                    for link, task in zip(self.links, tasks, strict=True)
                )
            )
        finally:
            await stop_tasks(tasks)

    async def _enough(self, tasks: Sequence[asyncio.Task[Opinion]]) -> None:
        waiting = set(tasks)
        while waiting:
            answered = sum(1 for each in tasks if each.done() and each.result().error is None)
            enough = answered > len(tasks) // 2
            done, waiting = await asyncio.wait(
                waiting, timeout=LATE_SECONDS if enough else None, return_when=asyncio.FIRST_COMPLETED
            )
            if enough and not done:
                return

    async def tell(self, link: Link, *words: str | int, operation: str) -> Any:  # noqa: ANN401
        """Run one SENTINEL command that changes something; see `Link.tell` for what it raises."""
        return await link.tell("SENTINEL", *words, seconds=self.seconds, operation=operation)

    async def aclose(self) -> None:
        """Close all connections."""
        for link in self.links:
            await link.aclose()

    async def _opinion(self, link: Link, operation: str) -> Opinion:
        where = link.url.where
        asked = [
            ("SENTINEL", verb, self.watched) for verb in ("GET-MASTER-ADDR-BY-NAME", "MASTER", "REPLICAS", "CKQUORUM")
        ]
        try:
            named, master, replicas, quorum = await link.several(asked, seconds=self.seconds, operation=operation)
        except ResilienceError as error:
            return Opinion(sentinel=where, error=error)
        if (said := refused(named) or refused(master)) is not None:
            return Opinion(sentinel=where, error=from_server(str(said), where=where, operation=operation))
        if named is None:
            text = f"it watches nothing called {self.watched}"
            return Opinion(sentinel=where, error=Refused(text, operation=operation, subject=where))
        known = pairs(master)
        return Opinion(
            sentinel=where,
            named=(named[0].decode(), int(named[1])),
            epoch=int(known.get("config-epoch", 0)),
            master=known,
            replicas=tuple(pairs(each) for each in replicas) if refused(replicas) is None else (),
            quorum=str(quorum) if refused(quorum) else bytes(quorum).decode(),
        )


def pairs(answer: Sequence[bytes]) -> Mapping[str, str]:
    """Read a flat list of names and values, as RESP2 writes a map."""
    words = [each.decode(errors="replace") for each in answer]
    return dict(zip(words[::2], words[1::2], strict=False))
