"""Where keys live. Each key-encryption key is one file and passes `resilience.testing.keys.KeySuite`.

The names are loaded when first used (PEP 562): only who uses a key needs what it is made with.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .file import KeyFile
    from .keyvault import KeyVaultKey

__all__ = ["KeyFile", "KeyVaultKey"]

_HOMES = {"KeyFile": "file", "KeyVaultKey": "keyvault"}


def __getattr__(name: str) -> object:
    """Load a name from its file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    """List what can be loaded."""
    return sorted(__all__)
