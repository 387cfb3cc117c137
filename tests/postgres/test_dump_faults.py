"""A restore of a logical backup, cut off anywhere: nothing half-restored is found under a real name."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from resilience import Archive, Conflict, Refused, ResilienceError, backup, restore
from resilience.postgres import PostgresDumpTarget, PostgresServer
from resilience.postgres.dumps.sql_text import quoted
from resilience.postgres.dumps.staging import Staging
from resilience.stores import LocalStore
from resilience.testing.cancellation import nothing_left_running
from resilience.testing.postgres import TestServer

from .dumps import (
    CLOSED,
    SHOP,
    ask,
    databases,
    drop_shop,
    gate,
    inside,
    look_at_shop,
    make_shop,
    programs,
    until_blocked,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(server: Callable[[int], TestServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive in a folder that holds one dump of the shop; the shop is on the server no more."""
    source, folder = server(17), tmp_path_factory.mktemp("archive")
    make_shop(source)
    try:
        target = PostgresDumpTarget("shop", dsn=source.dsn(), databases=[SHOP], bin_dir=source.bin_dir)
        asyncio.run(backup(target, Archive(LocalStore(folder))))
    finally:
        drop_shop(source)
    return folder


@pytest.fixture
def emptied(postgres17: TestServer) -> Iterator[TestServer]:
    """The server that the shop comes back to."""
    yield postgres17
    drop_shop(postgres17)
    assert not half_restored(postgres17)


def half_restored(server: TestServer) -> list[str]:
    """Return the names of databases under construction."""
    return [name for name in databases(server) if name.startswith("resilience_")]


def into(server: TestServer, **options: object) -> PostgresServer:
    """Restore into a server with its own programs."""
    return PostgresServer(dsn=server.dsn(), bin_dir=server.bin_dir, **options)  # type: ignore[arg-type]


def start(stage: str, folder: Path, server: TestServer) -> subprocess.Popen[bytes]:
    """Start a restore in a process that ends itself at a stage."""
    arguments = [stage, str(folder), server.dsn(), str(server.bin_dir)]
    return subprocess.Popen([sys.executable, "-m", "tests.postgres.dumps", *arguments], cwd=ROOT)


async def gone(server: TestServer) -> None:
    """Wait until the server has noticed that everybody has gone."""
    query = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
    for _ in range(500):
        if ask(server, query) == "0":
            return
        await asyncio.sleep(0.02)
    raise AssertionError("somebody is still connected")


@pytest.mark.parametrize("stage", ["spooling", "publishing"])
async def test_killed_at_any_stage_nothing_has_its_real_name(emptied: TestServer, folder: Path, stage: str) -> None:
    assert start(stage, folder, emptied).wait() == -signal.SIGKILL
    await gone(emptied)
    assert SHOP not in databases(emptied)
    assert len(half_restored(emptied)) == (stage == "publishing")
    await into(emptied).discard()
    assert not half_restored(emptied)
    await restore(Archive(LocalStore(folder)), "shop", into=into(emptied))
    assert look_at_shop(emptied)


async def test_killed_while_pg_restore_runs_nothing_has_its_real_name(emptied: TestServer, folder: Path) -> None:
    with gate(emptied, CLOSED):
        process = start("never", folder, emptied)
        await until_blocked(emptied, 'create index "a_gated"')
        process.kill()
        process.wait()
        await gone(emptied)  # pg_restore ends with its parent, and takes its connections with it
    assert SHOP not in databases(emptied)
    assert half_restored(emptied)
    await restore(Archive(LocalStore(folder)), "shop", into=into(emptied))
    await into(emptied).discard()
    assert SHOP in databases(emptied)


async def test_killed_after_the_new_ones_took_their_places_the_old_ones_can_be_dropped(
    emptied: TestServer, folder: Path
) -> None:
    ask(emptied, f"create database {quoted(SHOP)}")
    ask(emptied, "create table precious (id int)", database=inside(SHOP))
    assert start("replacing", folder, emptied).wait() == -signal.SIGKILL
    await gone(emptied)
    assert ask(emptied, "select count(*) from sales.items", database=inside(SHOP)) == "5000"
    (replaced,) = half_restored(emptied)
    assert replaced.startswith("resilience_replaced_")
    assert ask(emptied, "select count(*) from precious", database=replaced) == "0"
    await into(emptied).discard()


async def test_a_cancelled_restore_leaves_no_program_running(emptied: TestServer, folder: Path) -> None:
    async with nothing_left_running():
        with gate(emptied, CLOSED):
            running = asyncio.create_task(restore(Archive(LocalStore(folder)), "shop", into=into(emptied)))
            await until_blocked(emptied, 'create index "a_gated"')
            began = time.monotonic()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert time.monotonic() - began < 5, "pg_restore was not stopped politely"
    assert not programs("pg_restore")
    assert SHOP not in databases(emptied)
    await into(emptied).discard()


