"""Clusters of the tests that are copied are clusters of their own, and leave nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

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


def segments() -> set[str]:
    """Return the ids of the shared memory that the kernel keeps until somebody removes it, see sysvipc(7)."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_a_server_that_was_killed_leaves_no_shared_memory(new_server: NewServer) -> None:
    server = new_server(17)
    *_, segment = (server.data / "postmaster.pid").read_text().splitlines()[6].split()
    assert segment in segments()
    server.kill()
    assert list((server.data / "pg_dynshmem").iterdir())  # what it has of the other kind goes with its folder
    deadline = time.monotonic() + 30
    while segment in segments():  # until the server's children have ended
        assert time.monotonic() < deadline
        time.sleep(0.01)
