"""A logical backup is read through to its end, by pg_restore itself."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest

from resilience import Archive, Level, Manifest, Unavailable, Unsupported, backup, verify
from resilience.model.capture import Captured, Part
from resilience.model.ids import new_id
from resilience.model.moments import utc_now
from resilience.model.plans import BackupPlan
from resilience.postgres import PostgresDumpTarget, PostgresDumpValidator
from resilience.postgres.dumps import validator as dump_validator
from resilience.stores import MemoryStore
from resilience.testing.faults import changed, flipped, gone, truncated
from resilience.testing.postgres import TestServer

from .dumps import SHOP, drop_shop, make_shop, programs


@pytest.fixture(scope="module")
def taken(server: Callable[[int], TestServer]) -> tuple[Archive, Manifest]:
    """One dump of the shop."""
    source = server(17)
    make_shop(source)
    try:
        archive = Archive(MemoryStore())
        target = PostgresDumpTarget("shop", dsn=source.dsn(), databases=[SHOP], bin_dir=source.bin_dir)
        return archive, asyncio.run(backup(target, archive)).manifest
    finally:
        drop_shop(source)


@pytest.fixture
def validator(postgres_bin: Callable[[int], Path]) -> PostgresDumpValidator:
    """A validator with the programs that made the dump."""
    return PostgresDumpValidator(bin_dir=postgres_bin(17))


async def altered(archive: Archive, manifest: Manifest, change: dict[str, Callable[[bytes], bytes]]) -> Manifest:
    """Publish the backup once more with some parts changed: stored without a flaw, and wrong."""
    now = utc_now()
    plan = BackupPlan(
        id=new_id(now), target="altered", system="postgresql", kind="dump", lineage=manifest.lineage, made_at=now
    )
    async with archive.open(manifest) as stored, archive.draft(plan) as draft:
        for part in manifest.parts:
            async with stored.read(part.name) as chunks:
                data = b"".join([chunk async for chunk in chunks])
            await draft.store(Part(name=part.name, chunks=once(change.get(part.name, bytes)(data))))
        point = manifest.recovery_point
        captured = Captured(begins=manifest.begins, recovery_point=point, details=manifest.details)
        return await draft.publish(captured)


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Yield all of it at once."""
    yield data


async def test_a_sound_backup_passes_and_says_how_much_was_read(
    taken: tuple[Archive, Manifest], validator: PostgresDumpValidator
) -> None:
    archive, manifest = taken
    verdict = await verify(archive, manifest, validators=[validator])
    assert verdict.passed and verdict.level == Level.PARSES
    async with archive.open(manifest) as stored:
        alone = await validator.check(stored)
    assert alone.passed and alone.bytes == manifest.size
    assert alone.objects == sum(len(part.objects) for part in manifest.parts)


async def test_a_dump_whose_body_is_cut_off_fails_although_it_lists(
    taken: tuple[Archive, Manifest], validator: PostgresDumpValidator, postgres17: TestServer, tmp_path: Path
) -> None:
    archive, manifest = taken
    dump = manifest.parts[1].name
    for cut in (-1, -100, -100_000):
        damaged = await altered(archive, manifest, {dump: lambda data, cut=cut: data[:cut]})  # type: ignore[misc]
        async with archive.open(damaged) as stored:
            verdict = await validator.check(stored)
        assert not verdict.passed and verdict.level is None
        assert dump in str(verdict.findings)
    async with archive.open(damaged) as stored, stored.read(dump) as chunks:
        (tmp_path / "dump").write_bytes(b"".join([chunk async for chunk in chunks]))
    pg_restore = [str(postgres17.bin_dir / "pg_restore"), "--list", str(tmp_path / "dump")]
    listed = subprocess.run(pg_restore, check=True, capture_output=True, text=True).stdout
    assert "TABLE DATA" in listed, "a table of contents alone proves nothing"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data + b"garbage" * 1000, "where none belongs|ends early"),
        (lambda data: b"nonsense" + data, "custom format"),
        (lambda data: data[:50_000] + data[51_000:], "pg_restore failed"),
    ],
    ids=["goes on", "begins otherwise", "lacks a piece"],
)
async def test_a_dump_that_is_not_what_pg_dump_wrote_fails(
    taken: tuple[Archive, Manifest],
    validator: PostgresDumpValidator,
    change: Callable[[bytes], bytes],
    text: str,
) -> None:
    archive, manifest = taken
    damaged = await altered(archive, manifest, {manifest.parts[1].name: change})
    async with archive.open(damaged) as stored:
        verdict = await validator.check(stored)
    assert not verdict.passed
    assert re.search(text, str(verdict.findings)), verdict


