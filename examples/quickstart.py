"""Archive a real PostgreSQL while it is written to, lose its orders, go back to the moment before.

Takes less than a minute and leaves nothing behind.

`python3 noxfile.py -s quickstart` installs what this needs and runs it; `-- --azurite` after that keeps the backups in
Azure Blob Storage, as its emulator plays it, instead of a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg
from attrs import define

from resilience import Archive, Level, ResilienceError, backup, plan_restore, restore, verify
from resilience.model.show import as_bytes
from resilience.postgres import (
    PostgresBackupValidator,
    PostgresDataDirectory,
    PostgresScratch,
    PostgresTarget,
    WalArchiver,
)
from resilience.primitives import ObjectStore
from resilience.progress import ProgressBar
from resilience.stores import AzureBlobStore, LocalStore
from resilience.testing.azurite import MissingAzurite, running_azurite
from resilience.testing.postgres import MissingServer, find_binaries, owned_folder, reachable_copy, running_server

TESTBED = Path(__file__).parent.parent / ".testbed"
MAJORS = (18, 17, 16, 15)
ORDERS = 500_000
INTERVAL_SECONDS = 0.5
PAUSE_SECONDS = 0.005
SELL_ON_SECONDS = 2.0

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

SELL = """
insert into orders values ($1::bigint, 1 + $1::bigint % 50000, clock_timestamp(), 'open', 9.99, '{"lines": []}')
"""
LOOK = "select clock_timestamp() as moment, count(*) as orders, max(id) as last from orders"


class Books(NamedTuple):
    """What is in the table of orders, and when that was."""

    moment: datetime
    orders: int
    last: int


@define
class Shop:
    """A shop that sells while it is open. `sold` is the last order that the server has acknowledged."""

    dsn: str
    sold: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Sell until leaving."""
        selling = asyncio.create_task(self._sell())
        try:
            yield
        finally:
            selling.cancel()
            with suppress(asyncio.CancelledError):
                await selling

    async def _sell(self) -> None:
        async with connected(self.dsn) as connection:
            while True:
                await connection.execute(SELL, self.sold + 1)
                self.sold += 1
                await asyncio.sleep(PAUSE_SECONDS)


async def tour(folder: Path, bin_dir: Path, orders: int, store: ObjectStore) -> None:
    """Take the tour, with the servers in `folder` and the backups in `store`."""
    print("Starting a server and loading a shop, which takes the longest:")
    with running_server(folder / "production", bin_dir) as server:
        server.psql(SHOP.format(orders=orders))
        print(f"PostgreSQL {server.psql('show server_version')} with {orders:,} orders, and customers keep coming.")
        archive, shop = Archive(store), Shop(server.uri(), sold=orders)

        print("\nArchiving its WAL from now on, and backing it up over the network, while it sells:")
        archiver = WalArchiver("shop", dsn=server.dsn("backup"), archive=archive, interval=INTERVAL_SECONDS)
        async with archiver as wal, shop.open():
            with ProgressBar() as bar:
                backed_up = await backup(PostgresTarget("shop", dsn=server.dsn("backup")), archive, observer=bar)

            print("\nVerifying: every byte read back, files compared, a scratch server started on it:")
            scratch = PostgresScratch(bin_dir=bin_dir, within=folder)
            checks = [PostgresBackupValidator()]
            with ProgressBar() as bar:
                verdict = await verify(archive, backed_up.manifest, validators=checks, scratch=scratch, observer=bar)

            sold, before, begun = shop.sold, await books(server.uri()), shop.sold + 1
            print(f"\n{before.moment:%H:%M:%S.%f}  {before.orders:,} orders are in the books.")
            deleted = await forget_a_where(server.uri())
            print(f"{deleted.moment:%H:%M:%S.%f}  Somebody types: delete from orders;  -- and forgets the WHERE")
            await asyncio.sleep(SELL_ON_SECONDS)
            print(f"\nThe shop has not noticed and goes on selling. The archive:\n{wal.status}")
            at_risk = wal.status.achieved_rpo

            print(f"\nGoing back to {before.moment:%H:%M:%S.%f}, beside it, while it runs:")
            beside = PostgresDataDirectory(owned_folder(folder / "restored"), bin_dir=bin_dir)
            print(await plan_restore(archive, "shop", into=beside, until=before.moment))
            with ProgressBar() as bar:
                restored = await restore(archive, "shop", into=beside, until=before.moment, observer=bar)
        async with beside.live() as live:
            after = await books(live.dsn)

    whole = after.orders == after.last and sold <= after.last <= begun and verdict.passed
    if not whole or at_risk is None:
        sys.exit(f"This must not happen: {before} became {after}.\n{verdict}")
    manifest = backed_up.manifest
    print(f"""
Every order that was confirmed by then is back: {after.orders:,} orders, without a hole.

  backup      {backed_up.seconds:.1f} s, {as_bytes(manifest.size)} stored as {as_bytes(manifest.stored)}
  validation  {verdict.seconds:.1f} s, level {verdict.level}: {LEVELS[verdict.level]}
  archiving   {at_risk.total_seconds():.2f} s of writes would have been lost with the server (achieved RPO)
  restore     {restored.seconds:.1f} s, to {restored.reached}
""")


@asynccontextmanager
async def kept(folder: Path, azurite: bool) -> AsyncIterator[ObjectStore]:
    """Give a store: a folder, or a container of Azure Blob Storage in an emulator over TLS."""
    if not azurite:
        yield LocalStore(folder / "backups")
        return
    with running_azurite(TESTBED) as emulator:
        emulator.create_container("backups")
        connection = emulator.connection_string()
        async with AzureBlobStore.from_connection_string(
            connection, "backups", ssl_context=emulator.trusted()
        ) as store:
            print(f"The backups are kept at {store.container_url}.")
            yield store


async def books(dsn: str) -> Books:
    """Look into the table of orders."""
    async with connected(dsn) as connection:
        (found,) = await connection.fetch(LOOK)
    return Books(found["moment"], found["orders"], found["last"])


async def forget_a_where(dsn: str) -> Books:
    """Delete every order there is."""
    async with connected(dsn) as connection:
        await connection.execute("delete from orders")
    return await books(dsn)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect, and close at the end."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def programs(folder: Path) -> Path:
    """Return the programs of the newest PostgreSQL in the testbed, where the server's account can run them."""
    for major in MAJORS:
        with suppress(MissingServer):
            return reachable_copy(find_binaries(TESTBED, major), folder)
    sys.exit("There is no PostgreSQL here: `python3 noxfile.py -s quickstart` brings one.")


async def run(folder: Path, orders: int, azurite: bool) -> None:
    """Take the tour with a store of that kind."""
    async with kept(folder, azurite) as store:
        await tour(folder, programs(folder), orders, store)


def main() -> None:
    """Make room, take the tour, clean up."""
    parser = argparse.ArgumentParser(description="Archive a PostgreSQL, lose its orders, go back to the moment before.")
    parser.add_argument("--orders", type=int, default=ORDERS, help="rows to load (default: %(default)s)")
    parser.add_argument("--azurite", action="store_true", help="keep the backups in Azure Blob Storage's emulator")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="resilience-quickstart-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            asyncio.run(run(folder, arguments.orders, arguments.azurite))
        except MissingAzurite:
            sys.exit("There is no Azurite here: `python3 noxfile.py -s quickstart -- --azurite` brings one.")
        except ResilienceError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit("Stopped, and cleaned up.")
    print(f"{time.monotonic() - began:.0f} s in all, and nothing is left behind. What it did: examples/quickstart.py")


if __name__ == "__main__":
    main()
