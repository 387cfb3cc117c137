"""The doctor says of a Redis server what would lose data, beside what the reference has, and what changes it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from resilience.archive import Archive
from resilience.model.diagnosis import Diagnosis
from resilience.model.findings import Finding
from resilience.model.moments import utc_now
from resilience.operations.backup import backup
from resilience.operations.doctor import doctor
from resilience.redis import RedisAofTarget, RedisTarget
from resilience.redis.health.rules import in_bytes, server_findings
from resilience.redis.health.vitals import Rules, Vitals
from resilience.redis.survey import Info
from resilience.reference import REDIS, REDIS_SETTINGS
from resilience.stores import MemoryStore
from resilience.testing.redis import TestRedis

from .conftest import MAJORS, NewRedis

REFERENCE = {name.replace("-", "_"): setting.value for name, setting in REDIS_SETTINGS.items()}


@pytest.fixture(params=MAJORS, ids=lambda major: f"redis{major}")
def server(request: pytest.FixtureRequest, new_redis: NewRedis) -> TestRedis:
    major: int = request.param
    return new_redis(major, **REFERENCE)


def target(server: TestRedis) -> RedisAofTarget:
    return RedisAofTarget("cache", url=server.url)


def wrong(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.subject: finding for finding in diagnosis.findings if finding.severity != "note"}


async def test_a_server_as_the_reference_has_it_and_backed_up_is_healthy(server: TestRedis) -> None:
    server.fill(10)
    archive = Archive(MemoryStore())
    assert wrong(await doctor(target(server), archive=archive)).keys() == {"backups"}
    await backup(target(server), archive)
    settings, written = server.ask("CONFIG", "GET", "*"), server.info("rdb_changes_since_last_save")
    diagnosis = await doctor(target(server), archive=archive)
    assert diagnosis.healthy, diagnosis
    assert server.ask("CONFIG", "GET", "*") == settings
    assert server.info("rdb_changes_since_last_save") == written
    assert "achieved RPO" in str(diagnosis)
    assert all(setting in str(diagnosis) for setting in REDIS_SETTINGS)


async def test_a_backup_older_than_the_objective_is_a_blocker_with_the_arithmetic(server: TestRedis) -> None:
    server.fill(10)
    archive = Archive(MemoryStore())
    await backup(target(server), archive)
    server.ask("SET", "since", "then")
    late = await doctor(
        target(server),
        archive=archive,
        objective=evolve(REDIS, every=timedelta(microseconds=1), rpo=timedelta(microseconds=1)),
    )
    found = wrong(late)["achieved RPO"]
    assert found.severity == "blocker"
    assert "durable =" in found.text
    assert "more often" in found.hint


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("appendonly", "no", "warning"),
        ("appendfsync", "no", "warning"),
        ("auto-aof-rewrite-percentage", "0", "warning"),
        ("auto-aof-rewrite-percentage", "400", "note"),
        ("auto-aof-rewrite-min-size", "1gb", "note"),
        ("save", "3600 1", "note"),
        ("rdbcompression", "no", "note"),
        ("stop-writes-on-bgsave-error", "no", "note"),
    ],
)
async def test_the_hint_of_every_finding_puts_the_setting_right(
    new_redis: NewRedis, name: str, value: str, severity: str
) -> None:
    server = new_redis(7, **{**REFERENCE, name.replace("-", "_"): value})
    diagnosis = await doctor(target(server))
    (finding,) = [each for each in diagnosis.findings if each.subject == name]
    assert finding.severity == severity
    with server.client() as client:
        for line in finding.hint.splitlines():
            _, _, setting, rest = line.partition("   #")[0].split(" ", 3)
            client.config_set(setting, rest.strip('"'))
    assert name not in {each.subject for each in (await doctor(target(server))).findings}


async def test_a_server_backed_up_over_the_network_is_examined_too(server: TestRedis) -> None:
    archive, over = Archive(MemoryStore()), RedisTarget("cache", url=server.url)
    server.fill(10)
    await backup(over, archive)
    diagnosis = await doctor(over, archive=archive)
    assert diagnosis.healthy, diagnosis


async def test_a_server_that_keeps_nothing_is_a_blocker(redis7: TestRedis) -> None:
    assert wrong(await doctor(target(redis7)))["save"].severity == "blocker"


async def test_what_a_user_may_not_see_is_a_note_that_says_what_to_grant(server: TestRedis) -> None:
    server.ask("ACL", "SETUSER", "little", "on", ">secret", "+info")
    asking = RedisAofTarget("cache", url=server.url.replace("redis://", "redis://little:secret@"))
    diagnosis = await doctor(asking)
    assert diagnosis.healthy
    (note,) = [finding for finding in diagnosis.findings if finding.subject == "settings"]
    assert "+config|get" in note.hint
    assert {reading.standing for reading in diagnosis.readings if reading.name in REDIS_SETTINGS} == {"unseen"}


def vitals(*, tls: bool = False, local: bool = True, **lines: str) -> Vitals:
    info = Info({"role": "master", "redis_version": "7.0.15", **lines})
    settings = {name: setting.value for name, setting in REDIS_SETTINGS.items()}
    return Vitals(info=info, settings=settings, tls=tls, local=local, looked_at=utc_now())


@pytest.mark.parametrize(
    ("seen", "subject"),
    [
        (vitals(loading="1"), "loading"),
        (vitals(aof_last_write_status="err"), "aof_last_write_status"),
        (vitals(rdb_last_bgsave_status="err"), "rdb_last_bgsave_status"),
        (vitals(aof_last_bgrewrite_status="err"), "aof_last_bgrewrite_status"),
        (vitals(used_memory="600", total_system_memory="1000"), "used_memory"),
        (vitals(role="slave", master_link_status="down"), "master_link_status"),
        (vitals(local=False), "tls"),
        (vitals(server_time_usec="1000000"), "clock"),
        (evolve(vitals(), settings={**(vitals().settings or {}), "rdbchecksum": "no"}), "rdbchecksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_failed_or_will_is_found(seen: Vitals, subject: str) -> None:
    (finding,) = server_findings(seen)
    assert finding.subject == subject
    assert finding.hint


def test_a_server_as_it_should_be_has_no_findings() -> None:
    assert list(server_findings(vitals(tls=True, local=False))) == []


def test_rules_for_saving_are_compared_by_what_they_save() -> None:
    wanted = Rules.parse("900 1 300 10 60 10000")
    assert wanted.at_least(wanted)
    assert Rules.parse("60 1").at_least(wanted)
    assert not Rules.parse("900 1 300 10").at_least(wanted)
    assert not Rules.parse("").at_least(wanted)


def test_amounts_are_read_as_redis_writes_them() -> None:
    assert [in_bytes(text) for text in ("64mb", "1Gb", "5k", "100", "67108864")] == [
        64 << 20,
        1 << 30,
        5000,
        100,
        64 << 20,
    ]
