"""The archive that a configuration names, opened: a folder, a container, or what a function returns; and its keys."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from stat import S_IRWXO, S_IWGRP, S_IXGRP
from typing import TYPE_CHECKING, cast

from attrs import define, field

from resilience.archive import Archive
from resilience.primitives import Archiver, KeyEncryptionKey, ObjectStore
from resilience.stores import LocalStore

from .config import VAULT, WalConfig

if TYPE_CHECKING:
    from resilience.stores.azure_identity import Identity


@asynccontextmanager
async def keeping(config: WalConfig) -> AsyncIterator[Archiver]:
    """Open the archive; its connections end on leaving.

    Raises Refused if there is none where the file says, or a key or signature cannot be read.
    """
    async with AsyncExitStack() as opened:
        if config.archive is not None:
            yield _returned(config, config.archive)
            return
        making = _Making(config, opened)
        key = None if config.key is None else making.key(config.key)
        older = tuple(making.key(each) for each in config.older)
        yield Archive(await making.store(), key=key, older=older)


@define
class _Making:
    """Makes what an archive is made of; nothing is loaded that it does not need."""

    config: WalConfig
    opened: AsyncExitStack
    _credential: Identity | None = field(default=None, init=False)

    async def store(self) -> ObjectStore:
        directory, container = self.config.directory, self.config.container
        if container is None:
            if directory is None or not directory.is_dir():
                text = f"directory: {directory} is no folder"
                raise self.config.wrong(text, "make it, or mount what belongs there")
            return LocalStore(directory)
        try:
            from resilience.stores import AzureBlobStore

            credential = self._signature() or self._identity()
            return await self.opened.enter_async_context(AzureBlobStore(container, credential=credential))
        except ImportError as error:
            raise self._without("container: Azure", "azure") from error
        except ValueError as error:
            raise self.config.wrong(f"container: {error}") from error

    def key(self, name: str) -> KeyEncryptionKey:
        """Return the key in a file, or the one that a vault has under an identifier."""
        try:
            if not name.startswith(VAULT):
                from resilience.keys import KeyFile

                return KeyFile(Path(name))
            from resilience.keys import KeyVaultKey

            return KeyVaultKey(name, self._identity())
        except ImportError as error:
            vault = name.startswith(VAULT)
            raise self._without("a vault" if vault else "sealing", "keyvault,azure" if vault else "sealing") from error
        except ValueError as error:
            raise self.config.wrong(str(error)) from error

    def _identity(self) -> Identity:
        if self._credential is None:
            from resilience.stores import azure_identity

            made = azure_identity.found()
            self.opened.push_async_callback(made.close)
            self._credential = made
        return self._credential

    def _signature(self) -> str | None:
        path = self.config.signature_file
        if path is None:
            return None
        try:
            if path.stat().st_mode & (S_IWGRP | S_IXGRP | S_IRWXO):
                raise self.config.wrong(f"signature_file: {path} is open to others", "chmod 600, or 640 with a group")
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no text"
            raise self.config.wrong(f"signature_file: {path} cannot be read: {said}") from error

    def _without(self, what: str, extra: str) -> Exception:
        text = f"{what} needs packages that are not installed"
        return self.config.wrong(text, f"install resilience[{extra}] into the Python that runs this")


def _returned(config: WalConfig, archive: str) -> Archiver:
    module, _, function = archive.partition(":")
    beside = config.path.parent  # the function may stand beside the file, where nobody else can put anything
    if str(beside) not in sys.path and not beside.stat().st_mode & 0o022:
        sys.path.append(str(beside))
    try:
        make = cast("Callable[[], Archiver]", getattr(import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise config.wrong(f"archive: {archive!r} cannot be had: {error}", "name it module:function") from error
    return make()
