"""What the Protocols share."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)
Opened: TypeAlias = AbstractAsyncContextManager[T_co]
"""Something to be used in `async with`."""


class Named(Protocol):
    """Something with a name of its own and the name of the system it belongs to."""

    @property
    def name(self) -> str: ...
    @property
    def system(self) -> str: ...
