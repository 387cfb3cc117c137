"""The conformance suite of key-encryption keys: what `primitives.KeyEncryptionKey` promises, one test a promise."""

# ruff: noqa: D102  # the names of the tests are the promises

from __future__ import annotations

import re
from typing import ClassVar

import pytest

from resilience.model.errors import SealBroken
from resilience.primitives import KeyEncryptionKey

from .cancellation import cancellations, nothing_left_running
from .stores import content

DATA_KEY = content(32)
CONTEXT = b"resilience: the data key 20261121T203000.000Z-3f9a1c of orders"
OTHER_CONTEXTS = [b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT.replace(b"orders", b"others")]


class KeySuite:
    """Subclass it, override the fixtures `key` and `other`, and pytest proves every promise of `KeyEncryptionKey`.

    `key` and `other` are two keys of one kind. `again` returns another handle to the same key, as another process would
    have. `every_byte` is how many bytes apart the damage is that has to be noticed, where unwrapping is slow.
    """

    every_byte: ClassVar[int] = 1

    @pytest.fixture
    def key(self) -> KeyEncryptionKey:
        """Return a key that nothing was wrapped with yet."""
        raise NotImplementedError("override the fixture `key`")

    @pytest.fixture
    def other(self) -> KeyEncryptionKey:
        """Return another key of the same kind."""
        raise NotImplementedError("override the fixture `other`")

    def again(self, key: KeyEncryptionKey) -> KeyEncryptionKey:
        """Return another handle to the same key; the same handle where there can be no other."""
        return key

    async def test_what_is_wrapped_is_unwrapped(self, key: KeyEncryptionKey) -> None:
        async with nothing_left_running():
            wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
            assert DATA_KEY not in wrapped
            assert await self.again(key).unwrap(wrapped, context=CONTEXT) == DATA_KEY

    async def test_any_context_is_bound_and_no_other_is_accepted(self, key: KeyEncryptionKey) -> None:
        for context in OTHER_CONTEXTS:
            assert await key.unwrap(await key.wrap(DATA_KEY, context=context), context=context) == DATA_KEY
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        for context in OTHER_CONTEXTS:
            with pytest.raises(SealBroken):
                await self.again(key).unwrap(wrapped, context=context)

    async def test_another_key_does_not_unwrap_it(self, key: KeyEncryptionKey, other: KeyEncryptionKey) -> None:
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        with pytest.raises(SealBroken):
            await other.unwrap(wrapped, context=CONTEXT)

    async def test_a_change_of_any_byte_is_noticed(self, key: KeyEncryptionKey) -> None:
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        for at in range(0, len(wrapped), self.every_byte):
            changed = bytearray(wrapped)
            changed[at] ^= 1
            with pytest.raises(SealBroken):
                await key.unwrap(bytes(changed), context=CONTEXT)

    async def test_what_is_cut_or_longer_or_not_a_wrapped_key_at_all_is_refused(self, key: KeyEncryptionKey) -> None:
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        longer = await key.wrap(DATA_KEY, context=CONTEXT)
        for wrong in (b"", wrapped[:1], wrapped[:-1], wrapped[1:], wrapped + b"\0", wrapped + longer, DATA_KEY, b"{}"):
            with pytest.raises(SealBroken):
                await key.unwrap(wrong, context=CONTEXT)

    async def test_wrapping_twice_shows_nobody_that_it_is_the_same_key(self, key: KeyEncryptionKey) -> None:
        assert await key.wrap(DATA_KEY, context=CONTEXT) != await key.wrap(DATA_KEY, context=CONTEXT)

    async def test_the_id_stays_and_is_fit_for_the_name_of_an_object(
        self, key: KeyEncryptionKey, other: KeyEncryptionKey
    ) -> None:
        assert key.id == self.again(key).id != other.id
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,99}", key.id)

    async def test_wrapping_and_unwrapping_can_be_cancelled_anywhere(self, key: KeyEncryptionKey) -> None:
        wrapped = await key.wrap(DATA_KEY, context=CONTEXT)
        async with nothing_left_running():
            for attempt in cancellations():
                await attempt(key.wrap(DATA_KEY, context=CONTEXT))
            for attempt in cancellations():
                await attempt(key.unwrap(wrapped, context=CONTEXT))
        assert await key.unwrap(wrapped, context=CONTEXT) == DATA_KEY