async def test_globals_that_end_in_a_quotation_fail(
    taken: tuple[Archive, Manifest], validator: PostgresDumpValidator
) -> None:
    archive, manifest = taken
    for change, text in (
        (lambda data: data[:-100], "the globals end early"),
        (
            lambda data: data.replace(
                b"\n--\n-- PostgreSQL database cluster dump c", b'"\n--\n-- PostgreSQL database cluster dump c'
            ),
            "quotation",
        ),
    ):
        damaged = await altered(archive, manifest, {"globals.sql": change})
        async with archive.open(damaged) as stored:
            verdict = await validator.check(stored)
        assert not verdict.passed and len(verdict.findings) == 1
        assert text in str(verdict)


@pytest.mark.parametrize("change", [flipped(-1), truncated(-1), gone])
async def test_a_damaged_object_is_named_and_the_other_parts_are_still_read(
    taken: tuple[Archive, Manifest], validator: PostgresDumpValidator, change: Callable[[bytes], bytes | None]
) -> None:
    archive, manifest = taken
    for part in manifest.parts:
        async with changed(archive.store, part.objects[0].key, change):
            async with archive.open(manifest) as stored:
                verdict = await validator.check(stored)
            assert not verdict.passed
            assert part.objects[0].key in str(verdict)
            assert verdict.objects == 1
    assert not programs("pg_restore")


async def test_a_backup_below_the_floor_fails(
    taken: tuple[Archive, Manifest], postgres_bin: Callable[[int], Path]
) -> None:
    archive, manifest = taken
    validator = PostgresDumpValidator(bin_dir=postgres_bin(17), at_least=100 << 20)
    async with archive.open(manifest) as stored:
        verdict = await validator.check(stored)
    assert not verdict.passed
    assert "less than the floor of 100.0 MiB" in str(verdict)


async def test_what_is_no_dump_is_misuse(taken: tuple[Archive, Manifest], validator: PostgresDumpValidator) -> None:
    archive, manifest = taken
    async with archive.open(attrs.evolve(manifest, kind="base")) as stored:
        with pytest.raises(ValueError, match="is a base, not a dump"):
            await validator.check(stored)


async def test_programs_that_cannot_read_it_are_no_verdict(
    taken: tuple[Archive, Manifest], postgres_bin: Callable[[int], Path], tmp_path: Path
) -> None:
    archive, manifest = taken
    async with archive.open(manifest) as stored:
        with pytest.raises(Unsupported, match="is by pg_dump 17, the pg_restore here is 16"):
            await PostgresDumpValidator(bin_dir=postgres_bin(16)).check(stored)
        with pytest.raises(Unsupported, match="pg_restore is not in"):
            await PostgresDumpValidator(bin_dir=tmp_path).check(stored)


async def test_a_killed_pg_restore_is_no_verdict(
    taken: tuple[Archive, Manifest], validator: PostgresDumpValidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = dump_validator._write

    def kill_and_write(sink: object, chunk: bytes) -> None:
        while not (started := programs("pg_restore")):
            time.sleep(0.01)
        for pid in started:
            os.kill(pid, 9)
        write(sink, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(dump_validator, "_write", kill_and_write)
    archive, manifest = taken
    async with archive.open(manifest) as stored:
        with pytest.raises(Unavailable, match="pg_restore failed with status -9"):
            await validator.check(stored)
