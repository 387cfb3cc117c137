"""RedisClusterDirectories: the data directories of a new cluster, one for each shard of the one that was backed up."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from attrs import define, evolve, field, frozen

from resilience.concurrency import in_thread
from resilience.folders import account_for, existing, is_empty, sync_folder, write_durably
from resilience.model.capture import Restored
from resilience.model.errors import Conflict, ManifestInvalid, Refused, StorageFailed
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Examined, Finding, Level, blocker
from resilience.model.json import Json
from resilience.model.manifests import Manifest, StoredPart
from resilience.model.plans import RestorePlan
from resilience.model.positions import RecoveryPoint
from resilience.planning.restore import plan_restore
from resilience.primitives import Log, Opened, Reached, StoredBackup
from resilience.programs import Account
from resilience.redis.directory import RedisDataDirectory
from resilience.redis.isolation import Isolation, LiveRedis, find_program
from resilience.redis.mark import MARK
from resilience.redis.rdb import at
from resilience.redis.survey import SYSTEM
from resilience.redis.target import PART

from .nodes import SLOTS, Slots, nodes_file
from .target import CLUSTER, part_of

NODES = "nodes.conf"
_COMING = ".restoring"


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


def _addresses(places: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Read `host:port`. Raises ValueError."""
    found = []
    for place in places:
        host, _, port = place.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{place!r} is no address: one looks like 10.0.0.1:6379")
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


@frozen
class LiveCluster:
    """Isolated servers, one for each shard, in the order of their slots; they know nothing of each other."""

    shards: tuple[LiveRedis, ...]


@define
class RedisClusterDirectories:
    """A folder, empty or absent, with a data directory for each shard in it: `shard-1`, `shard-2` and so on.

    Each is loaded by an isolated server first; see `RedisDataDirectory` for `program`, `owner`, `modules` and
    `appendonly`. They are made beside the folder, in one of that name with `.restoring` behind it, and the last step
    gives all of them their place at once.

    `addresses` (`host:port`) are where the new masters will be, in the order of the slots. Each directory then gets a
    `nodes.conf` that names all of them: started there with `cluster-enabled yes`, they are the cluster. Starting them,
    and giving them replicas, is left to you. Without addresses the data can be looked at (`live`), and no more.

    Every shard is as it was at a moment of its own: see `RedisClusterTarget`.
    """

    system: ClassVar[str] = SYSTEM
    accepts: ClassVar[tuple[str, ...]] = (CLUSTER,)
    replays: ClassVar[tuple[str, ...]] = ()

    path: Path = field(converter=_absolute)
    addresses: tuple[tuple[str, int], ...] = field(default=(), converter=_addresses, kw_only=True)
    program: str | Path | None = field(default=None, kw_only=True)
    owner: str | None = field(default=None, kw_only=True)
    modules: Sequence[str] = field(default=(), kw_only=True)
    appendonly: bool = field(default=False, kw_only=True)
    _restored: int = field(default=0, init=False, repr=False)
    _lock: int | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.path)

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether the folder is empty and large enough and the program fits. Writes nothing."""
        shards = shards_of(chain[-1])
        inner = await self._directory(self._made, 0).survey([shards[0].manifest])
        return await in_thread(self._room, chain[-1], [*inner.findings, *self._misfits(len(shards))])

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,  # noqa: ARG002  # an RDB has none
        reached: Reached | None = None,  # noqa: ARG002
    ) -> Restored:
        """Restore every shard, and give them their place when all are there; see `RestoreDestination.apply`.

        Raises what `RedisDataDirectory.apply` raises. Cancelled or failed, no server runs, and what there is lies in
        the folder beside; `discard` removes it.
        """
        (backup,) = chain
        manifest = backup.manifest
        if plan.chain != (manifest.id,):
            raise ValueError(f"the plan restores {', '.join(plan.chain)}, not {manifest.id}")
        shards = shards_of(manifest)
        plan_restore([manifest], await in_thread(self._room, manifest, []))
        account = account_for(self.path, self.owner)
        findings: list[Finding] = []
        try:
            with _disk(self.name):
                await in_thread(self._prepare, account)
            for number, shard in enumerate(shards):
                findings += await self._fill(backup, shard, number)
            with _disk(self.name):
                await in_thread(self._finish, shards, account, manifest.id)
        finally:
            self._release()
        self._restored = len(shards)
        skew = manifest.details.get("skew_seconds")
        if isinstance(skew, int | float):
            text = f"each shard is as it was at a moment of its own; these lie {skew:.1f} s apart"
            findings.append(Finding(severity="note", subject=manifest.id, text=text))
        return Restored(reached=manifest.recovery_point, findings=tuple(findings))

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveCluster]:
        """Run an isolated server on each shard; see `RestoreDestination.live`."""
        if not self._restored:
            raise Refused("nothing has been restored here yet", operation="start", subject=self.name)
        program, account = await find_program(self.program), account_for(self.path, self.owner)
        async with AsyncExitStack() as running:
            shards = []
            for number in range(self._restored):
                rdb = self._directory(self.path, number).rdb
                isolation = Isolation(program=program.path, data=rdb.parent, account=account, modules=self.modules)
                shards.append(await running.enter_async_context(isolation.run(dbfilename=rdb.name)))
            yield LiveCluster(tuple(shards))

    async def discard(self) -> None:
        """Remove what a restore put here, finished by this object or interrupted.

        Raises Refused if it is anything else, Conflict if a restore by somebody else still runs here.
        """
        with _disk(self.name):
            await in_thread(self._discard)
        self._restored = 0

    async def _fill(self, backup: StoredBackup, shard: ShardOfBackup, number: int) -> tuple[Finding, ...]:
        """Restore one shard."""
        directory = self._directory(self._made, number)
        plan = plan_restore([shard.manifest], await directory.survey([shard.manifest]))
        return (await directory.apply(plan, chain=[_ShardBackup(backup, shard)])).findings

    @property
    def _coming(self) -> Path:
        return self.path.with_name(self.path.name + _COMING)

    @property
    def _made(self) -> Path:
        """Where the shards are until all of them are there."""
        return self._coming / "cluster"

    def _directory(self, folder: Path, number: int) -> RedisDataDirectory:
        return RedisDataDirectory(
            folder / f"shard-{number + 1}",
            program=self.program,
            owner=self.owner,
            modules=self.modules,
            appendonly=self.appendonly,
        )

    def _prepare(self, account: Account | None) -> None:
        """Make the folder beside, with a lock that says that somebody is at work there."""
        self._coming.mkdir(mode=0o711, parents=True)  # it stays ours
        self._lock = os.open(self._coming / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._made.mkdir(mode=0o700)
        if account is not None and os.geteuid() == 0:
            os.chown(self._made, account.uid, account.gid)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _finish(self, shards: Sequence[ShardOfBackup], account: Account | None, seed: str) -> None:
        """Tell each shard of the others, and give all of them their place in one step."""
        slots = [shard.slots for shard in shards]
        for number in range(len(shards) if self.addresses else 0):
            data = nodes_file(number, slots, self.addresses, seed=seed)
            write_durably(self._made / f"shard-{number + 1}" / NODES, data, account)
        sync_folder(self._made)
        self._made.rename(self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(self._coming)

    def _discard(self) -> None:
        if not self._restored and not is_empty(self.path):
            raise Refused(
                "what is here was not put here by this object",
                operation="discard",
                subject=self.name,
                hint="remove it yourself if you are sure",
            )
        if self._coming.exists():
            _unlocked(self._coming)
            shutil.rmtree(self._coming)
        if self._restored and self.path.exists():
            shutil.rmtree(self.path)

    def _room(self, manifest: Manifest, findings: list[Finding]) -> DestinationFacts:
        with _disk(self.name):
            empty = is_empty(self.path) and is_empty(self._coming)
            status = os.statvfs(existing(self.path))
        return DestinationFacts(
            destination=self.name,
            system=self.system,
            empty=empty,
            needed=manifest.size,
            free=status.f_bavail * status.f_frsize,
            findings=tuple(findings),
        )

    def _misfits(self, shards: int) -> list[Finding]:
        if not self.addresses or len(self.addresses) == shards:
            return []
        text = f"the backup has {shards} shards, and there are {len(self.addresses)} addresses"
        hint = "one for each shard, in the order of the slots"
        return [blocker(self.name, text, hint)]


@frozen
class ShardOfBackup:
    """One shard of a backup: the part that holds it, and the manifest that it would have by itself."""

    part: str
    slots: Slots
    manifest: Manifest


def shards_of(manifest: Manifest) -> list[ShardOfBackup]:
    """Take a cluster's backup apart. Raises ManifestInvalid."""
    try:
        told = manifest.details["shards"]
        if not isinstance(told, list) or not told:
            raise TypeError(told)
        shards = [_shard(manifest, part_of(number), each) for number, each in enumerate(told)]
        if sum(shard.slots.count for shard in shards) != SLOTS:
            raise ValueError("slots are missing")
    except (KeyError, TypeError, ValueError) as error:
        text = f"its manifest does not say which shards it has: {error}"
        raise ManifestInvalid(text, operation="restore", subject=manifest.id) from error
    return shards


