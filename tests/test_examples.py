"""The examples run, do what they say and leave nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resilience.testing.azurite import MissingAzurite, find_azurite
from resilience.testing.pgbouncer import MissingPgBouncer, find_pgbouncer
from resilience.testing.redis import MissingRedis, find_redis

from .conftest import TESTBED, missing

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("where", ["folder", "azurite"])
def test_the_quickstart_brings_the_rows_back_and_cleans_up(
    postgres_bin: Callable[[int], Path], session_folder: Path, where: str
) -> None:
    postgres_bin(18)  # skips or fails if it is missing
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--orders", "20000"]
    if where == "azurite":
        try:
            find_azurite(TESTBED)
        except MissingAzurite as error:
            missing(str(error))
        command.append("--azurite")
    temporary = session_folder / where
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Every order that was confirmed by then is back: 20,\d{3} orders, without a hole", done.stdout)
    assert re.search(r"\d\.\d\d s of writes would have been lost", done.stdout)
    assert "level L3" in done.stdout
    assert ("https://127.0.0.1:" in done.stdout) == (where == "azurite")
    assert done.stderr == ""  # no bar where there is no terminal
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("pooled", [True, False], ids=["pgbouncer", "several hosts"])
def test_the_failover_loses_nothing_and_brings_the_old_primary_back(
    postgres_bin: Callable[[int], Path], session_folder: Path, pooled: bool
) -> None:
    postgres_bin(18)  # skips or fails if it is missing
    if pooled:
        try:
            find_pgbouncer()
        except MissingPgBouncer as error:
            missing(str(error))
    temporary = session_folder / f"pooled-{pooled}"
    temporary.mkdir(mode=0o711)
    hidden = [] if pooled else ["--without-pgbouncer"]
    command = [sys.executable, str(EXAMPLES / "failover.py"), *hidden]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert time.monotonic() - began < 60
    assert ("through PgBouncer" in done.stdout) == pooled
    assert "confirm with: FAIL OVER " in done.stdout
    assert re.search(r"promote b: done", done.stdout)
    kept = re.search(r"Every acknowledged write is there: ([\d,]+) of \1\.", done.stdout)
    assert kept is not None and int(kept[1].replace(",", "")) > 100
    assert re.search(r"a: standby at .*, receives from b", done.stdout)
    assert done.stderr == ""
    assert list(temporary.iterdir()) == []


def test_the_keys_come_back_into_a_redis_that_was_never_stopped(session_folder: Path) -> None:
    try:
        find_redis(TESTBED, 7)
    except MissingRedis as error:
        missing(str(error))
    temporary = session_folder / "redis"
    temporary.mkdir(mode=0o711)
    command = [sys.executable, str(EXAMPLES / "redis.py"), "--sessions", "1000"]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "passed, level L4" in done.stdout
    assert "FLUSHALL: 0 keys are left" in done.stdout
    assert re.search(r"1,00\d keys are back, in the same server", done.stdout)
    assert done.stderr == ""
    assert list(temporary.iterdir()) == []
