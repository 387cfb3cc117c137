"""A password that a standby receives with is nowhere but where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resilience.postgres import PostgresPromoter
from resilience.testing.replication import running_group

SECRET = "hunter2"  # of a server that lives for seconds


async def test_a_password_in_primary_conninfo_is_in_no_log_and_in_no_statistics(
    tmp_owned: Path, postgres_bin: Callable[[int], Path]
) -> None:
    preloaded = {"shared_preload_libraries": "pg_stat_statements", "log_statement": "all"}
    with running_group(tmp_owned / "group", postgres_bin(17), settings=preloaded) as group:
        b = group.servers["b"]
        group.primary.psql("create extension pg_stat_statements")
        group.caught_up()
        b.stop()
        with (b.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{group.primary.dsn()} application_name=b password={SECRET}'\n")
        b.start()
        async with PostgresPromoter("orders", members=group.members()) as promoter:
            assert (await promoter.survey()).member("b").receiving  # type: ignore[union-attr]
            await promoter.settle(epoch=1)
            await promoter.follow("b", primary="a", epoch=1)
        assert SECRET in (b.data / "postgresql.auto.conf").read_text()
        assert "ALTER SYSTEM" not in b.psql("select query from pg_stat_statements").upper()
        said = [line for line in b.log.read_text().splitlines() if "parameter" not in line]  # documented
        assert SECRET not in "\n".join(said)