def _shard(manifest: Manifest, part: str, told: Json) -> ShardOfBackup:
    if not isinstance(told, dict):
        raise TypeError(told)
    time = told["time"]
    point = RecoveryPoint(
        position=at(str(told["branch"]), int(str(told["offset"]))),
        time=datetime.fromisoformat(time) if isinstance(time, str) else None,
    )
    stored: StoredPart = manifest.part(part)
    alone = evolve(
        manifest,
        kind="rdb",
        recovery_point=point,
        begins=point.position,
        parts=(evolve(stored, name=PART),),
        details={**manifest.details, "version": told["version"], "rdb_version": told["rdb_version"]},
    )
    return ShardOfBackup(part, Slots.parse(str(told["slots"]).split()), alone)


@frozen
class _ShardBackup:
    """One shard of a stored backup, as a backup by itself; see `primitives.StoredBackup`."""

    backup: StoredBackup
    shard: ShardOfBackup

    @property
    def manifest(self) -> Manifest:
        return self.shard.manifest

    def read(self, part: str) -> Opened[AsyncIterator[bytes]]:
        if part != PART:
            raise KeyError(part)
        return self.backup.read(self.shard.part)

    def examine(self, level: Level) -> AsyncIterator[Examined]:
        return self.backup.examine(level)


def _unlocked(folder: Path) -> None:
    """Raise Conflict while a restore still runs there, Refused if it is none of ours."""
    try:
        lock = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if is_empty(folder):
            return
        text = "what is here was put here by nobody who restores"
        raise Refused(text, operation="discard", subject=str(folder)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict("a restore into it is still running", operation="discard", subject=str(folder)) from None
    finally:
        os.close(lock)


@contextmanager
def _disk(name: str) -> Iterator[None]:
    """Turn what the operating system says into ours."""
    try:
        yield
    except OSError as error:
        text = f"{error.strerror}: {error.filename or name}"
        raise StorageFailed(text, operation="restore", subject=name, hint="discard it, and restore again") from error
