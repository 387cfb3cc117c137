"""Progress, told while it happens: an observer is any callable that takes an `Event`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from attrs import define, field, frozen

from .show import Shown

Stage = Literal["started", "progress", "completed", "failed"]


@frozen(kw_only=True)
class Event(Shown):
    """Something happened in an operation. `done` and `total` are bytes; `total` is None where nobody can know it.

    `actor` asked for the operation, for a `reason`; both are empty if the caller did not say.
    """

    operation: str
    subject: str
    stage: Stage
    text: str = ""
    done: int = 0
    total: int | None = None
    actor: str = ""
    reason: str = ""


Observer = Callable[[Event], None]
"""Called on the event loop, so it must return at once; its exceptions are logged once and never reach the operation."""


@define
class Notifier:
    """Tells one observer about one operation on one subject, and shields the operation from the observer's errors."""

    operation: str
    subject: str
    observer: Observer | None
    total: int | None = None
    done: int = 0
    actor: str = ""
    reason: str = ""
    _complained: bool = field(default=False, init=False)

    def tell(self, stage: Stage, text: str = "") -> None:
        """Report a stage with the bytes done so far."""
        if self.observer is None:
            return
        event = Event(
            operation=self.operation,
            subject=self.subject,
            stage=stage,
            text=text,
            done=self.done,
            total=self.total,
            actor=self.actor,
            reason=self.reason,
        )
        try:
            self.observer(event)
        except Exception:
            if not self._complained:
                self._complained = True
                logging.getLogger("resilience").exception("the observer of %s failed", self.operation)

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Tell that the operation started, and how it ended."""
        self.tell("started")
        try:
            yield
        except BaseException as error:
            self.tell("failed", str(error) or type(error).__name__)
            raise
        self.tell("completed")

    def advance(self, count: int, text: str = "") -> None:
        """Report `count` more bytes done."""
        self.done += count
        self.tell("progress", text)
