"""What rotation says: which data keys a key-encryption key can unwrap now."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge

from .findings import Finding
from .show import Shown


@frozen(kw_only=True)
class Rewrapped(Shown):
    """One data key: whether it was wrapped anew (`added`) or was before, or the `problem` why it is not.

    `subject` is the key of the object that it is about.
    """

    name: str
    subject: str
    added: bool = False
    problem: str = ""
    hint: str = ""


@frozen(kw_only=True)
class RotationReport(Shown):
    """A rotation of a target's keys: how many were wrapped anew, how many were before, and what is in the way.

    Only when it is `complete` the new key alone opens all that was there when it began.
    """

    target: str
    added: int = field(validator=ge(0))
    there: int = field(validator=ge(0))
    seconds: float
    actor: str = ""
    reason: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the new key opens everything."""
        return not any(finding.severity == "blocker" for finding in self.findings)

    def __str__(self) -> str:
        end = "the new key opens all of them" if self.complete else "NOT COMPLETE: the old key is still needed"
        head = f"rotated {self.target}: {self.added} data keys wrapped anew, {self.there} were before; {end}"
        return "\n  ".join([head, *map(str, self.findings)])
