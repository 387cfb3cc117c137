"""The process that switches is killed with -9 between every two things it does to PgBouncer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilience.testing.pgbouncer import TestPgBouncer
from resilience.testing.postgres import TestServer

from .conftest import NewPgBouncer
from .routes import at, instance, line, switch_of, wrote


@pytest.fixture
def helper() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("killed_switch.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def told(helper: subprocess.Popen[str], request: dict[str, object]) -> str:
    assert helper.stdin is not None and helper.stdout is not None
    helper.stdin.write(json.dumps(request) + "\n")
    helper.stdin.flush()
    return helper.stdout.readline().strip()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_anywhere_it_leads_to_one_place_and_who_repeats_it_finishes(
    helper: subprocess.Popen[str],
    new_pgbouncer: NewPgBouncer,
    postgres16: TestServer,
    postgres17: TestServer,
    after: bool,
) -> None:
    servers = {"a": postgres16, "b": postgres17}
    bouncer = new_pgbouncer({"orders": line(postgres16), "reports": line(postgres16)}, server_login_retry="20")
    switch = switch_of(bouncer, servers)
    given = {
        "console": bouncer.console(),
        "through": bouncer.dsn("orders"),
        "databases": ["orders", "reports"],
        "members": {name: at(server) for name, server in servers.items()},
    }
    here, boundary = "a", 0
    while True:
        boundary += 1
        to = "b" if here == "a" else "a"
        before = await switch.survey()
        request = {"at": boundary, "after": after, "switch": given, "to": to, "expected": before.version}
        ended = await asyncio.to_thread(told, helper, request)
        found = await switch.survey()
        assert found.to in (here, to), boundary
        if ended != "killed":
            assert ended == "0"
            break
        done = await switch.switch(to, expected=before.version)
        assert done.to == to and not done.held and not done.findings, boundary
        assert done.details["server_login_retry"] == "20"
        for database in ("orders", "reports"):
            assert await wrote(bouncer.dsn(database)) == instance(servers[to])
        here = to
    assert boundary == 9, "two PAUSE, the file, RELOAD, SET, two RESUME, SET"
    assert not_there(bouncer)


def not_there(bouncer: TestPgBouncer) -> bool:
    """Tell whether nothing is left beside the file."""
    return not list(bouncer.folder.glob(".*"))
