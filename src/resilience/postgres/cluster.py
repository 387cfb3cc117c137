"""A new, isolated cluster that a logical backup is restored into, to see whether it comes to life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import frozen

from resilience.concurrency import in_thread
from resilience.model.capture import Restored
from resilience.model.errors import Unsupported
from resilience.model.facts import DestinationFacts
from resilience.model.findings import blocker
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.primitives import StoredBackup

from .dumps.contents import Contents
from .dumps.server import PostgresServer
from .isolation import READY_SECONDS, Isolation, LiveServer
from .places import Places
from .tools import Account, Tools

PROGRAMS = ("initdb", "postgres", "pg_controldata", "pg_restore")
# A spooled dump and the tables made from it stand side by side; indexes are as large as they are.
ROOM = 2


@frozen(kw_only=True)
class ScratchCluster:
    """A cluster to be made in `folder`, run and forgotten; what is in it is not durable."""

    folder: Path
    bin_dir: str | Path | None
    account: Account | None

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether there is room and the programs fit. Writes nothing."""
        (manifest,) = chain
        contents = Contents.of_manifest(manifest)
        tools = Tools.at(self.bin_dir)
        blockers = []
        try:
            for program in PROGRAMS:
                tools.path(program)
            if (found := await tools.major("postgres")) < contents.major:
                text = f"the backup is of PostgreSQL {contents.major}, the programs are of {found}"
                blockers.append((text, "name newer programs with bin_dir="))
        except Unsupported as missing:
            blockers.append((missing.what, missing.hint))
        return DestinationFacts(
            destination=str(self.folder),
            system="postgresql",
            empty=True,
            needed=manifest.size * ROOM,
            free=await in_thread(Places(data=self.folder, locations={}, account=self.account).free),
            findings=tuple(blocker(str(self.folder), text, hint) for text, hint in blockers),
        )

    async def apply(self, plan: RestorePlan, *, chain: Sequence[StoredBackup]) -> Restored:
        """Make the cluster and restore into it. Raises what `PostgresServer.apply` raises."""
        isolation = self._isolation(chain[-1].manifest)
        arguments = ["-D", str(isolation.data), "-U", isolation.role, "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        async with isolation.tools.start("initdb", arguments, account=self.account) as running:
            await running.succeed(Unsupported)
        async with isolation.run() as server:
            await server.ready("select true", seconds=READY_SECONDS)
            into = PostgresServer(
                dsn=server.dsn, bin_dir=self.bin_dir, spool=self.folder, tablespaces=False, replace=True
            )
            return await into.apply(plan, chain=chain)

    @asynccontextmanager
    async def live(self, manifest: Manifest) -> AsyncIterator[LiveServer]:
        """Run the isolated server on it."""
        async with self._isolation(manifest).run() as server:
            await server.ready("select true", seconds=READY_SECONDS)
            yield LiveServer(dsn=server.dsn.uri())

    def _isolation(self, manifest: Manifest) -> Isolation:
        return Isolation(
            tools=Tools.at(self.bin_dir),
            data=self.folder / "data",
            account=self.account,
            role=Contents.of_manifest(manifest).bootstrap_role,
            database="postgres",
            durable=False,
        )
