"""FailoverGroup: who belongs together in a failover, and where it is written down."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from resilience.model.ids import checked_name
from resilience.primitives import Check, Fencer, ObjectStore, Promoter, TrafficSwitch


@frozen
class FailoverGroup:
    """A group of servers of which one takes writes, with all that it takes to give that role to another.

    `promoter` knows the servers. `fencers` prove that a member cannot write, each of those it names; the first that
    names a member is asked. `switches` lead the clients. In `journal` everything is written down before it is done:
    keep it outside of what may fail, and not on a storage account that itself fails over. `record` is where a state
    recorder keeps its samples: in the journal's store, unless it says otherwise. `before` and `after` are checklists.
    """

    name: str = field(validator=lambda _self, _attribute, name: checked_name(name))
    promoter: Promoter = field(kw_only=True)
    fencers: Sequence[Fencer] = field(default=(), kw_only=True)
    switches: Sequence[TrafficSwitch] = field(default=(), kw_only=True)
    journal: ObjectStore = field(kw_only=True)
    record: ObjectStore | None = field(default=None, kw_only=True)
    before: Sequence[Check] = field(default=(), kw_only=True)
    after: Sequence[Check] = field(default=(), kw_only=True)

    @property
    def samples(self) -> ObjectStore:
        """Where the samples of a state recorder are kept."""
        return self.journal if self.record is None else self.record

    @property
    def fenceable(self) -> tuple[str, ...]:
        """The members that somebody can fence."""
        return tuple(member for member in self.promoter.members if self.fencer(member) is not None)

    def fencer(self, member: str) -> Fencer | None:
        """Return who fences a member; None if nobody does."""
        return next((each for each in self.fencers if member in each.members), None)

    def route(self, name: str) -> TrafficSwitch | None:
        """Return a switch by its name; None if there is none."""
        return next((each for each in self.switches if each.name == name), None)
