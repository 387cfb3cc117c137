"""WAL is not in the server's list of files: that its segments are there and whole is looked at all the same."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from resilience import Archive, backup, verify
from resilience.model.capture import Captured, Part
from resilience.model.findings import Level
from resilience.model.manifests import Manifest
from resilience.model.plans import BackupPlan
from resilience.postgres import PostgresBackupValidator, PostgresTarget
from resilience.stores import MemoryStore
from resilience.testing.archivers import read
from resilience.testing.postgres import TestServer


def rewritten(data: bytes, change: Callable[[tarfile.TarInfo, bytes], bytes | None]) -> bytes:
    """Rewrite the files of a tar; `None` leaves one out."""
    copy = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as old,
        tarfile.open(fileobj=copy, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in old:
            body = b"" if (file := old.extractfile(member)) is None else file.read()
            changed = change(member, body)
            if changed is not None:
                member.size = len(changed) if member.isfile() else 0
                new.addfile(member, io.BytesIO(changed))
    return copy.getvalue()


def segment(member: tarfile.TarInfo) -> bool:
    return re.fullmatch(r"pg_wal/[0-9A-F]{24}", member.name.removeprefix("./")) is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda member, body: None if segment(member) else body, "pg_wal has no segments"),
        (lambda member, body: body[:-512] if segment(member) else body, "which is no whole segment"),
        (lambda _, body: body, None),
    ],
    ids=["missing", "truncated", "whole"],
)
async def test_a_backup_without_the_wal_it_needs_does_not_pass_as_parsed(
    postgres17: TestServer, change: Callable[[tarfile.TarInfo, bytes], bytes | None], sentence: str | None
) -> None:
    whole, archive = Archive(MemoryStore()), Archive(MemoryStore())
    report = await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), whole)
    async with whole.open(report.manifest) as stored:
        parts = {part.name: await read(stored, part.name) for part in report.manifest.parts}
    parts["base.tar"] = rewritten(parts["base.tar"], change)
    kept = await store_parts(archive, report.manifest, parts)
    verdict = await verify(archive, kept, validators=[PostgresBackupValidator()])
    assert verdict.passed == (sentence is None)
    assert verdict.level == (Level.CHECKSUMS if sentence else Level.PARSES)
    assert not sentence or sentence in str(verdict.findings[-1])


async def store_parts(archive: Archive, like: Manifest, parts: Mapping[str, bytes]) -> Manifest:
    """Publish a backup of the same target with other bytes."""
    plan = BackupPlan(
        id=like.id,
        target=like.target,
        system=like.system,
        kind=like.kind,
        lineage=like.lineage,
        parent=like.parent,
        made_at=like.started_at,
    )

    async def once(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async with archive.draft(plan) as draft:
        for name, data in parts.items():
            await draft.store(Part(name=name, chunks=once(data)))
        captured = Captured(begins=like.begins, recovery_point=like.recovery_point, details=like.details, findings=())
        return await draft.publish(captured)
