"""Manifests and records as bytes: a format number, the value, the digest of exactly its bytes, and their seal. Pure."""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeVar

import msgspec
from attrs import frozen

from resilience.model.errors import ManifestInvalid, SealBroken, Unsupported
from resilience.model.json import from_json, to_json
from resilience.model.manifests import FORMAT, SEALED_FORMAT, Manifest
from resilience.streams.seals import same

T = TypeVar("T")
FOLDED = 1 << 16
"""Bytes of a manifest that whose parts are folded: reading them again takes less than a millisecond."""


@frozen(kw_only=True)
class Seal:
    """Says who wrote a record: the MAC of its bytes and of where it is stored, with the key of this name."""

    key: str
    mac: str


class Authority(Protocol):
    """A key that makes MACs."""

    @property
    def name(self) -> str:
        """What a seal calls it."""

    def mac(self, name: str, body: bytes | memoryview) -> str:
        """Return the MAC of what is stored under a name."""


def wrap(value: object, *, key: str = "", by: Authority | None = None) -> bytes:
    """Return the bytes to store for a manifest, or for a record; the value stands under its class's name.

    With `by` they are sealed, to be stored under `key` and nowhere else.
    """
    body = to_json(value)
    written: dict[str, object] = {
        "format": FORMAT if by is None else SEALED_FORMAT,
        "sha256": hashlib.sha256(body).hexdigest(),
        _name(type(value)): msgspec.Raw(body),
    }
    if by is not None:
        written["seal"] = msgspec.Raw(to_json(Seal(key=by.name, mac=by.mac(key, body))))
    return msgspec.json.encode(written)


def seal_of(data: bytes, key: str) -> Seal | None:
    """Return the seal of a record, which is not proven yet; None if it has none."""
    try:
        return from_json(data, _Sealed).seal
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestInvalid(f"it cannot be read: {error}", operation="read", subject=key) from error


def unwrap(data: bytes, key: str, kind: type[T], *, by: Authority | None = None) -> T:
    """Return the value in `data`, which is stored under `key`.

    Raises ManifestInvalid if it is damaged, Unsupported if its format is newer. With `by` raises SealBroken unless it
    was sealed with that key, for this place.
    """
    reading = f"read {_name(kind)}"
    try:
        written = from_json(data, dict[str, msgspec.Raw])
        number = from_json(written["format"], int)
        if number > SEALED_FORMAT:
            raise Unsupported(
                f"it is written in archive format {number}, this version reads up to {SEALED_FORMAT}",
                operation=reading,
                subject=key,
                hint="install a newer resilience",
            )
        body, digest = written[_name(kind)], from_json(written["sha256"], str)
        if hashlib.sha256(body).hexdigest() != digest:
            raise ManifestInvalid("its digest does not match its content", operation=reading, subject=key)
        if by is not None:
            _prove(from_json(bytes(written["seal"]), Seal), memoryview(body), key, by)
        value = from_json(bytes(body), kind)
    except KeyError as error:
        raise ManifestInvalid(f"it cannot be read: it has no {error}", operation=reading, subject=key) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestInvalid(f"it cannot be read: {error}", operation=reading, subject=key) from error
    if number < 1 or (isinstance(value, Manifest) and value.format != number):
        raise ManifestInvalid("its format numbers disagree", operation=reading, subject=key)
    if isinstance(value, Manifest) and len(body) <= FOLDED:
        value.parts.fold(bytes(from_json(body, _Parts).parts))
    return value


class _Sealed(msgspec.Struct):
    seal: Seal | None = None


class _Parts(msgspec.Struct):
    parts: msgspec.Raw


def _prove(seal: Seal, body: memoryview, key: str, by: Authority) -> None:
    if seal.key != by.name or not same(seal.mac, by.mac(key, body)):
        text = "its seal is broken: it was changed, moved, or written by somebody who has no key"
        raise SealBroken(text, operation="read", subject=key)


def _name(kind: type) -> str:
    return kind.__name__.lower()
