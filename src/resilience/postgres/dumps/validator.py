"""PostgresDumpValidator: a logical backup parses to its end (level L2), read through by pg_restore itself."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar

from attrs import define, field

from resilience.concurrency import in_thread
from resilience.model.errors import Corrupt, Unavailable, Unsupported
from resilience.model.findings import Level, Verdict, blocker
from resilience.model.show import as_bytes
from resilience.postgres.tools import Tools
from resilience.primitives import StoredBackup

from . import globals as cluster_globals
from .contents import GLOBALS, Contents
from .custom import DumpReader
from .sql_text import statements


@define(kw_only=True)
class PostgresDumpValidator:
    """Has pg_restore write every database's dump out as a script, to /dev/null; reads the globals to their last token.

    Its table of contents alone would prove nothing: a dump whose body is cut off lists well. `at_least` is the plain
    size in bytes below which a backup is suspicious and fails. `bin_dir` has a pg_restore of the major version that
    made the dump, or newer; without it, it is looked for on the PATH.
    """

    level: ClassVar[Level] = Level.PARSES

    bin_dir: str | Path | None = None
    at_least: int = 0

    async def check(self, subject: StoredBackup) -> Verdict:
        """Read the whole backup. What is wrong is a finding.

        Raises ValueError if it is no logical backup, Unsupported if pg_restore is missing or too old, Unavailable if
        the store does not answer.
        """
        began = time.monotonic()
        manifest = subject.manifest
        contents = Contents.of_manifest(manifest)
        tools = Tools.at(self.bin_dir)
        await _can_read(tools, contents)
        reading = _Reading(subject, tools)
        findings = []
        if manifest.size < self.at_least:
            text = f"it has {as_bytes(manifest.size)}, less than the floor of {as_bytes(self.at_least)}"
            findings.append(blocker(manifest.id, text))
        for part in (GLOBALS, *(database.part for database in contents.databases)):
            try:
                await (reading.script(part) if part == GLOBALS else reading.dump(part))
            except Corrupt as error:
                text = f"{part}: {error.what}"
                findings.append(blocker(error.subject or manifest.id, text))
        return Verdict(
            subject=f"{manifest.target} {manifest.id}",
            passed=not findings,
            level=None if findings else self.level,
            objects=reading.objects,
            bytes=reading.size,
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )


@define
class _Reading:
    """Reads parts to their ends; counts the stored objects and the plain bytes of those that are whole."""

    backup: StoredBackup
    tools: Tools
    objects: int = 0
    size: int = field(default=0)

    async def script(self, part: str) -> None:
        """Read the globals to their last token."""
        async with self.backup.read(part) as chunks:
            text = cluster_globals.decoded(b"".join([chunk async for chunk in self._counted(chunks)]))
        await in_thread(lambda: sum(1 for _ in statements(text)))
        self.objects += len(self.backup.manifest.part(part).objects)

    async def dump(self, part: str) -> None:
        """Have pg_restore read a dump, and find every block its table of contents names. Raises Corrupt."""
        reader = DumpReader()
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb") as source, os.fdopen(write_end, "wb", buffering=0) as sink:
            async with (
                self.tools.start("pg_restore", ["--file=/dev/null"], stdin=source) as running,
                self.backup.read(part) as chunks,
            ):
                source.close()
                with suppress(BrokenPipeError):  # it says below why it stopped reading
                    async for chunk in self._counted(chunks):
                        await in_thread(reader.feed, chunk)
                        await in_thread(_write, sink, chunk)
                sink.close()
                status = await running.wait()
                await running.succeed(Corrupt if status > 0 else Unavailable)  # below 0: somebody killed it
        list(reader.patches())
        self.objects += len(self.backup.manifest.part(part).objects)

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            self.size += len(chunk)


async def _can_read(tools: Tools, contents: Contents) -> None:
    found = await tools.major("pg_restore")
    if found < contents.pg_dump_major:
        raise Unsupported(
            f"the backup is by pg_dump {contents.pg_dump_major}, the pg_restore here is {found} and cannot read it",
            operation="verify",
            hint=f"name programs of PostgreSQL {contents.pg_dump_major} with bin_dir=",
        )


def _write(sink: IO[bytes], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[sink.write(rest) :]
