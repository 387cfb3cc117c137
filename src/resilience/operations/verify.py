"""verify(): is a backup what it was when it was written, and would it come back to life?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from attrs import define, field

from resilience.concurrency import finish
from resilience.model.errors import Corrupt, Interrupted
from resilience.model.events import Notifier, Observer
from resilience.model.findings import Finding, Level, Verdict
from resilience.model.manifests import Manifest
from resilience.model.show import as_bytes
from resilience.planning.restore import plan_restore
from resilience.primitives import Archiver, RestoreDestination, StoredBackup, Validator

from .observed import ObservedBackup

Live = TypeVar("Live")


async def verify(
    archive: Archiver,
    manifest: Manifest,
    *,
    validators: Sequence[Validator[StoredBackup]] = (),
    scratch: RestoreDestination[Live] | None = None,
    observer: Observer | None = None,
) -> Verdict:
    """Prove as much about a backup as it is given the means for, level by level; stop at the first that fails.

    Always: every object exists (L0), every stored byte is read and matches its checksums (L1). With the system's own
    `validators`: the format parses to its end (L2). With a `scratch` destination: a server starts on it and answers
    (L3); what was restored there is removed again, also on cancellation.

    What is wrong stands in the verdict's findings. Raises Unavailable if the store does not answer, Refused or
    Unsupported if the scratch destination cannot be used.
    """
    began = time.monotonic()
    told = Notifier("verify", manifest.target, observer)
    with told.outcome():
        told.total = manifest.stored + manifest.size * (len(validators) + (scratch is not None))
        async with archive.open(manifest) as stored:
            proof = _Proof(subject=f"{manifest.target} {manifest.id}", backup=ObservedBackup(stored, told))
            if (
                await proof.exists()
                and await proof.matches()
                and await proof.passes(validators)
                and scratch is not None
            ):
                await proof.starts(scratch)
    return proof.verdict(time.monotonic() - began)


@define(kw_only=True)
class _Proof:
    """Collects what each level found."""

    subject: str
    backup: StoredBackup
    passed: bool = True
    level: Level | None = None
    objects: int = 0
    bytes: int = 0
    findings: list[Finding] = field(factory=list)

    def verdict(self, seconds: float) -> Verdict:
        return Verdict(
            subject=self.subject,
            passed=self.passed and not any(finding.severity == "blocker" for finding in self.findings),
            level=self.level,
            objects=self.objects,
            bytes=self.bytes,
            seconds=seconds,
            findings=tuple(self.findings),
        )

    async def exists(self) -> bool:
        """L0."""
        return await self._examine(Level.EXISTS)

    async def matches(self) -> bool:
        """L1."""
        return await self._examine(Level.CHECKSUMS)

    async def passes(self, validators: Sequence[Validator[StoredBackup]]) -> bool:
        """L2 and whatever else the validators prove about stored bytes."""
        for validator in sorted(validators, key=lambda each: each.level):
            verdict = await validator.check(self.backup)
            self.findings += verdict.findings
            if not verdict.passed:
                self.passed = False
                return False
            self._reached(validator.level, f"{verdict.objects} objects, {as_bytes(verdict.bytes)} parsed")
        return True

    async def starts(self, scratch: RestoreDestination[Live]) -> None:
        """L3."""
        manifest = self.backup.manifest
        plan = plan_restore([manifest], await scratch.survey([manifest]))
        try:
            restored = await scratch.apply(plan, chain=[self.backup])
            self.findings += restored.findings
            async with scratch.live():
                self._reached(Level.STARTS, f"a scratch server reached {restored.reached} and answers")
        except (Corrupt, Interrupted) as error:
            self.findings.append(Finding(severity="blocker", subject=error.subject, text=error.what, hint=error.hint))
        finally:
            await finish(scratch.discard())

    async def _examine(self, level: Level) -> bool:
        self.objects = self.bytes = 0
        problems = []
        async for examined in self.backup.examine(level):
            self.objects += 1
            self.bytes += examined.bytes
            if examined.problem:
                problems.append(Finding(severity="blocker", subject=examined.key, text=examined.problem))
        self.findings += problems
        if not problems:
            self._reached(level, f"{self.objects} objects, {as_bytes(self.bytes)} read")
        return not problems

    def _reached(self, level: Level, text: str) -> None:
        self.level = level
        self.findings.append(Finding(severity="note", subject=str(level), text=text))
