"""The conformance suite of journals: what a group's journal promises on any store, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import ClassVar

import pytest
from attrs import evolve

from resilience.journal import Journal
from resilience.model.errors import JournalConflict, ManifestInvalid, Unreachable
from resilience.model.journal import Record, RecordKind
from resilience.primitives import ObjectStore

from .cancellation import cancellations, nothing_left_running
from .faults import WatchedStore, change, flipped, gone, truncated

MANY: tuple[RecordKind, ...] = ("went on",) * 20
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def record(number: int, kind: RecordKind = "went on", *, epoch: int = 1, nonce: str = "mine") -> Record:
    """Return a record that says little."""
    return Record(
        group="orders",
        number=number,
        epoch=epoch,
        kind=kind,
        at=NOW,
        operator="o",
        nonce=nonce,
        actor=f"who has {nonce}",
    )


class JournalSuite:
    """Subclass it, override the fixture `store`, and pytest proves that a journal can be kept in it.

    `cancel_step` skips await points where cancelling at each of them takes too long.
    """

    cancel_step: ClassVar[int] = 1

    @pytest.fixture
    def store(self) -> ObjectStore:
        """Make an empty store."""
        raise NotImplementedError("override the fixture `store`")

    @pytest.fixture
    def journal(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Journal:
        """Open the journal of a group in it."""
        monkeypatch.setattr("resilience.journal.journal.PATIENCE", 0.2)
        return Journal(store, "orders")

    async def test_where_nothing_was_written_nothing_was_done(self, journal: Journal) -> None:
        assert await journal.last() == ()
        assert await journal.epoch() == 0
        assert [each async for each in journal.history()] == []

    async def test_the_last_execution_is_read_from_its_beginning_and_the_history_as_a_whole(
        self, journal: Journal
    ) -> None:
        kinds: tuple[RecordKind, ...] = ("begun", "went on", "ended", "begun", *MANY, "taken over")
        written = [record(number, kind, epoch=1 + (number > 3)) for number, kind in enumerate(kinds, 1)]
        for each in written:
            await journal.append(each)
        assert list(await journal.last()) == written[3:]
        assert await journal.epoch() == 2
        assert [each async for each in journal.history()] == written

    async def test_of_two_who_write_the_same_number_one_succeeds_and_the_other_is_told(self, journal: Journal) -> None:
        records = [record(1, "begun", nonce=name) for name in ("one", "two", "three")]
        results = await asyncio.gather(*(journal.append(each) for each in records), return_exceptions=True)
        lost = [each for each in results if each is not None]
        assert len(lost) == 2
        assert all(isinstance(each, JournalConflict) for each in lost)
        (won,) = await journal.last()
        assert won.nonce == records[results.index(None)].nonce
        assert won.actor in str(lost[0])

    async def test_who_finds_his_own_record_has_written_it(self, journal: Journal) -> None:
        await journal.append(record(1, "begun"))
        await journal.append(record(1, "begun"))
        assert len(await journal.last()) == 1

    async def test_a_store_that_does_not_answer_for_a_moment_is_asked_again(
        self, store: ObjectStore, journal: Journal
    ) -> None:
        asked: list[str] = []

        async def before(operation: str, _: str) -> None:
            asked.append(operation)
            if len(asked) < 3:
                raise Unreachable("no route to host", operation="connect", subject="store")

        await Journal(WatchedStore(store, before), "orders").append(record(1, "begun"))
        assert len(await journal.last()) == 1

    async def test_who_is_never_answered_is_told_so(self, store: ObjectStore, journal: Journal) -> None:
        async def before(operation: str, _: str) -> None:
            raise Unreachable("no route to host", operation=operation, subject="store")

        with pytest.raises(Unreachable):
            await Journal(WatchedStore(store, before), "orders").append(record(1, "begun"))
        assert await journal.last() == ()

    async def test_a_record_is_there_once_append_has_returned_and_whole_or_not_at_all_if_it_was_cancelled(
        self, journal: Journal
    ) -> None:
        number = 0
        async with nothing_left_running():
            for attempt in cancellations(step=self.cancel_step):
                number += 1
                wanted = record(number, "begun")
                returned = await attempt(journal.append(wanted))
                found = await journal.last()
                assert found in ((wanted,), ()) or found[-1].number == number - 1
                if not found or found[-1] != wanted:
                    assert not returned
                    number -= 1

    @pytest.mark.parametrize("how", [flipped(0), truncated(20), gone], ids=["flipped", "truncated", "gone"])
    async def test_one_that_is_damaged_or_missing_is_named_and_nothing_is_concluded_without_it(
        self, store: ObjectStore, journal: Journal, how: object
    ) -> None:
        for number, kind in enumerate(("begun", "went on", "went on"), 1):
            await journal.append(record(number, kind))  # type: ignore[arg-type]
        await change(store, journal.key(2), how)  # type: ignore[arg-type]
        with pytest.raises(ManifestInvalid, match="0000000002") as raised:
            await journal.last()
        assert "bring the record back" in raised.value.hint

    async def test_one_without_its_beginning_is_no_execution(self, journal: Journal) -> None:
        await journal.append(record(7))
        with pytest.raises(ManifestInvalid, match="what it belongs to is missing"):
            await journal.last()

    async def test_the_record_of_another_place_is_not_believed(self, store: ObjectStore, journal: Journal) -> None:
        await Journal(store, "payments").append(evolve(record(1, "begun"), group="payments"))
        async with store.get(Journal(store, "payments").key(1)) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        await store.put(journal.key(1), [data])
        with pytest.raises(ManifestInvalid, match="something else"):
            await journal.last()

    async def test_what_else_lies_there_is_left_alone(self, store: ObjectStore, journal: Journal) -> None:
        await journal.append(record(1, "begun"))
        await store.put(f"{journal.prefix}notes.txt", [b"call Ada"])
        assert len(await journal.last()) == 1
