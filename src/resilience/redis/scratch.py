"""RedisScratch: a temporary folder where a backup comes to life, isolated, and is thrown away."""

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

from .directory import RedisDataDirectory
from .isolation import LiveRedis, Login
from .loading import ACCEPTED
from .survey import SYSTEM

_USUAL_ACCOUNTS = ("redis", "valkey", "nobody")


@define
class RedisScratch:
    """A scratch server for `verify(…, scratch=…)` and drills: restored into a new folder below `within`.

    It never acts as the one that the data was taken from: see `resilience.redis.isolation`. It needs as much memory as
    that one, and below `within` (default: the system's folder for temporary files) room for the backup. As root, it
    runs as `owner`, by default whoever owns `within`, or else `redis`, `valkey` or `nobody`.
    """

    system: ClassVar[str] = SYSTEM
    accepts: ClassVar[tuple[str, ...]] = ACCEPTED
    replays: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "scratch"

    program: str | Path | None = field(default=None, kw_only=True)
    within: str | Path | None = field(default=None, kw_only=True)
    owner: str | None = field(default=None, kw_only=True)
    modules: Sequence[str] = field(default=(), kw_only=True)
    _folder: Path | None = field(default=None, init=False, repr=False)
    _directory: RedisDataDirectory | None = field(default=None, init=False, repr=False)

    @property
    def _within(self) -> str | Path:
        return self.within or tempfile.gettempdir()

    @property
    def _owner(self) -> str | None:
        return scratch_owner(self._within, self.owner, _USUAL_ACCOUNTS)

    async def survey(self, chain: Sequence[Manifest]) -> DestinationFacts:
        """Look whether there is room and the program fits. Writes nothing."""
        return await self._in(Path(self._within) / "resilience-scratch-new").survey(chain)

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
        # Cancelled while the folder is made, a thread still makes it, and nobody would know.
        self._folder = scratch_folder(self._within, self._owner)
        directory = self._in(self._folder)
        restored = await directory.apply(plan, chain=chain, log=log, reached=reached)
        self._directory = directory
        return restored

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveRedis]:
        """Run the isolated server; see `RestoreDestination.live`."""
        async with self.serving() as live:
            yield live

    @asynccontextmanager
    async def serving(self, login: Login | None = None, **settings: str) -> AsyncIterator[LiveRedis]:
        """Run a server like that of `live` which others may reach; see `RedisDataDirectory.serving`."""
        if self._directory is None:
            raise Refused("nothing has been restored here yet", operation="start", subject=self.name)
        async with self._directory.serving(login, **settings) as live:
            yield live

    async def discard(self) -> None:
        """Remove the folder and everything in it."""
        try:
            if self._folder is not None and self._folder.exists():
                await in_thread(shutil.rmtree, self._folder)
        except OSError as error:
            what = f"a copy of the data is still there: {error.strerror}: {error.filename}"
            raise StorageFailed(what, operation="discard", subject=self.name, hint="remove it") from error
        self._folder = self._directory = None

    def _in(self, folder: Path) -> RedisDataDirectory:
        return RedisDataDirectory(folder / "data", program=self.program, owner=self._owner, modules=self.modules)
