"""A database that has a bit of everything, for the tests of logical backups; and a restore that kills itself.

`python -m tests.postgres.dumps STAGE ARCHIVE DSN BIN_DIR` restores `shop` and ends itself with kill -9 at that stage.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from resilience import Archive, restore
from resilience.postgres import PostgresServer
from resilience.postgres.dumps import loading
from resilience.postgres.dumps.sql_text import quoted
from resilience.postgres.dumps.staging import Staging
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer

from ..faults import die

SHOP = 'We ird-ü"x'
OWNER = 'o\'wner "x"; --'
CLOSED = "resilience_gate_closed"
BROKEN = "resilience_gate_broken"
LEAKY = "resilience_gate_leaky"
SECRET = "hunter2-is-secret"

# While a file of one name is in the data directory an index waits, while another is it fails; while the third is, a
# statement fails that holds a password. An immutable function sees files as they are now, but rows as they were.
GATE = f"""
create function public.gate(id int) returns int language plpgsql immutable as $$
begin
    while (pg_catalog.pg_stat_file('{CLOSED}', true)).size is not null loop
        perform pg_catalog.pg_sleep(0.1);
    end loop;
    if (pg_catalog.pg_stat_file('{BROKEN}', true)).size is not null then
        raise exception 'the gate is broken';
    end if;
    return id;
end $$;
"""


def ask(server: TestServer, statements: str, *, database: str = "postgres") -> str:
    """Run SQL as the superuser and return what came back as psql would show it; quicker than psql, and used a lot."""
    shown = []
    with psycopg.connect(server.dsn(database=database), autocommit=True) as connection:
        cursor = connection.execute(statements.encode())
        more: bool | None = True
        while more:
            if (result := cursor.pgresult) is not None:
                for row in range(result.ntuples):
                    values = [result.get_value(row, column) or b"" for column in range(result.nfields)]
                    shown.append(b"|".join(values).decode())
            more = cursor.nextset()
    return "\n".join(shown)


def inside(name: str) -> str:
    """Write a database's name for a connection string, and ask to write there although it is read-only by default."""
    quoted_name = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted_name}' options='-c default_transaction_read_only=off'"


def make_shop(server: TestServer, name: str = SHOP, owner: str = OWNER) -> None:
    """Create the database and the role that owns it."""
    member = quoted(owner + " member")
    ask(
        server,
        f"""
        create role {quoted(owner)} login createdb connection limit 7 password '{SECRET}';
        create role {member} nologin in role {quoted(owner)};
        alter role {quoted(owner)} set work_mem = '5MB'
        """,
    )
    ask(server, f"create database {quoted(name)} owner {quoted(owner)} template template0 encoding 'UTF8' locale 'C'")
    ask(
        server,
        f"""
        comment on database {quoted(name)} is 'sells; things\\';
        alter database {quoted(name)} set default_transaction_read_only = on;
        alter role {quoted(owner)} in database {quoted(name)} set work_mem = '6MB';
        revoke connect on database {quoted(name)} from public;
        grant create on database {quoted(name)} to {member}
        """,
    )
    fill_shop(server, name, owner)


def fill_shop(server: TestServer, name: str = SHOP, owner: str = OWNER) -> None:
    """Put tables, large objects and the like into the database."""
    ask(
        server,
        f"""
        create schema sales authorization {quoted(owner)};
        create table sales.items (id int generated always as identity primary key, name text not null, price numeric);
        insert into sales.items (name, price) select 'item \\. ' || g, g * 1.5 from generate_series(1, 5000) g;
        create table sales.empty (id int);
        create table sales.odd (line text);
        insert into sales.odd values (''), (E'\\\\.'), (E'a\\tb\\n\\\\.\\n\\n\\n'), (null), (repeat('x', 100000));
        create view sales.cheap as select * from sales.items where price < 100;
        create materialized view sales.total as select sum(price) from sales.items;
        create sequence sales.numbers start 42;
        create table public.gated (id int);
        insert into public.gated values (1);
        {GATE}
        create index a_gated on public.gated (public.gate(id));
        create index z_gated on public.gated (id);
        create function public.options_are_fine(text[], oid) returns void language plpgsql as
        $$ begin
            if $2 = 'pg_catalog.pg_user_mapping'::regclass
                    and (pg_catalog.pg_stat_file('{LEAKY}', true)).size is not null then
                raise exception 'the options are wrong';
            end if;
        end $$;
        create foreign data wrapper other validator public.options_are_fine;
        create server elsewhere foreign data wrapper other;
        create user mapping for current_user server elsewhere options (password '{SECRET}');
        grant select on sales.items to public;
        select lo_from_bytea(0, decode(repeat('5c2e0a0a0a0000000000', 5000), 'hex'));
        select lo_from_bytea(4000000000, '');
        """,
        database=inside(name),
    )


