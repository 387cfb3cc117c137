"""PostgreSQL's own programs: found, checked for their version, run without a password on the command line."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from attrs import frozen

from resilience.model.errors import Unsupported
from resilience.programs import Account, Running, started, tied

__all__ = ["Account", "Running", "Tools", "tied"]

_VERSION = re.compile(r"\) (\d+)")


@frozen
class Tools:
    """The programs in `bin_dir`; without one, those on the PATH."""

    bin_dir: Path | None = None

    @classmethod
    def at(cls, bin_dir: str | Path | None) -> Tools:
        """Use the programs in a folder, or with None those on the PATH."""
        return cls(None if bin_dir is None else Path(bin_dir).absolute())

    def path(self, program: str) -> str:
        """Return where a program is. Raises Unsupported if it is missing."""
        found = shutil.which(program, path=None if self.bin_dir is None else str(self.bin_dir))
        if found is None:
            where = "on the PATH" if self.bin_dir is None else f"in {self.bin_dir}"
            raise Unsupported(
                f"{program} is not {where}",
                hint="install PostgreSQL's programs, or name the folder that has them with bin_dir=",
            )
        return found

    def environment(self) -> dict[str, str]:
        """Return the environment its programs need: without this, a relocated PostgreSQL loads the system's libpq."""
        environment = dict(os.environ)
        if self.bin_dir is not None and any((libraries := self.bin_dir.parent / "lib").glob("libpq.so*")):
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{libraries}:{known}" if known else str(libraries)
        return environment

    async def major(self, program: str) -> int:
        """Return the major version of a program. Raises Unsupported if it cannot be told."""
        async with self.start(program, ["--version"], stdout=True) as running:
            printed = (await running.read_all()).decode(errors="replace")
            await running.succeed()
        match = _VERSION.search(printed)
        if match is None:
            raise Unsupported(f"{program} does not say its version: {printed.strip()!r}")
        return int(match[1])

    @asynccontextmanager
    async def start(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        stdin: bool | IO[bytes] = False,
        stdout: bool | IO[bytes] = False,
        account: Account | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> AsyncIterator[Running]:
        """Run a program, as `account` if we are root. On leaving it is terminated and waited for if it still runs.

        It is also stopped when this process dies without leaving. `stdin` and `stdout` are pipes to here (True), files
        or pipes of the caller's, or nothing.
        """
        running = started(
            [self.path(program), *arguments],
            stdin=stdin,
            stdout=stdout,
            account=account,
            environment={**self.environment(), **(environment or {})},
            cwd=cwd,
        )
        async with running as entered:
            yield entered
