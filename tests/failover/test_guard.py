"""The guard keeps a client's pool on the primary, through a real promotion."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from resilience.model.errors import Unreachable
from resilience.postgres import PrimaryGuard
from resilience.testing.postgres import TestServer, owned_folder
from resilience.testing.replication import TestGroup, running_group

HERE = "select setting::int from pg_settings where name = 'port'"
WRITE = "select pg_current_xact_id()"


@pytest.fixture
def group(session_folder: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    folder = Path(tempfile.mkdtemp(prefix="guarded-", dir=session_folder))
    owned_folder(folder)
    with running_group(folder / "group", postgres_bin(16)) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


async def pooled(server: TestServer, guard: PrimaryGuard) -> asyncpg.Pool:
    """Return a pool of connections to a server, which some route leads to."""
    pool = await asyncpg.create_pool(server.uri(), init=guard.init, min_size=0, max_size=3)
    assert pool is not None
    return pool


async def port_of(guard: PrimaryGuard, pool: asyncpg.Pool) -> int:
    async with guard.acquire(pool, seconds=10) as connection:
        await connection.execute(WRITE)
        return int(await connection.fetchval(HERE))


async def test_a_standby_is_never_handed_out(group: TestGroup) -> None:
    guard = PrimaryGuard()
    pool = await pooled(group.servers["b"], guard)
    try:
        with pytest.raises(Unreachable, match="it is a standby"):
            await port_of(guard, pool)
        group.servers["b"].run("pg_ctl", "-D", str(group.servers["b"].data), "promote", "-w")
        assert await port_of(guard, pool) == group.servers["b"].port
    finally:
        await pool.close()


async def test_once_a_newer_primary_is_seen_the_older_one_is_left_for_good(group: TestGroup) -> None:
    guard, a, b = PrimaryGuard(), group.servers["a"], group.servers["b"]
    old, new = await pooled(group.servers["a"], guard), await pooled(group.servers["b"], guard)
    try:
        assert await port_of(guard, old) == a.port
        b.run("pg_ctl", "-D", str(b.data), "promote", "-w")
        assert await port_of(guard, old) == a.port, "nobody has told it yet"
        assert await port_of(guard, new) == b.port
        with pytest.raises(Unreachable, match="another one has been promoted to 2"):
            await port_of(guard, old)
        assert await port_of(guard, new) == b.port
    finally:
        await old.close()
        await new.close()


async def test_who_waited_through_a_promotion_does_not_get_a_connection_from_before_it(group: TestGroup) -> None:
    guard, a, b = PrimaryGuard(), group.servers["a"], group.servers["b"]
    old = await asyncpg.create_pool(a.uri(), init=guard.init, min_size=0, max_size=1)
    new = await pooled(b, guard)
    try:
        async with guard.acquire(old, seconds=10):
            waiting = asyncio.create_task(port_of(guard, old))
            await asyncio.sleep(0)
            b.run("pg_ctl", "-D", str(b.data), "promote", "-w")
            assert await port_of(guard, new) == b.port
        with pytest.raises(Unreachable, match="another one has been promoted to 2"):
            await waiting
    finally:
        await old.close()
        await new.close()


async def test_who_is_told_25006_drops_every_connection_of_the_pool(postgres16: TestServer) -> None:
    guard = PrimaryGuard()
    pool = await pooled(postgres16, guard)
    try:
        async with guard.acquire(pool) as one, guard.acquire(pool) as two:
            before = {await each.fetchval("select pg_backend_pid()") for each in (one, two)}
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with guard.acquire(pool) as connection:
                await connection.execute("set default_transaction_read_only = on")
                await connection.execute("create table t ()")
        async with guard.acquire(pool) as one, guard.acquire(pool) as two:
            after = {await each.fetchval("select pg_backend_pid()") for each in (one, two)}
        assert before.isdisjoint(after)
        assert await port_of(guard, pool) == postgres16.port
    finally:
        await pool.close()


async def test_another_cluster_is_refused(postgres16: TestServer, postgres17: TestServer) -> None:
    guard = PrimaryGuard()
    pool, other = await pooled(postgres16, guard), await pooled(postgres17, guard)
    try:
        await port_of(guard, pool)
        with pytest.raises(Unreachable, match="another cluster"):
            await port_of(guard, other)
    finally:
        await pool.close()
        await other.close()


async def test_sqlalchemy_leaves_the_older_primary_too(group: TestGroup) -> None:
    guard, a, b = PrimaryGuard(), group.servers["a"], group.servers["b"]
    old, new = (create_async_engine(_url("asyncpg", server.port)) for server in (a, b))
    guard.protect(old)
    guard.protect(new)
    try:
        async with old.begin() as connection:
            await connection.execute(text(WRITE))
        with pytest.raises(Unreachable, match="it is a standby"):
            async with new.begin() as connection:
                await connection.execute(text(WRITE))
        b.run("pg_ctl", "-D", str(b.data), "promote", "-w")
        async with new.begin() as connection:
            await connection.execute(text(WRITE))
        with pytest.raises(Unreachable, match="another one has been promoted to 2"):
            async with old.begin() as connection:
                await connection.execute(text(WRITE))
    finally:
        await old.dispose()
        await new.dispose()


def test_sqlalchemy_connects_anew_after_25006(postgres16: TestServer) -> None:
    guard, engine = PrimaryGuard(), create_engine(_url("psycopg", postgres16.port))
    guard.protect(engine)
    try:
        with engine.begin() as connection:
            before = _pid(connection)
        with pytest.raises(DBAPIError), engine.begin() as connection:
            connection.execute(text("set transaction read only"))
            connection.execute(text("create table t ()"))
        with engine.begin() as connection:
            assert _pid(connection) != before
    finally:
        engine.dispose()


def _pid(connection: Connection) -> int:
    return int(connection.execute(text("select pg_backend_pid()")).scalar_one())


def _url(driver: str, port: int) -> URL:
    return URL.create(f"postgresql+{driver}", "postgres", host="127.0.0.1", port=port, database="postgres")
