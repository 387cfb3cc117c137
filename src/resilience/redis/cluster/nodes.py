"""Who holds which slots in a cluster: the answer to CLUSTER NODES, and the file that a node keeps of it.

See redis.io/commands/cluster-nodes; a line is `ID HOST:PORT@BUS[,HOSTNAME] FLAGS MASTER PING PONG EPOCH LINK SLOT…`,
where a slot on its way to or from another node is `[SLOT->-ID]` or `[SLOT-<-ID]`, seen on that node alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from attrs import frozen

from resilience.model.errors import Unsupported
from resilience.redis.client import Url, ask, commands
from resilience.redis.survey import Info, ask_info

SLOTS = 16384


@frozen
class Slots:
    """A set of slots as Redis writes it: ranges in order, `0-5460 9000`."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Slots:
        """Read ranges. Raises ValueError."""
        pairs = [word.partition("-") for word in words]
        return cls(tuple(sorted((int(first), int(last or first)) for first, _, last in pairs)))

    @property
    def count(self) -> int:
        """How many slots these are."""
        return sum(last - first + 1 for first, last in self.ranges)

    def __str__(self) -> str:
        return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)


@frozen(kw_only=True)
class Shard:
    """A master, where it is, which slots it holds, what it says of itself; `moving`: some of them are on their way."""

    node: str
    host: str
    port: int
    slots: Slots
    info: Info
    moving: bool

    @property
    def where(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"


@frozen(kw_only=True)
class Topology:
    """A cluster as one of its nodes sees it, and each master that holds slots; in the order of their slots."""

    state: str
    epoch: int
    shards: tuple[Shard, ...]

    @property
    def missing(self) -> int:
        """How many slots nobody holds."""
        return SLOTS - sum(shard.slots.count for shard in self.shards)

    @property
    def layout(self) -> tuple[object, ...]:
        """What must not change while a backup is taken: every slot that moves to another node adds to the epoch."""
        return (self.epoch, tuple((shard.node, shard.slots, shard.moving) for shard in self.shards))


async def look(url: Url, *, operation: str) -> Topology | None:
    """Ask a node who else there is, and every master of itself; None if it is in no cluster.

    Raises Unavailable if a master cannot be reached at the address that it announces.
    """
    async with commands(url, operation=operation) as client:
        info = await ask_info(client, "everything")
        if info.mode != "cluster":
            return None
        said = Info.parse(await ask(client, "CLUSTER", "INFO"))
        lines = (await ask(client, "CLUSTER", "NODES")).decode().splitlines()
    masters = [words for words in map(str.split, lines) if len(words) > 8 and "master" in words[2].split(",")]
    shards = [await _shard(url, words, operation) for words in masters]
    return Topology(
        state=said.text("cluster_state"),
        epoch=said.number("cluster_current_epoch"),
        shards=tuple(sorted((each for each in shards if each.slots.count), key=lambda each: each.slots.ranges)),
    )


async def _shard(url: Url, words: list[str], operation: str) -> Shard:
    host, port = _address(words[1], url)
    async with commands(url.at(host, port), operation=operation) as client:
        info = await ask_info(client, "everything")
        lines = (await ask(client, "CLUSTER", "NODES")).decode().splitlines()
    itself = next(line.split() for line in lines if "myself" in line.split()[2].split(","))
    held = [word for word in itself[8:] if not word.startswith("[")]
    return Shard(
        node=words[0],
        host=host,
        port=port,
        slots=Slots.parse(held),
        info=info,
        moving=len(held) != len(itself[8:]),
    )


def _address(text: str, url: Url) -> tuple[str, int]:
    """Read `HOST:PORT@BUS,HOSTNAME`; a node that has not met another does not know its own host."""
    place = text.partition("@")[0]
    host, _, port = place.rpartition(":")
    if not port.isdecimal():
        raise Unsupported(f"a node says that it is at {text!r}", subject=url.where)
    return host or url.address[0], int(port)


def nodes_file(me: int, slots: Sequence[Slots], addresses: Sequence[tuple[str, int]], *, seed: str) -> bytes:
    """Write the file of cluster node number `me`, which then knows all others (src/cluster.c, clusterLoadConfig)."""
    return "".join(_lines(me, slots, addresses, seed)).encode()


def _lines(me: int, slots: Sequence[Slots], addresses: Sequence[tuple[str, int]], seed: str) -> Iterator[str]:
    for number, ((host, port), held) in enumerate(zip(addresses, slots, strict=True)):
        node = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:40]
        flags = "myself,master" if number == me else "master"
        yield f"{node} {host}:{port}@{port + 10000} {flags} - 0 0 {number + 1} connected {held}\n"
    yield f"vars currentEpoch {len(slots)} lastVoteEpoch 0\n"
