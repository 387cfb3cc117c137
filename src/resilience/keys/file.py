"""A key in a file: the embedded key-encryption key, for who has no vault.

The file is one line of text, so that it can be printed and locked away: `resilience-key-1`, the 32 bytes as hexadecimal
digits, and the first 8 digits of their sha256, so that a slip in copying it is noticed.

Two keys are derived from the 32 bytes, each HMAC-SHA256 (RFC 2104) over a label: one wraps, the other is the `id`, from
which nobody can tell the key. What is wrapped is sealed by AES-256-GCM (NIST SP 800-38D) with the context as additional
data: 12 random bytes of nonce, then the ciphertext with its tag of 16 bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from stat import S_IRWXG, S_IRWXO, S_ISREG, S_IWGRP, S_IXGRP
from typing import final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from resilience.model.errors import AlreadyExists, Refused, SealBroken, StorageFailed

SIZE = 32
NONCE = 12
_LINE = re.compile(rb"resilience-key-1 ([0-9a-f]{64}) ([0-9a-f]{8})\n?")
_LONGEST = 200


@final
class KeyFile:
    """The key in the file at `path`, read once.

    `KeyFile.create(path)` makes one. Nobody but the file's owner may be able to read it; a file of root's also its
    group, as a mounted secret has it. Keep a copy where the backups are not: without the key they are lost.

    Raises Refused if the file cannot be read, is open to others or is no key file.
    """

    __slots__ = ("_secret", "id", "path")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        key = _read(self.path)
        self._secret = AESGCM(_derived(key, b"resilience: wrap keys 1"))
        self.id = "file-" + _derived(key, b"resilience: name of a key 1").hex()[:32]

    @classmethod
    def create(cls, path: str | Path) -> KeyFile:
        """Make a new random key in a new file, mode 0600, durable once this returns.

        Raises AlreadyExists if something is there, which is left as it is, and StorageFailed if it cannot be written.
        """
        path = Path(path)
        try:
            _write(path, _line(secrets.token_bytes(SIZE)))
        except FileExistsError as error:
            raise AlreadyExists(
                "something is there already, and a key is never replaced",
                operation="create key",
                subject=str(path),
                hint="choose another path, or use the key that is there",
            ) from error
        except OSError as error:
            raise StorageFailed(
                f"it cannot be written: {error.strerror}", operation="create key", subject=str(path)
            ) from error
        return cls(path)

    def __repr__(self) -> str:
        return f"KeyFile({str(self.path)!r}, id={self.id!r})"

    async def wrap(self, key: bytes, *, context: bytes) -> bytes:
        """Return `key` sealed for this context; see `KeyEncryptionKey.wrap`."""
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._secret.encrypt(nonce, key, context)

    async def unwrap(self, wrapped: bytes, *, context: bytes) -> bytes:
        """Return what was wrapped. Raises SealBroken unless this key wrapped it, for this context."""
        try:
            return self._secret.decrypt(wrapped[:NONCE], wrapped[NONCE:], context)
        except (InvalidTag, ValueError) as error:
            raise SealBroken(
                "this key did not wrap these bytes for this place: they were changed, moved, or made by somebody else",
                operation="unwrap key",
                subject=self.id,
            ) from error


def _derived(key: bytes, label: bytes) -> bytes:
    return hmac.digest(key, label, "sha256")


def _line(key: bytes) -> bytes:
    return f"resilience-key-1 {key.hex()} {hashlib.sha256(key).hexdigest()[:8]}\n".encode()


def _write(path: Path, line: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(line)
            file.flush()
            os.fchmod(file.fileno(), 0o600)  # whatever the umask took away
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _read(path: Path) -> bytes:
    def refused(what: str, hint: str = "") -> Refused:
        return Refused(what, operation="read key", subject=str(path), hint=hint)

    try:
        # Not blocking: a named pipe would keep us waiting for somebody to write into it.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if _is_open_to_others(os.fstat(file.fileno())):
                raise refused("others than its owner can read this key", hint=f"chmod 600 {path}")
            line = file.read(_LONGEST)
    except OSError as error:
        raise refused(
            f"it cannot be read: {error.strerror}",
            hint="KeyFile.create(path) makes a new key, which opens no old backup",
        ) from error
    found = _LINE.fullmatch(line)
    key = bytes.fromhex(found[1].decode()) if found else b""
    if found is None or _line(key) != line.rstrip(b"\n") + b"\n":
        raise refused("this is no key file, or not all of it", hint="bring back the file that KeyFile.create made")
    return key


def _is_open_to_others(status: os.stat_result) -> bool:
    if not S_ISREG(status.st_mode):
        return False  # what it holds is no key
    if status.st_uid == 0 != os.geteuid():
        return bool(status.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO))
    return status.st_uid != os.geteuid() or bool(status.st_mode & (S_IRWXG | S_IRWXO))
