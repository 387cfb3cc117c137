"""Where keys live. Each key-encryption key is one file and passes `resilience.testing.keys.KeySuite`.

The names are loaded when first used (PEP 562): only who uses a key needs what it is made with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.lazily import lazily

if TYPE_CHECKING:
    from .file import KeyFile
    from .keyvault import KeyVaultKey

__all__ = ["KeyFile", "KeyVaultKey"]

__getattr__, __dir__ = lazily(__name__, {"KeyFile": "file", "KeyVaultKey": "keyvault"})
