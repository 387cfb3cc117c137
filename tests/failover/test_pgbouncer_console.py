"""What stands between us and PgBouncer: its console, passwords, TLS, files in other places, people who pause it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest

from resilience.model.errors import Refused, ResilienceError
from resilience.pgbouncer.console import console
from resilience.postgres.client import Dsn
from resilience.testing.azurite import make_certificate
from resilience.testing.pgbouncer import PASSWORD, TestPgBouncer
from resilience.testing.postgres import TestServer, unprivileged

from .conftest import NewPgBouncer
from .routes import at, connected, instance, line, switch_of, wrote


@pytest.fixture
def pair(postgres16: TestServer, postgres17: TestServer) -> dict[str, TestServer]:
    return {"a": postgres16, "b": postgres17}


@pytest.fixture
def bouncer(new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]) -> Iterator[TestPgBouncer]:
    running = new_pgbouncer({"orders": line(pair["a"])})
    yield running
    assert "password=hidden" not in running.log.read_text()


async def ask(bouncer: TestPgBouncer, command: str) -> None:
    async with console(Dsn.parse(bouncer.console()), operation="test") as opened:
        await opened.ask(command)


async def test_a_wrong_password_is_refused_and_not_repeated(
    bouncer: TestPgBouncer, pair: dict[str, TestServer]
) -> None:
    switch = switch_of(bouncer, pair, console=bouncer.console(password="hidden"))
    with pytest.raises(ResilienceError, match="authentication failed") as raised:
        await switch.survey()
    shown = f"{raised.value} {switch!r} {raised.value.__cause__!r}"
    assert "hidden" not in shown and PASSWORD not in repr(switch_of(bouncer, pair)).replace("console=", "")


async def test_facts_hold_no_password(new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"], "dbname=postgres password='very ''secret'")})
    switch = switch_of(bouncer, pair)
    facts = await switch.switch("b", expected=(await switch.survey()).version)
    assert "secret" not in facts.to_json()
    assert "password='very ''secret'" in bouncer.config.read_text()


async def test_who_may_only_look_is_told_so_before_and_refused(
    bouncer: TestPgBouncer, pair: dict[str, TestServer]
) -> None:
    switch = switch_of(bouncer, pair, console=bouncer.console("watcher"))
    before, text = await switch.survey(), bouncer.config.read_text()
    assert before.to == "a" and "admin_users" in str(before.findings)
    assert [finding.severity for finding in before.findings] == ["blocker"]
    for to in (None, "b"):
        with pytest.raises(Refused, match="admin access needed"):
            await switch.switch(to, expected=before.version)
    assert bouncer.config.read_text() == text
    assert await wrote(bouncer.dsn("orders")) == instance(pair["a"])


async def test_a_database_that_it_does_not_have_is_refused(bouncer: TestPgBouncer, pair: dict[str, TestServer]) -> None:
    switch = switch_of(bouncer, pair, databases=["orders", "nowhere"])
    with pytest.raises(Refused, match="nowhere"):
        await switch.survey()
    bouncer.config.write_text(bouncer.config.read_text().replace("[pgbouncer]", "nowhere = host=x\n[pgbouncer]"))
    with pytest.raises(Refused, match="PgBouncer has no database nowhere.*RELOAD"):
        await switch.switch(None, expected="")
    with pytest.raises(ValueError, match="cannot be switched at once"):
        switch_of(bouncer, pair, databases=["*"])
    with pytest.raises(ValueError, match="two members are at the same"):
        switch_of(bouncer, {"a": pair["a"], "b": pair["a"]})


async def test_console_and_clients_may_use_tls(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer], tmp_owned: object
) -> None:
    certificate, key = make_certificate(tmp_owned)  # type: ignore[arg-type]
    if account := unprivileged():
        os.chown(key, account.uid, account.gid)
    tls = {"client_tls_sslmode": "require", "client_tls_cert_file": str(certificate), "client_tls_key_file": str(key)}
    bouncer = new_pgbouncer({"orders": line(pair["a"])}, **tls)
    trusting = f" sslmode=verify-full sslrootcert={certificate}"
    switch = switch_of(bouncer, pair, console=bouncer.console() + trusting, through=bouncer.dsn("orders") + trusting)
    facts = await switch.switch("b", expected=(await switch.survey()).version)
    assert facts.instance == instance(pair["b"])
    plain = switch_of(bouncer, pair, console=f"{bouncer.console()} sslmode=disable")
    with pytest.raises(ResilienceError):
        await plain.survey()


async def test_lines_in_a_file_that_is_included_are_found_and_all_else_is_kept(
    bouncer: TestPgBouncer, pair: dict[str, TestServer]
) -> None:
    lines = bouncer.folder / "real.ini"
    lines.write_bytes(
        f"; Überschrift \r\n\torders  =   dbname=postgres  port='{pair['a'].port}'   host=127.0.0.1 pool_size=3 \r\n"
        f"\n# orders = host=nowhere\nother = host=127.0.0.1 port={pair['a'].port}\xff\n".encode("latin-1")
    )
    lines.chmod(0o640)
    if account := unprivileged():
        os.chown(lines, account.uid, account.gid)
    link = bouncer.folder / "lines.ini"
    link.symlink_to(lines)
    text = bouncer.config.read_text().replace(f"orders = {line(pair['a'])}", "%include lines.ini")
    bouncer.config.write_text(text.replace("[pgbouncer]", "%include unreadable.ini\n[pgbouncer]"))
    (bouncer.folder / "unreadable.ini").write_text("")
    before, owner = lines.read_bytes(), lines.stat()
    await ask(bouncer, "RELOAD")
    switch = switch_of(bouncer, pair)
    facts = await switch.switch("b", expected=(await switch.survey()).version)
    assert facts.details["config"] == str(lines) and facts.instance == instance(pair["b"])
    wanted = before.replace(f"port='{pair['a'].port}'".encode(), f"port={pair['b'].port}".encode())
    assert lines.read_bytes() == wanted and link.is_symlink()
    now = lines.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (owner.st_uid, owner.st_gid, 0o640)


async def test_another_file_than_pgbouncer_reads_is_a_blocker(
    bouncer: TestPgBouncer, pair: dict[str, TestServer], tmp_owned: object
) -> None:
    copy = bouncer.folder / "copy.ini"
    copy.write_text(bouncer.config.read_text())
    switch = switch_of(bouncer, pair, config=copy)
    before, text = await switch.survey(), copy.read_text()
    assert [finding.severity for finding in before.findings] == ["blocker"]
    assert "PgBouncer reads these databases from" in str(before.findings)
    with pytest.raises(Refused, match="does not take"):
        await switch.switch("b", expected=before.version)
    assert copy.read_text() == text
    assert await wrote(bouncer.dsn("orders")) == instance(pair["a"])


async def test_lines_in_two_files_are_refused(bouncer: TestPgBouncer, pair: dict[str, TestServer]) -> None:
    (bouncer.folder / "more.ini").write_text(f"more = {line(pair['a'])}\n")
    bouncer.config.write_text(bouncer.config.read_text().replace("[pgbouncer]", "%include more.ini\n[pgbouncer]"))
    await ask(bouncer, "RELOAD")
    with pytest.raises(Refused, match="put them into one file"):
        await switch_of(bouncer, pair, databases=["orders", "more"]).survey()
    assert (await switch_of(bouncer, pair, databases=["more"]).survey()).to == "a"


async def test_when_somebody_has_paused_all_of_pgbouncer_it_is_not_ours_to_resume(
    bouncer: TestPgBouncer, pair: dict[str, TestServer]
) -> None:
    switch = switch_of(bouncer, pair, deadline=0.3)
    before = await switch.survey()
    await ask(bouncer, "PAUSE")
    facts = await switch.survey()
    assert not facts.instance and "is all of PgBouncer paused?" in str(facts.findings)
    for to in (None, "b"):
        with pytest.raises(Refused, match="already suspended/paused"):
            await switch.switch(to, expected=before.version)
    await ask(bouncer, "RESUME")
    assert await wrote(bouncer.dsn("orders")) == instance(pair["a"])


async def test_what_a_person_should_know_is_said(new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]) -> None:
    databases = {"orders": line(pair["a"]), "reports": line(pair["b"]), "third": "port=1 dbname=x"}
    bouncer = new_pgbouncer(databases, pool_mode="session", query_wait_timeout="7")
    switch = switch_of(bouncer, pair)
    await ask(bouncer, "DISABLE reports")
    await ask(bouncer, "PAUSE third")
    facts = await switch.survey()
    said = " ".join(map(str, facts.findings))
    assert facts.to is None and not facts.held
    for word in ("pooled by session", "different servers", "reports is disabled", "clients of third wait"):
        assert word in said
    (floor,) = await switch.floor()
    assert floor.phase == "propagation" and "7 s" in floor.why


async def test_a_database_at_the_default_socket_can_be_led_away(
    bouncer: TestPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer.config.write_text(bouncer.config.read_text().replace(line(pair["a"]), "dbname=postgres"))
    await ask(bouncer, "RELOAD")
    switch = switch_of(bouncer, pair)
    before = await switch.survey()
    assert before.to is None and before.details["databases"] == {"orders": "the default socket:5432"}
    await switch.switch("b", expected=before.version)
    host, _, port = at(pair["b"]).partition(":")
    assert f"orders = host={host} port={port} dbname=postgres\n" in bouncer.config.read_text()


async def test_a_client_in_session_mode_keeps_its_server_until_it_is_cut_off(
    new_pgbouncer: NewPgBouncer, pair: dict[str, TestServer]
) -> None:
    bouncer = new_pgbouncer({"orders": line(pair["a"])}, pool_mode="session")
    switch = switch_of(bouncer, pair, patience=0.05)
    connection = await connected(bouncer.dsn("orders"))
    await connection.execute("select 1")
    facts = await switch.switch("b", expected=(await switch.survey()).version)
    assert facts.to == "b" and await wrote(bouncer.dsn("orders")) == instance(pair["b"])
    await connection.close()
