"""PostgresServer: a logical backup comes back to life in a server that runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from attrs import define, field, frozen
from attrs.validators import ge

from resilience.model.capture import Restored
from resilience.model.errors import Unsupported
from resilience.model.facts import DestinationFacts
from resilience.model.findings import Finding, blocker
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.planning.restore import plan_restore
from resilience.postgres import destination
from resilience.postgres.client import Dsn, parse_dsn, sql
from resilience.postgres.destination import Destination
from resilience.postgres.tools import Tools
from resilience.primitives import Log, Reached, StoredBackup

from . import globals as cluster_globals
from . import staging
from .contents import GLOBALS, Contents
from .loading import Loader
from .staging import Staging

_HOMES = ("postgres", "template1")


def _jobs(jobs: int | None) -> int:
    return (os.cpu_count() or 1) if jobs is None else jobs


def _folder(path: str | Path | None) -> Path:
    return Path(tempfile.gettempdir() if path is None else path)


@frozen
class RunningServer:
    """A server that runs; `dsn` reaches it and may hold a password."""

    dsn: str = field(repr=False)


@define
class PostgresServer:
    """A running server that logical backups are restored into; `dsn` reaches a database of it that exists.

    A database that is missing is created as it was, and restored by `jobs` connections at once (default: one a
    processor) under a temporary name; when all of them are complete and proven they get their real names in one
    transaction. A database that exists and is empty keeps its owner, settings and privileges and is filled in one
    transaction, by one connection. So nothing half-restored is ever found under a real name, however the restore ends;
    what it leaves under temporary names, `discard` drops. One that holds something is refused, unless `replace` is set:
    then those that exist, empty or not, are restored like missing ones, and dropped when the new ones take their place,
    which ends the connections to them.

    Roles and tablespaces that exist are left as they are, missing ones are created; without `tablespaces` none is, and
    everything goes where the destination's default is. The dump of one database at a time is spooled in the folder
    `spool` (default: the system's for temporary files). `bin_dir` has a pg_restore of the server's major version;
    without it, it is looked for on the PATH.
    """

    system: ClassVar[str] = "postgresql"
    accepts: ClassVar[tuple[str, ...]] = ("dump",)
    replays: ClassVar[tuple[str, ...]] = ()

    dsn: Dsn = field(converter=parse_dsn, kw_only=True)
    _name: str = field(default="", kw_only=True)
    bin_dir: str | Path | None = field(default=None, kw_only=True)
    jobs: int = field(default=None, converter=_jobs, kw_only=True, validator=ge(1))
    spool: Path = field(default=None, converter=_folder, kw_only=True)
    replace: bool = field(default=False, kw_only=True)
    tablespaces: bool = field(default=True, kw_only=True)
    _published: dict[str, str] = field(factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """The name it was given, or else its host and port."""
        return self._name or self.dsn.where

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look at the server, its databases, the programs and the spool. Writes nothing. Sizes are of the spool."""
        (manifest,) = chain
        contents = Contents.of_manifest(manifest)
        return await self._judge(manifest, contents, await self._look(contents))

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored:
        """Restore a logical backup; see `RestoreDestination.apply`.

        The recovery point is the manifest's: every relation its dumps list is proven to be there. Raises Refused if the
        server has changed since the plan was made (nothing was touched) or refuses a role or tablespace, Corrupt if the
        archive is damaged, StorageFailed if the spool is full, Interrupted with pg_restore's words at its first error.
        Cancelled or failed, what was created has its temporary name still; roles and databases that were complete stay.
        """
        if log is not None:
            raise ValueError("no log can be replayed after a dump")
        (backup,) = chain
        manifest = backup.manifest
        if plan.chain != (manifest.id,):
            raise ValueError(f"the plan restores {', '.join(plan.chain)}, not {manifest.id}")
        contents = Contents.of_manifest(manifest)
        here = await self._look(contents)
        plan_restore([manifest], await self._judge(manifest, contents, here))
        existing = {database.name for database in here.existing(contents)}
        home = self._home(existing if self.replace else set())
        stage = Staging(dsn=home, replace=existing if self.replace else ())
        loader = Loader(
            tools=Tools.at(self.bin_dir), dsn=home, jobs=self.jobs, spool=self.spool, tablespaces=self.tablespaces
        )
        async with stage.running():
            await self._globals(backup, contents, here)
            for database in contents.databases:
                if self.replace or database.name not in existing:
                    await loader.create(backup, database, name=stage.name_for(database.name))
            for database in contents.databases:
                if not self.replace and database.name in existing:
                    await loader.fill(backup, database)
        findings = await stage.publish()  # nothing may be awaited after this: a restore that was cancelled is not there
        self._published |= stage.published
        if reached is not None:
            reached(manifest.recovery_point)
        return Restored(reached=manifest.recovery_point, findings=tuple(findings))

    @asynccontextmanager
    async def live(self) -> AsyncIterator[RunningServer]:
        """Yield the server itself, once it answers. It is not isolated: it is the destination, and goes on running."""
        async with sql(self.dsn, operation="connect") as connection:
            await connection.fetchval("select true")
        yield RunningServer(self.dsn.uri())

    async def discard(self) -> None:
        """Drop the databases this object has created here, and what interrupted restores left under temporary names.

        Roles stay, tablespaces too, and databases that had existed and were filled. Raises Conflict if a restore into
        this server is still running; what it makes is left alone.
        """
        await staging.discard(self._home(set(self._published)), self._published)
        self._published = {}

    async def _globals(self, backup: StoredBackup, contents: Contents, here: Destination) -> None:
        async with backup.read(GLOBALS) as chunks:
            script = b"".join([chunk async for chunk in chunks])
        present = cluster_globals.Present(roles=here.roles, tablespaces=here.tablespaces)
        wanted = list(
            cluster_globals.steps(
                cluster_globals.decoded(script),
                present=present,
                bootstrap_role=contents.bootstrap_role,
                tablespaces=self.tablespaces,
            )
        )
        await cluster_globals.run(wanted, self.dsn)

    async def _look(self, contents: Contents) -> Destination:
        # What is to be replaced may hold anything, and may be too broken to be looked into.
        names = () if self.replace else [database.name for database in contents.databases]
        return await destination.look(self.dsn, names)

    async def _judge(self, manifest: Manifest, contents: Contents, here: Destination) -> DestinationFacts:
        pg_restore, findings = await self._programs()
        filled = [] if self.replace else here.filled(contents)
        free = shutil.disk_usage(self.spool).free if self.spool.is_dir() else None
        if free is None:
            findings.append(self._blocker(f"there is no folder {self.spool} to spool to", "name another with spool="))
        return DestinationFacts(
            destination=", ".join([self.name, *map(str, filled)]),
            system=self.system,
            empty=not filled,
            needed=max((manifest.part(database.part).size for database in contents.databases), default=0),
            free=free,
            findings=(
                *destination.findings(contents, here, replace=self.replace, pg_restore=pg_restore),
                *findings,
            ),
            details={"version": here.version, "databases": [*sorted({*here.databases, *here.unreachable})]},
        )

    async def _programs(self) -> tuple[int, list[Finding]]:
        """Look at pg_restore: its major, 0 if it is missing."""
        try:
            return await Tools.at(self.bin_dir).major("pg_restore"), []
        except Unsupported as missing:
            return 0, [self._blocker(missing.what, missing.hint)]

    def _home(self, taken: set[str]) -> Dsn:
        """Return where to connect to create, rename and drop: a database that is none of those."""
        names = (self.dsn.parameters.get("dbname", "postgres"), *_HOMES)
        return self.dsn.database(next((name for name in names if name not in taken), _HOMES[-1]))

    def _blocker(self, text: str, hint: str) -> Finding:
        return blocker(self.name, text, hint)