async def test_discard_leaves_a_restore_that_is_still_running_alone(emptied: TestServer, folder: Path) -> None:
    with gate(emptied, CLOSED):
        running = asyncio.create_task(restore(Archive(LocalStore(folder)), "shop", into=into(emptied)))
        await until_blocked(emptied, 'create index "a_gated"')
        with pytest.raises(Conflict, match=r"a restore that is still running makes 1 databases \(end it first\)"):
            await into(emptied).discard()
    await running
    assert look_at_shop(emptied)


async def test_two_restores_at_once_do_not_disturb_each_other(emptied: TestServer, folder: Path) -> None:
    archive = Archive(LocalStore(folder))
    with gate(emptied, CLOSED):  # so that both have looked before one is done
        both = [asyncio.create_task(restore(archive, "shop", into=into(emptied))) for _ in range(2)]
        await until_blocked(emptied, 'create index "a_gated"')
        await asyncio.sleep(0.5)
    ended = await asyncio.gather(*both, return_exceptions=True)
    lost = [each for each in ended if isinstance(each, ResilienceError)]
    assert len(lost) == 1, ended
    assert re.search("already exists|somebody else has just created it", str(lost[0]))
    assert look_at_shop(emptied)
    await into(emptied).discard()


async def test_a_server_that_dies_in_the_middle_ends_the_restore(
    new_server: Callable[..., TestServer], folder: Path
) -> None:
    server = new_server(17)
    with gate(server, CLOSED):
        running = asyncio.create_task(restore(Archive(LocalStore(folder)), "shop", into=into(server)))
        await until_blocked(server, 'create index "a_gated"')
        server.kill()
        with pytest.raises(ResilienceError, match="pg_restore of database"):
            await running
    server.start()
    assert SHOP not in databases(server)
    await into(server).discard()
    await restore(Archive(LocalStore(folder)), "shop", into=into(server))


async def test_a_visitor_does_not_keep_a_database_from_its_name(emptied: TestServer) -> None:
    stage = Staging(dsn=into(emptied).dsn)
    made = stage.name_for("visited")
    ask(emptied, f"create database {made}")
    visitor = await asyncpg.connect(host="127.0.0.1", port=emptied.port, user="postgres", database=made)
    try:
        assert await stage.publish() == []
        assert "visited" in databases(emptied)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await visitor.fetchval("select 1")
    finally:
        visitor.terminate()
        ask(emptied, "drop database if exists visited")


async def test_cancelled_while_it_publishes_a_restore_takes_the_names_back(
    emptied: TestServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(emptied, f"create database {quoted(SHOP)}")
    ask(emptied, "create table precious (id int)", database=inside(SHOP))
    publish = Staging._publish

    async def cancelled(stage: Staging) -> None:
        running.cancel()
        await publish(stage)

    monkeypatch.setattr(Staging, "_publish", cancelled)
    running = asyncio.create_task(restore(Archive(LocalStore(folder)), "shop", into=into(emptied, replace=True)))
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ask(emptied, "select count(*) from precious", database=inside(SHOP)) == "0"
    assert len(half_restored(emptied)) == 1
    await into(emptied).discard()


async def test_a_name_that_cannot_be_taken_leaves_all_others_as_they_were(
    emptied: TestServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(emptied, f"create database {quoted(SHOP)}")
    name_for = Staging.name_for

    def second_too(stage: Staging, name: str) -> str:
        made = name_for(stage, name)
        stage._made["resilience_restoring_nowhere"] = "nowhere"
        return made

    monkeypatch.setattr(Staging, "name_for", second_too)
    with pytest.raises(Refused, match="resilience_restoring_nowhere"):
        await restore(Archive(LocalStore(folder)), "shop", into=into(emptied, replace=True))
    assert SHOP in databases(emptied)
    await into(emptied).discard()


async def test_a_replaced_database_that_cannot_be_dropped_is_a_finding(emptied: TestServer, folder: Path) -> None:
    ask(emptied, f"create database {quoted(SHOP)}")
    subscription = "create subscription mine connection 'port=1' publication p with (connect = false, slot_name = none)"
    ask(emptied, subscription, database=inside(SHOP))
    report = await restore(Archive(LocalStore(folder)), "shop", into=into(emptied, replace=True))
    (left,) = half_restored(emptied)
    assert f"a replaced database is still there as {left}: " in str(report)
    assert "being used by logical replication subscription (drop it)" in str(report)
    ask(emptied, "drop subscription mine", database=left)
    await into(emptied).discard()
