"""pg_rewind: tried first, where nothing is changed, and then done (PostgreSQL, pg_rewind)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from attrs import frozen

from resilience.concurrency import in_thread
from resilience.model.errors import Unavailable
from resilience.postgres.members import PostgresMember

from .conninfo import quoted
from .server import LocalServer

ENDED = ("shut down", "shut down in recovery")
"""The states in which pg_rewind looks at a server at all; from any other it has to recover first."""


@frozen(kw_only=True)
class Rewind:
    """Rewinds a server that does not run to where it parted from `source`; `restore_command` fetches WAL it has lost.

    To try it changes no data; WAL that it needs is fetched for that, too.
    """

    server: LocalServer
    source: PostgresMember
    restore_command: str = ""

    async def tried(self) -> str:
        """Say why it cannot be done; empty if it can."""
        try:
            await self._run("--dry-run")
        except Unavailable as error:
            return error.what
        return ""

    async def done(self) -> None:
        """Do it. Raises Unavailable half-way: then the data is nothing to rely on."""
        await self._run()

    async def _run(self, *more: str) -> None:
        dsn, server = self.source.dsn, self.server
        with tempfile.TemporaryDirectory(prefix="resilience-") as folder:
            arguments = ["-D", str(server.data), f"--source-server={dsn}", "--no-ensure-shutdown"]
            arguments += await in_thread(self._restoring, Path(folder))
            async with server.tools.start(
                "pg_rewind",
                [*arguments, *more],
                account=server.account,
                environment={**dsn.environment(), "LC_ALL": "C"},
            ) as running:
                await running.succeed(Unavailable)

    def _restoring(self, folder: Path) -> list[str]:
        if not self.restore_command:
            return []
        config = folder / "postgresql.conf"
        config.touch(mode=0o600)
        config.write_text(f"restore_command = {quoted(self.restore_command)}\n")
        if (account := self.server.account) is not None:
            for path in (config, folder):
                os.chown(path, account.uid, account.gid)
        return ["--restore-target-wal", f"--config-file={config}"]
