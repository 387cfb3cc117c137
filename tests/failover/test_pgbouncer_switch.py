"""PgBouncer between clients and two real servers: planned and unplanned switches, and what clients see of them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from resilience.model.errors import Interrupted, Refused, RouteMoved, TimedOut, Unreachable, Unsupported
from resilience.pgbouncer.console import Console, console
from resilience.postgres.client import Dsn
from resilience.testing.pgbouncer import TestPgBouncer
from resilience.testing.postgres import TestServer, owned_folder
from resilience.testing.replication import running_group

from ..conftest import NewServer
from .conftest import NewPgBouncer
from .routes import connected, instance, kept, line, processes, switch_of, writing, wrote, wrote_again


@pytest.fixture
def pair(postgres16: TestServer, postgres17: TestServer) -> Iterator[dict[str, TestServer]]:
    servers = {"a": postgres16, "b": postgres17}
    for server in servers.values():
        server.psql("create table written (client int, number int)")
    yield servers
    for server in servers.values():
        server.psql("drop table written")


@pytest.fixture
def old(new_server: NewServer) -> TestServer:
    """A server to be broken."""
    server = new_server(16)
    server.psql("create table written (client int, number int)")
    return server


async def setting(bouncer: TestPgBouncer, key: str) -> str:
    async with console(Dsn.parse(bouncer.console()), operation="test") as opened:
        return next(row["value"] for row in await opened.ask("SHOW CONFIG") if row["key"] == key)


async def test_no_transaction_fails_when_busy_clients_are_led_from_server_to_server(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switch = switch_of(bouncer, pair)
    version = (await switch.survey()).version
    async with writing(bouncer.dsn("orders"), clients=8) as writers:
        for to in ("b", "a", "b", "a"):
            await writers.beyond(40)
            held = await switch.switch(None, expected=version)
            assert held.held and not held.findings
            before = kept(*pair.values())
            await asyncio.sleep(0.05)
            assert kept(*pair.values()) == before, "nobody writes"
            version = (await switch.switch(to, expected=version)).version
        await writers.beyond(40)
    assert writers.errors == []
    assert set(writers.acknowledged) <= kept(*pair.values())


async def test_clients_that_are_held_do_not_notice_that_the_server_dies(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], old: TestServer
) -> None:
    bouncer = new_pgbouncer({"orders": line(old)})
    switch = switch_of(bouncer, {"old": old, "b": pair["b"]})
    async with writing(bouncer.dsn("orders")) as writers:
        await writers.beyond(20)
        held = await switch.switch(None, expected=(await switch.survey()).version)
        old.kill()
        facts = await switch.switch("b", expected=held.version)
        await writers.beyond(20)
    assert facts.to == "b" and facts.instance == instance(pair["b"])
    assert writers.errors == []


async def test_a_server_that_died_before_anybody_looked_costs_no_login_retry(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], old: TestServer
) -> None:
    bouncer = new_pgbouncer({"orders": line(old)}, server_login_retry="60")
    switch = switch_of(bouncer, {"old": old, "b": pair["b"]})
    before = await switch.survey()
    async with writing(bouncer.dsn("orders")) as writers:
        await writers.beyond(20)
        old.kill()
        while not any("server login has been failing" in error for error in writers.errors):
            await asyncio.sleep(0.01)
        async with asyncio.timeout(15):
            await switch.switch(None, expected=before.version)
            facts = await switch.switch("b", expected=before.version)
            await writers.beyond(20)
    assert facts.instance == instance(pair["b"])
    assert await setting(bouncer, "server_login_retry") == "60"


async def test_what_hangs_at_a_server_that_hangs_is_neither_waited_for_nor_in_the_way(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], old: TestServer
) -> None:
    bouncer = new_pgbouncer({"orders": line(old), "other": line(pair["b"])}, default_pool_size="2")
    switch = switch_of(bouncer, {"old": old, "b": pair["b"]}, patience=3600, databases=["orders"])
    before = await switch.survey()
    async with await connected(bouncer.dsn("other")) as bystander, writing(bouncer.dsn("orders")) as writers:
        await writers.beyond(20)
        stopped = processes(old)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(15):
                held = await switch.switch(None, expected=before.version)
                assert held.held and "still run on the server" in str(held.findings)
                facts = await switch.switch("b", expected=before.version)
                await writers.beyond(20)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert facts.instance == instance(pair["b"])
        assert await wrote_again(bystander) == instance(pair["b"]), "other databases lose no connection"


async def test_a_long_transaction_is_waited_for_and_then_cut_off(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    patient, hasty = (switch_of(bouncer, pair, patience=seconds) for seconds in (30, 0.1))
    before = await patient.survey()
    connection = await connected(bouncer.dsn("orders"))
    await connection.execute("begin")
    holding = asyncio.create_task(patient.switch(None, expected=before.version))
    await asyncio.sleep(0.2)
    assert not holding.done()
    await connection.execute("commit")
    assert not (await holding).findings
    await patient.switch("a", expected=before.version)
    await connection.execute("begin")
    held = await hasty.switch(None, expected=before.version)
    assert "1 connections still run" in str(held.findings)
    facts = await hasty.switch("b", expected=before.version)
    assert facts.to == "b"
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("commit")
    await connection.close()


async def test_a_file_that_somebody_edits_meanwhile_is_left_to_him(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switch = switch_of(bouncer, pair)
    before = await switch.survey()
    edited = bouncer.config.read_text() + "; a remark\n"
    pause = type(switch)._pause

    async def edits(self: object, *given: object) -> bool:
        bouncer.config.write_text(edited)
        return await pause(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(switch), "_pause", edits)
    with pytest.raises(RouteMoved, match="changed by somebody else meanwhile"):
        await switch.switch("b", expected=before.version)
    monkeypatch.undo()
    assert bouncer.config.read_text() == edited
    assert await wrote(bouncer.dsn("orders")) == instance(pair["a"]), "nobody is held"
    assert (await switch.switch("b", expected=before.version)).to == "b", "a remark moves no route"
    assert "; a remark\n" in bouncer.config.read_text()


async def test_a_line_that_somebody_moved_is_noticed_before_it_is_loaded(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switch = switch_of(bouncer, pair)
    before = await switch.survey()
    moved = bouncer.config.read_text().replace(str(pair["a"].port), "1")
    bouncer.config.write_text(moved)
    with pytest.raises(RouteMoved):
        await switch.switch("b", expected=before.version)
    assert bouncer.config.read_text() == moved
    facts = await switch.survey()
    assert facts.to == "a" and "did not RELOAD" in str(facts.findings)


async def test_of_two_switches_at_once_one_goes_after_the_other_or_says_so(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switches = [switch_of(bouncer, pair) for _ in range(4)]
    version = (await switches[0].survey()).version
    ended = await asyncio.gather(*(each.switch("b", expected=version) for each in switches), return_exceptions=True)
    assert all(isinstance(each, RouteMoved) or getattr(each, "to", None) == "b" for each in ended), ended
    assert await wrote(bouncer.dsn("orders")) == instance(pair["b"])
    facts = await switches[0].survey()
    assert facts.to == "b" and not facts.held


async def test_what_pgbouncer_does_not_take_is_put_back(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"]), "reports": line(pair["a"])})
    switch = switch_of(bouncer, pair)
    before = await switch.survey()
    broken = bouncer.config.read_text().replace("reports =", "a typo\nreports =")
    bouncer.config.write_text(broken)
    with pytest.raises(Refused, match="does not take what"):
        await switch.switch("b", expected=before.version)
    assert bouncer.config.read_text() == broken
    for database in ("orders", "reports"):
        assert await wrote(bouncer.dsn(database)) == instance(pair["a"])


async def test_pgbouncer_down_changes_nothing_and_a_restart_is_no_obstacle(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switch, text = switch_of(bouncer, pair), bouncer.config.read_text()
    before = await switch.survey()
    await switch.switch(None, expected=before.version)
    bouncer.kill()
    for doing in (switch.survey(), switch.switch("b", expected=before.version), switch.switch(None, expected="")):
        with pytest.raises(Unreachable):
            await doing
    assert bouncer.config.read_text() == text
    bouncer.start()
    assert not (await switch.survey()).held, "it has forgotten that"
    assert (await switch.switch("b", expected=before.version)).instance == instance(pair["b"])


async def test_pgbouncer_that_dies_half_way_leads_to_one_place_when_it_is_back(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"]), "reports": line(pair["a"])})
    switch = switch_of(bouncer, pair)
    before = await switch.survey()
    ask = Console.ask

    async def dies(self: Console, command: str, *, seconds: float | None = 5.0) -> object:
        if command == "RELOAD":
            bouncer.kill()
        return await ask(self, command, seconds=seconds)

    monkeypatch.setattr(Console, "ask", dies)
    with pytest.raises(Interrupted, match="half-way"):
        await switch.switch("b", expected=before.version)
    monkeypatch.undo()
    bouncer.start()
    facts = await switch.survey()
    assert facts.to == "b" and not facts.held
    assert (await switch.switch("b", expected=before.version)).to == "b"


async def test_a_switch_to_a_server_that_is_down_says_that_nothing_arrives(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], old: TestServer
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switch = switch_of(bouncer, {"a": pair["a"], "old": old}, deadline=0.5)
    before = await switch.survey()
    old.kill()
    with pytest.raises(Interrupted, match="led to old, but nothing arrives"):
        await switch.switch("old", expected=before.version)
    facts = await switch.survey()
    assert facts.to == "old" and not facts.held and not facts.instance
    assert await setting(bouncer, "server_login_retry") == "15"
    old.start()
    assert (await switch.switch("old", expected=facts.version)).instance == instance(old)


async def test_a_route_that_leads_to_a_standby_says_that_it_takes_no_writes(
    new_pgbouncer: NewPgBouncer, session_folder: Path, postgres_bin: Callable[[int], Path]
) -> None:
    folder = owned_folder(Path(tempfile.mkdtemp(prefix="standby-", dir=session_folder)))
    with running_group(folder / "group", postgres_bin(16)) as group:
        bouncer = new_pgbouncer({"orders": line(group.primary)})
        switch, standby = switch_of(bouncer, group.servers), group.servers["b"]
        before = await switch.survey()
        facts = await switch.switch("b", expected=before.version)
        assert facts.instance == instance(standby) != before.instance
        assert facts.writable is False and (await switch.survey()).writable is False
        standby.run("pg_ctl", "-D", str(standby.data), "promote", "-w")
        promoted = await switch.switch("b", expected=before.version)
        assert promoted.writable and promoted.instance == facts.instance, "the same run of the same server"


async def test_a_file_that_cannot_be_replaced_is_refused_before_anything(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    switch, text = switch_of(bouncer, pair), bouncer.config.read_text()
    before = await switch.survey()
    in_the_way = bouncer.folder / ".pgbouncer.ini.resilience-new"
    in_the_way.mkdir()
    with pytest.raises(Refused, match="cannot be written.*replaced whole"):
        await switch.switch("b", expected=before.version)
    in_the_way.rmdir()
    locked = os.open(bouncer.folder, os.O_RDONLY)
    fcntl.flock(locked, fcntl.LOCK_EX)
    with pytest.raises(RouteMoved, match="another switch is at"):
        await switch.switch("b", expected=before.version)
    os.close(locked)
    assert bouncer.config.read_text() == text
    assert await switch.survey() == before
    with pytest.raises(Refused, match="cannot be read"):
        await switch_of(bouncer, pair, config="/nowhere/pgbouncer.ini").survey()


async def test_a_pgbouncer_that_hangs_is_given_up(new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])})
    assert bouncer.pid is not None
    async with console(Dsn.parse(bouncer.console()), operation="test") as opened:
        with pytest.raises(Unsupported, match="does not know DANCE"):
            await opened.ask("DANCE")
        os.kill(bouncer.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimedOut, match="did not answer SHOW"):
                await opened.ask("SHOW CONFIG", seconds=0.1)
        finally:
            os.kill(bouncer.pid, signal.SIGCONT)
