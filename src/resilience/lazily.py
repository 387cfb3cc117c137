"""Public names that are loaded from their file when first used (PEP 562), so that importing a room costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`; `homes` says in which of its modules each name lives.

    A name is loaded once and kept.
    """
    room = sys.modules[package]

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f".{homes[name]}", package), name)
        setattr(room, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(room), *homes})

    return load, names
