"""Values to JSON and back, the one way for manifests, run records and reports.

64-bit offsets travel as decimal strings, because many JSON readers keep only 53 bits of a number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import msgspec

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
    """What JSON can hold; the `details` of facts and manifests are made of it."""
else:
    Json = Any  # msgspec decodes no recursive aliases, and JSON can hold nothing else


class Offset(int):
    """A 64-bit offset; a type of its own so that JSON holds it as a string."""

    __slots__ = ()


class Foldable(Sequence[T_co]):
    """A sequence of values that can be kept as their JSON until somebody asks for them; equal to a tuple of them.

    Of a hundred thousand manifests nobody looks at the parts, and as values they are millions: whoever collects garbage
    or frees them holds the event loop up for it.
    """

    __slots__ = ("_json", "_values")

    def __init__(self, values: Iterable[T_co]) -> None:
        self._values: tuple[T_co, ...] | None = tuple(values)
        self._json = b""

    @classmethod
    @abstractmethod
    def kind(cls) -> type[tuple[T_co, ...]]:
        """Return what its JSON is decoded to."""

    def fold(self, written: bytes) -> None:
        """Keep the values as what was `written` of them, which has been decoded once: it is valid."""
        self._json, self._values = written, None

    @property
    def values(self) -> tuple[T_co, ...]:
        """The values, read again if they are folded."""
        if self._values is None:
            self._values = from_json(self._json, self.kind())
            self._json = b""
        return self._values

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T_co, ...]: ...
    def __getitem__(self, index: int | slice) -> T_co | tuple[T_co, ...]:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        return self.values == (other.values if isinstance(other, Foldable) else other)

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return repr(self.values)


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
    if isinstance(value, Foldable):
        return value.values
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _decode(kind: type, value: object) -> object:
    if kind is Offset and isinstance(value, str):
        return Offset(value)
    if issubclass(kind, Foldable):
        return kind(msgspec.convert(value, kind.kind(), dec_hook=_decode))
    raise TypeError(f"expected {kind.__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_encode, order="sorted")
