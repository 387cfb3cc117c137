"""A restore killed with -9 at any stage leaves nothing that starts, and the next one succeeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resilience import Archive, Refused, backup, restore
from resilience.postgres import PostgresDataDirectory, PostgresTarget
from resilience.postgres.mark import MARK
from resilience.stores import LocalStore
from resilience.testing.postgres import TestServer, starts

CHECKOUT = Path(__file__).parents[2]
LAST = 14


def killed(archive: Path, bin_dir: Path, folder: Path, numbers: list[int]) -> str:
    """Run `tests.postgres.killed` and return what it printed."""
    command = [sys.executable, "-m", "tests.postgres.killed", str(archive), str(bin_dir), str(folder)]
    done = subprocess.run(
        [*command, *map(str, numbers)], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True, timeout=300
    )
    return done.stdout


async def test_a_restore_killed_at_any_stage_leaves_nothing_that_starts(
    postgres17: TestServer, tmp_owned: Path, tmp_path: Path
) -> None:
    archive = Archive(LocalStore(tmp_path / "archive"))
    await backup(PostgresTarget("orders", dsn=postgres17.dsn("backup")), archive)
    bin_dir = postgres17.bin_dir

    calls = int(killed(tmp_path / "archive", bin_dir, tmp_owned, [0]))
    assert starts(tmp_owned / "0", bin_dir)
    # The first and the last ones singly, and some of the many in between that write files.
    numbers = [1, 2, 3, 5, 8, calls // 3, calls // 2, *range(calls - LAST, calls + 1)]
    killed(tmp_path / "archive", bin_dir, tmp_owned, numbers)

    for number in numbers:
        data = tmp_owned / str(number)
        begun = (data / MARK).exists()
        into = PostgresDataDirectory(data, bin_dir=bin_dir)
        if starts(data, bin_dir):
            # The one step that finishes a restore was done: what is here is somebody's server now.
            assert number > calls - LAST
            with pytest.raises(Refused):
                await into.discard()
        elif begun:
            await into.discard()
            assert list(data.iterdir()) == []
    last = PostgresDataDirectory(tmp_owned / str(calls // 2), bin_dir=bin_dir)
    await restore(archive, "orders", into=last)
    assert starts(last.path, bin_dir)
