"""RedisClusterTarget: every master of a Redis Cluster, as one backup."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

from attrs import define, field, frozen

from resilience.concurrency import in_background, in_thread, stop_tasks
from resilience.model.capture import Captured, Part
from resilience.model.errors import Conflict, Corrupt, NotIncremental, Refused
from resilience.model.facts import TargetFacts
from resilience.model.findings import Finding, blocker
from resilience.model.ids import checked_name
from resilience.model.json import Json
from resilience.model.plans import BackupPlan
from resilience.model.positions import Position, RecoveryPoint
from resilience.primitives import StoredBackup
from resilience.redis.client import Url, parse_redis_url
from resilience.redis.stream import RdbStream
from resilience.redis.survey import SYSTEM, Info, obstacles

from .nodes import Shard, Topology, look

CLUSTER = "cluster"
_CHUNKS_AHEAD = 4


@frozen
class RedisClusterTarget:
    """A Redis Cluster, found through any of its nodes: an RDB of every master, all of them or no backup.

    Each master is read as `RedisTarget` reads one, at the address that the cluster has for it, with the secrets of
    `url`. The user needs `+info +psync +replconf +time +cluster|info +cluster|nodes` on each.

    A cluster has no moment that all its masters agree on: each RDB is of a moment of its own. How far apart these are,
    the skew, stands in the backup and in its report; its recovery point is the first of them, before which everything
    is in. `disk=True` has all masters begin at once, each writing its RDB to its own disk first, so that the skew is
    what the network takes. Without it one follows the other: one master forks at a time, and the skew is how long the
    backup takes.

    A backup during which slots moved, or a master was replaced, is none.
    """

    system: ClassVar[str] = SYSTEM
    kind: ClassVar[str] = CLUSTER

    name: str = field(converter=checked_name)
    url: Url = field(converter=parse_redis_url, kw_only=True)
    disk: bool = field(default=False, kw_only=True)

    async def survey(self) -> TargetFacts:
        """Look at the cluster and at each of its masters. Writes nothing."""
        topology = await look(self.url, operation="survey")
        shards = topology.shards if topology is not None else ()
        return TargetFacts(
            target=self.name,
            system=self.system,
            kind=self.kind,
            lineage=self.name,
            branch=_branch([shard.info.text("master_replid") for shard in shards]),
            findings=tuple(_obstacles(topology, self.url.where)),
            details=_details(shards),
        )

    @asynccontextmanager
    async def capture(self, plan: BackupPlan, *, parent: StoredBackup | None = None) -> AsyncIterator[ClusterCapture]:
        """Begin; on leaving every connection is closed, and the servers end the children that send."""
        if parent is not None:
            raise NotIncremental("an RDB holds all there is", operation="backup", subject=plan.target)
        topology = await look(self.url, operation="backup")
        if topology is None:
            raise Refused("it is in no cluster any more", operation="backup", subject=self.url.where)
        streams = [RdbStream(self.url.at(shard.host, shard.port), self.disk) for shard in topology.shards]
        capture = ClusterCapture(url=self.url, topology=topology, streams=streams, details=plan.details)
        try:
            if self.disk:
                await capture.start_all()
            yield capture
        finally:
            for stream in streams:
                stream.stop()
                stream.close()


@define(kw_only=True)
class ClusterCapture:
    """The RDBs of a cluster's masters being read; see `primitives.Capture`."""

    url: Url
    topology: Topology
    streams: Sequence[RdbStream]
    details: Mapping[str, Json]
    _started: bool = field(default=False, init=False)

    @property
    def size(self) -> int | None:
        """Nobody knows before they are sent."""
        return None

    async def start_all(self) -> None:
        """Have all masters begin."""
        starting = [asyncio.ensure_future(in_thread(stream.start)) for stream in self.streams]
        try:
            await asyncio.wait(starting)
        except asyncio.CancelledError:
            for stream in self.streams:
                stream.stop()
            raise
        finally:
            await stop_tasks(starting)
        for each in starting:
            each.result()
        self._started = True

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the RDB of each master, in the order of their slots."""
        for number, stream in enumerate(self.streams):
            steps = stream.chunks() if self._started else _steps(stream)
            async with in_background(steps, ahead=_CHUNKS_AHEAD, stop=stream.stop) as chunks:
                yield Part(name=part_of(number), chunks=chunks)

    async def finish(self) -> Captured:
        """Look whether the cluster is as it was. Raises Conflict if slots have moved or a master was replaced."""
        now = await look(self.url, operation="backup")
        if now is None or now.layout != self.topology.layout:
            raise Conflict(
                "slots moved, or a master was replaced, while it was backed up: keys may be missing or there twice",
                operation="backup",
                subject=self.url.where,
                hint="take it again when the cluster is at rest",
            )
        points = [_point(stream) for stream in self.streams]
        times = [point.time for point in points if point.time is not None]
        skew = (max(times) - min(times)).total_seconds() if len(times) == len(points) else None
        position = Position(
            branch=_branch([point.position.branch for point in points]),
            offset=sum(point.position.offset for point in points),
            text=" + ".join(str(point.position.offset) for point in points),
        )
        shards: list[Json] = [
            _shard_details(shard, stream, point)
            for shard, stream, point in zip(self.topology.shards, self.streams, points, strict=True)
        ]
        return Captured(
            begins=position,
            recovery_point=RecoveryPoint(position=position, time=min(times) if skew is not None else None),
            details={**self.details, "shards": shards, "skew_seconds": skew},
            findings=tuple(self._findings(skew)),
        )

    def _findings(self, skew: float | None) -> Iterator[Finding]:
        where = self.url.where
        text = f"{len(self.streams)} masters, each as it was at a moment of its own; "
        text += f"these lie {skew:.1f} s apart" if skew is not None else "nobody knows how far these lie apart"
        yield Finding(severity="note", subject=where, text=text)
        for stream in self.streams:
            if not stream.checked:
                text = "the RDB has no checksum, so nobody can tell whether it came as it was sent"
                hint = "set rdbchecksum yes and restart"
                yield Finding(severity="warning", subject=stream.url.where, text=text, hint=hint)


def part_of(number: int) -> str:
    """Return the name of the part that holds shard `number`, from 0."""
    return f"shard-{number + 1}.rdb"


def _steps(stream: RdbStream) -> Iterator[bytes]:
    stream.start()
    yield from stream.chunks()


def _point(stream: RdbStream) -> RecoveryPoint:
    if stream.position is None or stream.header is None:
        raise Corrupt("nothing was read", operation="backup", subject=stream.url.where)
    return RecoveryPoint(position=stream.position, time=stream.taken)


def _branch(histories: Sequence[str]) -> str:
    """Name the history of a cluster: that of all its masters together."""
    return hashlib.sha256(" ".join(sorted(histories)).encode()).hexdigest()[:40]


def _obstacles(topology: Topology | None, where: str) -> Iterator[Finding]:
    if topology is None:
        text = "it is in no cluster"
        yield blocker(where, text, "RedisTarget backs up a single server")
        return
    checks = [
        (
            topology.missing > 0,
            f"{topology.missing} slots are held by nobody",
            "mend the cluster: redis-cli --cluster fix",
        ),
        (topology.state != "ok", f"the cluster's state is {topology.state}", "CLUSTER INFO says more"),
        (
            any(shard.moving for shard in topology.shards),
            "slots are being moved from one master to another: their keys may be missed, or be there twice",
            "wait until the cluster has been resharded",
        ),
    ]
    for wrong, text, hint in checks:
        if wrong:
            yield blocker(where, text, hint)
    for shard in topology.shards:
        yield from (each for each in obstacles(shard.info, shard.where) if each.severity == "blocker")


def _details(shards: Sequence[Shard]) -> dict[str, Json]:
    first = shards[0].info if shards else Info({})
    keys = sum(shard.info.keys for shard in shards)
    return {
        "product": first.product,
        "version": min((shard.info.version for shard in shards), default=""),
        "mode": "cluster",
        "databases": {"0": {"keys": keys, "expires": sum(_expires(shard.info) for shard in shards)}},
        "used_memory": sum(shard.info.number("used_memory") for shard in shards),
    }


def _expires(info: Info) -> int:
    return sum(each["expires"] for each in info.databases.values())


def _shard_details(shard: Shard, stream: RdbStream, point: RecoveryPoint) -> dict[str, Json]:
    taken: datetime | None = point.time
    return {
        "node": shard.node,
        "where": shard.where,
        "slots": str(shard.slots),
        "version": shard.info.version,
        "branch": point.position.branch,
        "offset": str(point.position.offset),
        "time": taken.isoformat() if taken is not None else None,
        "keys": shard.info.keys,
        "rdb_version": stream.header.version if stream.header is not None else None,
        "checksum": stream.checked,
    }
