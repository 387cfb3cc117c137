"""verify(): is a backup what it was when it was written, and would it come back to life?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

from attrs import define, field

from resilience.concurrency import closing, finish
from resilience.model.errors import Corrupt, Interrupted, NotRecoverable, ResilienceError
from resilience.model.events import Notifier, Observer
from resilience.model.findings import Doubt, Finding, Level, Verdict, blocker
from resilience.model.manifests import Manifest
from resilience.model.show import as_bytes
from resilience.planning.chains import chain_of
from resilience.planning.doubts import explained
from resilience.planning.restore import plan_restore
from resilience.primitives import Archiver, RestoreDestination, StoredBackup, Validator

from .looking import known_backups
from .observed import ObservedBackup

Live = TypeVar("Live")


async def verify(
    archive: Archiver,
    manifest: Manifest,
    *,
    validators: Sequence[Validator[StoredBackup]] = (),
    scratch: RestoreDestination[Live] | None = None,
    assertions: Sequence[Validator[Live]] = (),
    observer: Observer | None = None,
) -> Verdict:
    """Prove as much about a backup as it is given the means for, level by level; stop at the first that fails.

    Always: every object exists (L0), every stored byte is read and matches its checksums (L1). With the system's own
    `validators`: the format parses to its end (L2). With a `scratch` destination: a server starts on it and answers
    (L3), and with `assertions` about its data they hold (L4); what was restored there is removed again, also on
    cancellation.

    Of an incremental backup, L0 looks at everything that it builds on too, L1 and L2 read its own bytes only, and L3
    restores the whole chain.

    What is wrong stands in the verdict's findings. Raises ValueError for assertions without a scratch, Unavailable if
    the store does not answer, Refused or Unsupported if the scratch destination cannot be used.
    """
    if assertions and scratch is None:
        raise ValueError("assertions are about a running server: name a scratch destination")
    began = time.monotonic()
    told = Notifier("verify", manifest.target, observer)
    with told.outcome():
        proof = _Proof(subject=f"{manifest.target} {manifest.id}")
        async with AsyncExitStack() as opened:
            if chain := await proof.whole(archive, manifest):
                restored = sum(each.size for each in chain) if scratch is not None else 0
                told.total = manifest.stored + manifest.size * len(validators) + restored
                proof.chain = [
                    ObservedBackup(await opened.enter_async_context(archive.open(each)), told) for each in chain
                ]
            if (
                chain
                and await proof.exists()
                and await proof.matches()
                and await proof.passes(validators)
                and scratch is not None
            ):
                await proof.starts(scratch, assertions)
    return proof.verdict(time.monotonic() - began)


@define(kw_only=True)
class _Proof:
    """Collects what each level found; the last of `chain` is what is to be proven."""

    subject: str
    chain: Sequence[StoredBackup] = ()
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

    async def whole(self, archive: Archiver, manifest: Manifest) -> tuple[Manifest, ...]:
        """Find all that the backup builds on, or nothing."""
        if manifest.parent is None:
            return (manifest,)
        try:
            doubts: list[Doubt] = []
            with explained(doubts):
                async with known_backups(archive, manifest.target, doubts) as known:
                    return chain_of(manifest, known)
        except (NotRecoverable, Corrupt) as error:
            self.findings.append(_blocker(error))
            return ()

    async def exists(self) -> bool:
        """L0, of everything that a restore needs."""
        return await self._examine(Level.EXISTS, self.chain)

    async def matches(self) -> bool:
        """L1."""
        return await self._examine(Level.CHECKSUMS, self.chain[-1:])

    async def passes(self, validators: Sequence[Validator[StoredBackup]]) -> bool:
        """L2 and whatever else the validators prove about stored bytes."""
        for validator in sorted(validators, key=lambda each: each.level):
            verdict = await validator.check(self.chain[-1])
            self.findings += verdict.findings
            if not verdict.passed:
                self.passed = False
                return False
            self._reached(validator.level, f"{verdict.objects} objects, {as_bytes(verdict.bytes)} parsed")
        return True

    async def starts(self, scratch: RestoreDestination[Live], assertions: Sequence[Validator[Live]]) -> None:
        """L3, and L4 where something is asserted."""
        manifests = [backup.manifest for backup in self.chain]
        plan = plan_restore(manifests, await scratch.survey(manifests))
        try:
            restored = await scratch.apply(plan, chain=self.chain)
            self.findings += restored.findings
            async with scratch.live() as live:
                self._reached(Level.STARTS, f"a scratch server reached {restored.reached} and answers")
                await self._hold(assertions, live)
        except (Corrupt, Interrupted) as error:
            self.findings.append(_blocker(error))
        finally:
            await finish(scratch.discard())

    async def _hold(self, assertions: Sequence[Validator[Live]], live: Live) -> None:
        """L4: all of them are looked at."""
        verdicts = [await each.check(live) for each in assertions]
        self.findings += [finding for verdict in verdicts for finding in verdict.findings]
        self.passed = all(verdict.passed for verdict in verdicts)
        if verdicts and self.passed:
            self._reached(Level.ASSERTIONS, f"{len(verdicts)} assertions about the data hold")

    async def _examine(self, level: Level, backups: Sequence[StoredBackup]) -> bool:
        self.objects = self.bytes = 0
        problems = []
        for backup in backups:
            async with closing(backup.examine(level)) as objects:
                async for examined in objects:
                    self.objects += 1
                    self.bytes += examined.bytes
                    if examined.problem:
                        problems.append(blocker(examined.key, examined.problem))
        self.findings += problems
        if not problems:
            self._reached(level, f"{self.objects} objects, {as_bytes(self.bytes)} read")
        return not problems

    def _reached(self, level: Level, text: str) -> None:
        self.level = level
        self.findings.append(Finding(severity="note", subject=str(level), text=text))


def _blocker(error: ResilienceError) -> Finding:
    return blocker(error.subject, error.what, error.hint)
