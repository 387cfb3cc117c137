"""The few executables that other programs call, and the lines that make them do so."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import WalConfig
    from .lines import archive_command, postgresql_conf, restore_command

__all__ = ["WalConfig", "archive_command", "postgresql_conf", "restore_command"]

_HOMES = {"WalConfig": "config", "archive_command": "lines", "postgresql_conf": "lines", "restore_command": "lines"}


def __getattr__(name: str) -> object:
    """Load a public name from its file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    """List what can be loaded."""
    return sorted(__all__)
