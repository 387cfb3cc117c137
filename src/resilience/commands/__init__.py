"""The few executables that other programs call, and the lines that make them do so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .config import WalConfig
    from .lines import archive_command, postgresql_conf, restore_command

__all__ = ["WalConfig", "archive_command", "postgresql_conf", "restore_command"]

__getattr__, __dir__ = lazily(
    __name__,
    {"WalConfig": "config", "archive_command": "lines", "postgresql_conf": "lines", "restore_command": "lines"},
)
