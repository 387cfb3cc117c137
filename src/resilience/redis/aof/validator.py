"""RedisAofValidator: an append-only file parses to its end (level L2), without any program of Redis."""

from __future__ import annotations

import time
from typing import ClassVar

from attrs import define, field

from resilience.concurrency import each_in_thread, in_thread
from resilience.model.errors import Corrupt, Unsupported
from resilience.model.findings import Finding, Level, Verdict, blocker
from resilience.model.show import as_bytes
from resilience.primitives import StoredBackup
from resilience.redis.walking import RdbWalker

from .listing import AofFile, read_listing
from .target import AOF, LISTING
from .walking import AofWalker


@define(kw_only=True)
class RedisAofValidator:
    """Walks every file that the manifest names to its end: the base with its checksum, and every command since.

    The commands have no checksum of the server's: that they can be executed, only a server that loads them proves.

    `at_least` is the plain size in bytes below which a backup is suspicious and fails.
    """

    level: ClassVar[Level] = Level.PARSES

    at_least: int = 0

    async def check(self, subject: StoredBackup) -> Verdict:
        """Read the whole backup. What is wrong is a finding; raises Unavailable if the store does not answer."""
        began = time.monotonic()
        manifest = subject.manifest
        if manifest.kind != AOF:
            raise ValueError(f"{manifest.id} is a {manifest.kind}; this validator checks append-only files")
        walk = _Walk(subject)
        findings = []
        if manifest.size < self.at_least:
            text = f"it has {as_bytes(manifest.size)}, less than the floor of {as_bytes(self.at_least)}"
            findings.append(blocker(manifest.id, text))
        try:
            await walk.to_the_end()
        except (Corrupt, Unsupported) as error:
            subject_of = error.subject or manifest.id
            findings.append(blocker(subject_of, error.what, error.hint))
        passed = not findings
        if passed:
            text = f"{walk.keys} keys in the base, {walk.commands} commands since"
            findings.append(Finding(severity="note", subject=manifest.id, text=text))
        return Verdict(
            subject=f"{manifest.target} {manifest.id}",
            passed=passed,
            level=self.level if passed else None,
            objects=walk.objects,
            bytes=walk.size,
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )


@define
class _Walk:
    backup: StoredBackup
    objects: int = field(default=0, init=False)
    size: int = field(default=0, init=False)
    keys: int = field(default=0, init=False)
    commands: int = field(default=0, init=False)

    async def to_the_end(self) -> None:
        """Walk every part; raises Corrupt at the first thing that is wrong."""
        manifest = self.backup.manifest
        stored = {part.name: part for part in manifest.parts}
        files = read_listing(await self._listing())
        if {each.name for each in files} != set(stored) - {LISTING}:
            raise Corrupt("its manifest names other files than it has", subject=manifest.id)
        for each in files:
            await self._file(each)
        self.objects = sum(len(part.objects) for part in manifest.parts)
        self.size = manifest.size

    async def _listing(self) -> bytes:
        if LISTING not in {part.name for part in self.backup.manifest.parts}:
            raise Corrupt("it has no manifest of an append-only file", subject=self.backup.manifest.id)
        async with self.backup.read(LISTING) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def _file(self, file: AofFile) -> None:
        walker: RdbWalker | AofWalker = RdbWalker() if file.rdb else AofWalker()
        try:
            async with self.backup.read(file.name) as chunks:
                await each_in_thread(chunks, walker.feed)
            await in_thread(walker.close)
        except (Corrupt, Unsupported) as error:
            error.subject = error.subject or f"{self.backup.manifest.id} {file.name}"
            raise
        if isinstance(walker, RdbWalker):
            self.keys += walker.keys.total()
        else:
            self.commands += walker.commands
