"""The smaller parts of a physical backup: the server's manifest, LSNs, connection strings, the sorting of errors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience import Archive, backup
from resilience.model.errors import (
    ChecksumMismatch,
    Corrupt,
    ManifestInvalid,
    Refused,
    ResilienceError,
    Unavailable,
    Unreachable,
    Unsupported,
)
from resilience.postgres import PostgresTarget
from resilience.postgres.client import Dsn, from_server, parse_dsn, replication
from resilience.postgres.lsn import format_lsn, parse_lsn, position
from resilience.postgres.server_manifest import FileChecksums, ServerManifest, compare
from resilience.stores import MemoryStore
from resilience.streams.tar import Member
from resilience.testing.archivers import read
from resilience.testing.postgres import unprivileged

from ..conftest import NewServer

FILES = {"base/1/1": b"one", "global/pg_control": b"control", "odd\udcff": b""}


def server_manifest(files: Mapping[str, bytes] = FILES, **more: object) -> bytes:
    """Write a manifest as the server does."""
    listed = [
        {
            **({"Encoded-Path": os.fsencode(name).hex()} if "\udcff" in name else {"Path": name}),
            "Size": len(data),
            "Last-Modified": "2026-11-21 20:30:00 GMT",
            "Checksum-Algorithm": "CRC32C",
            "Checksum": crc32c.crc32c(data).to_bytes(4, "little").hex(),
        }
        for name, data in files.items()
    ]
    body = {
        "PostgreSQL-Backup-Manifest-Version": 1,
        "Files": listed,
        "WAL-Ranges": [{"Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000120"}],
        **more,
    }
    signed = json.dumps(body, indent=1).removesuffix("\n}") + ",\n"
    return f'{signed}"Manifest-Checksum": "{hashlib.sha256(signed.encode()).hexdigest()}"}}\n'.encode()


def seen(files: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
    """Let files pass as a tar would bring them."""
    checksums = FileChecksums()
    for name, data in files.items():
        checksums.begin(Member(name=name, kind="file", size=len(data), mode=0o600, target=""))
        for at in range(len(data)):
            checksums.body(data[at : at + 1])
        checksums.end()
    checksums.begin(Member(name="a directory", kind="directory", size=0, mode=0o700, target=""))
    checksums.end()
    return checksums.seen


def test_files_that_are_what_the_server_says_are_accepted_and_wal_needs_no_saying() -> None:
    manifest = ServerManifest.parse(server_manifest())
    assert (manifest.version, manifest.wal[0].timeline, manifest.wal[0].end) == (1, 1, "0/2000120")
    compare(manifest, seen(FILES))
    compare(manifest, seen({**FILES, "pg_wal/000000010000000000000002": b"wal"}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base/1/1": b"onE"}, "base/1/1 has another checksum$"),
        ({"base/1/1": b"ones"}, "base/1/1 has 4 bytes instead of 3$"),
        ({"base/1/1": None}, "base/1/1 is missing$"),
        ({"base/1/2": b"two"}, "base/1/2 is not in the manifest$"),
        ({"odd\udcff": b"x"}, "odd\udcff has 1 bytes instead of 0$"),
        ({str(number): b"" for number in range(9)}, "0 is not in the manifest.* and 6 more$"),
    ],
    ids=["changed", "longer", "missing", "too many", "odd name", "many"],
)
def test_every_difference_from_what_the_server_says_is_named(
    changes: Mapping[str, bytes | None], sentence: str
) -> None:
    files = {name: data for name, data in {**FILES, **changes}.items() if data is not None}
    with pytest.raises(ChecksumMismatch, match=f"what arrived is not what the server's manifest says: .*{sentence}"):
        compare(ServerManifest.parse(server_manifest()), seen(files))


def test_every_changed_byte_of_the_servers_manifest_is_refused() -> None:
    data = server_manifest()
    for at in range(data.rindex(b'"Manifest-Checksum"')):
        with pytest.raises(ManifestInvalid, match="the server's backup manifest"):
            ServerManifest.parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for lacking in (b"", b"{}", data[:-20], data.replace(b'"Files"', b'"Feils"')):
        with pytest.raises(ManifestInvalid, match="the server's backup manifest cannot be read"):
            ServerManifest.parse(lacking)


async def test_a_file_whose_name_is_no_text_is_backed_up_too(new_server: NewServer) -> None:
    server = new_server(17)
    for name in (b"odd\xff", "ödd".encode()):
        path = os.path.join(os.fsencode(server.data), name)  # noqa: PTH118  # no text, so no Path
        with open(path, "wb") as file:
            file.write(b"data")
        if account := unprivileged():
            os.chown(path, account.uid, account.gid)
    archive = Archive(MemoryStore())
    report = await backup(PostgresTarget("orders", dsn=server.dsn("backup")), archive)
    async with archive.open(report.manifest) as stored:
        names = {file.name for file in ServerManifest.parse(await read(stored, "backup_manifest")).files}
    assert {"odd\udcff", "ödd"} <= names


@given(offset=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=50)
def test_any_lsn_is_read_as_it_was_written(offset: int) -> None:
    assert parse_lsn(format_lsn(offset)) == offset
    assert position(3, offset) == position("3", format_lsn(offset))


@pytest.mark.parametrize(
    "text", ["", "/", "1", "1/", "/1", "1/2/3", "g/1", "123456789/1", "1/123456789", " 1/2", "-1/2"]
)
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no LSN: one looks like 16/B374D848"):
        parse_lsn(text)


SECRETS = st.text("abcXYZ019%&=@:/?# '\\ü", min_size=9, max_size=20)


@given(secret=SECRETS)
@settings(deadline=None, max_examples=50)
def test_a_password_is_used_and_never_shown(secret: str) -> None:
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    dsn = parse_dsn(f"host=somewhere user=somebody password='{quoted}' dbname=some")
    assert dsn.environment() == {"PGPASSWORD": secret}
    assert parse_dsn(dsn.uri()).parameters["password"] == secret
    shown = [str(dsn), repr(dsn), dsn.where, repr(PostgresTarget("orders", dsn=dsn)), str(dsn.database("other"))]
    assert not [text for text in shown if secret in text or "password" in text]


@pytest.mark.parametrize(
    "text", ["nonsense with a secret", "postgresql://secret@[x", "host='secret", "port=1 secret=2"]
)
def test_what_is_no_connection_string_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="the dsn is neither a postgresql:// URI nor") as refused:
        parse_dsn(text)
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_connection_strings_say_where_they_lead() -> None:
    assert parse_dsn("postgresql://user@one:5433/some").where == "one:5433"
    assert parse_dsn("hostaddr=10.0.0.1").where == "10.0.0.1:5432"
    assert parse_dsn("").where == "localhost:5432"
    dsn = parse_dsn("host=one dbname=some")
    assert parse_dsn(dsn) is dsn
    assert dsn.database("other").parameters == {"host": "one", "dbname": "other"}
    with pytest.raises(ValueError, match="sslpassword"):
        Dsn({"sslpassword": "x"}).environment()


@pytest.mark.parametrize(
    ("state", "message", "kind"),
    [
        ("28P01", 'password authentication failed for user "x"', Refused),
        ("28000", "no pg_hba.conf entry for replication connection", Refused),
        ("", "connection failed: fe_sendauth: no password supplied", Refused),
        ("42501", "must be superuser or replication role", Refused),
        ("55000", "WAL generated with full_page_writes=off was replayed", Refused),
        ("XX001", "checksum verification failure during base backup", Corrupt),
        ("57P01", "terminating connection due to administrator command", Unreachable),
        ("57P03", "the database system is starting up", Unreachable),
        ("08006", "connection failure", Unreachable),
        ("", "server closed the connection unexpectedly", Unreachable),
        ("53300", "sorry, too many clients already", Unavailable),
        ("53400", "all replication slots are in use", Unavailable),
        ("58P01", "requested WAL segment has already been removed", Unavailable),
        ("55000", "the standby was promoted during online backup", Unavailable),
        ("0A000", "not supported", Unsupported),
        ("42601", "syntax error", Unsupported),
    ],
)
def test_what_a_server_says_is_sorted_by_what_to_do_next(state: str, message: str, kind: type[ResilienceError]) -> None:
    error = from_server(state, f"{message}\n  over lines", dsn=parse_dsn("host=one user=x"), operation="backup")
    assert type(error) is kind
    assert str(error).startswith(f"backup one:5432: {message} over lines")


@asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[str]:
    """Answer whoever connects with the same bytes, or (None) never; yields a connection string."""
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await silent.wait()
        else:
            await reader.read(10)
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"host=127.0.0.1 port={server.sockets[0].getsockname()[1]} user=backup connect_timeout=2"
    finally:
        silent.set()
        server.close()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"N", bytes(100), None], ids=repr)
async def test_something_else_than_postgresql_at_the_port_is_unavailable_not_a_crash(answer: bytes | None) -> None:
    async with listening(answer) as dsn:
        with pytest.raises(Unavailable, match=r"survey 127.0.0.1:\d+: "):
            await PostgresTarget("orders", dsn=dsn).survey()
        with pytest.raises(Unavailable, match=r"backup 127.0.0.1:\d+: "):
            await replication(parse_dsn(dsn), operation="backup").__aenter__()
