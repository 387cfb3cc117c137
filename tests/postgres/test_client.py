"""Both doors lead to the server that the connection string names, whatever it says beside it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import psycopg
import pytest

from resilience.model.errors import (
    Corrupt,
    Refused,
    ResilienceError,
    TimedOut,
    Unavailable,
    Unreachable,
    Unsupported,
)
from resilience.postgres import survey
from resilience.postgres.client import Dsn, from_server, mapped, replication, sql
from resilience.postgres.target import PostgresTarget
from resilience.testing.postgres import TestServer, unprivileged
from tests.conftest import NewServer, missing

LIBPQ = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBPQ:
        monkeypatch.delenv(name, raising=False)


async def asked(dsn: str | Dsn, question: str) -> object:
    async with sql(Dsn.parse(dsn), operation="ask") as connection:
        return await connection.fetchval(question)


async def reached(dsn: str | Dsn) -> int:
    """Go through all doors; returns the port of the server behind them, which is the same one."""
    parsed = Dsn.parse(dsn)
    ports = {await asked(parsed, "select current_setting('port')")}
    async with replication(parsed, operation="ask") as connection:
        ports.add(connection.port.decode())
    direct = await asyncpg.connect(parsed.uri())
    ports.add(await direct.fetchval("select current_setting('port')"))
    await direct.close()
    libpq = await psycopg.AsyncConnection.connect(parsed.uri())
    ports.update(await (await libpq.execute("select current_setting('port')")).fetchone() or ())
    await libpq.close()
    (port,) = ports
    return int(str(port))


@pytest.mark.parametrize(
    "more",
    [
        "",
        "keepalives=1 keepalives_idle=5 keepalives_interval=5 keepalives_count=2 tcp_user_timeout=5000",
        "connect_timeout=5 client_encoding=UTF8 gssencmode=disable sslcompression=0 sslsni=1 load_balance_hosts=random",
        "sslmode=prefer channel_binding=prefer target_session_attrs=read-write ssl_min_protocol_version=TLSv1.2",
        "connect_timeout=0 fallback_application_name=me options='-c work_mem=1MB'",
    ],
)
async def test_every_parameter_of_libpq_that_tunes_is_taken_by_both_doors(postgres17: TestServer, more: str) -> None:
    assert await reached(f"{postgres17.dsn()} {more}") == postgres17.port


async def test_options_and_the_name_of_the_application_reach_the_server(postgres17: TestServer) -> None:
    dsn = f"{postgres17.dsn()} options='-c work_mem=1234kB' fallback_application_name=fall"
    asking = "select current_setting('work_mem') || ' ' || current_setting('application_name')"
    assert await asked(dsn, asking) == "1234kB fall"
    assert await asked(f"{dsn} application_name=mine", asking) == "1234kB mine"


async def test_a_setting_of_ours_is_set(postgres17: TestServer) -> None:
    dsn = Dsn({**Dsn.parse(postgres17.dsn()).parameters, "idle_session_timeout": "4321"})
    assert await asked(dsn, "select current_setting('idle_session_timeout')") == "4321ms"
    assert "4321" not in str(dsn)


async def test_the_database_is_postgres_unless_another_is_named(postgres17: TestServer) -> None:
    dsn = f"host=127.0.0.1 port={postgres17.port} user=postgres"
    assert await asked(dsn, "select current_database()") == "postgres"
    assert await asked(f"{dsn} dbname=template1", "select current_database()") == "template1"


async def test_a_folder_of_sockets_and_an_address_lead_to_the_server(postgres17: TestServer) -> None:
    rest = f"port={postgres17.port} user=postgres"
    for host in (f"host={postgres17.folder}", "hostaddr=127.0.0.1", "host=nowhere.invalid hostaddr=127.0.0.1"):
        assert await reached(f"{host} {rest}") == postgres17.port


async def test_ipv6_leads_to_the_server(new_server: NewServer) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        missing("there is no IPv6 loopback here")
    server = new_server(17, settings={"listen_addresses": "'127.0.0.1,::1'"})
    for dsn in (
        f"host=::1 port={server.port} user=postgres",
        f"hostaddr=::1 port={server.port} user=postgres",
        f"postgresql://postgres@[::1]:{server.port}/postgres",
    ):
        assert await reached(dsn) == server.port
        assert await asked(dsn, "select host(inet_client_addr())") == "::1"
        assert Dsn.parse(dsn).where == f"[::1]:{server.port}"


async def test_several_hosts_are_tried_in_order_and_the_survey_warns_of_it(postgres17: TestServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = closed.getsockname()[1]
        dsn = f"host=127.0.0.1,localhost port={dead},{postgres17.port} user=postgres"
        assert await reached(dsn) == postgres17.port
        (finding,) = (await PostgresTarget("orders", dsn=dsn).survey()).findings
        assert (finding.severity, finding.subject) == ("warning", f"127.0.0.1:{dead}, localhost:{postgres17.port}")
        assert "several hosts" in finding.text
        chosen = f"{dsn} target_session_attrs=primary"
        assert not (await PostgresTarget("orders", dsn=chosen).survey()).findings
        with pytest.raises(Unavailable):
            await asked(f"{dsn} target_session_attrs=standby", "select 1")


async def test_a_service_is_looked_up(postgres17: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "services"
    file.write_text(f"# mine\n[one]\nhost=127.0.0.1\nport={postgres17.port}\nuser=other\ndbname=template1\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    dsn = Dsn.parse("service=one user=postgres")
    assert dsn.where == f"127.0.0.1:{postgres17.port}"
    assert await reached(dsn) == postgres17.port
    assert await asked(dsn, "select current_database()") == "template1"
    with pytest.raises(ValueError, match="a parameter service that no service file defines"):
        Dsn.parse("service=two")
    file.write_text("a secret\n")
    with pytest.raises(ValueError, match="the service file of the dsn cannot be read") as refused:
        Dsn.parse("service=one")
    assert "secret" not in str(refused.value)


async def test_the_environment_names_a_host_only_where_the_dsn_does_not(
    postgres17: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "::1")
    monkeypatch.setenv("PGPORT", "1")
    assert Dsn.parse("user=postgres").where == "[::1]:1"
    assert await asked(postgres17.dsn(), "select current_setting('port')") == str(postgres17.port)


@pytest.mark.parametrize(
    "text",
    [
        "require_auth=secret",
        "channel_binding=require",
        "gssencmode=require",
        "requirepeer=secret",
        "sslpassword=secret",
        "replication=secret",
        "sslcertmode=secret",
        "sslrootcert=system",
    ],
)
def test_what_a_door_could_not_honour_is_refused_by_name(text: str) -> None:
    with pytest.raises(
        ValueError, match=f"the dsn has a parameter {text.partition('=')[0]} that is not supp"
    ) as refused:
        Dsn.parse(f"host=one {text}")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("connect_timeout=soon", "connect_timeout of the dsn is not a number of seconds"),
        ("port=secret", "port of the dsn is not one number"),
        ("port=0", "port of the dsn is not between"),
        ("host=a,b port=1,2,3", "port of the dsn is not one number, or one for each host"),
        ("host=a,", "host of the dsn is empty"),
        ("host=a..b", "host of the dsn is empty or cannot be a name"),
        ("target_session_attrs=secret", "target_session_attrs of the dsn is not one of any, "),
        ("hostaddr=127.0.0.1 host=a sslmode=verify-full", "hostaddr that is not supported with verify-full"),
    ],
)
def test_what_could_never_connect_is_refused_at_once(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        Dsn.parse(text)
    assert "secret" not in str(refused.value)


def test_a_connection_string_shows_what_is_harmless_and_nothing_else() -> None:
    harmless = "host=h port=1 user=u dbname=d sslmode=require sslrootcert=/r options=-cx=1 target_session_attrs=any"
    dsn = Dsn.parse(f"{harmless} password=secret passfile=/secret sslkey=/secret client_encoding=secret")
    assert Dsn.parse(str(dsn)) == Dsn.parse(harmless)
    assert "secret" not in repr(Dsn({**dsn.parameters, "oauth_client_secret": "secret"}))
    assert dsn.environment() == {"PGPASSWORD": "secret", "PGPASSFILE": "/secret", "PGSSLKEY": "/secret"}
    assert Dsn.parse("connect_timeout=0").connect_seconds is None


async def test_a_mode_that_does_not_exist_is_refused_in_a_sentence(postgres17: TestServer) -> None:
    dsn = Dsn.parse(f"{postgres17.dsn()} sslmode=nonsense")
    with pytest.raises(Refused, match=r"ask 127.0.0.1:\d+: `sslmode` parameter must be one of: disable, allow"):
        await asked(dsn, "select 1")
    with pytest.raises(Refused, match="invalid sslmode value"):
        await replication(dsn, operation="ask").__aenter__()


async def test_a_file_that_is_missing_is_named_by_its_parameter(postgres17: TestServer) -> None:
    dsn = Dsn.parse(f"{postgres17.dsn()} sslmode=verify-full sslrootcert=/nowhere/root.crt")
    with pytest.raises(Refused, match="the file that sslrootcert names cannot be read") as refused:
        await asked(dsn, "select 1")
    assert "is the server up" not in str(refused.value)


async def test_tls_is_used_and_a_certificate_of_another_is_not_trusted(
    new_server: NewServer, postgres17: TestServer, tmp_path: Path
) -> None:
    server = new_server(17)
    certificate = _certificate(server, tmp_path, "localhost")
    other = _certificate(None, tmp_path / "other", "localhost")
    server.psql("alter system set ssl = on")
    server.psql("select pg_reload_conf()")
    using = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
    rest = f"port={server.port} user=postgres"
    full = f"host=localhost {rest} sslmode=verify-full sslrootcert="
    for dsn in (f"host=127.0.0.1 {rest} sslmode=require", full + str(certificate)):
        assert await reached(dsn) == server.port
        assert await asked(dsn, using) is True
    for dsn in (f"{full}{other}", f"host=127.0.0.1 {rest} sslmode=verify-full sslrootcert={certificate}"):
        with pytest.raises(Refused, match="the server's certificate is not trusted"):
            await asked(dsn, using)
        with pytest.raises(Refused, match="certificate"):
            await replication(Dsn.parse(dsn), operation="ask").__aenter__()
    broken = tmp_path / "broken"
    broken.write_text("no certificate")
    with pytest.raises(Refused, match="a TLS file of the dsn is of no use"):
        await asked(f"{full}{broken}", using)
    with pytest.raises(Refused, match="certificate file"):
        await replication(Dsn.parse(f"{full}/nowhere/root.crt"), operation="ask").__aenter__()
    with pytest.raises(Unreachable, match="does the server offer TLS"):
        await asked(f"{postgres17.dsn()} sslmode=require", using)


def _certificate(server: TestServer | None, folder: Path, name: str) -> Path:
    """Make a certificate that signs itself, and give it to a server."""
    if shutil.which("openssl") is None:
        missing("openssl is not installed")
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    more = ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *more], check=True, capture_output=True)
    if server is None:
        return certificate
    for path in (certificate, key):
        copy = Path(shutil.copy(path, server.data))
        copy.chmod(0o600)
        if account := unprivileged():
            shutil.chown(copy, account.uid, account.gid)
    return certificate


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncpg.InternalClientError("odd"), Unreachable),
        (asyncpg.InterfaceError("connection is closed"), Unreachable),
        (asyncpg.exceptions.ClientConfigurationError("wrong"), Refused),
        (asyncpg.exceptions.UnsupportedServerFeatureError("too new"), Unsupported),
        (asyncpg.exceptions.ProtocolError("odd"), Unreachable),
        (asyncpg.exceptions.TargetServerAttributeNotMatched("none"), Unreachable),
        (asyncpg.ConnectionDoesNotExistError("closed in the middle"), Unreachable),
        (asyncpg.InternalServerError("odd"), Unavailable),
        (ConnectionResetError(104, "reset"), Unreachable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_no_error_of_a_driver_leaves_through_a_door(error: Exception, kind: type[ResilienceError]) -> None:
    with pytest.raises(ResilienceError, match="ask one:5432: ") as raised, mapped(Dsn.parse("host=one"), "ask"):
        raise error
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    ("state", "kind"), [("XX000", Unavailable), ("XX001", Corrupt), ("XX002", Corrupt), ("XX003", Unavailable)]
)
def test_only_what_names_corruption_is_corrupt(state: str, kind: type[ResilienceError]) -> None:
    assert type(from_server(state, "m", dsn=Dsn.parse("host=one"), operation="ask")) is kind


@pytest.mark.parametrize("state", ["57014", "55P03", "40001", "40P01", "25P04"])
def test_a_query_that_was_stopped_may_be_asked_again(state: str) -> None:
    assert type(from_server(state, "m", dsn=Dsn.parse("host=one"), operation="ask")) is Unavailable


@pytest.mark.parametrize(
    "message", ['could not open file "x": Permission denied', 'could not stat file "x"', "permission denied for file x"]
)
def test_a_file_the_server_may_not_read_is_no_matter_of_grants(message: str) -> None:
    assert "grant" not in from_server("42501", message, dsn=Dsn.parse("host=one"), operation="ask").hint
    assert "grant" in from_server("42501", "permission denied", dsn=Dsn.parse("host=one"), operation="ask").hint


async def test_a_server_that_falls_silent_ends_the_survey(
    postgres17: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(survey, "DATABASES", "select pg_sleep(60)")
    with pytest.raises(TimedOut, match="no answer within the deadline"):
        await asyncio.wait_for(PostgresTarget("orders", dsn=postgres17.dsn()).survey(), 20)


async def test_a_survey_says_which_role_may_log_in(every_postgres: TestServer) -> None:
    details = (await PostgresTarget("orders", dsn=every_postgres.dsn("backup")).survey()).details
    assert details["login_role"] == "postgres"
    assert details["replayed_until"] is None


async def test_without_the_first_role_another_superuser_is_the_one_to_log_in(new_server: NewServer) -> None:
    server = new_server(17)
    server.psql("create role plain login; create role chief login superuser")
    server.psql("alter role postgres nologin")
    assert (await PostgresTarget("orders", dsn=server.dsn("backup")).survey()).details["login_role"] == "chief"


async def test_a_standby_says_until_when_it_has_replayed(
    new_server: NewServer, standby_of: Callable[[TestServer], TestServer]
) -> None:
    primary = new_server(17)
    standby = standby_of(primary)
    before = datetime.now(UTC)
    primary.psql("create table t ()")
    until = None
    for _ in range(500):
        details = (await PostgresTarget("orders", dsn=standby.dsn("backup")).survey()).details
        until = details["replayed_until"]
        if isinstance(until, str) and datetime.fromisoformat(until) >= before:
            break
        await asyncio.sleep(0.02)
    assert isinstance(until, str)
    assert until.endswith("Z")
    assert before <= datetime.fromisoformat(until) <= datetime.now(UTC)
    assert details["login_role"] == "postgres"
