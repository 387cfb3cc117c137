"""Values to JSON and back, the one way for manifests, run records and reports.

64-bit offsets travel as decimal strings, because many JSON readers keep only 53 bits of a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
    """What JSON can hold; the `details` of facts and manifests are made of it."""
else:
    Json = Any  # msgspec decodes no recursive aliases, and JSON can hold nothing else


class Offset(int):
    """A 64-bit offset; a type of its own so that JSON holds it as a string."""


def to_json(value: object) -> bytes:
    """Encode a value as compact JSON, its fields in alphabetical order so that equal values have equal bytes."""
    return _encoder.encode(value)


def from_json(data: bytes | memoryview, kind: type[T]) -> T:
    """Decode `kind` from JSON, running its validators; raises msgspec.MsgspecError (DecodeError, ValidationError)."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_decode)
    except RecursionError as error:  # anybody can write a hundred thousand brackets
        raise msgspec.DecodeError("JSON is nested too deeply") from error


def _encode(value: object) -> object:
    if isinstance(value, Offset):
        return str(int(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _decode(kind: type, value: object) -> object:
    if kind is Offset and isinstance(value, str):
        return Offset(value)
    raise TypeError(f"expected {kind.__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_encode, order="sorted")
