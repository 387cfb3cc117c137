"""Back up a real PostgreSQL, lose a table, bring it back and prove it. Takes less than a minute, leaves nothing behind.

`python3 noxfile.py -s quickstart` installs what this needs and runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import asyncpg

from resilience import Archive, Level, ResilienceError, backup, restore, verify
from resilience.model.show import as_bytes
from resilience.postgres import PostgresBackupValidator, PostgresDataDirectory, PostgresScratch, PostgresTarget
from resilience.progress import ProgressBar
from resilience.stores import LocalStore
from resilience.testing.postgres import MissingServer, find_binaries, owned_folder, reachable_copy, running_server

TESTBED = Path(__file__).parent.parent / ".testbed"
MAJORS = (18, 17, 16, 15)
ORDERS = 500_000

SHOP = """
create table customers (
    id bigint primary key, email text not null unique, name text not null, country text not null,
    settings jsonb not null
);
insert into customers
select n, format('%s.%s.%s@example.com', given, family, n), initcap(format('%s %s', given, family)), country,
       jsonb_build_object('language', lower(country), 'newsletter', n % 3 = 0, 'theme', 'dark')
from generate_series(1, 50000) n,
     lateral (select (array['ada','grace','alan','edsger','barbara','donald','frances','ken'])[1 + n % 8] as given,
                     (array['lovelace','hopper','turing','dijkstra','liskov','knuth'])[1 + n / 8 % 6] as family,
                     (array['DE','FR','US','BR','JP','KE'])[1 + n % 6] as country) as person;

create table orders (
    id bigint primary key, customer bigint not null references customers, placed timestamptz not null,
    status text not null, total numeric(10, 2) not null, document jsonb not null
);
insert into orders
select n, 1 + n * 7919 % 50000, timestamptz '2025-01-01 00:00Z' + n * interval '1 minute',
       (array['open','paid','shipped','delivered','returned'])[1 + n % 5], round(n * 7919 % 100000 / 100.0, 2),
       jsonb_build_object(
           'lines', jsonb_build_array(
               jsonb_build_object('sku', left(md5(n::text), 8), 'quantity', 1 + n % 4, 'price', n * 31 % 9999),
               jsonb_build_object('sku', left(md5((n + 1)::text), 8), 'quantity', 1 + n % 3, 'price', n * 17 % 9999)),
           'ship_to', jsonb_build_object(
               'street', format('Main Street %s', n % 300), 'zip', 10000 + n % 90000,
               'city', (array['Berlin','Lyon','Recife','Kyoto'])[1 + n % 4]),
           'payment', jsonb_build_object('method', (array['card','invoice'])[1 + n % 2], 'token', md5((n * 3)::text)))
from generate_series(1, {orders}::bigint) n;
create index on orders (customer);
"""

LEVELS = {
    None: "nothing is proven",
    Level.EXISTS: "every object is there",
    Level.CHECKSUMS: "every byte is what was stored",
    Level.PARSES: "every file is what the server listed, and its WAL is there",
    Level.STARTS: "a server starts on it and answers",
}

FINGERPRINT = "select count(*) as rows, sum(hashtextextended(orders::text, 0))::text as checksum from orders"


class Fingerprint(NamedTuple):
    """What is in a table."""

    rows: int
    checksum: str


async def tour(folder: Path, bin_dir: Path, orders: int) -> None:
    """Take the tour, with everything in `folder`."""
    print("Starting a server and loading a shop, which takes the longest:")
    with running_server(folder / "production", bin_dir) as server:
        server.psql(SHOP.format(orders=orders))
        before = await fingerprint(server.uri())
        print(f"PostgreSQL {server.psql('show server_version')} with {before.rows:,} orders")

        print("\nBacking it up over the network, while it runs:")
        archive = Archive(LocalStore(folder / "backups"))
        with ProgressBar() as bar:
            backed_up = await backup(PostgresTarget("shop", dsn=server.dsn("backup")), archive, observer=bar)
        manifest = backed_up.manifest

        print("\nVerifying: every byte read back, files compared, a scratch server started on it:")
        scratch = PostgresScratch(bin_dir=bin_dir, within=folder)
        with ProgressBar() as bar:
            verdict = await verify(
                archive, manifest, validators=[PostgresBackupValidator()], scratch=scratch, observer=bar
            )

        print("\nThen somebody says: drop table orders;")
        server.psql("drop table orders")

        print("\nRestoring beside it:")
        beside = PostgresDataDirectory(owned_folder(folder / "restored"), bin_dir=bin_dir)
        with ProgressBar() as bar:
            restored = await restore(archive, "shop", into=beside, observer=bar)
        async with beside.live() as live:
            after = await fingerprint(live.dsn)

    if after != before or not verdict.passed:
        sys.exit(f"This must not happen: {before} became {after}.\n{verdict}")
    print(f"""
The rows are back: {after.rows:,} orders, checksum {after.checksum}, as before.

  size        {as_bytes(manifest.size)}, stored as {as_bytes(manifest.stored)} ({backed_up.ratio:.1f}:1)
  backup      {backed_up.seconds:.1f} s
  validation  {verdict.seconds:.1f} s, level {verdict.level}: {LEVELS[verdict.level]}
  restore     {restored.seconds:.1f} s, to {restored.reached}
""")


async def fingerprint(dsn: str) -> Fingerprint:
    """Count the orders, and digest every column of every row."""
    connection = await asyncpg.connect(dsn)
    try:
        (found,) = await connection.fetch(FINGERPRINT)
    finally:
        await connection.close()
    return Fingerprint(**found)


def programs(folder: Path) -> Path:
    """Return the programs of the newest PostgreSQL in the testbed, where the server's account can run them."""
    for major in MAJORS:
        with suppress(MissingServer):
            return reachable_copy(find_binaries(TESTBED, major), folder)
    sys.exit("There is no PostgreSQL here: `python3 noxfile.py -s quickstart` brings one.")


def main() -> None:
    """Make room, take the tour, clean up."""
    parser = argparse.ArgumentParser(description="Back up a PostgreSQL, lose a table, bring it back and prove it.")
    parser.add_argument("--orders", type=int, default=ORDERS, help="rows to load (default: %(default)s)")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="resilience-quickstart-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            asyncio.run(tour(folder, programs(folder), arguments.orders))
        except ResilienceError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit("Stopped, and cleaned up.")
    print(f"{time.monotonic() - began:.0f} s in all, and nothing is left behind. What it did: examples/quickstart.py")


if __name__ == "__main__":
    main()
