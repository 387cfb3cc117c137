"""Frames and tars: whatever comes in whatever pieces, and whatever happens to it on the way."""

from __future__ import annotations

import io
import sys
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.errors import ChecksumMismatch, Corrupt
from resilience.streams.frames import Compressor, Cutter, expand
from resilience.streams.tar import BLOCK, Member, TarWalker, parse_header
from resilience.testing.stores import content

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

CHECKSUM = 4  # bytes at the end of a frame
compress = Compressor(1)
quick = settings(deadline=None, max_examples=100)


def cut(chunks: list[bytes], size: int) -> list[bytes]:
    cutter = Cutter(size)
    frames = [b"".join(frame) for chunk in chunks for frame in cutter.feed(chunk)]
    frames += [b"".join(frame) for frame in cutter.finish()]
    assert cutter.total == sum(map(len, chunks))
    return frames


@given(chunks=st.lists(st.binary(max_size=50), max_size=8), size=st.integers(1, 60))
@quick
def test_any_bytes_in_any_pieces_come_back_from_frames_of_one_size(chunks: list[bytes], size: int) -> None:
    frames = cut(chunks, size)
    assert b"".join(frames) == b"".join(chunks)
    assert all(len(frame) == size for frame in frames[:-1])
    assert 0 < len(frames[-1]) <= size or frames == [b""]


def test_what_is_left_over_is_not_copied_either() -> None:
    cutter, chunk = Cutter(64), content(100)
    ((first,),) = cutter.feed(chunk)
    ((rest,),) = cutter.finish()
    assert isinstance(first, memoryview) and isinstance(rest, memoryview)
    assert (first.obj, rest.obj) == (chunk, chunk) and bytes(first) + bytes(rest) == chunk


def test_a_chunk_that_is_a_frame_already_is_not_copied() -> None:
    chunks, cutter = [content(64), content(64, 2)], Cutter(64)
    assert list(cutter.feed(chunks[0])) == []  # it may be the last
    ((first,),) = cutter.feed(chunks[1])
    ((last,),) = cutter.finish()
    assert (first is chunks[0], last is chunks[1], cutter.frames) == (True, True, 2)


@given(pieces=st.lists(st.binary(max_size=200), max_size=5), level=st.sampled_from([-5, 1, 3, 19]))
@quick
def test_a_frame_expands_to_what_it_was_made_of(pieces: list[bytes], level: int) -> None:
    plain = b"".join(pieces)
    stored = Compressor(level)([memoryview(piece) for piece in pieces])
    assert expand(stored, len(plain)) == plain
    assert zstd.decompress(stored) == plain


@given(frames=st.lists(st.binary(max_size=100), min_size=1, max_size=5))
@quick
def test_frames_one_after_the_other_are_an_ordinary_zstd_stream(frames: list[bytes]) -> None:
    assert zstd.decompress(b"".join(compress([frame]) for frame in frames)) == b"".join(frames)


@pytest.mark.parametrize("plain", [b"", b"a", content(300), b"\0" * 5000], ids=len)
def test_no_change_of_a_frame_yields_other_bytes(plain: bytes) -> None:
    stored = compress([plain])
    for at in range(len(stored)):
        for bit in range(8):
            changed = bytearray(stored)
            changed[at] ^= 1 << bit
            with suppress(ChecksumMismatch):
                assert expand(bytes(changed), len(plain)) == plain
                # Some bits of the headers do not matter to a decoder; they do to the digest of the object.
                assert at < len(stored) - CHECKSUM


@pytest.mark.parametrize("plain", [b"", b"a", content(300), b"\0" * 5000], ids=len)
def test_a_frame_that_is_shorter_longer_or_of_another_size_is_refused(plain: bytes) -> None:
    stored = compress([plain])
    for length in range(len(stored)):
        with pytest.raises(ChecksumMismatch, match="frame"):
            expand(stored[:length], len(plain))
    for more in (b"\0", b"(", compress([b"more"]), compress([b""])):
        with pytest.raises(ChecksumMismatch, match="frame"):
            expand(stored + more, len(plain))
    for size in {len(plain) + 1, len(plain) - 1, 2 * len(plain) + 5, 0} - {len(plain), -1}:
        with pytest.raises(ChecksumMismatch, match=f"the {size} bytes its manifest says"):
            expand(stored, size)


def test_a_frame_never_expands_to_more_than_it_may() -> None:
    bomb = compress([bytes(64 << 20)])
    assert len(bomb) < 10_000
    with pytest.raises(ChecksumMismatch):
        expand(bomb, 1000)


@given(data=st.binary(max_size=300))
@quick
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ChecksumMismatch):
        expand(data, 301)


