"""PgBouncer, as a switch between the servers of a group. The names are loaded when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .switch import PgBouncerSwitch

__all__ = ["PgBouncerSwitch"]

__getattr__, __dir__ = lazily(__name__, {"PgBouncerSwitch": "switch"})
