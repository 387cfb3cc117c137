"""RedisBackupValidator: an RDB parses to its end (level L2), with or without a program of Redis."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from attrs import define

from resilience.model.errors import Corrupt, Unsupported
from resilience.model.findings import Finding, Level, Severity, Verdict
from resilience.model.show import as_bytes
from resilience.primitives import StoredBackup

from .checking import walk
from .target import PART
from .walking import RdbWalker

KIND = "rdb"


@define(kw_only=True)
class RedisBackupValidator:
    """Walks an RDB to its end: its beginning, every key and value, the end mark, and the checksum of all of it.

    `at_least` is the plain size in bytes below which a backup is suspicious and fails, `keys` the number of keys. An
    RDB without a checksum (`rdbchecksum no`) passes with a warning.

    `program` reads it too where there is one, and a note says so: by default (True) the `redis-check-rdb` or
    `valkey-check-rdb` on the PATH. What is newer than the program is a warning. False is for our own walk alone.
    """

    level: ClassVar[Level] = Level.PARSES

    at_least: int = 0
    keys: int = 0
    program: str | Path | bool = True

    async def check(self, subject: StoredBackup) -> Verdict:
        """Read the whole backup. What is wrong is a finding; raises Unavailable if the store does not answer."""
        began = time.monotonic()
        manifest = subject.manifest
        if manifest.kind != KIND:
            raise ValueError(f"{manifest.id} is a {manifest.kind}; this validator checks RDBs")
        walker = RdbWalker()
        findings: list[Finding] = []
        try:
            findings += await walk(subject, PART, walker, self.program)
        except (Corrupt, Unsupported) as error:
            findings.append(_finding("blocker", error.subject or manifest.id, error.what, error.hint))
        else:
            findings += self._judged(walker, manifest.id)
        passed = all(finding.severity != "blocker" for finding in findings)
        return Verdict(
            subject=f"{manifest.target} {manifest.id}",
            passed=passed,
            level=self.level if passed else None,
            objects=len(manifest.part(PART).objects),
            bytes=walker.size,
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )

    def _judged(self, walker: RdbWalker, backup: str) -> list[Finding]:
        count = walker.keys.total()
        kinds = ", ".join(f"{number} of type {name}" for name, number in sorted(walker.types.items())) or "none"
        findings = [_finding("note", backup, f"{count} keys in {len(walker.keys)} databases: {kinds}")]
        if not walker.checked:
            text = "the RDB has no checksum: damage from before it reached the archive would not be noticed"
            findings.append(_finding("warning", backup, text, "set rdbchecksum yes and restart the server"))
        if walker.size < self.at_least:
            text = f"it has {as_bytes(walker.size)}, less than the floor of {as_bytes(self.at_least)}"
            findings.append(_finding("blocker", backup, text))
        if count < self.keys:
            findings.append(_finding("blocker", backup, f"it has {count} keys, less than the floor of {self.keys}"))
        return findings


def _finding(severity: Severity, subject: str, text: str, hint: str = "") -> Finding:
    return Finding(severity=severity, subject=subject, text=text, hint=hint)
