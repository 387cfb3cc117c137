"""doctor() on real servers: as they are made, broken one way after the other, and with what an archive has of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import psycopg
import pytest
from attrs import evolve

from resilience import Archive, backup
from resilience.model.diagnosis import Diagnosis
from resilience.model.errors import Refused, TimedOut, Unreachable
from resilience.model.findings import Finding
from resilience.model.objectives import Objective
from resilience.operations.doctor import doctor
from resilience.postgres import PostgresTarget
from resilience.postgres.health import vitals
from resilience.postgres.lsn import parse_lsn
from resilience.postgres.wal.archiver import WalArchiver
from resilience.primitives import Diagnosable
from resilience.reference import POSTGRESQL
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer
from tests.conftest import NewServer

DAILY = Objective(rpo=timedelta(days=1), rto=timedelta(hours=4), every=timedelta(days=1))
DIAGNOSABLE: Diagnosable = PostgresTarget("orders", dsn="host=/nowhere")


@pytest.fixture(autouse=True)
def _short_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "SAMPLE_SECONDS", 0.05)


def target(server: TestServer, user: str = "backup", **more: str) -> PostgresTarget:
    return PostgresTarget("orders", dsn=server.dsn(user, **more))


def about(diagnosis: Diagnosis, subject: str) -> Finding | None:
    return next((finding for finding in diagnosis.findings if finding.subject == subject), None)


def value(diagnosis: Diagnosis, name: str) -> str:
    return next(reading.value for reading in diagnosis.readings if reading.name == name)


async def eventually(check: Callable[[], bool]) -> None:
    for _ in range(600):
        if await asyncio.to_thread(check):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to that")


@asynccontextmanager
async def streaming(server: TestServer, slot: str, name: str) -> AsyncIterator[None]:
    """Read WAL through a slot, as an archiver does."""
    dsn = f"{server.dsn('backup')} replication=true application_name={name}"
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        connection.pgconn.send_query(f"START_REPLICATION SLOT {slot} PHYSICAL 0/1000000".encode())
        await eventually(
            lambda: server.psql(f"select active from pg_replication_slots where slot_name = '{slot}'") == "t"
        )
        yield
    finally:
        connection.pgconn.finish()


async def test_a_role_that_may_only_replicate_sees_nearly_all(every_postgres: TestServer) -> None:
    diagnosis = await doctor(target(every_postgres))
    assert diagnosis.assumed and not diagnosis.healthy
    assert diagnosis.checkup.lineage == every_postgres.psql("select system_identifier from pg_control_system()")
    assert str(diagnosis).startswith("orders: NOT HEALTHY (")
    assert [reading.name for reading in diagnosis.readings if reading.standing == "unseen"] == ["pg_wal"]
    role = about(diagnosis, "role")
    assert role is not None and (role.severity, role.hint) == ("note", 'GRANT pg_monitor TO "backup";')
    assert value(diagnosis, "role") == "backup: replication" and value(diagnosis, "replication") == "let in"


async def test_a_superuser_sees_all_of_it_and_is_told_that_this_is_too_much(every_postgres: TestServer) -> None:
    diagnosis = await doctor(target(every_postgres, "postgres"))
    assert not [reading for reading in diagnosis.readings if reading.standing == "unseen"]
    role = about(diagnosis, "role")
    assert role is not None and role.severity == "warning"
    assert value(diagnosis, "pg_wal").endswith("MiB")


async def test_a_server_as_it_is_made_wants_wal_archived_and_summaries(every_postgres: TestServer) -> None:
    diagnosis = await doctor(target(every_postgres))
    major = int(every_postgres.psql("select current_setting('server_version_num')::int / 10000"))
    told = {finding.subject: finding.severity for finding in diagnosis.findings}
    assert told.pop("authentication", "note") == "note"
    assert told == {
        "fsync": "blocker",  # the tests' own doing
        "WAL": "blocker",
        "summarize_wal": "warning" if major >= 17 else "note",
        "max_slot_wal_keep_size": "note",
        "wal_keep_size": "note",
        "role": "note",
    }


async def test_looking_leaves_nothing_behind(postgres18: TestServer) -> None:
    connections = "select count(*) from pg_stat_activity where usename = 'backup'"
    await doctor(target(postgres18))
    await eventually(lambda: postgres18.psql(connections) == "0")
    assert postgres18.psql("select count(*) from pg_replication_slots") == "0"


@pytest.mark.parametrize("major", [15, 18])
async def test_what_was_proposed_mends_it(new_server: NewServer, major: int) -> None:
    wrong = {"full_page_writes": "off", "wal_sender_timeout": "0"}
    server = new_server(major, settings={**wrong, "max_slot_wal_keep_size": "1MB", "password_encryption": "md5"})
    server.psql("grant pg_monitor to backup")
    server.psql("select pg_create_physical_replication_slot('resilience_orders', true)")
    server.psql("alter system set synchronous_standby_names = '*'")  # from here on, whoever commits waits
    server.psql("select pg_reload_conf()")
    async with streaming(server, "resilience_orders", "resilience_orders"):
        before = await doctor(target(server))
        assert about(before, "synchronous_standby_names") and about(before, "max_slot_wal_keep_size")
        for finding in before.findings:
            for line in finding.hint.splitlines():
                if line.startswith("ALTER SYSTEM") and "…" not in line:
                    server.psql(line)
        server.psql("alter system set synchronous_standby_names = ''")
        server.psql("select pg_reload_conf()")
        await eventually(lambda: server.psql("show full_page_writes") == "on")
        after = await doctor(target(server))
    assert [finding for finding in after.findings if finding.subject != "summarize_wal"] == [
        finding for finding in before.findings if finding.subject == "authentication"
    ]
    assert after.healthy
    assert str(after).startswith("orders: healthy")
    assert value(after, "WAL") == "streamed"


async def test_an_archive_command_that_fails_is_found(new_server: NewServer) -> None:
    server = new_server(16, settings={"archive_mode": "on", "archive_command": "'exit 7; cp %p %f'"})
    server.psql("grant pg_monitor to backup")
    server.psql("select pg_switch_wal()")
    await eventually(lambda: server.psql("select failed_count > 0 from pg_stat_archiver") == "t")
    diagnosis = await doctor(target(server))
    failing = about(diagnosis, "archiving")
    assert failing is not None and failing.severity == "blocker"
    assert "last with 000000010000000000000001" in failing.text and "nothing ever was archived" in failing.text
    timeout = about(diagnosis, "archive_timeout")
    assert timeout is not None and "ALTER SYSTEM SET archive_timeout = '300s'" in timeout.hint


async def test_a_setting_that_waits_for_a_restart_is_found(new_server: NewServer) -> None:
    server = new_server(17)
    server.psql("alter system set max_wal_senders = 3")
    server.psql("select pg_reload_conf()")
    asked = "select pending_restart from pg_settings where name = 'max_wal_senders'"
    await eventually(lambda: server.psql(asked) == "t")
    pending = about(await doctor(target(server)), "max_wal_senders")
    assert pending is not None and "the configuration file says otherwise" in pending.text


async def test_slots_that_nobody_reads_and_lost_ones_are_found(new_server: NewServer) -> None:
    server = new_server(18, settings={"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"})
    server.psql("select pg_create_physical_replication_slot('resilience_orders', true)")
    idle = about(await doctor(target(server), objective=DAILY), "slot resilience_orders")
    assert idle is not None and idle.severity == "warning" and "the archiver is not there" in idle.text
    for _ in range(5):
        server.psql("create table if not exists t (); insert into t default values; select pg_switch_wal()")
    server.psql("checkpoint")
    server.psql("checkpoint")
    assert server.psql("select wal_status from pg_replication_slots") == "lost"
    lost = about(await doctor(target(server), objective=DAILY), "slot resilience_orders")
    assert lost is not None and lost.severity == "blocker" and "the archive gets a gap" in lost.text
    server.psql(lost.hint.splitlines()[0])
    assert about(await doctor(target(server), objective=DAILY), "slot resilience_orders") is None


async def test_a_role_without_replication_and_one_that_pg_hba_keeps_out_are_found(new_server: NewServer) -> None:
    server = new_server(17)
    server.psql("create role reader login")
    diagnosis = await doctor(target(server, "reader"))
    role = about(diagnosis, "role")
    assert role is not None and (role.severity, role.hint) == ("blocker", 'ALTER ROLE "reader" REPLICATION;')
    assert value(diagnosis, "replication") == "refused" and about(diagnosis, "replication") is None

    rules = server.data / "pg_hba.conf"
    rules.write_text("host all all 127.0.0.1/32 trust\n")
    server.psql("select pg_reload_conf()")
    refused: Finding | None = None
    for _ in range(100):  # the server reads its rules a moment later
        if refused := about(await doctor(target(server)), "replication"):
            break
    assert refused is not None and refused.severity == "blocker" and "pg_hba.conf" in refused.text
    line = refused.hint.splitlines()[0].removeprefix("in pg_hba.conf: ").replace("scram-sha-256", "trust")
    rules.write_text(f"{line}\n{rules.read_text()}")
    server.psql("select pg_reload_conf()")
    for _ in range(100):
        if (refused := about(await doctor(target(server)), "replication")) is None:
            break
    assert refused is None


async def test_no_free_sender_is_found_before_a_backup_finds_it(new_server: NewServer) -> None:
    server = new_server(15, settings={"max_wal_senders": "1"})
    server.psql("select pg_create_physical_replication_slot('resilience_orders', true)")
    async with streaming(server, "resilience_orders", "resilience_orders"):
        senders = about(await doctor(target(server)), "max_wal_senders")
    assert senders is not None and senders.severity == "blocker" and "1, of which 1 are taken" in senders.text


async def test_a_server_that_nothing_can_be_taken_from_is_looked_at_all_the_same(new_server: NewServer) -> None:
    server = new_server(16, settings={"wal_level": "minimal", "max_wal_senders": "0"})
    diagnosis = await doctor(target(server))
    blockers = [finding.subject for finding in diagnosis.findings if finding.severity == "blocker"]
    assert blockers == ["wal_level", "max_wal_senders", "fsync", "WAL"]
    assert value(diagnosis, "replication") == "refused"


async def test_a_standby_is_looked_at_as_one(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    standby = standby_of(new_server(16))
    diagnosis = await doctor(target(standby))
    assert diagnosis.checkup.description.endswith("standby, timeline 1") and not diagnosis.checkup.writes
    told = about(diagnosis, "WAL")
    assert told is not None and told.severity == "note"
    assert value(diagnosis, "standby").startswith("receiving")
    standby.psql("select pg_wal_replay_pause()")
    paused = about(await doctor(target(standby)), "standby")
    assert paused is not None and paused.hint == "SELECT pg_wal_replay_resume();"
    standby.psql("select pg_wal_replay_resume()")
    standby.psql("select pg_promote()")
    diagnosis = await doctor(target(standby))
    assert diagnosis.checkup.description.endswith("primary, timeline 2")
    told = about(diagnosis, "WAL")
    assert told is not None and told.severity == "blocker"


async def test_what_the_archive_has_is_held_against_the_objective(new_server: NewServer) -> None:
    server = new_server(18, settings={"summarize_wal": "on", "max_slot_wal_keep_size": "64GB"})
    archive = Archive(MemoryStore())
    orders = target(server)
    empty = about(await doctor(orders, archive=archive), "backups")
    assert empty is not None and empty.severity == "blocker"

    await backup(orders, archive)
    diagnosis = await doctor(orders, archive=archive)
    without = about(diagnosis, "log")
    assert without is not None and without.severity == "blocker" and about(diagnosis, "WAL") is None
    assert "WalArchiver" in without.hint

    async with WalArchiver("orders", dsn=server.dsn("backup"), archive=archive, interval=0.1) as wal:
        server.psql("create table t (); select pg_switch_wal()")
        written = parse_lsn(server.psql("select pg_current_wal_flush_lsn()"))
        await eventually(lambda: wal.status.durable_lsn is not None and wal.status.durable_lsn.offset >= written)
        diagnosis = await doctor(orders, archive=archive)
        assert [finding.severity for finding in diagnosis.findings if finding.subject != "fsync"] == ["note"] * (
            len(diagnosis.findings) - 1
        )
        assert value(diagnosis, "WAL") == "streamed"
        assert diagnosis.checkup.position is not None
        assert value(diagnosis, "log") == f"restores to {diagnosis.checkup.position}"

    server.psql("insert into t default values")
    diagnosis = await doctor(orders, archive=archive, objective=evolve(POSTGRESQL, rpo=timedelta(milliseconds=1)))
    lost = about(diagnosis, "achieved RPO")
    assert lost is not None and lost.severity == "blocker" and "> 0.001 s" in lost.text
    idle = about(diagnosis, "slot resilience_orders")
    assert idle is not None and idle.severity == "warning" and "the archiver is not there" in idle.text

    foreign = about(await doctor(target(new_server(18)), archive=archive), "lineage")
    assert foreign is not None and foreign.severity == "blocker"


async def test_an_archiver_under_another_slot_is_seen_by_who_may_see_names_and_by_the_archive(
    new_server: NewServer,
) -> None:
    server, archive = new_server(16), Archive(MemoryStore())
    await backup(target(server), archive)
    async with WalArchiver("orders", dsn=server.dsn("backup"), archive=archive, slot="resilience_two", interval=0.1):
        unseen = about(await doctor(target(server)), "WAL")
        assert unseen is not None and "slot resilience_two is being read, by whom cannot be told" in unseen.text
        assert about(await doctor(target(server), archive=archive), "WAL") is None
        assert about(await doctor(target(server, "postgres")), "WAL") is None


async def test_the_rate_is_measured(new_server: NewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "SAMPLE_SECONDS", 0.5)
    monkeypatch.setattr(vitals, "AVERAGE_SECONDS", 0.1)
    server = new_server(17)
    writing = await asyncpg.connect(server.uri())
    try:
        filling = asyncio.create_task(
            writing.execute("create table t as select repeat('x', 100) from generate_series(1, 2000000)")
        )
        diagnosis = await doctor(target(server))
        await filling
    finally:
        await writing.close()
    assert diagnosis.checkup.log_rate is not None and diagnosis.checkup.log_rate > 1 << 20
    assert "on average" in value(diagnosis, "WAL rate")


async def test_a_server_that_is_not_there_cannot_be_looked_at(new_server: NewServer, session_folder: Path) -> None:
    with pytest.raises(Unreachable):
        await doctor(PostgresTarget("orders", dsn=f"host={session_folder} port=1"))
    with pytest.raises(Refused):
        await doctor(target(new_server(15), "nobody-at-all"))


async def test_a_server_that_hangs_does_not_hang_the_doctor(
    postgres16: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(vitals, "WAL_WRITTEN", "select pg_sleep(60), now() as since, 1 as bytes")
    with pytest.raises(TimedOut):
        await doctor(target(postgres16))
    sleeping = "select count(*) from pg_stat_activity where usename = 'backup'"
    await eventually(lambda: postgres16.psql(sleeping) == "0")


async def test_a_doctor_who_is_called_off_leaves_nothing_behind(
    postgres17: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "SAMPLE_SECONDS", 30.0)
    connections = "select count(*) from pg_stat_activity where usename = 'backup'"
    looking = asyncio.create_task(doctor(target(postgres17)))
    await eventually(lambda: postgres17.psql(connections) != "0")
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    await eventually(lambda: postgres17.psql(connections) == "0")


async def test_a_password_and_a_command_never_show(new_server: NewServer) -> None:
    server = new_server(18, settings={"archive_mode": "on", "archive_command": "'KEY=hunter2 push --key hunter2 %p'"})
    diagnosis = await doctor(target(server, password="hunter2"))
    assert value(diagnosis, "archive_command") == "push"
    assert "hunter2" not in str(diagnosis) + repr(diagnosis) + diagnosis.to_json() + diagnosis._repr_html_()
