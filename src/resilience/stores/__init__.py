"""Where bytes live. Each store is one file and passes `resilience.testing.StoreSuite`.

`AzureBlobStore` (extra `azure`) is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .local import LocalStore
from .memory import MemoryStore

if TYPE_CHECKING:
    from .azure_blob import AzureBlobStore

__all__ = ["AzureBlobStore", "LocalStore", "MemoryStore"]


def __getattr__(name: str) -> object:
    """Load a name from its module (PEP 562)."""
    if name != "AzureBlobStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .azure_blob import AzureBlobStore

    return AzureBlobStore
