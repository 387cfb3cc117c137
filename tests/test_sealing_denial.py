"""Who may only add to a sealed archive stops neither its writers nor its readers: what he adds is a finding."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from resilience import Archive, coverage, restore
from resilience.archive import layout, small
from resilience.keys import KeyFile
from resilience.model.errors import Corrupt, KeyMissing, ManifestInvalid, NotRecoverable, Unsupported
from resilience.model.json import to_json
from resilience.operations.prune import plan_prune, prune
from resilience.operations.rotate import rotate
from resilience.stores import MemoryStore
from resilience.testing.memory import LINEAGE, MemoryDestination
from resilience.testing.stores import listed, read

from .histories import History, at
from .test_operations_prune import policy

PLACE = "memory/orders/"
LATER = "99991231T235959.999Z-ffffff"
NEVER = "99999999T999999.999Z-ffffff"
DEEP = b'{"format":2,"sha256":' + b"[" * 100_000


def head(text: bytes) -> bytes:
    """Make the head of an entry that says what it likes, with any MAC."""
    content = bytes(32) + hashlib.sha256(text).digest() + text
    return struct.pack("<II", 0x184D2A5D, len(content)) + content


def record(number: int, key: str) -> bytes:
    """Make a record with a seal that says which key made it."""
    return to_json({"format": number, "sha256": "", "seal": {"key": key, "mac": "00"}})


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "key")


@pytest.fixture
def other(tmp_path: Path) -> KeyFile:
    return KeyFile.create(tmp_path / "other")


def opened(history: History, key: KeyFile, *older: KeyFile) -> Archive:
    """Open the archive as another process would."""
    store, clock = history.archive.store, history.archive.clock
    return Archive(store, workers=1, clock=clock, key=key, older=list(older))


async def sealed(key: KeyFile) -> History:
    history = History()
    history.archive = opened(history, key)
    await history.write(0, 1)
    await history.back_up(2)
    await history.write(*range(3, 10))
    await history.back_up(10)
    await history.write(*range(11, 21))
    return history


async def name_of(history: History, kind: str) -> str:
    """Return the name of a data key that is there."""
    found = [layout.wrapped(info.key) for info in await listed(history.archive.store, f"{PLACE}keys/{kind}-")]
    return next(each[0] for each in found if each is not None)


async def working(history: History, key: KeyFile, *older: KeyFile) -> None:
    """Do with the archive what is done with one; a new process each time."""

    async def restored(*until: float) -> bytes:
        destination = MemoryDestination()
        moment = at(until[0]) if until else None
        await restore(opened(history, key, *older), "orders", into=destination, until=moment)
        return destination.values["minute"]

    history.archive = opened(history, key, *older)
    assert await restored(8) == b"8"
    assert len((await coverage(opened(history, key, *older), "orders")).moments) == 2
    await history.write(21)
    history.archive = opened(history, key, *older)
    await history.back_up(22)
    assert await restored() == b"21"
    history.now = 30
    report = await prune(opened(history, key, *older), "orders", policy=policy(15), clock=lambda: at(30))
    assert report.removed or "cannot be read" in str(report.findings)
    assert await opened(history, key, *older).targets() == ["orders"]


WRAPPED = {
    "of a newer format": record(99, "records-20261121T120000.000Z-aaaaaa"),
    "nested deeply": DEEP,
    "empty": b"",
}


@pytest.mark.parametrize("junk", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("name", ["records-" + LATER, "log-20261121T235959.999Z-ffffff"])
async def test_a_wrapped_key_that_somebody_adds_stops_nothing(
    key: KeyFile, other: KeyFile, name: str, junk: bytes
) -> None:
    history = await sealed(key)
    place = layout.wrapped_key("memory", "orders", name, key.id)
    await history.archive.store.put(place, [junk])
    await working(history, key)
    report = await rotate(opened(history, other, key), "orders")
    assert [(finding.severity, finding.subject) for finding in report.findings] == [("blocker", place)]
    async for _ in opened(history, other).manifests("orders"):
        pass


async def manifest(history: History, kind: str, junk: bytes, id: str) -> None:
    await history.archive.store.put(f"{PLACE}manifests/{id}.json", [junk or record(99, await name_of(history, kind))])


@pytest.mark.parametrize("junk", [b"", DEEP], ids=["of a newer format", "nested deeply"])
@pytest.mark.parametrize("id", [NEVER, "junk", "20000101T000000.000Z-ffffff"])
async def test_a_manifest_that_somebody_adds_stops_nothing(key: KeyFile, id: str, junk: bytes) -> None:
    history = await sealed(key)
    await manifest(history, "records", junk, id)
    await working(history, key)


async def test_a_manifest_that_claims_to_be_the_newest_is_told_and_what_can_be_trusted_is_restored_by_name(
    key: KeyFile,
) -> None:
    history = await sealed(key)
    await manifest(history, "records", b"", LATER)
    with pytest.raises(
        NotRecoverable, match=rf"{LATER}.* it may be the newest \(.*RecoveryTarget.lsn\(.*can be trusted"
    ):
        await restore(opened(history, key), "orders", into=MemoryDestination())
    destination = MemoryDestination()
    await restore(opened(history, key), "orders", into=destination, until=at(19))
    assert destination.values["minute"] == b"19"


RECORDS: dict[str, str] = {
    "branch": f"history/{LINEAGE}/99.json",
    "lineage": "history/another/1.json",
    "no lineage": "history/ANOTHER/1.json",
    "gap": f"gaps/{LINEAGE}/1/{layout.gap(0, 1 << 32)}",
    "watermark": f"watermarks/{LINEAGE}/1/{layout.watermark(1 << 40)}{layout.at_time(1)}",
    "published": "runs/20261121T121500.000Z-aaaaaa/published.json",
    "retired": "retired/20261121T121500.000Z-aaaaaa.json",
    "restore": f"restores/{LATER}.json",
}


@pytest.mark.parametrize("place", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("junk", [b"", DEEP], ids=["of a newer format", "nested deeply"])
async def test_a_record_that_somebody_adds_stops_nothing(key: KeyFile, place: str, junk: bytes) -> None:
    history = await sealed(key)
    await history.archive.store.put(PLACE + place, [junk or record(99, await name_of(history, "records"))])
    await working(history, key)


async def test_a_name_in_the_list_of_targets_that_no_target_can_have_is_passed_over(key: KeyFile) -> None:
    history = await sealed(key)
    await history.archive.store.put("targets/ORDERS.json", [b"x"])
    await working(history, key)


FORGED = {
    "of a newer format": b'{"format":99}',
    "with a key that nobody has": None,
    "that is none": b"",
}


@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED)
async def test_an_entry_that_somebody_adds_behind_the_log_leaves_what_lies_before_it(
    key: KeyFile, other: KeyFile, text: bytes | None
) -> None:
    history = await sealed(key)
    place = layout.segments("memory", "orders", LINEAGE, "1")
    last = (await listed(history.archive.store, place))[-1].key
    _, ends = layout.stretch(last) or pytest.fail(last)
    junk = place + layout.segment(ends, ends + 7)
    data = head(text) if text else b"junk"
    if text is None:
        data = await read(history.archive.store, last)
        data = data.replace((await name_of(history, "log")).encode(), b"log-20261121T120000.000Z-ffffff")
        length = 8 + int.from_bytes(data[4:8], "little")
        data = head(data[72:length]) + data[length:]
        await history.archive.store.put(f"{PLACE}keys/log-20261121T120000.000Z-ffffff/{other.id}.json", [b"x"])
    await history.archive.store.put(junk, [data])

    archive, destination = opened(history, key), MemoryDestination()
    report = await restore(archive, "orders", into=destination, until=at(19))
    assert destination.values["minute"] == b"19"
    assert [finding.subject for finding in report.findings] == [junk]
    found = await coverage(archive, "orders")
    assert junk in [finding.subject for finding in found.findings]
    assert await plan_prune(archive, "orders", policy=policy(15), clock=lambda: at(30))
    destination = MemoryDestination()
    with pytest.raises((Corrupt, KeyMissing, Unsupported), match=junk):
        await restore(archive, "orders", into=destination)
    assert destination.values == {} or text == b""


@pytest.mark.parametrize("text", [b'{"format":99}', b""], ids=["of a newer format", "that is none"])
@pytest.mark.parametrize("reach", [-1, 1, 1 << 10, 1 << 20], ids=["shorter", "longer", "over some", "over all"])
@pytest.mark.parametrize("number", [0, 1, 5])
async def test_an_entry_that_somebody_adds_over_the_log_stops_nothing(
    key: KeyFile, number: int, reach: int, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    history = await sealed(key)
    place = layout.segments("memory", "orders", LINEAGE, "1")
    there = [layout.stretch(info.key) or pytest.fail(info.key) for info in await listed(history.archive.store, place)]
    begins, ends = there[number]
    junk = place + layout.segment(begins, ends + reach)
    await history.archive.store.put(junk, [head(text) if text else b"junk"])
    await working(history, key)
    assert f"{junk} is passed over" in caplog.text


async def test_a_watermark_that_somebody_adds_is_told(key: KeyFile) -> None:
    history = await sealed(key)
    place = f"{PLACE}{RECORDS['watermark']}"
    await history.archive.store.put(place, [record(99, await name_of(history, "records"))])
    found = await coverage(opened(history, key), "orders")
    assert place in [finding.subject for finding in found.findings]


@pytest.mark.parametrize("place", [*RECORDS.values(), f"manifests/{NEVER}.json"], ids=[*RECORDS, "manifest"])
async def test_what_is_larger_than_anything_of_ours_is_not_read_to_its_end(
    key: KeyFile, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(small, "MANIFEST", 5 << 20)
    history = await sealed(key)
    await history.archive.store.put(PLACE + place, [b'{"format":2,'] + [bytes(1 << 20)] * 8)
    await working(history, key)


async def test_no_more_of_an_object_is_read_than_it_may_have() -> None:
    store, read = MemoryStore(), 0

    @asynccontextmanager
    async def endless(key: str, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 1 << 20
                yield bytes(1 << 20)

        yield chunks()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStore, "get", staticmethod(endless))
        with pytest.raises(ManifestInvalid, match="read large: it has more than 4.0 MiB, which none of ours has"):
            await small.whole(store, "large", at_most=small.RECORD)
    assert read == small.RECORD + (1 << 20)
