"""What has been decided: plain values, made by planning/ from facts, carried out by operations/."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from attrs import field, frozen

from .findings import Finding
from .json import Json
from .log import Stretch
from .moments import aware
from .rehydration import Rehydration
from .show import Shown, as_bytes, as_span
from .targets import RecoveryTarget


@frozen(kw_only=True)
class BackupPlan(Shown):
    """One backup to take: its id, of what, and how much is expected to be read.

    `parent` is the backup that it holds the differences to; None: it is complete in itself. `actor` asked for it, for a
    `reason`, as the manifest will say.
    """

    id: str
    target: str
    system: str
    kind: str
    lineage: str
    parent: str | None = None
    made_at: datetime = field(validator=aware)
    size: int | None = None
    findings: tuple[Finding, ...] = ()
    actor: str = ""
    reason: str = ""
    details: Mapping[str, Json] = field(factory=dict)


@frozen(kw_only=True)
class RestorePlan(Shown):
    """One restore to carry out: `chain` are the ids of the backups it reads, oldest first; sizes are bytes.

    `replay` are the stretches of the log that follow the chain, in order and without a hole. What lies before the first
    is in the backup itself. The last one's branch is the one to end on; it goes on after the target, up to the next
    hole or the end, because the system itself has to find where to stop. With `to_the_end` all of it is what was asked
    for, so the system is given no target to look for. A system that comes to the end and has met nothing later than a
    moment has reached that moment: all that was acknowledged before it lies before that end. So it is for a position
    that no record begins after; a name or a transaction that is not met is an error.

    `rehydration` is what cannot be read before it was copied to another tier; nothing is restored until then.

    `replayed` is about how many bytes of the log are needed. `seconds` is an estimate and `arithmetic` how it was made;
    None where nothing is known to estimate from.
    """

    target: str
    destination: str
    chain: tuple[str, ...]
    until: RecoveryTarget = field(factory=RecoveryTarget.latest)
    replay: tuple[Stretch, ...] = ()
    to_the_end: bool = True
    read: int
    written: int
    replayed: int = 0
    rehydration: Rehydration | None = None
    seconds: float | None = None
    arithmetic: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        lines = [f"restore {self.target} to {self.until}, into {self.destination}", f"unpack {self.chain[0]}"]
        lines += [f"on top of it {each}" for each in self.chain[1:]]
        lines += [f"replay {stretch}, {as_bytes(stretch.size)} of log" for stretch in self.replay]
        if self.replay and not self.to_the_end:
            lines.append(f"stop at {self.until}, after about {as_bytes(self.replayed)} of it")
        if self.rehydration is not None:
            lines.insert(1, f"before that: {self.rehydration}")
        lines.append(f"read {as_bytes(self.read)} of backups, write {as_bytes(self.written)}")
        lines.append(
            f"it takes about {as_span(self.seconds)}"
            if self.seconds is not None
            else "how long it takes is not known yet: the first restore will show"
        )
        return "\n  ".join([*lines, *(f"  {line}" for line in self.arithmetic), *map(str, self.findings)])
