"""The Protocol of the one who watches a drill from where the clients stand."""

from __future__ import annotations

from typing import Protocol

from resilience.model.drills import CanaryFacts, Served

from .common import Named, Opened


class Watching(Protocol):
    """A canary while it writes, and afterwards what it remembers.

    - `seen` is what it has seen so far; it asks nobody.
    - `another` waits until a server other than `than` has acknowledged a write; None if none has within `seconds`.
    - `examine` looks which of the acknowledged writes are there, through the route. It raises Unavailable.
    """

    @property
    def seen(self) -> CanaryFacts: ...
    async def another(self, *, than: str, seconds: float) -> Served | None: ...
    async def examine(self) -> CanaryFacts: ...


class Canary(Named, Protocol):
    """Writes through the route that clients take, and remembers what was acknowledged, when, and by which server.

    - Entering `writing` returns once a write was acknowledged; it raises Unavailable or Refused if none was. It goes on
      until left, whatever happens to the servers, and reconnects as clients do.
    - A write counts as acknowledged only if its server promised all that it promises any client.
    - `clean` removes what it has written, also what one of the same name wrote that died. It may be repeated.
    """

    def writing(self) -> Opened[Watching]: ...
    async def clean(self) -> None: ...
