"""What proves that a member of a group cannot write, whatever system it is of. A system's own are in its room."""

from __future__ import annotations

from .command import CommandFencer, FenceCommand

__all__ = ["CommandFencer", "FenceCommand"]
