"""What checks say: a finding is one observation, a verdict sums up one validation."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

from attrs import field, frozen

from .show import Shown, as_bytes

Severity = Literal["note", "warning", "blocker"]


@frozen(kw_only=True)
class Finding(Shown):
    """One observation by a check. A `blocker` stops the operation or fails the verdict; the others inform."""

    severity: Severity
    subject: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        sentence = f"{self.severity}: {self.subject}: {self.text}" if self.subject else f"{self.severity}: {self.text}"
        return f"{sentence} ({self.hint})" if self.hint else sentence


def blocker(subject: str, text: str, hint: str = "") -> Finding:
    """Make a finding that stops the operation, or fails the verdict."""
    return Finding(severity="blocker", subject=subject, text=text, hint=hint)


@frozen(kw_only=True)
class Doubt(Shown):
    """What is wrong with a target's list of backups: one cannot be read, cannot be trusted, or was hidden.

    `backup` is its id, None where nobody can tell which one it is; `subject` is the key of an object. Others that
    can be read are as good as before.
    """

    backup: str | None
    subject: str
    text: str
    hint: str = ""

    @property
    def finding(self) -> Finding:
        """The doubt as a finding: a warning that names the backup."""
        return Finding(severity="warning", subject=self.backup or self.subject, text=self.text, hint=self.hint)

    def __str__(self) -> str:
        return str(self.finding)


class Level(IntEnum):
    """How much a validation proves (R15); each level includes those below it."""

    EXISTS = 0
    """L0: every object the manifest names is there, with its size."""
    CHECKSUMS = 1
    """L1: every stored byte was read and its checksums match."""
    PARSES = 2
    """L2: the format parses to its end and is not suspiciously small."""
    STARTS = 3
    """L3: a scratch server starts on it and answers."""
    ASSERTIONS = 4
    """L4: assertions about the data hold."""

    def __str__(self) -> str:
        return f"L{self.value}"


@frozen(kw_only=True)
class Examined(Shown):
    """One stored object that was looked at: how many of its bytes, and what is wrong with it (empty: nothing)."""

    key: str
    bytes: int
    problem: str = ""


@frozen(kw_only=True)
class Verdict(Shown):
    """What a validation found: whether it passed, the highest level reached, and how much it looked at.

    `level` is the highest level that passed together with all below it, None if not even L0 did.
    """

    subject: str
    passed: bool
    level: Level | None
    objects: int = 0
    bytes: int = 0
    seconds: float = 0.0
    findings: tuple[Finding, ...] = field(default=())

    def __str__(self) -> str:
        word = "passed" if self.passed else "FAILED"
        reached = f"level {self.level}" if self.level is not None else "no level"
        lines = [f"{self.subject}: {word}, {reached} ({self.objects} objects, {as_bytes(self.bytes)} examined)"]
        return "\n  ".join(lines + [str(finding) for finding in self.findings])
