"""verify(), on a system in memory: a verdict says what was proven, how, and on how much."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from attrs import evolve, frozen

from resilience import Archive, backup, verify
from resilience.model.capture import Restored
from resilience.model.errors import ChecksumMismatch, DestinationNotEmpty, Interrupted, StorageFailed
from resilience.model.events import Event
from resilience.model.findings import Finding, Level, Severity, Verdict
from resilience.model.manifests import Manifest
from resilience.model.plans import RestorePlan
from resilience.primitives import Log, Reached, StoredBackup
from resilience.testing.cancellation import cancellations, nothing_left_running
from resilience.testing.faults import WatchedStore, changed, flipped, gone, truncated
from resilience.testing.memory import MemoryDestination, MemoryServer, MemoryTarget

from .faults import VALUES, small_archive


async def backed_up(archive: Archive) -> Manifest:
    return (await backup(MemoryTarget("orders", dict(VALUES), chunk_size=1024), archive)).manifest


def blockers(verdict: Verdict) -> list[tuple[str, str]]:
    return [(each.subject, each.text) for each in verdict.findings if each.severity == "blocker"]


@frozen(kw_only=True)
class Parses:
    """A validator that says what it is told to say."""

    passed: bool = True
    findings: tuple[Finding, ...] = ()
    level: Level = Level.PARSES

    async def check(self, subject: StoredBackup) -> Verdict:
        return Verdict(
            subject=subject.manifest.id, passed=self.passed, level=None, objects=1, bytes=9, findings=self.findings
        )


async def test_without_more_means_every_byte_is_read_and_nothing_more_is_claimed() -> None:
    archive = small_archive()
    manifest = await backed_up(archive)
    verdict = await verify(archive, manifest)
    assert verdict.passed
    assert verdict.level == Level.CHECKSUMS
    assert verdict.bytes >= manifest.stored
    assert verdict.objects > sum(len(part.objects) for part in manifest.parts)
    assert [each.subject for each in verdict.findings] == ["L0", "L1"]
    assert blockers(verdict) == []
    assert verdict.seconds >= 0


async def test_every_means_given_adds_its_level() -> None:
    archive, scratch = small_archive(), MemoryDestination()
    manifest = await backed_up(archive)
    parsed = await verify(archive, manifest, validators=[Parses()])
    assert (parsed.passed, parsed.level) == (True, Level.PARSES)
    started = await verify(archive, manifest, validators=[Parses()], scratch=scratch)
    assert (started.passed, started.level) == (True, Level.STARTS)
    assert [each.subject for each in started.findings] == ["L0", "L1", "L2", "L3"]
    assert (scratch.values, scratch.startable, scratch.running) == ({}, False, 0)


async def test_what_is_missing_is_named_and_no_level_is_reached() -> None:
    archive = small_archive()
    manifest = await backed_up(archive)
    keys = [manifest.parts[1].objects[0].key, manifest.parts[2].objects[1].key]
    async with changed(archive.store, keys[0], gone), changed(archive.store, keys[1], truncated(-1)):
        verdict = await verify(archive, manifest, validators=[Parses()], scratch=MemoryDestination())
    assert not verdict.passed
    assert verdict.level is None
    assert [subject for subject, _ in blockers(verdict)] == keys
    assert "FAILED, no level" in str(verdict)


async def test_every_damaged_object_is_named_and_only_their_presence_is_proven() -> None:
    archive, scratch = small_archive(), MemoryDestination()
    manifest = await backed_up(archive)
    keys = [part.objects[-1].key for part in manifest.parts]
    async with (
        changed(archive.store, keys[0], flipped(3)),
        changed(archive.store, keys[1], flipped(-3)),
        changed(archive.store, keys[2], flipped(7)),
    ):
        verdict = await verify(archive, manifest, validators=[Parses()], scratch=scratch)
    assert not verdict.passed
    assert verdict.level == Level.EXISTS
    assert blockers(verdict) == [(key, "its sha256 is not what the manifest says") for key in keys]
    assert scratch.values == {}


@pytest.mark.parametrize("findings", [(), (Finding(severity="blocker", subject="one", text="it is no tar"),)])
async def test_a_validator_that_fails_fails_the_verdict_whatever_it_says(findings: tuple[Finding, ...]) -> None:
    archive, scratch = small_archive(), MemoryDestination()
    manifest = await backed_up(archive)
    failing = Parses(passed=False, findings=findings)
    verdict = await verify(archive, manifest, validators=[failing], scratch=scratch)
    assert not verdict.passed
    assert verdict.level == Level.CHECKSUMS
    assert scratch.values == {}
    assert set(findings) <= set(verdict.findings)


@pytest.mark.parametrize("error", [ChecksumMismatch, Interrupted])
async def test_a_scratch_server_that_does_not_come_to_life_fails_the_verdict_and_is_removed(
    error: type[ChecksumMismatch | Interrupted],
) -> None:
    class Dead(MemoryDestination):
        @asynccontextmanager
        async def live(self) -> AsyncIterator[MemoryServer]:
            raise error("it panicked", subject="scratch", hint="read its log")
            yield MemoryServer(values={})

    archive, scratch = small_archive(), Dead()
    verdict = await verify(archive, await backed_up(archive), scratch=scratch)
    assert not verdict.passed
    assert verdict.level == Level.CHECKSUMS
    assert blockers(verdict) == [("scratch", "it panicked")]
    assert scratch.values == {}


async def test_what_the_scratch_restore_noticed_stands_in_the_verdict() -> None:
    class Noticing(MemoryDestination):
        async def apply(
            self,
            plan: RestorePlan,
            *,
            chain: Sequence[StoredBackup],
            log: Log | None = None,
            reached: Reached | None = None,
        ) -> Restored:
            finding = Finding(severity="warning", subject="scratch", text="collations differ")
            return evolve(await super().apply(plan, chain=chain, log=log, reached=reached), findings=(finding,))

    archive = small_archive()
    verdict = await verify(archive, await backed_up(archive), scratch=Noticing())
    assert verdict.passed
    assert [each.text for each in verdict.findings if each.severity == "warning"] == ["collations differ"]


async def test_a_scratch_destination_that_holds_something_is_refused_and_not_touched() -> None:
    archive, scratch = small_archive(), MemoryDestination()
    scratch.values["theirs"] = b"data"
    with pytest.raises(DestinationNotEmpty):
        await verify(archive, await backed_up(archive), scratch=scratch)
    assert scratch.values == {"theirs": b"data"}


async def test_a_store_that_does_not_answer_is_an_error_not_a_verdict() -> None:
    async def silent(operation: str, key: str) -> None:
        if operation == "get" and key.endswith(".zst"):
            raise StorageFailed("it does not answer", operation=operation, subject=key)

    archive = small_archive()
    manifest = await backed_up(archive)
    async with nothing_left_running():
        with pytest.raises(StorageFailed, match="it does not answer"):
            await verify(small_archive(WatchedStore(archive.store, silent)), manifest)


async def test_progress_comes_to_its_total() -> None:
    archive = small_archive()
    manifest = await backed_up(archive)
    events: list[Event] = []
    await verify(archive, manifest, scratch=MemoryDestination(), observer=events.append)
    assert [events[0].stage, events[-1].stage] == ["started", "completed"]
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].total is not None
    assert events[-1].done >= events[-1].total == manifest.stored + manifest.size


async def test_verifying_cancelled_anywhere_leaves_no_scratch_server_behind() -> None:
    archive = small_archive()
    manifest = await backed_up(archive)
    async with nothing_left_running():
        for attempt in cancellations(step=3):
            scratch = MemoryDestination()
            await attempt(verify(archive, manifest, scratch=scratch))
            assert (scratch.values, scratch.startable, scratch.running) == ({}, False, 0)


@frozen(kw_only=True)
class Holds:
    """An assertion about a running server that says what it is told to say."""

    passed: bool = True
    level: Level = Level.ASSERTIONS

    async def check(self, subject: MemoryServer) -> Verdict:
        text = f"{len(subject.values)} values"
        severity: Severity = "note" if self.passed else "blocker"
        finding = Finding(severity=severity, subject="content", text=text)
        return Verdict(subject="content", passed=self.passed, level=None, findings=(finding,))


async def test_assertions_about_the_restored_data_are_the_last_level() -> None:
    archive = small_archive()
    manifest = await backed_up(archive)
    verdict = await verify(archive, manifest, scratch=MemoryDestination(), assertions=[Holds(), Holds()])
    assert verdict.passed
    assert verdict.level == Level.ASSERTIONS
    assert "2 assertions about the data hold" in str(verdict)
    assert f"{len(VALUES)} values" in str(verdict)
    verdict = await verify(archive, manifest, scratch=MemoryDestination(), assertions=[Holds(passed=False), Holds()])
    assert not verdict.passed
    assert verdict.level == Level.STARTS
    assert blockers(verdict) == [("content", f"{len(VALUES)} values")]
    with pytest.raises(ValueError, match="name a scratch"):
        await verify(archive, manifest, assertions=[Holds()])
