"""Where bytes live. Each store is one file and passes `resilience.testing.StoreSuite`.

`AzureBlobStore` (extra `azure`) is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

from .local import LocalStore
from .memory import MemoryStore

if TYPE_CHECKING:
    from .azure_blob import AzureBlobStore

__all__ = ["AzureBlobStore", "LocalStore", "MemoryStore"]

__getattr__, __dir__ = lazily(__name__, {"AzureBlobStore": "azure_blob"})