class Seen:
    """Remembers what a walker calls, and that it does so in order."""

    def __init__(self) -> None:
        self.members: list[tuple[Member, bytes]] = []
        self.open: Member | None = None
        self._body = b""

    def begin(self, member: Member) -> None:
        assert self.open is None
        self.open, self._body = member, b""

    def body(self, piece: bytes | memoryview) -> None:
        assert self.open is not None
        assert len(piece) > 0
        self._body += piece

    def end(self) -> None:
        assert self.open is not None
        self.members.append((self.open, self._body))
        self.open = None


def tar(entries: list[tuple[str, bytes | str | None]], *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Make a tar of files (bytes), links (str) and directories (None)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, what in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o640
            if what is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
            else:
                info.size = len(what)
            archive.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return stream.getvalue()


def walk(data: bytes, pieces: list[int] | None = None) -> Seen:
    """Walk a tar in pieces of the given lengths, then the rest at once."""
    seen = Seen()
    walker = TarWalker(seen)
    for length in pieces or []:
        walker.feed(data[:length])
        data = data[length:]
    walker.feed(memoryview(data))
    walker.close()
    assert walker.members == len(seen.members)
    return seen


names = st.text("abcé0_.-/", min_size=1, max_size=90).filter(lambda name: name.strip("/") == name and "//" not in name)
bodies = st.one_of(st.binary(max_size=1500), st.just(bytes(2 * BLOCK)), st.none(), names)


@given(
    entries=st.lists(st.tuples(names, bodies), max_size=6, unique_by=lambda entry: entry[0]),
    pieces=st.lists(st.integers(0, 2000), max_size=20),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
)
@quick
def test_any_tar_in_any_pieces_is_walked_to_its_end(
    entries: list[tuple[str, bytes | str | None]], pieces: list[int], form: int
) -> None:
    seen = walk(tar(entries, form=form), pieces)
    assert [(member.name, member.kind, member.target, body) for member, body in seen.members] == [
        (
            name,
            "directory" if what is None else "link" if isinstance(what, str) else "file",
            what if isinstance(what, str) else "",
            what if isinstance(what, bytes) else b"",
        )
        for name, what in entries
    ]
    assert {member.mode for member, _ in seen.members} <= {0o640}


def test_a_name_in_two_pieces_is_put_together() -> None:
    name = "/".join(["directory"] * 14)
    ((member, _),) = walk(tar([(name, b"data")])).members
    assert member.name == name


def test_a_size_of_more_than_eight_gibibytes_is_understood() -> None:
    info = tarfile.TarInfo("large")
    info.size = 9 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:]
    assert parse_header(header).size == 9 << 30


def test_a_tar_that_ends_in_the_middle_is_refused() -> None:
    data = tar([("one", content(700)), ("two", None)])
    whole = len(data.rstrip(b"\0")) + BLOCK  # into the zero blocks
    end = 512 + 1024 + 512 + 1024
    for length in range(0, end, 17):
        with pytest.raises(Corrupt, match="the tar stream ends in the middle"):
            walk(data[:length])
    assert whole < end
    assert len(walk(data[:end]).members) == 2


def test_a_tar_that_goes_on_after_its_end_is_refused() -> None:
    data = tar([("one", b"data")])
    with pytest.raises(Corrupt, match="the tar stream goes on after its end"):
        walk(data + data)


def test_every_changed_byte_of_a_header_is_refused_or_changes_nothing() -> None:
    data = tar([("some/name", b"data")])
    member = parse_header(data[:BLOCK])
    for at in range(BLOCK):
        changed = bytearray(data[:BLOCK])
        changed[at] ^= 0x40
        with suppress(Corrupt):
            assert parse_header(bytes(changed)) == member
    with pytest.raises(Corrupt, match="checksum"):
        parse_header(b"x" + data[1:BLOCK])


@pytest.mark.parametrize("size", [b"-0000000007", b"+0000000007", b"0_000000007", b"0x000000007", b"00000000008"])
def test_what_is_no_number_in_a_header_is_refused(size: bytes) -> None:
    header = bytearray(tar([("name", b"data")])[:BLOCK])
    header[124:135] = size
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 0x20)
    with pytest.raises(Corrupt, match="where a number should be"):
        parse_header(bytes(header))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"L", b"x", b"g", b"S"])
def test_a_member_of_a_kind_that_postgresql_never_writes_is_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("odd")
    info.type = kind
    with pytest.raises(Corrupt, match=r"the tar member 'odd' is of unknown type"):
        parse_header(info.tobuf(tarfile.USTAR_FORMAT))
