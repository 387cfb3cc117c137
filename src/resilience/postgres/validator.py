"""PostgresBackupValidator: a physical backup parses to its end (level L2), without any program of PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from attrs import define

from resilience.concurrency import each_in_thread, in_thread
from resilience.model.errors import Corrupt
from resilience.model.findings import Level, Verdict, blocker
from resilience.model.show import as_bytes
from resilience.primitives import StoredBackup
from resilience.streams.tar import TarWalker

from . import server_manifest
from .server_manifest import FileChecksums, ServerManifest

_KINDS = ("base", "incremental")


@define(kw_only=True)
class PostgresBackupValidator:
    """Walks every tar to its end and compares every file with the server's own manifest.

    Of an incremental backup it looks at what is in it, not at what it builds on.

    Of WAL, which is not in that manifest, every segment has to be there and whole; that it replays is for L3 to prove.

    `at_least` is the plain size in bytes below which a backup is suspicious and fails.
    """

    level: ClassVar[Level] = Level.PARSES

    at_least: int = 0

    async def check(self, subject: StoredBackup) -> Verdict:
        """Read the whole backup. What is wrong is a finding; raises Unavailable if the store does not answer."""
        began = time.monotonic()
        manifest = subject.manifest
        if manifest.kind not in _KINDS:
            raise ValueError(f"{manifest.id} is a {manifest.kind}; this validator checks base and incremental backups")
        walk = _Walk(subject)
        findings = []
        if manifest.size < self.at_least:
            text = f"it has {as_bytes(manifest.size)}, less than the floor of {as_bytes(self.at_least)}"
            findings.append(blocker(manifest.id, text))
        try:
            await walk.to_the_end()
        except Corrupt as error:
            findings.append(blocker(error.subject or manifest.id, error.what))
        return Verdict(
            subject=f"{manifest.target} {manifest.id}",
            passed=not findings,
            level=None if findings else self.level,
            objects=walk.objects,
            bytes=walk.size,
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )


def _compare(listed: bytes, checksums: FileChecksums) -> None:
    server_manifest.compare(ServerManifest.parse(listed), checksums.seen)


@define
class _Walk:
    backup: StoredBackup
    objects: int = 0
    size: int = 0

    async def to_the_end(self) -> None:
        """Walk every part; raises Corrupt at the first thing that is wrong."""
        checksums = FileChecksums()
        listed = bytearray()
        for part in self.backup.manifest.parts:
            if part.name == server_manifest.NAME:
                await self._each(part.name, listed.extend)
                continue
            checksums.prefix = server_manifest.prefix_of(part.name)
            walker = TarWalker(checksums)
            await self._each(part.name, walker.feed)
            walker.close()
        await in_thread(_compare, bytes(listed), checksums)

    async def _each(self, part: str, step: Callable[[bytes], None]) -> None:
        def counted(chunk: bytes) -> None:
            step(chunk)
            self.size += len(chunk)

        async with self.backup.read(part) as chunks:
            await each_in_thread(chunks, counted)
        self.objects += len(self.backup.manifest.part(part).objects)
