"""Clusters of the tests that are copied are clusters of their own."""

from __future__ import annotations

import pytest

from ..conftest import MAJORS, NewServer


@pytest.mark.parametrize("major", MAJORS)
def test_every_copy_of_a_cluster_is_a_cluster_of_its_own(new_server: NewServer, major: int) -> None:
    servers = [new_server(major, "--wal-segsize=1") for _ in range(3)]
    said = "select system_identifier from pg_control_system()"
    identifiers = {server.psql(said) for server in servers}
    assert len(identifiers) == len(servers)
    # The log agrees: a server that has to recover starts only where every page of it names the cluster.
    copied = servers[-1]
    copied.psql("create table trips as select generate_series(1, 100) as i")
    copied.kill()
    copied.start()
    assert copied.psql("select count(*) from trips") == "100"
    copied.stop()
    copied.run("pg_checksums", "--check", "-D", str(copied.data))
