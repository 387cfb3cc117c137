"""The parts of a replay, each by itself: what is asked for in which order, where WAL ends, how much memory it takes."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from resilience import Archive, Interrupted, Refused, restore
from resilience.errors import StorageFailed
from resilience.model.log import Stretch
from resilience.model.positions import RecoveryPoint
from resilience.model.targets import RecoveryTarget
from resilience.postgres import PostgresDataDirectory
from resilience.postgres.buffers import shared_buffers
from resilience.postgres.ending import Ending, lines
from resilience.postgres.lsn import parse_lsn, position
from resilience.postgres.mark import MARK, Mark
from resilience.postgres.stopping import check, settings_for
from resilience.postgres.untar import FileSystems
from resilience.postgres.wal.end import WalEnd
from resilience.postgres.wal.names import segment_name
from resilience.postgres.wal.prefetch import cut, order
from resilience.stores import MemoryStore
from resilience.testing.postgres import TestServer, starts

from .archived import back_up

SIZE = 16 << 20


def stretch(branch: str, begins: int, ends: int) -> Stretch:
    return Stretch(begins=position(branch, begins), ends=position(branch, ends))


def names(*places: tuple[int, int]) -> list[str]:
    """Name segments by their timeline and number."""
    return [segment_name(timeline, number * SIZE, SIZE) for timeline, number in places]


def test_of_two_timelines_in_one_segment_the_later_one_is_asked_for() -> None:
    replay = [
        stretch("1", 2 * SIZE + 40, 4 * SIZE + 100),
        stretch("2", 4 * SIZE + 100, 4 * SIZE + 300),
        stretch("3", 4 * SIZE, 6 * SIZE),
    ]
    assert order(replay, SIZE) == names((1, 2), (1, 3), (3, 4), (3, 5))


def test_a_timeline_that_begins_where_a_segment_does_takes_nothing_from_its_parent() -> None:
    replay = [stretch("1", 2 * SIZE, 4 * SIZE), stretch("2", 4 * SIZE, 4 * SIZE + 1)]
    assert order(replay, SIZE) == names((1, 2), (1, 3), (2, 4))


@pytest.mark.parametrize("keep", [-5, 0, 3, 4, 9, 12, 100])
def test_what_is_cut_off_is_zeros(keep: int) -> None:
    pieces = [b"abcd", b"", b"efgh", b"ijkl"]
    whole = b"".join(pieces)
    assert b"".join(cut(pieces, keep)) == whole[: max(0, keep)].ljust(len(whole), b"\0")


def test_what_follows_the_last_record_is_told_from_the_wal_itself(postgres17: TestServer) -> None:
    postgres17.psql("create table ends (text text)")
    try:
        begins = parse_lsn(postgres17.psql("select pg_switch_wal(); select pg_current_wal_insert_lsn()").split()[-1])
        postgres17.psql("insert into ends select repeat('x', 1000) from generate_series(1, 300)")
        ends = parse_lsn(postgres17.psql("select pg_current_wal_flush_lsn()"))
        name = segment_name(1, begins, SIZE)
        segment = (postgres17.data / "pg_wal" / name).read_bytes()
    finally:
        postgres17.psql("drop table ends")
    assert ends - begins > 3 * 8192, "over several pages"
    halves = [segment[:7], segment[7:]]
    walked, at = 0, begins
    while WalEnd(ends=ends, segment_size=SIZE).after(at, halves) == "a record":
        log = WalEnd(ends=at + 8, segment_size=SIZE)
        assert log.after(at, halves) in ("part of a record", "nothing")
        at = next_record(at, segment)
        walked += 1
    assert walked > 300
    assert ends - at < 8
    assert WalEnd(ends=ends, segment_size=SIZE).after(ends, halves) == "nothing"
    zeros = [segment[: ends % SIZE], bytes(SIZE - ends % SIZE)]
    behind = ends - ends % SIZE + SIZE
    assert WalEnd(ends=behind, segment_size=SIZE).after(ends, zeros) == "nothing"
    for further in (8, SIZE, 3 * SIZE):
        assert WalEnd(ends=behind + further, segment_size=SIZE).after(ends, zeros) == "a record", (
            "zeros are not its end"
        )


@pytest.mark.parametrize(
    ("page", "told", "behind", "rest"),
    [
        (3, 0, 0, "part of a record"),
        (3, 0, 8, "a record"),
        (3, 0, 2 * SIZE, "a record"),
        (3, 90_000_000 - 8192 + 80, 2 * SIZE, "part of a record"),
        (SIZE // 8192 - 1, 0, SIZE, "part of a record"),
        (SIZE // 8192 - 1, 0, SIZE + 8, "a record"),
    ],
)
def test_a_length_that_leads_out_of_the_log_is_its_end_only_where_the_log_can_end(
    page: int, told: int, behind: int, rest: str
) -> None:
    """`told` is what the next page says is still to come of the record, `behind` what lies behind its segment."""
    segment, at = bytearray(SIZE), page * 8192 + 80
    segment[36:40] = (8192).to_bytes(4, "little")
    segment[at : at + 4] = (90_000_000).to_bytes(4, "little")
    if told:
        segment[(page + 1) * 8192 + 16 : (page + 1) * 8192 + 20] = told.to_bytes(4, "little")
    log = WalEnd(ends=8 * SIZE + behind, segment_size=SIZE)
    assert log.after(7 * SIZE + at, [bytes(segment)]) == rest


def next_record(at: int, segment: bytes) -> int:
    """Step over a record the slow way: byte by byte, past the headers of pages."""
    if at % 8192 == 0:
        at += 24 if at % SIZE else 40
    length = int.from_bytes(segment[at % SIZE : at % SIZE + 4], "little")
    for _ in range(length):
        if at % 8192 == 0:
            at += 24
        at += 1
    return at + -at % 8


def test_a_moment_is_told_to_the_microsecond_and_in_utc() -> None:
    here = timezone(timedelta(hours=5, minutes=30))
    asked = settings_for(RecoveryTarget.time(datetime(2026, 3, 1, 2, 0, 0, 7, tzinfo=here)))
    assert asked == {"recovery_target_time": "2026-02-28 20:30:00.000007+00", "recovery_target_inclusive": "on"}


def test_a_name_that_no_restore_point_can_have_is_refused() -> None:
    assert settings_for(RecoveryTarget.name("x" * 63)) == {"recovery_target_name": "x" * 63}
    for name in ("x" * 64, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 32, "a\0b"):
        with pytest.raises(Refused, match="no restore point has such a name"):
            settings_for(RecoveryTarget.name(name))


def test_what_was_reached_is_compared_with_what_was_asked() -> None:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    reached = RecoveryPoint(position=position(1, "0/5000"), time=moment)
    check(RecoveryTarget.time(moment), reached, met=True, subject="orders")
    check(RecoveryTarget.lsn("0/5000"), reached, met=True, subject="orders")
    check(RecoveryTarget.lsn("0/5008"), reached, met=False, subject="orders")
    with pytest.raises(Interrupted, match="recovery went past 2026-02"):
        check(RecoveryTarget.time(moment - timedelta(seconds=1)), reached, met=True, subject="orders")
    with pytest.raises(Interrupted, match="less far than LSN 0/5008"):
        check(RecoveryTarget.lsn("0/5008"), reached, met=True, subject="orders")


def test_the_target_that_counts_is_the_last_one_written() -> None:
    written = lines(Ending(end="pause").settings({"recovery_target_name": "it's\nhere\\"}, "7")).decode().splitlines()
    targets = [line for line in written if line.startswith(("recovery_target_n", "recovery_target_x"))]
    assert targets == ["recovery_target_xid = ''", r"recovery_target_name = 'it''s\nhere\\'"]
    assert "recovery_target_timeline = '7'" in written
    assert "restore_command = 'false'" in written, "recovery demands one"


def test_buffers_are_a_quarter_of_what_is_available_here_and_in_every_cgroup_above(tmp_path: Path) -> None:
    assert shared_buffers(tmp_path) == "128MB", "where nothing is known"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:    8388608 kB\n")
    assert shared_buffers(tmp_path) == "2048MB"
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/container\n")
    for name, most in (("pod/container", "max"), ("pod", str(3 << 30)), ("", str(100 << 30))):
        group = tmp_path / "sys/fs/cgroup" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{2 << 30}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 30}\n")
    assert shared_buffers(tmp_path) == "512MB", "of the pod's 2 GiB that are free or caches"
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 999999999 kB\n")
    (tmp_path / "sys/fs/cgroup/pod/memory.max").write_text("max\n")
    assert shared_buffers(tmp_path) == "8192MB", "and never more than helps"


async def test_everything_is_synced_when_the_server_is_gone_and_before_the_mark_is_lifted(
    postgres17: TestServer, tmp_owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(MemoryStore())
    await back_up(postgres17, archive)
    data = tmp_owned / "data"
    done: list[str] = []
    sync, lift = FileSystems.sync, Mark.lift

    def synced(disks: FileSystems) -> None:
        assert not (data / "postmaster.pid").exists()
        done.append("synced" if (data / "backup_label.old").exists() else "unpacked")
        sync(disks)
        if done[-1] == failing:
            raise OSError(5, "Input/output error")

    def lifted(mark: Mark) -> None:
        done.append("lifted")
        lift(mark)

    monkeypatch.setattr(FileSystems, "sync", synced)
    monkeypatch.setattr(Mark, "lift", lifted)
    for failing, expected in (("synced", ["unpacked", "synced"]), ("", ["unpacked", "synced", "lifted"])):
        into = PostgresDataDirectory(data, bin_dir=postgres17.bin_dir)
        with pytest.raises(StorageFailed, match="Input/output error") if failing else nullcontext():
            await restore(archive, "orders", into=into)
        assert done == expected
        assert (data / MARK).exists() == bool(failing)
        assert starts(data, postgres17.bin_dir) != bool(failing)
        await into.discard()
        done.clear()
