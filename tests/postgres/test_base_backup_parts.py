"""The smaller parts of a physical backup: the server's manifest, LSNs, connection strings, the sorting of errors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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


def as_servers_write(files: Mapping[str, bytes], *ranges: tuple[int, str, str]) -> bytes:
    """Write a manifest laid out as real servers do: one file a line."""
    document = json.loads(server_manifest(files))
    del document["Manifest-Checksum"]
    wal = [{"Timeline": timeline, "Start-LSN": start, "End-LSN": end} for timeline, start, end in ranges]
    listed = ",\n".join(json.dumps(each) for each in document["Files"])
    replayed = ",\n".join(json.dumps(each) for each in wal or document["WAL-Ranges"])
    signed = '{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": 7710750127438869212,\n'
    signed += f'"Files": [\n{listed}\n],\n"WAL-Ranges": [\n{replayed}\n],\n'
    return f'{signed}"Manifest-Checksum": "{hashlib.sha256(signed.encode()).hexdigest()}"}}\n'.encode()


LAYOUTS = pytest.mark.parametrize("write", [server_manifest, as_servers_write], ids=["indented", "one a line"])
SEGMENT = "pg_wal/000000010000000000000002"


def with_wal(files: dict[str, tuple[int, int]], *names: str, size: int = 16 << 20) -> dict[str, tuple[int, int]]:
    """Add segments of WAL that were seen, by default the one that the manifest's range needs."""
    return files | dict.fromkeys(names or (SEGMENT,), (size, 0))


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


@LAYOUTS
def test_files_that_are_what_the_server_says_are_accepted(write: Callable[[Mapping[str, bytes]], bytes]) -> None:
    manifest = ServerManifest.parse(write(FILES))
    assert [file.name for file in manifest.files] == list(FILES)
    assert (manifest.wal[0].timeline, manifest.wal[0].end) == (1, "0/2000120")
    compare(manifest, with_wal(seen(FILES)))
    compare(manifest, with_wal(seen({**FILES, "pg_wal/00000002.history": b"1", "pg_wal/archive_status/x": b""})))


@LAYOUTS
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
    changes: Mapping[str, bytes | None], sentence: str, write: Callable[[Mapping[str, bytes]], bytes]
) -> None:
    files = {name: data for name, data in {**FILES, **changes}.items() if data is not None}
    with pytest.raises(ChecksumMismatch, match=f"what arrived is not what the server's manifest says: .*{sentence}"):
        compare(ServerManifest.parse(write(FILES)), with_wal(seen(files)))


ONE = (1, "0/2000028", "0/2000120")
LONG = (1, "0/FEFFFFFF", "1/1")
OVER = [f"pg_wal/00000001{rest}" for rest in ("00000000000000FE", "00000000000000FF", "0000000100000000")]
SWITCHED = ((2, "0/3000080", "0/4000000"), (1, "0/2000028", "0/3000080"))
BEHIND = "pg_wal/000000010000000000000003", "pg_wal/000000020000000000000003"


@pytest.mark.parametrize(
    ("ranges", "names", "size"),
    [
        ([ONE], [SEGMENT], 16 << 20),
        ([ONE], [SEGMENT, "pg_wal/000000010000000000000003"], 16 << 20),
        ([ONE], ["pg_wal/000000010000000000000020"], 1 << 20),
        ([ONE], ["pg_wal/000000010000000000000000"], 1 << 30),
        ([(1, "0/2000028", "0/3000000")], [SEGMENT], 16 << 20),
        ([LONG], OVER, 16 << 20),
        (SWITCHED, [SEGMENT, *BEHIND], 16 << 20),
        (SWITCHED, [SEGMENT, BEHIND[1]], 16 << 20),
    ],
    ids=["one", "more", "1 MiB", "1 GiB", "to the edge", "over 4 GiB", "two timelines", "the switch is on the new one"],
)
def test_wal_that_is_all_there_is_accepted(
    ranges: Sequence[tuple[int, str, str]], names: Sequence[str], size: int
) -> None:
    compare(ServerManifest.parse(as_servers_write(FILES, *ranges)), with_wal(seen(FILES), *names, size=size))


@pytest.mark.parametrize(
    ("ranges", "segments", "sentence"),
    [
        ([ONE], {}, "pg_wal has no segments$"),
        ([ONE], {SEGMENT: 0}, f"{SEGMENT} has 0 bytes, which is no whole segment$"),
        ([ONE], {SEGMENT: 5 << 20}, f"{SEGMENT} has 5242880 bytes, which is no whole segment$"),
        ([ONE], {SEGMENT: 8 << 20}, "pg_wal/000000010000000000000004 is missing$"),
        ([ONE], {SEGMENT: 512 << 10}, f"{SEGMENT} has 524288 bytes, which is no whole segment$"),
        ([ONE], {SEGMENT: 16 << 20, BEHIND[0]: 1 << 20}, f"{BEHIND[0]} has 1048576 bytes, which is no whole segment$"),
        ([ONE], {BEHIND[0]: 16 << 20}, f"{SEGMENT} is missing$"),
        ([ONE], {"pg_wal/000000020000000000000002": 16 << 20}, f"{SEGMENT} is missing$"),
        ([(1, "0/2000028", "0/3000001")], {SEGMENT: 16 << 20}, f"{BEHIND[0]} is missing$"),
        (SWITCHED, {SEGMENT: 16 << 20, BEHIND[0]: 16 << 20}, f"{BEHIND[1]} is missing$"),
        (SWITCHED, {BEHIND[0]: 16 << 20, BEHIND[1]: 16 << 20}, f"{SEGMENT} is missing$"),
    ],
)
def test_wal_that_a_restore_would_miss_is_named(
    ranges: Sequence[tuple[int, str, str]], segments: Mapping[str, int], sentence: str
) -> None:
    found = seen(FILES) | {name: (size, 0) for name, size in segments.items()}
    with pytest.raises(ChecksumMismatch, match=f"what arrived is not what the server's manifest says: {sentence}"):
        compare(ServerManifest.parse(as_servers_write(FILES, *ranges)), found)


def test_a_range_of_wal_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="cannot be read: 'nowhere' is no LSN"):
        compare(ServerManifest.parse(as_servers_write(FILES, (1, "nowhere", "0/1"))), with_wal(seen(FILES)))


def test_a_line_that_is_no_file_is_refused_although_the_checksum_is_right() -> None:
    signed = as_servers_write(FILES).replace(b'"Size": 3', b'"Size": "three"').split(b'"Manifest-Checksum"')[0]
    data = signed + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(signed).hexdigest().encode()
    with pytest.raises(ManifestInvalid, match="the server's backup manifest cannot be read"):
        compare(ServerManifest.parse(data), with_wal(seen(FILES)))


@LAYOUTS
def test_every_changed_byte_of_the_servers_manifest_is_refused(
    write: Callable[[Mapping[str, bytes]], bytes],
) -> None:
    data = write(FILES)
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
