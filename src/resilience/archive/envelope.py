"""Manifests as bytes: a format number, the manifest, and the digest of exactly its bytes. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from resilience.model.errors import ManifestInvalid, Unsupported
from resilience.model.json import from_json, to_json
from resilience.model.manifests import FORMAT, Manifest


class _Envelope(msgspec.Struct):
    format: int
    sha256: str
    manifest: msgspec.Raw


class _Format(msgspec.Struct):
    format: int


def wrap(manifest: Manifest) -> bytes:
    """Return the bytes to store for a manifest."""
    body = to_json(manifest)
    return msgspec.json.encode(
        _Envelope(format=manifest.format, sha256=hashlib.sha256(body).hexdigest(), manifest=msgspec.Raw(body))
    )


def unwrap(data: bytes, key: str) -> Manifest:
    """Return the manifest in `data`. Raises ManifestInvalid if it is damaged, Unsupported if its format is newer."""
    try:
        written = msgspec.json.decode(data, type=_Format).format
        if written > FORMAT:
            raise Unsupported(
                f"it is written in archive format {written}, this version reads up to {FORMAT}",
                operation="read manifest",
                subject=key,
                hint="install a newer resilience",
            )
        envelope = msgspec.json.decode(data, type=_Envelope)
        if hashlib.sha256(envelope.manifest).hexdigest() != envelope.sha256:
            raise ManifestInvalid("its digest does not match its content", operation="read manifest", subject=key)
        manifest = from_json(bytes(envelope.manifest), Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestInvalid(f"it cannot be read: {error}", operation="read manifest", subject=key) from error
    if manifest.format != written or written < 1:
        raise ManifestInvalid("its format numbers disagree", operation="read manifest", subject=key)
    return manifest
