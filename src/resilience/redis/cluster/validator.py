"""RedisClusterValidator: the RDB of every shard parses to its end (level L2), and together they hold every slot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from attrs import define

from resilience.model.errors import Corrupt, Unsupported
from resilience.model.findings import Finding, Level, Verdict, blocker
from resilience.model.show import as_bytes
from resilience.primitives import StoredBackup
from resilience.redis.checking import walk
from resilience.redis.walking import RdbWalker

from .directory import shards_of
from .target import CLUSTER


@define(kw_only=True)
class RedisClusterValidator:
    """Walks the RDB of every shard to its end, as `RedisBackupValidator` does with one.

    `at_least` is the plain size in bytes below which a backup is suspicious and fails, `keys` the number of keys.
    `program` reads them too, as it does there.
    """

    level: ClassVar[Level] = Level.PARSES

    at_least: int = 0
    keys: int = 0
    program: str | Path | bool = True

    async def check(self, subject: StoredBackup) -> Verdict:
        """Read the whole backup. What is wrong is a finding; raises Unavailable if the store does not answer."""
        began = time.monotonic()
        manifest = subject.manifest
        if manifest.kind != CLUSTER:
            raise ValueError(f"{manifest.id} is a {manifest.kind}; this validator checks backups of clusters")
        keys = size = 0
        findings: list[Finding] = []
        try:
            for shard in shards_of(manifest):
                walker = RdbWalker()
                findings += await walk(subject, shard.part, walker, self.program)
                keys, size = keys + walker.keys.total(), size + walker.size
                text = f"slots {shard.slots}: {walker.keys.total()} keys"
                findings.append(Finding(severity="note", subject=f"{manifest.id} {shard.part}", text=text))
        except (Corrupt, Unsupported) as error:
            findings.append(blocker(error.subject or manifest.id, error.what))
        else:
            if manifest.size < self.at_least:
                text = f"it has {as_bytes(manifest.size)}, less than the floor of {as_bytes(self.at_least)}"
                findings.append(blocker(manifest.id, text))
            if keys < self.keys:
                findings.append(blocker(manifest.id, f"it has {keys} keys, less than the floor of {self.keys}"))
        passed = all(finding.severity != "blocker" for finding in findings)
        return Verdict(
            subject=f"{manifest.target} {manifest.id}",
            passed=passed,
            level=self.level if passed else None,
            objects=sum(len(part.objects) for part in manifest.parts),
            bytes=size,
            seconds=time.monotonic() - began,
            findings=tuple(findings),
        )
