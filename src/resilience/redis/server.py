"""RedisServer: a running server that cannot be stopped takes over what a backup holds.

There is no command to load an RDB into a server that runs, but one that every replica has: a scratch server holds the
backup, the running one becomes its replica, and is detached when it has everything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from attrs import define, evolve, field
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from resilience.concurrency import finish
from resilience.model.capture import Restored
from resilience.model.errors import Refused, Unsupported
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Finding, blocker
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.model.show import as_bytes
from resilience.planning.restore import plan_restore
from resilience.primitives import Log, Reached, StoredBackup

from .client import Url, ask, commands, parse_redis_url
from .copying import PATIENCE_SECONDS, Copying, free_port, release
from .fitting import holds, lacking
from .isolation import LiveRedis, find_program
from .loading import ACCEPTED, databases_of, is_at_least, modules_of, too_old
from .scratch import RedisScratch
from .survey import SYSTEM, Info, ask_info


@define
class RedisServer:
    """A running Redis or Valkey, a master outside a cluster, that is given the data of a backup.

    It has to be empty, also in the moment from which on it takes no writes, shortly before it copies. `replace=True`
    gives up what it holds: its old data serves its readers until the new one has come. Its own replicas follow.

    The scratch server that it copies from runs here, with `program`, below `within`, as `owner`; the running one has to
    reach it at `listen` (an address of this machine, by default the loopback). It asks for a password: the one that the
    running server uses towards masters already (`masterauth`), or else a new one, taken away again afterwards. Where
    replication has to be encrypted (`tls-replication yes`), `settings` give the scratch server its certificate
    (`tls-cert-file` and so on).

    Its user needs `+info +config|get +config|set +client|list +replicaof`, and `+flushall +function|flush` for
    `discard`.
    """

    system: ClassVar[str] = SYSTEM
    accepts: ClassVar[tuple[str, ...]] = ACCEPTED
    replays: ClassVar[tuple[str, ...]] = ()

    url: Url = field(converter=parse_redis_url, kw_only=True)
    replace: bool = field(default=False, kw_only=True)
    listen: str = field(default="127.0.0.1", kw_only=True)
    program: str | Path | None = field(default=None, kw_only=True)
    within: str | Path | None = field(default=None, kw_only=True)
    owner: str | None = field(default=None, kw_only=True)
    modules: Sequence[str] = field(default=(), kw_only=True)
    settings: Mapping[str, str] = field(factory=dict, repr=False, kw_only=True)
    patience: float = field(default=PATIENCE_SECONDS, kw_only=True)
    _filled: bool = field(default=False, init=False, repr=False)

    @property
    def name(self) -> str:
        """Where it is."""
        return self.url.where

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether the server is empty and can become a replica, and the scratch one has room. Writes nothing."""
        scratch = await self._scratch.survey(chain)
        async with commands(self.url, operation="restore") as client:
            info = await ask_info(client, "everything")
            findings = [*scratch.findings, *await self._obstacles(client, info, chain[-1])]
        empty = self.replace or not holds(info)
        return evolve(scratch, destination=self.name, empty=empty, findings=tuple(findings))

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored:
        """Have the running server copy the backup from a scratch server; see `RestoreDestination.apply`.

        It has all of it or what it had before, and is a master again when this returns or raises. Raises Refused if it
        has keys by now, Corrupt if the backup is damaged, Unavailable if the copy does not get on, Interrupted if the
        server could not be detached: then it says what to do.
        """
        manifests = [backup.manifest for backup in chain]
        plan_restore(manifests, await self.survey(manifests))
        scratch = self._scratch
        try:
            restored = await scratch.apply(plan, chain=chain, log=log, reached=reached)
            async with commands(self.url, operation="restore") as client:
                copying = Copying(client, self.url, replace=self.replace, patience=self.patience)
                await copying.prepare()
                async with self._serving(scratch, copying) as (source, port):
                    try:
                        await self._copy(copying, source, port)
                    finally:
                        self._filled = self._filled or copying.filled
            return restored
        finally:
            await finish(scratch.discard())

    async def _copy(self, copying: Copying, source: LiveRedis, port: int) -> None:
        try:
            await copying.copy(source, self.listen, port)
        finally:
            await finish(copying.detach())

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveRedis]:
        """Return the running server itself; see `RestoreDestination.live`."""
        if not self._filled:
            raise Refused("nothing has been restored here yet", operation="start", subject=self.name)
        yield LiveRedis(self.url.text)

    async def discard(self) -> None:
        """Empty the server if a restore by this object has filled it, also of what clients have written since then.

        A server that a restore has left as a replica, because it was killed, is made a master again.
        """
        async with commands(self.url, operation="discard") as client:
            await release(client)
            if not self._filled:
                return
            await ask(client, "FLUSHALL", "SYNC")
            if (await ask_info(client, "everything")).number("number_of_libraries"):
                await ask(client, "FUNCTION", "FLUSH", "SYNC")
        self._filled = False

    @property
    def _scratch(self) -> RedisScratch:
        return RedisScratch(program=self.program, within=self.within, owner=self.owner, modules=self.modules)

    @asynccontextmanager
    async def _serving(self, scratch: RedisScratch, copying: Copying) -> AsyncIterator[tuple[LiveRedis, int]]:
        """Run the scratch server where the running one can reach it."""
        port = free_port(self.listen)
        ports = {"port": "0", "tls_port": str(port)} if copying.tls else {"port": str(port)}
        wanted = {"bind": self.listen, "repl_diskless_sync": "yes", "repl_diskless_sync_delay": "0", **ports}
        wanted |= {name.replace("-", "_"): value for name, value in self.settings.items()}
        async with scratch.serving(copying.login, **wanted) as live:
            yield live, port

    async def _obstacles(self, client: Redis, info: Info, manifest: Manifest) -> list[Finding]:
        """Find what keeps the running server from becoming a replica, and from keeping what it gets."""
        most, needed = info.number("maxmemory"), manifest.details.get("used_memory")
        old = too_old(manifest, info.product, info.version)
        program = await self._newer(info)
        lacks = await lacking(client, info, databases=databases_of(manifest), modules=modules_of(manifest))
        blockers = [
            (bool(old), old, "restore into a newer server"),
            (bool(program), program, "name a program of the server's own release with program="),
            (info.number("cluster_enabled") > 0, "it is part of a cluster", "restore into each shard's data directory"),
            (info.number("loading") > 0, "it is loading its data", "try again when it has finished"),
            (not info.master, f"it is a replica of {info.text('master_host')}", _DETACH),
            await _watched(client),
            (
                bool(most) and isinstance(needed, int) and needed > most,
                f"its maxmemory of {as_bytes(most)} is less than the data took, so it would evict or refuse keys",
                "raise maxmemory",
            ),
            *((True, text, hint) for text, hint in lacks),
        ]
        return [blocker(self.name, text, hint) for no, text, hint in blockers if no]

    async def _newer(self, info: Info) -> str:
        """Say why the running server may not understand what the scratch server sends, or nothing."""
        try:
            program = await find_program(self.program)
        except Unsupported:
            return ""  # the scratch server's own survey says so
        if program.product != info.product or is_at_least(info.version, program.version):
            return ""
        return f"{program.path} is {program.version}: the server, {info.version}, may not understand what it sends"


_DETACH = "if a restore into it was killed, discard() or REPLICAOF NO ONE frees it; else restore into its master"
_REMOVE = "take it off their list with SENTINEL REMOVE first"


async def _watched(client: Redis) -> tuple[bool, str, str]:
    """Tell whether Sentinels are connected, or may be; in words, with a hint."""
    try:
        found = b"name=sentinel-" in await ask(client, "CLIENT", "LIST")
    except ResponseError as error:
        return True, f"whether Sentinels watch it cannot be told: {error}", "its user needs +client|list"
    return found, "Sentinels watch it, and would undo what is done here", _REMOVE
