"""Where archiving goes on, and what messages prove: decisions without a server."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.model.errors import Corrupt, LineageBroken
from resilience.model.log import Branch, LogFacts, Watermark
from resilience.postgres.lsn import position
from resilience.postgres.wal.messages import Data, Keepalive, Proof, Proofs, Prover, parse
from resilience.postgres.wal.start import Start, fresh, go_on, legs, names_standby, unrecorded

SIZE = 0x1000000
FIRST = "1\t0/3000100\tno recovery target specified\n"
SECOND = FIRST + "\n2\t0/5000200\tno recovery target specified\n"
PATH = legs(3, SECOND)


def facts(**ends: int) -> LogFacts:
    """Make a log that is durable up to these places; `t1` is timeline 1."""
    marks = [
        Watermark(begins=position(name[1:], 0x1000000), ends=position(name[1:], end)) for name, end in ends.items()
    ]
    return LogFacts(lineage="7", watermarks=tuple(marks))


def where(found: Start | None) -> tuple[int, int, int]:
    assert found is not None
    return found.timeline, found.begins, found.durable


def test_a_history_tells_all_timelines_and_what_their_own_files_say() -> None:
    assert [(leg.timeline, leg.ends) for leg in PATH] == [(1, 0x3000100), (2, 0x5000200), (3, None)]
    assert [leg.branch.text for leg in PATH] == ["", FIRST, SECOND]
    assert [leg.branch.parent for leg in PATH] == [None, "1", "2"]
    assert [(leg.timeline, leg.ends) for leg in legs(1, "")] == [(1, None)]
    with pytest.raises(Corrupt):
        legs(2, "")


@pytest.mark.parametrize(
    ("durable", "expected"),
    [
        ({"t3": 0x7000300}, (3, 0x7000000, 0x7000300)),
        ({"t1": 0x2000050}, (1, 0x2000000, 0x2000050)),
        ({"t1": 0x3000100}, (2, 0x3000000, 0x3000000)),
        ({"t1": 0x9000000}, (2, 0x3000000, 0x3000000)),
        ({"t1": 0x9000000, "t2": 0x3000000}, (2, 0x3000000, 0x3000000)),
        ({"t1": 0x3000100, "t2": 0x5000200}, (3, 0x5000000, 0x5000000)),
        ({"t1": 0x2000050, "t3": 0x7000000}, (3, 0x7000000, 0x7000000)),
    ],
)
def test_archiving_goes_on_where_the_newest_timeline_ends(
    durable: dict[str, int], expected: tuple[int, int, int]
) -> None:
    assert where(go_on(facts(**durable), PATH, SIZE)) == expected


def test_an_archive_that_knows_none_of_the_timelines_has_no_place_to_go_on() -> None:
    assert go_on(facts(), PATH, SIZE) is None
    assert go_on(facts(t9=0x7000000), PATH, SIZE) is None
    assert where(fresh(3, 0x7000300, SIZE)) == (3, 0x7000000, 0x7000000)


def test_a_timeline_is_recorded_once_and_no_other_of_its_name_is_accepted() -> None:
    known = LogFacts(lineage="7", branches=(Branch(name="1"), PATH[1].branch))
    assert [leg.timeline for leg in unrecorded(known, PATH, 3)] == [3]
    assert [leg.timeline for leg in unrecorded(LogFacts(lineage="7"), PATH, 2)] == [1, 2]
    other = Branch(name="2", parent="1", forked_at=position(1, 0x2000000))
    with pytest.raises(LineageBroken, match="timeline 2 forked at 0/2000000, the server's at 0/3000100"):
        list(unrecorded(LogFacts(lineage="7", branches=(other,)), PATH, 3))


@pytest.mark.parametrize(
    "setting",
    ["*", "wal", '"WAL"', '"*"', 'FIRST 1 (a, "*")', "a, wal", "FIRST 1 (a, wal)", "any 2 (b,\n*)", "2 (wal)"],
)
def test_a_synchronous_standby_is_recognized(setting: str) -> None:
    assert names_standby(setting, "wal")


@pytest.mark.parametrize("setting", ["", "a", "walter", "FIRST 1 (a, b)", '"a wal"', "first 1 (first)", '"a""wal"'])
def test_what_names_others_is_no_obstacle(setting: str) -> None:
    assert not names_standby(setting, "wal")


def test_data_prove_something_as_of_the_message_before() -> None:
    prover = Prover()
    assert prover.data(Data(0, 10, 1000, memoryview(bytes(10)))) is None
    assert prover.data(Data(10, 30, 2000, memoryview(bytes(10)))) == Proof(30, 1000)
    assert prover.data(Data(20, 30, 3000, memoryview(bytes(10)))) == Proof(30, 2000)


def test_answers_prove_something_only_if_nothing_came_in_between() -> None:
    prover = Prover()
    prover.data(Data(0, 10, 1000, memoryview(bytes(10))))
    assert prover.keepalive(Keepalive(10, 2000, False), answer=True) is None
    assert prover.keepalive(Keepalive(10, 3000, False), answer=True) == Proof(10, 2000)
    assert prover.keepalive(Keepalive(10, 3500, True), answer=False) is None
    assert prover.keepalive(Keepalive(10, 4000, False), answer=True) == Proof(10, 3000)
    prover.data(Data(10, 20, 5000, memoryview(bytes(10))))
    assert prover.keepalive(Keepalive(20, 6000, False), answer=True) is None


@given(st.lists(st.integers(0, 50), min_size=1), st.lists(st.integers(0, 50)))
def test_no_proof_is_used_before_its_place_is_reached(ends: list[int], asked: list[int]) -> None:
    proofs, given_proofs = Proofs(), [Proof(end, at) for at, end in enumerate(sorted(ends))]
    for proof in given_proofs:
        proofs.add(proof)
    for position_asked in sorted(asked):
        reached = [proof.at for proof in given_proofs if proof.ends <= position_asked]
        expected = max(reached) if reached else None
        assert proofs.peek(position_asked) == expected
        assert proofs.upto(position_asked) == expected


def test_proofs_stay_few_however_far_the_archive_is_behind() -> None:
    proofs = Proofs()
    for at in range(100_000):
        proofs.add(Proof(at, at))
    assert len(proofs._waiting) <= 1024
    assert (late := proofs.upto(99_999)) is not None and late > 90_000


@pytest.mark.parametrize("message", [b"", b"x", b"w123", b"k" + bytes(3)])
def test_a_message_that_cannot_be_read_is_said_to_be_one(message: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse(message)


def test_messages_are_read_as_the_manual_describes_them() -> None:
    data = parse(b"w" + struct.pack(">QQq", 5, 20, 7) + b"abc")
    assert isinstance(data, Data) and (data.begins, data.ends, data.flushed, data.sent_at) == (5, 8, 20, 7)
    assert parse(b"k" + struct.pack(">Qq?", 5, 7, True)) == Keepalive(5, 7, True)
