"""Objectives: how much may be lost, how long a recovery may take, and what is done to keep to it. Declared, as data."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from attrs import field, frozen

from .moments import not_negative, positive
from .show import Shown, as_span

Priority = Literal["critical", "high", "medium", "low"]


@frozen(kw_only=True)
class Objective(Shown):
    """What is promised for one kind of data.

    `rpo` is from the last moment that can be recovered to the disaster, `rto` from the disaster to data that is proven.
    `overhead` is the part of the RTO that is no recovery: detection, decision, validation.

    `every` is how often a backup is taken, `full_every` how often a complete one (as often, if None); both None where
    the platform protects the data by itself. With `continuous` the log is kept too. Backups are `kept` that long (None:
    for ever), and `archived` for that long after it.

    `outage` is how long whoever takes the log away, or the store, may be down before anything is lost by it.
    """

    rpo: timedelta = field(validator=positive)
    rto: timedelta = field(validator=positive)
    data: str = ""
    overhead: timedelta = field(default=timedelta(0), validator=not_negative)
    every: timedelta | None = field(default=None, validator=positive)
    full_every: timedelta | None = field(default=None, validator=positive)
    continuous: bool = False
    kept: timedelta | None = field(default=None, validator=positive)
    archived: timedelta = field(default=timedelta(0), validator=not_negative)
    priority: Priority = "medium"
    outage: timedelta = field(default=timedelta(hours=1), validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.overhead >= self.rto:
            raise ValueError("overhead leaves no time for the recovery within the rto")
        if self.full_every is not None and (self.every is None or self.full_every < self.every):
            raise ValueError("full_every cannot be shorter than every: a full backup is a backup too")

    @property
    def recovery(self) -> timedelta:
        """How long the recovery itself may take."""
        return self.rto - self.overhead

    @property
    def incremental(self) -> bool:
        """Whether it wants backups between the full ones."""
        return self.every is not None and self.full_every is not None and self.every < self.full_every

    @property
    def needs_log(self) -> bool:
        """Whether backups alone, as often as they are taken, do not keep to the RPO."""
        return self.continuous or self.every is None or self.every > self.rpo

    def __str__(self) -> str:
        words = [f"RPO {as_span(self.rpo)}", f"RTO {as_span(self.rto)}"]
        if self.overhead:
            words[-1] += f" (recovery {as_span(self.recovery)})"
        if self.continuous:
            words.append("log kept continuously")
        if self.every is not None:
            words.append(f"a backup every {as_span(self.every)}")
        if self.incremental:
            words.append(f"a full one every {as_span(self.full_every)}")
        return ", ".join(words)


@frozen(kw_only=True)
class ReferenceSetting(Shown):
    """One setting of a system as the reference has it, and why it matters."""

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value}: {self.why}"
