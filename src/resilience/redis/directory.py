"""RedisDataDirectory: a backup comes back to life as the data directory of a server."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from attrs import define, field
from attrs.converters import optional

from resilience.concurrency import in_thread
from resilience.folders import account_for, existing, is_empty, sync_folder
from resilience.model.capture import Restored
from resilience.model.errors import Refused, StorageFailed, Unsupported
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Finding, blocker
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.planning.restore import plan_restore
from resilience.primitives import Log, Reached, StoredBackup
from resilience.programs import Account

from .aof.restoring import load_aof
from .aof.target import AOF
from .client import Url, parse_redis_url
from .isolation import Isolation, LiveRedis, Login, find_program
from .leaving import Left, start, stop
from .loading import ACCEPTED, DATABASES, databases_of, reached_by, too_old, write_rdb
from .mark import GUARD, MARK, Mark, unfinished
from .survey import SYSTEM

COMING, COMING_AOF = "resilience.rdb", "resilience.aof"
"""What is being restored is called so until the server has loaded it once."""


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


@define
class RedisDataDirectory:
    """A folder, empty or absent, that becomes a Redis data directory; an isolated server loads it before it counts.

    `program` is the redis-server (or valkey-server) to do that with, by default the one on the PATH. As root it runs
    as `owner`, by default whoever owns the folder.

    `appendonly` says how the server will be started that takes over. It matters: one with `appendonly yes` that finds
    an RDB only starts empty. With it the data is left as the base of a multi-part append-only file (Redis 7 and newer),
    or else as an RDB, whichever of the two was backed up. `dbfilename`, `appenddirname` and `appendfilename` are as in
    its configuration.

    `leave="running"` starts it, with the configuration file `config` and over it `settings`; it has to answer at `url`,
    and goes on when we have gone. What it was started with stands in `startup.conf` in the folder: start it so again.
    """

    system: ClassVar[str] = SYSTEM
    accepts: ClassVar[tuple[str, ...]] = ACCEPTED
    replays: ClassVar[tuple[str, ...]] = ()

    path: Path = field(converter=_absolute)
    program: str | Path | None = field(default=None, kw_only=True)
    owner: str | None = field(default=None, kw_only=True)
    modules: Sequence[str] = field(default=(), kw_only=True)
    appendonly: bool = field(default=False, kw_only=True)
    dbfilename: str = field(default="dump.rdb", kw_only=True)
    appenddirname: str = field(default="appendonlydir", kw_only=True)
    appendfilename: str = field(default="appendonly.aof", kw_only=True)
    leave: Literal["stopped", "running"] = field(default="stopped", kw_only=True)
    url: Url | None = field(default=None, converter=optional(parse_redis_url), kw_only=True)
    config: str | Path | None = field(default=None, kw_only=True)
    settings: Mapping[str, str] = field(factory=dict, repr=False, kw_only=True)
    _restored: Isolation | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.leave == "running" and self.url is None:
            raise ValueError("a server that is left running has to answer somewhere: give its url")

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def rdb(self) -> Path:
        """The file that a restore leaves here: the RDB, or the base of the append-only file."""
        return self._base if self.appendonly else self._rdb

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether the folder is empty and large enough and the program fits. Writes nothing."""
        findings = await self._misfits(chain[-1])
        return await in_thread(self._room, chain[-1], findings)

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,  # noqa: ARG002  # an RDB has none
        reached: Reached | None = None,  # noqa: ARG002
    ) -> Restored:
        """Put the data there, have a server load it, and only then give it its name; see `RestoreDestination.apply`.

        Raises Refused if something has appeared here since the plan was made, StorageFailed if the disk is full,
        Corrupt if the backup is damaged or the server cannot load it, Interrupted if the server does not start for
        another reason. Cancelled or failed, no server runs, and none starts here. `discard` removes what is here.
        """
        (backup,) = chain
        manifest = backup.manifest
        if plan.chain != (manifest.id,):
            raise ValueError(f"the plan restores {', '.join(plan.chain)}, not {manifest.id}")
        program = await find_program(self.program)
        plan_restore([manifest], await in_thread(self._room, manifest, []))
        account = account_for(self.path, self.owner)
        mark = Mark(data=self.path, account=account, rdb=self._rdb, manifest=self._manifest)
        isolation = Isolation(
            program=program.path,
            data=self.path,
            account=account,
            databases=max(DATABASES, databases_of(manifest)),
            modules=self.modules,
            settings={"appenddirname": "resilience.isolated"} if program.major >= 7 else {},  # not behind the mark
        )
        try:
            with _disk(self.name):
                await in_thread(_prepare, self.path, account, mark)
                restored = await self._fill(backup, isolation)
            with _disk(self.name):
                await in_thread(self._finish, mark)
        finally:
            mark.release()
            if mark.lifted:
                self._restored = isolation
        if self.leave == "running" and self.url is not None:
            with _disk(self.name):
                await start(self._left(), program.path, account, self.url)
        return restored

    async def _fill(self, backup: StoredBackup, isolation: Isolation) -> Restored:
        """Bring an RDB here that a server has loaded, or saved after it executed an append-only file."""
        if backup.manifest.kind == AOF:
            return await load_aof(backup, isolation, self.path / COMING_AOF, rdb=COMING)
        header = await write_rdb(backup, self.path / COMING, isolation.account)
        async with isolation.run(dbfilename=COMING) as live:
            return reached_by(await live.info(), header, backup.manifest)

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveRedis]:
        """Run an isolated server on the restored data; see `RestoreDestination.live`."""
        async with self.serving() as live:
            yield live

    @asynccontextmanager
    async def serving(self, login: Login | None = None, **settings: str) -> AsyncIterator[LiveRedis]:
        """Run a server like that of `live` which others may reach, as `settings` say (`_` for `-`)."""
        if self._restored is None:
            raise Refused("nothing has been restored here yet", operation="start", subject=self.name)
        async with self._restored.run(login, dir=str(self.rdb.parent), dbfilename=self.rdb.name, **settings) as live:
            yield live

    async def discard(self) -> None:
        """Remove what a restore put here, finished by this object or interrupted.

        Raises Refused if it is anything else, Conflict if a restore by somebody else still runs here.
        """
        if not await in_thread(self._may_discard):
            return
        if self._restored is not None and self.url is not None:
            await stop(self.path, self.url)
        with _disk(self.name):
            await in_thread(_empty, self.path, self.dbfilename, self._manifest)
        self._restored = None

    @property
    def _rdb(self) -> Path:
        return self.path / self.dbfilename

    @property
    def _base(self) -> Path:
        return self.path / self.appenddirname / f"{self.appendfilename}.1.base.rdb"

    @property
    def _manifest(self) -> Path:
        return self.path / self.appenddirname / f"{self.appendfilename}.manifest"

    def _left(self) -> Left:
        names = {"appenddirname": self.appenddirname, "appendfilename": self.appendfilename} if self.appendonly else {}
        return Left(
            data=self.path,
            config=None if self.config is None else str(self.config),
            settings={
                **self.settings,
                **names,
                "dbfilename": self.dbfilename,
                "appendonly": "yes" if self.appendonly else "no",
            },
        )

    def _finish(self, mark: Mark) -> None:
        """Give everything its name, make it durable, lift the mark."""
        if self.appendonly:
            (self.path / COMING).rename(self._base)
            sync_folder(self._base.parent)
            self._rdb.unlink()
            mark.lift(f"file {self._base.name} seq 1 type b\n".encode())
        else:
            (self.path / COMING).rename(self._rdb)
            sync_folder(self.path)
            mark.lift()

    def _room(self, manifest: Manifest, findings: list[Finding]) -> DestinationFacts:
        try:
            empty = is_empty(self.path)
            status = os.statvfs(existing(self.path))
        except OSError as error:
            text = f"it cannot be looked at: {error.strerror}: {error.filename}"
            raise Refused(text, operation="restore", subject=self.name) from error
        return DestinationFacts(
            destination=self.name,
            system=self.system,
            empty=empty,
            needed=manifest.size * (2 if manifest.kind == AOF else 1),
            free=status.f_bavail * status.f_frsize,
            findings=tuple(findings),
        )

    async def _misfits(self, manifest: Manifest) -> list[Finding]:
        try:
            program = await find_program(self.program)
        except Unsupported as missing:
            return [blocker(self.name, missing.what, missing.hint)]
        text = too_old(manifest, program.product, program.version)
        hint = "name a newer program with program="
        return [blocker(self.name, text, hint)] if text else []

    def _may_discard(self) -> bool:
        if unfinished(self.path, self._manifest) or (self._restored is not None and self.path.exists()):
            return True
        if is_empty(self.path):
            return False
        raise Refused(
            "what is here was put here neither by this object nor by a restore that was interrupted",
            operation="discard",
            subject=self.name,
            hint="remove it yourself if you are sure",
        )


def _prepare(data: Path, account: Account | None, mark: Mark) -> None:
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account is not None and os.geteuid() == 0:
        os.chown(data, account.uid, account.gid)
    mark.set()


def _empty(folder: Path, rdb: str, manifest: Path) -> None:
    """Remove everything in a folder: what a server would take first, then the guards, the mark last."""
    order = [COMING, rdb, manifest.parent.name, MARK]
    if manifest.exists() and manifest.read_bytes() == GUARD:
        # The guard in there has to stand until there is nothing left to guard.
        for inside in manifest.parent.iterdir():
            if inside != manifest:
                inside.unlink()
    for entry in sorted(folder.iterdir(), key=lambda entry: order.index(entry.name) if entry.name in order else -1):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _disk(name: str) -> Iterator[None]:
    """Turn what the operating system says into ours."""
    try:
        yield
    except OSError as error:
        text = f"{error.strerror}: {error.filename or name}"
        raise StorageFailed(text, operation="restore", subject=name, hint="discard it, and restore again") from error
