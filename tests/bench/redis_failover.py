"""Masters that die or hang while clients of three kinds write: ours, and redis-py's Sentinel with and without retries.

All of them write to the same group at the same time, so that they wait for the same election. The Sentinels elect by
themselves; nobody orders a failover. `plain` is what redis-py's documentation shows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import redis
from attrs import define, field, frozen
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from resilience.concurrency import stop_tasks
from resilience.redis import connect_master
from resilience.testing.sentinels import TestSentinels, running_sentinels

OURS = "resilience"
PLAIN = "redis-py Sentinel"
NO_RETRIES = "redis-py Sentinel, no retries"
DOWN_AFTER_MS = 1000
PAUSE_SECONDS = 0.005
SOCKET_SECONDS = 1.0
SERVED_WITHIN_SECONDS = 60.0
WATCHED_SECONDS = 2.0

Fault = Literal["killed", "hung"]


@define
class Writer:
    """Writes until it is told not to, and remembers when who acknowledged what."""

    name: str
    client: aioredis.Redis
    acknowledged: list[tuple[float, str]] = field(factory=list)
    over: bool = False
    news: asyncio.Event = field(factory=asyncio.Event)

    async def write(self) -> None:
        """Write one key after another; the server says on the same connection who it is."""
        number = 0
        while not self.over:  # on Python 3.11 redis-py may forget a cancellation
            number += 1
            try:
                async with self.client.pipeline(transaction=False) as pipe:
                    pipe.set(f"{self.name}:{number}", number)
                    pipe.execute_command("INFO", "server")
                    _, info = await pipe.execute()
                self.acknowledged.append((time.monotonic(), str(info["run_id"])))
                self.news.set()
            except (redis.RedisError, OSError, TimeoutError):
                pass  # a client goes on, whatever it was told
            await asyncio.sleep(PAUSE_SECONDS)

    async def served(self, *, by_other_than: str = "") -> float:
        """Wait until another server has acknowledged a write, and return when that was. Raises TimeoutError."""
        async with asyncio.timeout(SERVED_WITHIN_SECONDS):
            while not (found := [at for at, server in self.acknowledged if server != by_other_than]):
                self.news.clear()
                await self.news.wait()
            return found[0]

    def by_deposed(self, old: str) -> int:
        """Count the writes that the old master acknowledged after another one had."""
        switched = next((at for at, server in self.acknowledged if server != old), None)
        return sum(1 for at, server in self.acknowledged if switched is not None and at > switched and server == old)


@frozen
class Trial:
    """What one fault cost each kind of client: seconds without a master, and writes that a deposed one acknowledged."""

    fault: Fault
    gaps: dict[str, float]
    deposed: dict[str, int]


def clients(group: TestSentinels) -> dict[str, aioredis.Redis]:
    """Make one of each kind."""
    places = [("127.0.0.1", each.port) for each in group.sentinels.values()]
    plain = Sentinel(places, socket_timeout=SOCKET_SECONDS)  # type: ignore[no-untyped-call]
    once = partial(Retry, NoBackoff(), 0)
    impatient = Sentinel(places, socket_timeout=SOCKET_SECONDS, sentinel_kwargs={"retry": once()})  # type: ignore[no-untyped-call]
    return {
        OURS: connect_master(group.addresses(), group.watched, seconds=SOCKET_SECONDS, answers_within=SOCKET_SECONDS),
        PLAIN: plain.master_for(group.watched, socket_timeout=SOCKET_SECONDS),
        NO_RETRIES: impatient.master_for(group.watched, socket_timeout=SOCKET_SECONDS, retry=once()),
    }


async def run_trial(group: TestSentinels, fault: Fault) -> Trial:
    """Let all of them write, have the master fail, and wait until each writes to another."""
    writers = [Writer(name, client) for name, client in clients(group).items()]
    tasks = [asyncio.create_task(each.write()) for each in writers]
    try:
        await asyncio.gather(*(each.served() for each in writers))
        await asyncio.sleep(0.3)
        old = writers[0].acknowledged[-1][1]
        began = time.monotonic()
        act: Callable[[], None] = group.master.kill if fault == "killed" else group.master.pause
        act()
        again = await asyncio.gather(*(each.served(by_other_than=old) for each in writers))
        if fault == "hung":
            group.master.resume()  # it believes that it is the master still
            await asyncio.sleep(WATCHED_SECONDS)
        return Trial(
            fault,
            {each.name: at - began for each, at in zip(writers, again, strict=True)},
            {each.name: each.by_deposed(old) for each in writers},
        )
    finally:
        for each in writers:
            each.over = True
        await asyncio.wait(tasks, timeout=2 * SOCKET_SECONDS)
        await stop_tasks(tasks)
        for each in writers:
            await each.client.aclose()


async def run_trials(folder: Path, binary: Path, *, killed: int, hung: int) -> list[Trial]:
    """Run every trial on a group of its own, and print it as it ends."""
    kinds: list[tuple[Fault, int]] = [("killed", killed), ("hung", hung)]
    faults = [fault for fault, times in kinds for _ in range(times)]
    trials = []
    for number, fault in enumerate(faults, 1):
        with running_sentinels(folder / "group", binary, down_after=DOWN_AFTER_MS) as group:
            trials.append(trial := await run_trial(group, fault))
        gaps = ", ".join(f"{name} {gap:.2f} s" for name, gap in trial.gaps.items())
        print(f"  {number:3}/{len(faults)} {fault:6}  {gaps}", flush=True)
    return trials


@frozen
class Summary:
    """All trials at a glance."""

    numbers: dict[str, dict[str, float]]

    @property
    def vs_plain(self) -> float:
        """Ours beside the quicker of the two plain ones, after a kill -9."""
        gaps = self.numbers["killed_median_s"]
        return gaps[OURS] / min(gaps[PLAIN], gaps[NO_RETRIES])

    def __str__(self) -> str:
        names = (OURS, PLAIN, NO_RETRIES)
        head = f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
        rows = [
            f"| {what} | {' | '.join(f'{row[each]:.3g}' for each in names)} |" for what, row in self.numbers.items()
        ]
        return "\n".join([head, *rows])


def summary(trials: Sequence[Trial]) -> Summary:
    """Sum up, for each kind of client."""
    numbers: dict[str, dict[str, float]] = {}
    for fault in dict.fromkeys(each.fault for each in trials):
        mine = [each for each in trials if each.fault == fault]
        for word, reduce in (("median", statistics.median), ("longest", max), ("shortest", min)):
            numbers[f"{fault}_{word}_s"] = {name: reduce(each.gaps[name] for each in mine) for name in mine[0].gaps}
        numbers[f"{fault}_deposed_writes"] = {name: sum(each.deposed[name] for each in mine) for name in mine[0].gaps}
        numbers[f"{fault}_trials"] = dict.fromkeys(mine[0].gaps, len(mine))
    return Summary(numbers)
