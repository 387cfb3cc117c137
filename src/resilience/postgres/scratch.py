"""PostgresScratch: a temporary folder where any PostgreSQL backup comes to life, isolated, and is thrown away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from attrs import define, field

from resilience.concurrency import in_thread
from resilience.folders import scratch_folder, scratch_owner
from resilience.model.capture import Restored
from resilience.model.errors import Refused, StorageFailed
from resilience.model.facts import DestinationFacts
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.primitives import Log, Reached, StoredBackup

from .cluster import ScratchCluster
from .directory import PostgresDataDirectory
from .isolation import LiveServer
from .places import recorded_tablespaces
from .tools import Account

_USUAL_ACCOUNTS = ("postgres", "nobody")


@define
class PostgresScratch:
    """A scratch server for `verify(…, scratch=…)` and drills: restored into a new folder below `within`.

    It never acts as the production it was taken from: see `resilience.postgres.isolation`. Tablespaces are put below
    the same folder. `within` (default: the system's folder for temporary files) needs room for the whole backup. As
    root, the server runs as `owner`, by default whoever owns `within`, or else `postgres` or `nobody`.
    """

    system: ClassVar[str] = "postgresql"
    accepts: ClassVar[tuple[str, ...]] = ("base", "incremental", "dump")
    replays: ClassVar[tuple[str, ...]] = ("base", "incremental")
    name: ClassVar[str] = "scratch"

    bin_dir: str | Path | None = field(default=None, kw_only=True)
    within: str | Path | None = field(default=None, kw_only=True)
    owner: str | None = field(default=None, kw_only=True)
    _folder: Path | None = field(default=None, init=False, repr=False)
    _restored: Manifest | None = field(default=None, init=False, repr=False)
    _base: PostgresDataDirectory | None = field(default=None, init=False, repr=False)

    @property
    def _within(self) -> str | Path:
        return self.within or tempfile.gettempdir()

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether there is room and the programs fit. Writes nothing."""
        folder = Path(self._within) / "resilience-scratch-new"
        if chain[-1].kind == "dump":
            return await self._cluster(folder).survey(chain)
        return await self._directory(folder, chain[-1]).survey(chain)

    async def apply(
        self,
        plan: RestorePlan,
        *,
        chain: Sequence[StoredBackup],
        log: Log | None = None,
        reached: Reached | None = None,
    ) -> Restored:
        """Restore into a new folder; see `RestoreDestination.apply`. Cancelled or failed: `discard` removes it."""
        if self._folder is not None:
            raise Refused("it is in use", operation="restore", subject=self.name, hint="discard it first")
        self._folder = scratch_folder(self._within, self._account())
        manifest = chain[-1].manifest
        if manifest.kind == "dump":
            restored = await self._cluster(self._folder).apply(plan, chain=chain)
        else:
            self._base = self._directory(self._folder, manifest)
            restored = await self._base.apply(plan, chain=chain, log=log, reached=reached)
        self._restored = manifest
        return restored

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveServer]:
        """Run the isolated server; see `RestoreDestination.live`."""
        if self._folder is None or self._restored is None:
            raise Refused("nothing has been restored here yet", operation="start", subject=self.name)
        running = self._base.live() if self._base else self._cluster(self._folder).live(self._restored)
        async with running as server:
            yield server

    async def discard(self) -> None:
        """Remove the folder and everything in it."""
        try:
            if self._folder is not None and self._folder.exists():
                await in_thread(shutil.rmtree, self._folder)
        except OSError as error:
            what = f"a copy of the data is still there: {error.strerror}: {error.filename}"
            raise StorageFailed(what, operation="discard", subject=self.name, hint="remove it") from error
        self._folder = self._base = self._restored = None

    def _cluster(self, folder: Path) -> ScratchCluster:
        name = self._account()
        return ScratchCluster(
            folder=folder, bin_dir=self.bin_dir, account=None if name is None else Account.named(name)
        )

    def _directory(self, folder: Path, manifest: Manifest) -> PostgresDataDirectory:
        return PostgresDataDirectory(
            folder / "data",
            bin_dir=self.bin_dir,
            tablespaces={where: folder / f"tablespace-{oid}" for oid, where in recorded_tablespaces(manifest).items()},
            owner=self._account(),
        )

    def _account(self) -> str | None:
        return scratch_owner(self._within, self.owner, _USUAL_ACCOUNTS)