def drop_shop(server: TestServer, name: str = SHOP, owner: str | None = OWNER) -> None:
    """Remove the database, and the roles unless None, if they are there."""
    ask(server, f"drop database if exists {quoted(name)} with (force)")
    if owner is not None:
        ask(server, f"drop role if exists {quoted(owner + ' member')}, {quoted(owner)}")


def look_at_shop(server: TestServer, name: str = SHOP) -> str:
    """Return everything that a restore has to bring back, as text."""
    cluster = ask(
        server,
        f"""
        select datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate,
               array(select unnest(datacl)::text order by 1),
               shobj_description(oid, 'pg_database') from pg_database where datname = $name${name}$name$;
        select coalesce(rolname, '-'), setconfig from pg_db_role_setting s left join pg_roles r on r.oid = setrole
            where setdatabase = (select oid from pg_database where datname = $name${name}$name$) order by 1;
        """,
    )
    content = ask(
        server,
        """
        select count(*), sum(hashtext(i::text)) from sales.items i;
        select array_agg(md5(line) order by md5(line)) from sales.odd;
        select count(*) from sales.empty;
        select count(*) from sales.cheap;
        select * from sales.total;
        select nextval('sales.numbers') is not null;
        select md5(lo_get(oid)), length(lo_get(oid)) from pg_largeobject_metadata order by 1;
        select nspname, relname, relkind, pg_get_userbyid(relowner), relacl from pg_class c
            join pg_namespace n on n.oid = relnamespace where nspname in ('sales', 'public') order by 1, 2;
        select srvname, umoptions from pg_user_mappings;
        """,
        database=inside(name),
    )
    return cluster + "\n" + content


def look_at_roles(server: TestServer, owner: str = OWNER) -> str:
    """Return the shop's roles: attributes, passwords, settings, memberships."""
    return ask(
        server,
        f"""
        select rolname, rolcanlogin, rolcreatedb, rolsuper, rolconnlimit, rolpassword, setconfig
            from pg_authid a left join pg_db_role_setting s on s.setrole = a.oid and setdatabase = 0
            where rolname like $owner${owner}%$owner$ order by 1;
        select pg_get_userbyid(roleid), pg_get_userbyid(member) from pg_auth_members
            where pg_get_userbyid(roleid) like $owner${owner}%$owner$;
        """,
    )


def databases(server: TestServer) -> list[str]:
    """Return the names of all databases."""
    return ask(server, "select datname from pg_database order by 1").splitlines()


@contextmanager
def gate(server: TestServer, state: str) -> Iterator[None]:
    """Close or break the gate while inside."""
    (server.data / state).touch()
    try:
        yield
    finally:
        (server.data / state).unlink()


def programs(*names: str) -> dict[int, str]:
    """Return the command lines of the processes of these programs that we started, by their ids."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == os.getpid() and any(f"/{name} " in command for name in names):
                found[int(folder.name)] = command
    return found


async def until_blocked(server: TestServer, query: str) -> None:
    """Wait until somebody's query that looks like this one is waiting for something other than its client."""
    condition = f"query ilike '%{query}%' and state = 'active' and pid <> pg_backend_pid() and wait_event is not null"
    for _ in range(1000):
        if await asyncio.to_thread(ask, server, f"select count(*) from pg_stat_activity where {condition}") != "0":
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"nobody came to wait in {query!r}")


def main(stage: str, archive: str, dsn: str, bin_dir: str) -> None:
    """Restore, and die at the stage."""

    def end(*_: object) -> None:
        die()

    if stage == "spooling":
        loading._complete = end  # type: ignore[assignment]  # it dies before it could return anything
    elif stage == "publishing":
        Staging._rename = end  # type: ignore[assignment, method-assign]  # likewise
    elif stage == "replacing":
        Staging._drop_replaced = end  # type: ignore[assignment, method-assign]  # likewise
    into = PostgresServer(dsn=dsn, bin_dir=bin_dir, replace=stage == "replacing")
    asyncio.run(restore(Archive(LocalStore(archive)), "shop", into=into))


if __name__ == "__main__":
    main(*sys.argv[1:])
