"""Seals: whatever comes in whatever pieces comes back, and nothing that is not where it was sealed."""

from __future__ import annotations

import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from attrs import evolve, frozen
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.model.errors import SealBroken
from resilience.streams.frames import Cutter
from resilience.streams.seals import KEY_SIZE, TAG_SIZE, Sealer, bound, derived, mac, same
from resilience.testing.stores import content

KEY, OTHER_KEY = content(KEY_SIZE), content(KEY_SIZE, 2)
PLACE = ("orders", "postgresql", "base", "20261121T203000.000Z-3f9a1c", "base.tar")
quick = settings(deadline=None, max_examples=80)


@frozen(kw_only=True)
class Frame:
    """Where a frame lies."""

    key: bytes = KEY
    place: tuple[str, ...] = PLACE
    part: int = 0
    object: int = 0
    number: int = 0
    last: bool = False

    def seal(self, plain: bytes) -> bytes:
        sealer = Sealer(self.key, *self.place, number=self.part)
        return sealer.seal(plain, number=self.number, object=self.object, last=self.last)

    def open(self, sealed: bytes) -> bytes:
        sealer = Sealer(self.key, *self.place, number=self.part)
        return sealer.open(sealed, number=self.number, object=self.object, last=self.last)


def sealed(chunks: list[bytes], *, size: int, per_object: int, of: Frame) -> list[bytes]:
    """Seal a part: cut into frames, so many of them to an object."""
    cutter = Cutter(size)
    frames = [b"".join(frame) for chunk in chunks for frame in cutter.feed(chunk)]
    frames += [b"".join(frame) for frame in cutter.finish()]
    assert cutter.frames == len(frames)
    return [each.seal(frame) for each, frame in zip(places(len(frames), per_object, of), frames, strict=True)]


def opened(frames: list[bytes], *, per_object: int, of: Frame, released: bytearray) -> None:
    """Open a part whose frames are as many as are given; what is handed out is added to `released`."""
    for each, frame in zip(places(len(frames), per_object, of), frames, strict=True):
        released += each.open(frame)


def places(count: int, per_object: int, of: Frame) -> list[Frame]:
    return [evolve(of, number=at, object=at // per_object, last=at + 1 == count) for at in range(count)]


chunked = st.lists(st.binary(max_size=50), max_size=8)


@given(chunks=chunked, size=st.integers(1, 40), per_object=st.integers(1, 4))
@quick
def test_any_bytes_in_any_pieces_come_back(chunks: list[bytes], size: int, per_object: int) -> None:
    frames, released = sealed(chunks, size=size, per_object=per_object, of=Frame()), bytearray()
    opened(frames, per_object=per_object, of=Frame(), released=released)
    plain = b"".join(chunks)
    assert released == plain
    assert sum(map(len, frames)) == len(plain) + TAG_SIZE * len(frames)
    assert all(len(chunk) < 5 or chunk not in b"".join(frames) for chunk in chunks)


@given(data=st.data(), size=st.integers(1, 40), per_object=st.integers(1, 4))
@quick
def test_frames_left_out_moved_doubled_or_brought_from_elsewhere_release_nothing_wrong(
    data: st.DataObject, size: int, per_object: int
) -> None:
    plain = data.draw(st.binary(min_size=1, max_size=200))
    frames = sealed([plain], size=size, per_object=per_object, of=Frame())
    elsewhere = [
        evolve(Frame(), key=OTHER_KEY),
        evolve(Frame(), part=1),
        *(evolve(Frame(), place=(*PLACE[:at], "another", *PLACE[at + 1 :])) for at in range(len(PLACE))),
    ]
    others = [frame for of in elsewhere for frame in sealed([plain], size=size, per_object=per_object, of=of)]
    chosen = data.draw(st.lists(st.sampled_from([*frames, *others]), max_size=len(frames) + 2))
    released = bytearray()
    if chosen == frames:
        opened(chosen, per_object=per_object, of=Frame(), released=released)
        assert released == plain
    elif chosen:
        with pytest.raises(SealBroken, match=r"frame \d+ is not what was sealed here"):
            opened(chosen, per_object=per_object, of=Frame(), released=released)
        assert plain.startswith(released)


@given(plain=st.binary(max_size=60), data=st.data())
@quick
def test_any_edit_of_a_frame_is_refused(plain: bytes, data: st.DataObject) -> None:
    frame = Frame(last=True).seal(plain)
    at = data.draw(st.integers(0, len(frame)))
    edited = frame[:at] + data.draw(st.binary(max_size=3)) + frame[data.draw(st.integers(at, len(frame))) :]
    if edited != frame:
        with pytest.raises(SealBroken):
            Frame(last=True).open(edited)


def test_every_flipped_bit_and_every_missing_byte_is_refused() -> None:
    frame = Frame().seal(content(50))
    for at, bit in product(range(len(frame)), range(8)):
        changed = bytearray(frame)
        changed[at] ^= 1 << bit
        with pytest.raises(SealBroken):
            Frame().open(bytes(changed))
    for length in range(len(frame)):
        with pytest.raises(SealBroken):
            Frame().open(frame[:length])


def test_a_frame_opens_in_its_own_place_only() -> None:
    here = Frame(object=3, number=7)
    frame = here.seal(b"plain")
    assert here.open(frame) == b"plain"
    elsewhere = [
        evolve(here, last=True),
        evolve(here, object=2),
        evolve(here, object=37),
        evolve(here, number=8),
        evolve(here, part=1),
        evolve(here, place=PLACE[:-1]),
        evolve(here, place=(*PLACE, "")),
        evolve(here, place=(*PLACE[:-2], PLACE[-2] + PLACE[-1])),
    ]
    for each in elsewhere:
        with pytest.raises(SealBroken):
            each.open(frame)


def test_many_threads_may_seal_and_open_at_once() -> None:
    sealer, plain = Sealer(KEY, *PLACE), content(1 << 16)

    def both(number: int) -> bytes:
        frame = sealer.seal(memoryview(plain), number=number, last=False)
        return sealer.open(memoryview(frame), number=number, last=False)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(both, range(200))) == {plain}


def test_frames_are_sealed_as_documented() -> None:
    nonce = (5).to_bytes(4, "big") + (7).to_bytes(8, "big")
    additional = "\0".join(["resilience 2 frame", *PLACE, "3", "7", "last"]).encode()
    expected = AESGCM(KEY).encrypt(nonce, b"plain", additional)
    assert Frame(part=5, object=3, number=7, last=True).seal(b"plain") == expected


@given(key=st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE), salt=st.binary(max_size=40), purpose=st.text(max_size=20))
@quick
def test_keys_are_derived_as_rfc_5869_says(key: bytes, salt: bytes, purpose: str) -> None:
    expected = HKDF(hashes.SHA256(), KEY_SIZE, salt or None, purpose.encode()).derive(key)
    assert derived(key, purpose, salt=salt) == expected


def test_a_record_is_authenticated_as_documented() -> None:
    expected = hmac.new(KEY, b"resilience 2 record\0some/key\0{}", hashlib.sha256).hexdigest()
    assert mac(KEY, "some/key", b"{}") == expected
    assert same(expected, expected) and not same(expected, expected[:-1] + "?") and not same("", "ä")


def test_no_two_places_have_the_same_name() -> None:
    words = ["", "a", "ab", "b"]
    assert len({bound(*each) for each in product(words, repeat=3)}) == len(words) ** 3
    with pytest.raises(ValueError, match="zero byte"):
        bound("a\0b")


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_misuse(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(bytes(size))
