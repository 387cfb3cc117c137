"""A fence is proven or it is refused: what looks dead and is not, what comes back at once, who wakes up too late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resilience.fencers.mark import Fenced, FenceMark
from resilience.model.errors import FencedOff, FencingUnproven, Interrupted
from resilience.postgres import LocalFencer, LocalServer, PostgresMember, PostgresPromoter
from resilience.postgres.failover.fence_mark import GUARD
from resilience.postgres.failover.server import kill_all
from resilience.postgres.processes import postmaster, processes, send
from resilience.postgres.tools import Tools, tied
from resilience.testing.machine import owned_folder, unprivileged
from resilience.testing.replication import TestGroup, running_group

ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
CAP_SYS_PTRACE, PR_CAPBSET_DROP = 19, 24
# As root in a container that was given no CAP_SYS_PTRACE.
_UNSEEING = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({PR_CAPBSET_DROP}, {CAP_SYS_PTRACE}, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
"""
_FENCES = """
import asyncio, sys
from resilience.postgres import LocalFencer, LocalServer, PostgresMember
member = PostgresMember("a", dsn=sys.argv[1], server=LocalServer(sys.argv[2]))
print(asyncio.run(LocalFencer([member]).fence("a", epoch=1)))
"""


@pytest.fixture
def group(tmp_owned: Path, postgres_bin: Callable[[int], Path]) -> Iterator[TestGroup]:
    with running_group(tmp_owned / "group", postgres_bin(17), 1) as made:
        yield made


def runs(group: TestGroup) -> bool:
    return group.primary.psql("select not pg_is_in_recovery()") == "t"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a capability to lose")
def test_whose_processes_may_not_be_seen_is_not_proven_dead(group: TestGroup) -> None:
    command = [sys.executable, "-c", _UNSEEING, _FENCES, group.primary.dsn(), str(group.primary.data)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "FencingUnproven" in ended.stderr, ended.stdout
    assert "SYS_PTRACE" in ended.stderr
    assert runs(group)


async def test_a_server_that_was_started_as_postmaster_is_seen(group: TestGroup) -> None:
    group.primary.stop()
    tools, link = Tools.at(group.bin_dir), group.folder / "postmaster"
    link.symlink_to(tools.path("postgres"))
    command = tied([str(link), "-D", str(group.primary.data)], unprivileged())
    with (
        group.primary.log.open("ab") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=tools.environment(), cwd="/") as server,
    ):
        while not (group.primary.data / "postmaster.pid").exists() or postmaster(group.primary.data) is None:
            assert server.poll() is None
        assert (await LocalFencer(group.members()).fence("a", epoch=1)).kind == "proven"
        server.wait(10)
    with pytest.raises(subprocess.CalledProcessError):
        runs(group)


@pytest.mark.parametrize(("pid", "folder"), [("1", "{data}"), ("77", "/var/lib/postgresql/data")])
async def test_a_server_in_another_container_is_not_proven_dead(group: TestGroup, pid: str, folder: str) -> None:
    lock = group.primary.data / "postmaster.pid"
    kept = lock.read_text().splitlines()[2:]
    group.kill("a")
    lock.write_text("\n".join([pid, folder.format(data=group.primary.data), *kept]))
    with pytest.raises(FencingUnproven, match=r"its postmaster\.pid is of"):
        await LocalFencer(group.members()).fence("a", epoch=1)
    lock.unlink()  # somebody knows better
    assert (await LocalFencer(group.members()).fence("a", epoch=1)).kind == "proven"


