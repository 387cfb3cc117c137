"""The Protocols of failover: what changes the primary, where clients go, what keeps a member from writing, faults."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from resilience.model.drills import FaultProof
from resilience.model.failover import Divergence, FailoverPlan, PhaseFloor, Promoted, PromotionOrder
from resilience.model.findings import Finding
from resilience.model.groups import Fence, GroupFacts, RouteFacts
from resilience.model.positions import RecoveryPoint

from .common import Named, Opened


class Promoter(Named, Protocol):
    """Changes which member of a group takes writes. It never chooses the candidate.

    - `survey` writes nothing. It looks at all members side by side, each within a deadline of its own: who does not
      answer is a member with a problem, never an exception. What stands in the way of any failover is a blocker.
    - `prepare` does while clients still write what they would have to wait for afterwards (a checkpoint), and waits
      until the candidate has caught up with the primary but for what arrives just now. It changes nothing else but what
      it undoes itself if it fails, `promote` in the end, and `Fencer.lift` of the primary if it never comes to that.
    - `settle` has every standby stop receiving, and waits until it shows all it has received. What it returns cannot
      change any more by what a primary does.
    - `promote` refuses an older epoch (FencedOff), rechecks the fences it is handed (FencingUnproven if one does not
      hold any more), and may be repeated: a member that was promoted stays so. It raises Interrupted if nobody can tell
      whether it happened. `Promoted.at` is when the member was seen to take writes.
    - `verify` writes a mark and reads it back from the new primary, and returns where it stands.
    - `follow` has a standby receive from the primary; it raises NotFollowing if it has diverged. `divergence` writes
      nothing. `rejoin` brings a member back behind the primary in the way that was found, and lifts nothing that still
      keeps it from writing before it is a standby. They may be repeated.
    - `require` has the primary wait for `needed` of `members` before it acknowledges a write (0: for nobody). It may be
      repeated.
    - `floor` is how long promotion and reconnection take at least, by the members' live settings.
    - Cancelled, each finishes what it has begun within its own deadline, or raises Interrupted.
    """

    @property
    def members(self) -> tuple[str, ...]: ...
    async def survey(self) -> GroupFacts: ...
    async def prepare(self, candidate: str, *, epoch: int) -> None: ...
    async def settle(self, *, epoch: int) -> GroupFacts: ...
    async def promote(self, order: PromotionOrder) -> Promoted: ...
    async def verify(self, primary: str, *, epoch: int) -> RecoveryPoint: ...
    async def follow(self, member: str, *, primary: str, epoch: int) -> None: ...
    async def divergence(self, member: str, *, primary: str) -> Divergence: ...
    async def rejoin(self, found: Divergence, *, epoch: int) -> None: ...
    async def require(self, primary: str, *, members: Sequence[str], needed: int, epoch: int) -> None: ...
    async def floor(self) -> tuple[PhaseFloor, ...]: ...


@runtime_checkable
class Beating(Protocol):
    """A promoter that can leave a heartbeat in the primary's history.

    - `beat` has the primary commit a mark that waits for no standby, so that each of them can tell up to when it has
      everything (`MemberFacts.complete_at`). It changes no data. It raises Unavailable if the primary does not answer.
    """

    async def beat(self, primary: str) -> None: ...


class TrafficSwitch(Named, Protocol):
    """Changes where clients go.

    - `survey` writes nothing.
    - `switch` to a member is compare-and-set: it raises RouteMoved unless the route's version is the one `expected`,
      and succeeds at once if the route leads there already. It lets held clients go, and returns only after a real
      connection through the route has reached a server; whose `instance` that is the caller compares.
    - `switch` to None holds clients, likewise compared: they wait, and running transactions are let finish for as long
      as the switch is willing to wait. On a route that `follows` it does nothing.
    - Whatever happens, no route is left half-changed: it leads to the old place or to the new one.
    - `floor` is how long propagation takes at least, by its live settings.
    """

    async def survey(self) -> RouteFacts: ...
    async def switch(self, to: str | None, *, expected: str) -> RouteFacts: ...
    async def floor(self) -> tuple[PhaseFloor, ...]: ...


class Fencer(Protocol):
    """Proves that a member cannot write.

    - `fence` may be repeated. It returns only what it has proven (or who else does); it raises FencingUnproven if it
      could not. With `clean` the member is let finish what it does and hand all of its history to its standbys, and
      `Fence.end` says where that ends: a switchover promotes nobody who has less.
    - A member stays fenced, also when its machine starts again, until `lift`: then it may do again what its role is,
      and runs again if `fence` had stopped it. `lift` may be repeated, also for a member that is not fenced.
    - Both raise FencedOff in an older epoch than one they have seen for that member.
    """

    @property
    def members(self) -> Collection[str]: ...
    async def fence(self, member: str, *, epoch: int, clean: bool = False) -> Fence: ...
    async def lift(self, member: str, *, epoch: int) -> None: ...


class Check(Named, Protocol):
    """One line of a checklist (R37, R38): looks, and returns what it found; a blocker stops a failover.

    What it cannot tell is a finding that says so. `plan` is what is about to be done, or was.
    """

    async def look(self, plan: FailoverPlan) -> tuple[Finding, ...]: ...


class Fault(Named, Protocol):
    """Something that fails on purpose, in a drill.

    - `subject` is the member it is done to.
    - Entering injects it and returns the proof that it happened, or raises Refused and nothing has.
    - Leaving heals what can be healed; it may be repeated. `heal` does the same after the one that injected it died.
    """

    @property
    def subject(self) -> str: ...
    def inject(self) -> Opened[FaultProof]: ...
    async def heal(self) -> None: ...
