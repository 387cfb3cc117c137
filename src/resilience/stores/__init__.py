"""Where bytes live. Each store is one file and passes `resilience.testing.StoreSuite`."""

from .local import LocalStore
from .memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore"]
