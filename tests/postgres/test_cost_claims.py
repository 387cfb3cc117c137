"""The claims of the platform about cost, on real data: increments save 70 %, compression saves 60 to 80 %.

docs/cost.md says what of it holds; its table is these bounds.
"""

from __future__ import annotations

import pytest

from resilience import Archive, Manifest, backup
from resilience.planning.savings import measured_ratios
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer

from ..conftest import NewServer
from .chains import SUMMARIES, orders

ROWS = 60_000
DOCUMENTS = """
create table documents (id bigint primary key, body jsonb, made timestamptz);
insert into documents
select n, jsonb_build_object(
         'id', n, 'customer', md5(n::text), 'state', (array['open', 'paid', 'sent'])[1 + n % 3],
         'amount', round((random() * 1000)::numeric, 2), 'tags', jsonb_build_array('a' || n % 100, 'b' || n % 1000)),
       timestamptz '2026-01-01' + n * interval '1 second'
from generate_series(1, {rows}) n;
create index on documents ((body ->> 'customer'));
"""
NOISE = """
create table noise (id bigint primary key, body bytea);
alter table noise alter body set storage external;
insert into noise
select n, decode((select string_agg(md5(n || ' ' || k || random()), '') from generate_series(1, 120) k), 'hex')
from generate_series(1, 12000) n;
"""


async def taken(server: TestServer, change: str, archive: Archive) -> Manifest:
    """Change something and back that up as an increment."""
    server.psql(change)
    return (await backup(orders(server), archive, incremental="required")).manifest


def fill(server: TestServer, statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            server.psql(statement)
    server.psql("checkpoint")


@pytest.fixture
def cluster(new_server: NewServer) -> TestServer:
    return new_server(17, settings={**SUMMARIES, "full_page_writes": "off"})


async def test_compression_saves_sixty_to_eighty_percent_of_documents_and_nothing_of_noise(cluster: TestServer) -> None:
    archive = Archive(MemoryStore(), workers=1)
    made = []
    for statements in ("", DOCUMENTS.format(rows=ROWS), NOISE):
        fill(cluster, statements)
        made.append((await backup(orders(cluster), archive)).manifest)
    empty, documents, noise = made
    # What an empty cluster has, compresses far better than any data, and is left out.
    assert 0.60 < saved(empty, documents) < 0.80
    # What is compressed or encrypted already is not made smaller: the claim is about data, not about a tool.
    assert saved(documents, noise) < 0.15
    assert 0 < 1 - 1 / (measured_ratios(made).compression or 1) < 1


def saved(before: Manifest, after: Manifest) -> float:
    """Return which part compression saved of what was added between two backups."""
    assert after.size - before.size > 16 << 20
    return 1 - (after.stored - before.stored) / (after.size - before.size)


async def test_an_increment_saves_seventy_percent_only_where_most_pages_stay_as_they_were(cluster: TestServer) -> None:
    archive = Archive(MemoryStore(), workers=1)
    fill(cluster, DOCUMENTS.format(rows=ROWS))
    full = (await backup(orders(cluster), archive)).manifest
    newest = await taken(cluster, f"update documents set made = now() where id > {ROWS * 49 // 50}", archive)
    assert newest.stored < 0.30 * full.stored
    assert measured_ratios([full, newest]).increment == pytest.approx(newest.stored / full.stored)
    # As many rows are changed, but one on nearly every page: an increment holds whole pages.
    scattered = await taken(cluster, "update documents set made = now() where id % 50 = 0", archive)
    assert 2 * newest.stored < scattered.stored
    assert scattered.stored > 0.30 * full.stored
    everything = await taken(cluster, "update documents set made = now()", archive)
    assert everything.stored > 0.70 * full.stored
