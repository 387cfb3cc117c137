"""What a restore into a data directory refuses, notices and leaves behind."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from resilience import Archive, backup, restore, verify
from resilience.model.capture import Captured, Part
from resilience.model.errors import Conflict, Corrupt, Interrupted, Refused, Unavailable
from resilience.model.facts import TargetFacts
from resilience.model.findings import Level
from resilience.model.plans import BackupPlan
from resilience.model.positions import RecoveryPoint
from resilience.primitives import StoredBackup
from resilience.programs import Running, started, tied
from resilience.redis import RedisBackupValidator, RedisDataDirectory, RedisScratch, RedisTarget, isolation, leaving
from resilience.redis.client import Url, commands
from resilience.redis.mark import Mark
from resilience.redis.rdb import _CRC, at
from resilience.redis.survey import ask_info
from resilience.redis.target import PART
from resilience.stores import MemoryStore
from resilience.testing.machine import free_port, unprivileged
from resilience.testing.redis import TestRedis

from .conftest import NewRedis
from .data import contents, fill, runs_on


class Wrong:
    """Archives these bytes as if they were an RDB: every checksum in the archive is right, they are not."""

    system = RedisTarget.system
    name = "cache"

    def __init__(self, rdb: bytes) -> None:
        self.rdb = rdb

    async def survey(self) -> TargetFacts:
        return TargetFacts(target="cache", system=self.system, kind="rdb", lineage="cache", branch="a")

    @asynccontextmanager
    async def capture(
        self,
        plan: BackupPlan,  # noqa: ARG002  # what it gives does not depend on it
        *,
        parent: StoredBackup | None = None,  # noqa: ARG002
    ) -> AsyncIterator[Wrong]:
        yield self

    @property
    def size(self) -> int:
        return len(self.rdb)

    async def parts(self) -> AsyncIterator[Part]:
        async def chunks() -> AsyncIterator[bytes]:
            yield self.rdb

        yield Part(name=PART, chunks=chunks())

    async def finish(self) -> Captured:
        return Captured(begins=at("a", 0), recovery_point=RecoveryPoint(position=at("a", 0)))


def sealed(rdb: bytes) -> bytes:
    """Give an RDB the checksum that it should have."""
    return rdb + int(_CRC.calc(rdb)).to_bytes(8, "little")


LYING = sealed(b"REDIS0010\xfe\x00\x10\x04hash\x0bno listpack\xff")
"""It has a header, structure and checksum of an RDB; only a server finds out that a value is none."""


@pytest.fixture
def archive() -> Archive:
    return Archive(MemoryStore())


@pytest.fixture
def rdb(redis7: TestRedis) -> bytes:
    fill(redis7)
    redis7.ask("SAVE")
    return (redis7.folder / "dump.rdb").read_bytes()


@pytest.mark.parametrize("what", ["truncated", "spoilt", "text", "empty"])
async def test_a_wrong_rdb_in_the_archive_is_not_restored(
    redis7: TestRedis, archive: Archive, rdb: bytes, tmp_owned: Path, what: str
) -> None:
    wrong = {"truncated": rdb[:-1000], "spoilt": rdb[:900] + b"?" + rdb[901:], "text": b"text" * 99, "empty": b""}[what]
    manifest = (await backup(Wrong(wrong), archive)).manifest
    into = RedisDataDirectory(tmp_owned / "data", program=redis7.binary)
    with pytest.raises(Corrupt, match="RDB"):
        await restore(archive, "cache", into=into)
    assert not runs_on(redis7, into.path)
    report = await verify(archive, manifest, validators=[RedisBackupValidator()])
    assert not report.passed
    assert report.level == Level.CHECKSUMS
    await into.discard()
    assert not any(into.path.iterdir())


async def test_what_no_server_can_load_is_found_out_before_it_counts(
    redis7: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    manifest = (await backup(Wrong(LYING), archive)).manifest
    into = RedisDataDirectory(tmp_owned / "data", program=redis7.binary)
    with pytest.raises(Corrupt, match=r"did not start on it.*listpack"):
        await restore(archive, "cache", into=into)
    assert not runs_on(redis7, into.path)
    scratch = RedisScratch(program=redis7.binary, within=tmp_owned)
    report = await verify(archive, manifest, validators=[RedisBackupValidator(program=False)], scratch=scratch)
    assert not report.passed
    assert report.level == Level.PARSES


async def test_a_good_backup_is_verified_by_starting_a_scratch_server(
    redis7: TestRedis, archive: Archive, rdb: bytes, tmp_owned: Path
) -> None:
    manifest = (await backup(RedisTarget("cache", url=redis7.url), archive)).manifest
    scratch = RedisScratch(program=redis7.binary, within=tmp_owned)
    report = await verify(archive, manifest, validators=[RedisBackupValidator()], scratch=scratch)
    assert report.passed
    assert report.level == Level.STARTS
    assert not any(tmp_owned.iterdir())


async def test_a_server_is_started_to_ready_and_goes_on_without_us(
    every_redis: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    fill(every_redis)
    await backup(RedisTarget("cache", url=every_redis.url), archive)
    for appendonly in (False, True):
        port = free_port()
        config = tmp_owned / "redis.conf"
        config.write_text(f"port {port}\nsave 900 1\n")
        config.chmod(0o644)
        into = RedisDataDirectory(
            tmp_owned / "data",
            program=every_redis.binary,
            appendonly=appendonly,
            leave="running",
            config=config,
            url=f"redis://127.0.0.1:{port}",
        )
        await restore(archive, "cache", into=into)
        assert await contents(f"redis://127.0.0.1:{port}") == await contents(every_redis.url)
        await into.discard()
        assert not any(into.path.iterdir())


async def test_settings_are_on_no_command_line_and_a_server_that_was_left_starts_again_with_them(
    redis7: TestRedis, archive: Archive, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(redis7)
    await backup(RedisTarget("cache", url=redis7.url), archive)
    ran: list[str] = []

    def watched(command: Sequence[str], **more: Any) -> AbstractAsyncContextManager[Running]:  # noqa: ANN401
        ran.extend(command)
        return started(command, **more)

    for module in (isolation, leaving):
        monkeypatch.setattr(module, "started", watched)
    port, secret = free_port(), 'hun"ter\\2 '
    url = f"redis://:{quote(secret)}@127.0.0.1:{port}"
    settings = {"port": str(port), "requirepass": secret, "save": "900 1 300 10"}
    into = RedisDataDirectory(tmp_owned / "data", program=redis7.binary, leave="running", settings=settings, url=url)
    await restore(archive, "cache", into=into)
    async with into.serving(tls_key_file_pass=secret):
        pass
    conf = into.path / "startup.conf"
    assert conf.stat().st_mode & 0o777 == 0o600
    assert str(conf) in ran
    assert not any("hun" in each for each in [*ran, repr(into)])
    with redis.Redis.from_url(url) as client:
        client.shutdown(nosave=True)
    subprocess.run(tied([str(redis7.binary), str(conf)], unprivileged()), check=True, cwd=into.path)
    try:
        async with asyncio.timeout(20):
            while not await answers(url):
                await asyncio.sleep(0.05)
        assert await contents(url) == await contents(redis7.url)
    finally:
        await into.discard()


async def answers(url: str) -> bool:
    try:
        async with commands(Url.parse(url), operation="look") as client:
            return not (await ask_info(client, "persistence")).number("loading")
    except Unavailable:
        return False


async def test_a_server_that_is_left_running_and_does_not_start_says_why(
    redis7: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    await backup(RedisTarget("cache", url=redis7.url), archive)
    into = RedisDataDirectory(
        tmp_owned / "data",
        program=redis7.binary,
        leave="running",
        settings={"no-such-setting": "1"},
        url="redis://127.0.0.1:1",
    )
    with pytest.raises(Interrupted, match="no-such-setting|Bad directive|FATAL CONFIG"):
        await restore(archive, "cache", into=into)
    with pytest.raises(ValueError, match="url"):
        RedisDataDirectory(tmp_owned / "data", leave="running")


async def test_data_of_many_databases_comes_back(new_redis: NewRedis, archive: Archive, tmp_owned: Path) -> None:
    server = new_redis(databases="100")
    server.ask("SET", "key", "value", db=99)
    await backup(RedisTarget("cache", url=server.url), archive)
    into = RedisDataDirectory(tmp_owned / "data", program=server.binary)
    await restore(archive, "cache", into=into)
    async with into.live() as live:
        assert (await live.info()).databases == {99: {"keys": 1, "expires": 0}}


async def test_keys_that_have_expired_since_are_left_out_and_counted(
    redis7: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    redis7.ask("SET", "stays", "value")
    redis7.ask("SET", "goes", "value", "PX", 400)
    await backup(RedisTarget("cache", url=redis7.url), archive)
    await asyncio.sleep(0.5)
    report = await restore(archive, "cache", into=RedisDataDirectory(tmp_owned / "data", program=redis7.binary))
    assert any("1 keys have expired" in finding.text for finding in report.findings)


async def test_an_older_server_is_refused_before_anything_is_touched(
    new_redis: NewRedis, archive: Archive, tmp_owned: Path
) -> None:
    newer, older = new_redis(8), new_redis(7)
    await backup(RedisTarget("cache", url=newer.url), archive)
    with pytest.raises(Refused, match=r"of redis 8.*7\.0.* may not read it.*program="):
        await restore(archive, "cache", into=RedisDataDirectory(tmp_owned / "data", program=older.binary))
    assert not any(tmp_owned.iterdir())


async def test_a_program_that_is_missing_or_something_else_is_refused(
    redis7: TestRedis, archive: Archive, tmp_owned: Path
) -> None:
    await backup(RedisTarget("cache", url=redis7.url), archive)
    for program, words in (("no-such-server", "no program"), ("/bin/true", "does not say its version")):
        with pytest.raises(Refused, match=words):
            await restore(archive, "cache", into=RedisDataDirectory(tmp_owned / "data", program=program))


async def test_a_restore_that_still_runs_is_not_discarded(redis7: TestRedis, tmp_owned: Path) -> None:
    into = RedisDataDirectory(tmp_owned, program=redis7.binary)
    (tmp_owned / "appendonlydir").mkdir()
    mark = Mark(
        data=tmp_owned,
        account=None,
        rdb=tmp_owned / "dump.rdb",
        manifest=tmp_owned / "appendonlydir" / "appendonly.aof.manifest",
    )
    mark.set()
    with pytest.raises(Conflict, match="still running"):
        await into.discard()
    mark.release()
    assert not runs_on(redis7, tmp_owned)
    await into.discard()
    assert not any(tmp_owned.iterdir())


async def test_what_is_not_ours_is_not_discarded(redis7: TestRedis, tmp_owned: Path) -> None:
    (tmp_owned / "dump.rdb").write_bytes(b"theirs")
    with pytest.raises(Refused, match="neither by this object"):
        await RedisDataDirectory(tmp_owned, program=redis7.binary).discard()
    assert (tmp_owned / "dump.rdb").read_bytes() == b"theirs"