async def test_one_that_is_started_between_death_and_proof_is_not_proven_dead(
    group: TestGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked, calls = FenceMark.set, []

    def late(mark: FenceMark, fenced: Fenced) -> None:
        calls.append(fenced)
        if len(calls) == 2:  # as if its last ALTER SYSTEM had put back the file from before the mark
            mark.config.write_bytes(mark.config.read_bytes().replace(GUARD, b""))
            group.restart("a")
        marked(mark, fenced)

    monkeypatch.setattr(FenceMark, "set", late)
    with pytest.raises(FencingUnproven, match="works in its data directory again"):
        await LocalFencer(group.members()).fence("a", epoch=1)


async def test_one_that_did_not_stop_in_time_takes_writes_again_once_lifted(group: TestGroup) -> None:
    hung = processes(group.servers["b"].data)
    send(hung, signal.SIGSTOP)  # a primary that stops waits for a standby that is connected and receives nothing
    group.primary.psql("create table t (i int)")
    fencer = LocalFencer(group.members(), patience=0.5)
    with pytest.raises(FencingUnproven, match="has not stopped"):
        await fencer.fence("a", epoch=1, clean=True)
    assert processes(group.primary.data)
    await fencer.lift("a", epoch=1)
    assert runs(group)
    send(hung, signal.SIGCONT)


async def test_who_wakes_up_after_all_was_undone_fences_nobody(group: TestGroup) -> None:
    asleep, successor = LocalFencer(group.members()), LocalFencer(group.members())
    await successor.lift("a", epoch=2)  # the one before had not come to fencing it
    with pytest.raises(FencedOff):
        await asleep.fence("a", epoch=1)
    assert runs(group)


async def test_the_last_words_of_a_server_tell_no_password(group: TestGroup) -> None:
    group.kill("a")
    log = group.folder / "a.log"
    log.touch()
    log.chmod(0o666)
    with (group.primary.data / "postgresql.auto.conf").open("a") as file:
        file.write("shared_preload_libraries = 'nobody_has_this'\n")
    log.write_text('LOG:  parameter "primary_conninfo" changed to "host=b password=hunter2 user=x"\n')
    server = LocalServer(group.primary.data, bin_dir=group.bin_dir, log=log)
    member = PostgresMember("a", dsn=group.primary.dsn(), server=server)
    assert member.server is not None
    with pytest.raises(Interrupted) as caught:
        await member.server.start(seconds=5)
    assert "password=..." in str(caught.value)
    assert "hunter2" not in str(caught.value)


@ONLY_ROOT
@pytest.mark.parametrize("runs", [True, False], ids=["running", "dead"])
async def test_one_whose_disk_is_full_is_ended_and_not_proven_until_there_is_room(group: TestGroup, runs: bool) -> None:
    data = group.primary.data
    members, kept = group.members(), data.with_name("kept")
    group.kill("a")
    data.rename(kept)
    with small_disk(data, kept):
        group.restart("a")
        filler = data / "pg_wal" / "filler"
        fill(filler)
        if not runs:
            group.kill("a")
        with pytest.raises(FencingUnproven, match="nothing keeps one from starting there: .*No space left") as caught:
            await LocalFencer(members).fence("a", epoch=1)
        assert "make room" in str(caught.value) and processes(data) == []
        assert not list(data.glob("*.resilience"))
        filler.unlink()
        assert (await LocalFencer(members).fence("a", epoch=1)).kind == "proven"
        with pytest.raises(RuntimeError, match="resilience_fenced"):
            group.restart("a")


@ONLY_ROOT
async def test_one_whose_disk_is_full_is_not_stopped_in_order(group: TestGroup) -> None:
    data = group.primary.data
    members, kept = group.members(), data.with_name("kept")
    group.kill("a")
    data.rename(kept)
    with small_disk(data, kept):
        group.restart("a")
        fill(data / "pg_wal" / "filler")
        with pytest.raises(FencingUnproven, match="No space left"):
            await LocalFencer(members).fence("a", epoch=1, clean=True)
        assert postmaster(data) is not None


async def test_one_whose_disk_is_gone_is_not_proven_dead(group: TestGroup) -> None:
    members = group.members()
    async with PostgresPromoter("orders", members=members) as promoter:
        await promoter.survey()
    group.kill("a")
    group.primary.data.rename(group.primary.data.with_name("unmounted"))
    for known in (members, group.members()):
        with pytest.raises(FencingUnproven, match="No such file"):
            await LocalFencer(known).fence("a", epoch=1)


@contextmanager
def small_disk(folder: Path, kept: Path) -> Iterator[None]:
    """Mount a disk that holds these data, and little more."""
    owned_folder(folder)
    account = unprivileged()
    assert account is not None
    used = int(subprocess.check_output(["du", "-sm", str(kept)]).split()[0])
    options = f"size={used + 24}m,uid={account.uid},gid={account.gid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(folder)], check=True)
        yield
    finally:
        kill_all(folder, 10)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while file.write(bytes(1 << 12)):
            pass
