"""Manifests and records as bytes: a format number, the value, and the digest of exactly its bytes. Pure."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from resilience.model.errors import ManifestInvalid, Unsupported
from resilience.model.json import from_json, to_json
from resilience.model.manifests import FORMAT, Manifest

T = TypeVar("T")


def wrap(value: object) -> bytes:
    """Return the bytes to store for a manifest, or for a record of a log; the value stands under its class's name."""
    body = to_json(value)
    written = {"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest(), _name(type(value)): msgspec.Raw(body)}
    return msgspec.json.encode(written)


def unwrap(data: bytes, key: str, kind: type[T]) -> T:
    """Return the value in `data`. Raises ManifestInvalid if it is damaged, Unsupported if its format is newer."""
    reading = f"read {_name(kind)}"
    try:
        written = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        number = msgspec.json.decode(written["format"], type=int)
        if number > FORMAT:
            raise Unsupported(
                f"it is written in archive format {number}, this version reads up to {FORMAT}",
                operation=reading,
                subject=key,
                hint="install a newer resilience",
            )
        body, digest = written[_name(kind)], msgspec.json.decode(written["sha256"], type=str)
        if hashlib.sha256(body).hexdigest() != digest:
            raise ManifestInvalid("its digest does not match its content", operation=reading, subject=key)
        value = from_json(bytes(body), kind)
    except KeyError as error:
        raise ManifestInvalid(f"it cannot be read: it has no {error}", operation=reading, subject=key) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestInvalid(f"it cannot be read: {error}", operation=reading, subject=key) from error
    if number < 1 or (isinstance(value, Manifest) and value.format != number):
        raise ManifestInvalid("its format numbers disagree", operation=reading, subject=key)
    return value


def _name(kind: type) -> str:
    return kind.__name__.lower()
