"""pg_dump's custom format: what is written to a pipe becomes, byte for byte, what pg_dump writes to a file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from resilience import Corrupt, Unsupported
from resilience.postgres.dumps.custom import DumpReader
from resilience.postgres.dumps.renaming import Renaming
from resilience.testing.postgres import TestServer

from .dumps import SHOP, drop_shop, inside, make_shop

CREATED = slice(12, 47)  # when, as seven numbers of five bytes; what comes before is longer in 1.14


@pytest.fixture(scope="module")
def dump(server: Callable[[int], TestServer], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """`dump(17)` is what pg_dump of that major wrote to a pipe about the shop."""
    made: dict[int, bytes] = {}

    def get(major: int) -> bytes:
        if major not in made:
            made[major] = piped(server(major))
        return made[major]

    return get


def piped(server: TestServer) -> bytes:
    """Dump a shop into a pipe."""
    make_shop(server)
    try:
        return pg_dump(server)
    finally:
        drop_shop(server)


def pg_dump(server: TestServer, *options: str) -> bytes:
    """Run pg_dump and return what it wrote to its output."""
    arguments = ["--format=custom", "--compress=0", "--quote-all-identifiers", *options]
    program = f"{server.bin_dir}/pg_dump"
    environment = {"LD_LIBRARY_PATH": str(server.bin_dir.parent / "lib")}
    return subprocess.run(
        [program, *arguments, "-d", server.dsn(database=inside(SHOP))], check=True, capture_output=True, env=environment
    ).stdout


def completed(pieces: Iterable[bytes], reader: DumpReader | None = None) -> bytes:
    """Return what would be in the spooled file."""
    reader = reader or DumpReader()
    whole = bytearray().join(reader.feed(piece) for piece in pieces)
    for at, patch in reader.patches():
        whole[at : at + len(patch)] = patch
    return bytes(whole)


def cut(data: bytes, size: int) -> list[bytes]:
    """Cut data into pieces."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_dump_from_a_pipe_becomes_what_pg_dump_writes_to_a_file(every_postgres: TestServer, tmp_owned: Path) -> None:
    server = every_postgres
    make_shop(server)
    try:
        file = tmp_owned / "dump"
        server.run(
            "pg_dump", "--format=custom", "--compress=0", "--quote-all-identifiers", "-f", str(file),
            "-d", server.dsn(database=inside(SHOP)),
        )  # fmt: skip
        from_pipe, expected = completed([pg_dump(server)]), file.read_bytes()
    finally:
        drop_shop(server)
    begins = CREATED.start + (4 if from_pipe[6] == 14 else 0)
    ends = begins + CREATED.stop - CREATED.start
    assert from_pipe[:begins] == expected[:begins]
    assert from_pipe[ends:] == expected[ends:]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 1000, 4096])
def test_pieces_of_any_size_give_the_same(dump: Callable[[int], bytes], size: int) -> None:
    start = dump(17)[:40_000] if size < 11 else dump(17)
    whole, small = DumpReader(), DumpReader()
    assert whole.feed(start) == b"".join(small.feed(piece) for piece in cut(start, size))
    assert whole.entries == small.entries
    assert whole._found == small._found
    if size >= 11:
        assert list(whole.patches()) == list(small.patches())


def test_the_table_of_contents_is_read(dump: Callable[[int], bytes]) -> None:
    reader = DumpReader()
    reader.feed(dump(16))
    tables = {entry.tag for entry in reader.entries if entry.kind == b"TABLE"}
    assert tables == {b"items", b"empty", b"odd", b"gated"}
    assert sum(entry.has_data for entry in reader.entries) >= 5


def test_no_beginning_of_a_dump_passes_for_a_whole_one(dump: Callable[[int], bytes]) -> None:
    whole = dump(17)
    for length in [*range(0, len(whole), 1777), *range(len(whole) - 20, len(whole))]:
        with pytest.raises(Corrupt, match="ends early"):
            completed([whole[:length]])


def test_a_dump_that_goes_on_after_its_end_is_corrupt(dump: Callable[[int], bytes]) -> None:
    for more in (b"x", b"\1\0\0\0\0\0", b"garbage" * 100):
        with pytest.raises(Corrupt, match="where none belongs|ends early"):
            completed([dump(17), more])


def test_a_block_that_is_there_twice_is_corrupt(dump: Callable[[int], bytes]) -> None:
    reader = DumpReader()
    whole = reader.feed(dump(17))
    block = whole[min(reader._found.values()) :]
    with pytest.raises(Corrupt, match="where none belongs"):
        completed([dump(17), block])


def test_a_dump_that_lacks_a_whole_block_is_corrupt(dump: Callable[[int], bytes]) -> None:
    reader = DumpReader()
    whole = reader.feed(dump(17))
    last = max(reader._found.values())
    with pytest.raises(Corrupt, match="the data of 1 entries of its contents is missing"):
        completed([whole[:last]])


def test_what_is_no_dump_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="does not begin as"):
        completed([b"-- a plain script" * 10])
    with pytest.raises(Corrupt, match="ends early"):
        completed([])


def test_a_version_that_is_not_known_is_unsupported(dump: Callable[[int], bytes]) -> None:
    for version in (13, 17):
        with pytest.raises(Unsupported, match=rf"archive version 1\.{version}, known are 1\.14 to 1\.16"):
            completed([b"PGDMP\1" + bytes([version]) + dump(17)[7:]])


def test_another_format_or_machine_is_refused(dump: Callable[[int], bytes]) -> None:
    for at in (8, 9, 10):
        data = bytearray(dump(17))
        data[at] = 5
        with pytest.raises(Corrupt, match="another format or machine"):
            completed([bytes(data)])


def test_a_compressed_dump_is_refused(dump: Callable[[int], bytes]) -> None:
    for major, at in ((15, 12), (17, 11)):
        data = bytearray(dump(major))
        data[at] = 1
        with pytest.raises(Unsupported, match="compressed by pg_dump"):
            completed([bytes(data)])


def test_a_dump_can_call_its_database_otherwise(dump: Callable[[int], bytes]) -> None:
    reader = DumpReader(edit=Renaming(name="other_name"))
    renamed = completed([dump(17)], reader)
    entries = [entry for entry in reader.entries if b"DATABASE" in (entry.tag or b"") or entry.kind == b"DATABASE"]
    assert len(entries) >= 3
    again = DumpReader()
    again.feed(renamed)
    for entry in again.entries:
        told = b" ".join(text or b"" for text in (entry.tag, entry.definition, entry.drop))
        if entry.kind in (b"DATABASE", b"DATABASE PROPERTIES") or (entry.tag or b"").startswith(b"DATABASE"):
            assert b"other_name" in told
            assert b"We ird" not in told
        else:
            assert b"other_name" not in told
    assert again._found == {entry.id: entry.offset[1] for entry in again.entries if entry.has_data}


def test_a_dump_that_describes_its_database_before_it_names_it_is_corrupt(dump: Callable[[int], bytes]) -> None:
    reader = DumpReader()
    reader.feed(dump(17))
    comment = next(entry for entry in reader.entries if entry.kind == b"COMMENT" and b"DATABASE" in (entry.tag or b""))
    with pytest.raises(Corrupt, match="before it names it"):
        Renaming(name="other")(comment)
