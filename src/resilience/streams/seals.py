"""Seals: what is encrypted and authenticated before it leaves, and refused unless it comes back as it was. Pure.

Frames are sealed with AES-256-GCM (NIST SP 800-38D): the sealed frame is as long as the frame and a tag of 16 bytes.
The nonce counts, 32 bits for the part and 64 bits for the frame in it, both big-endian. The additional data says where
the frame belongs: to which backup, part and object, as which frame, and whether it is the part's last one. So a frame
that was changed, moved, left out at the end or brought from elsewhere is refused before a byte of it is handed out.

Records are not secret. Their MAC is HMAC-SHA256 (RFC 2104) over where they belong and what they say. A key is never
used for two things: each use has a key of its own, derived by HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TYPE_CHECKING

from resilience.model.errors import SealBroken, Unsupported

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
TAG_SIZE = 16
_NONCE = struct.Struct(">IQ")
_FRAME = "resilience 2 frame"
_RECORD = "resilience 2 record"


class Sealer:
    """Seals and opens the frames of one part of one thing; usable from several threads.

    `key` is for the frames of this thing alone, `place` says what it is, and `number` tells its part from every other
    that is sealed with this key. No frame number may be sealed twice. Raises Unsupported without `cryptography`.
    """

    def __init__(self, key: bytes, *place: str, number: int = 0) -> None:
        self.number = number
        self._place = bound(_FRAME, *place)
        self._cipher = _cipher(key)

    def seal(self, frame: bytes | memoryview, *, number: int, object: int = 0, last: bool) -> bytes:
        """Return a frame sealed as the frame of that number, in the object of that number."""
        return self._cipher.encrypt(_NONCE.pack(self.number, number), frame, self._where(number, object, last))

    def open(self, sealed: bytes | memoryview, *, number: int, object: int = 0, last: bool) -> bytes:
        """Return the frame. Raises SealBroken unless it was sealed with this key, for this very place."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(_NONCE.pack(self.number, number), sealed, self._where(number, object, last))
        except (InvalidTag, ValueError) as error:
            raise SealBroken(f"frame {number} is not what was sealed here: it was changed, moved or cut off") from error

    def _where(self, number: int, object: int, last: bool) -> bytes:
        return b"%b\0%d\0%d\0%b" % (self._place, object, number, b"last" if last else b"more")


def derived(key: bytes, purpose: str, *, salt: bytes = b"") -> bytes:
    """Return the 32 bytes that HKDF-SHA256 derives from a key for a purpose."""
    extracted = hmac.digest(salt or bytes(hashlib.sha256().digest_size), key, "sha256")
    return hmac.digest(extracted, purpose.encode() + b"\1", "sha256")


def mac(key: bytes, name: str, body: bytes | memoryview) -> str:
    """Return the MAC, in hexadecimal, of a record that is stored under a name."""
    authenticator = hmac.new(key, bound(_RECORD, name, ""), "sha256")
    authenticator.update(body)
    return authenticator.hexdigest()


def same(one: str, other: str) -> bool:
    """Compare two MACs in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def bound(*words: str) -> bytes:
    """Return words as bytes that no other words have. Raises ValueError if one holds a zero byte."""
    if any("\0" in word for word in words):
        raise ValueError("a name that is sealed holds no zero byte")
    return "\0".join(words).encode()


def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes, this one has {len(key)}")
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise Unsupported(
            "sealing needs the package cryptography", operation="seal", hint="install resilience[sealing]"
        ) from error
    return AESGCM(key)
