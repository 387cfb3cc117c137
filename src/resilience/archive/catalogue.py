"""All manifests of a target, many fetched at once and told in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from attrs import frozen

from resilience.model.errors import Corrupt, KeyMissing, ManifestInvalid, SealBroken, Unsupported
from resilience.model.manifests import Manifest

from . import layout
from .chain import digest_of
from .records import Records
from .small import wholes


@frozen
class Looked:
    """What was found under the key of a manifest: the manifest with the digest of its bytes, or why there is none."""

    key: str
    manifest: Manifest | None = None
    digest: str = ""
    problem: Corrupt | KeyMissing | Unsupported | None = None


async def catalogue(records: Records) -> AsyncGenerator[Looked]:
    """Yield what is under each key of a manifest, in the order of the keys; what has just been removed is left out."""
    async with aclosing(wholes(records.store, layout.manifests(records.system, records.target))) as found:
        async for key, data in found:
            try:
                yield Looked(key, await manifest_in(records, data, key), digest_of(data))
            except (Corrupt, KeyMissing, Unsupported) as error:
                yield Looked(key, problem=error)


async def manifest_in(records: Records, data: bytes, key: str) -> Manifest:
    """Return the manifest in bytes that are stored under a key. Raises Corrupt, KeyMissing and Unsupported."""
    manifest = await records.unwrapped(key, data, Manifest)
    if records.keyring.key is not None:
        sealed_with_its_own(manifest)
    with suppress(ValueError):
        if layout.manifest(manifest.system, manifest.target, manifest.id) == key:
            return manifest
    raise ManifestInvalid("it belongs under another name", operation="read manifest", subject=key)


def sealed_with_its_own(manifest: Manifest) -> None:
    """Raise SealBroken unless a backup's frames are sealed with the data key that was made for it.

    So who has stolen a key that was replaced since cannot seal a new backup with the data key of an old one.
    """
    if manifest.sealing is None or manifest.sealing.key != layout.backup_key(manifest.id):
        raise SealBroken(
            "its frames are not sealed with the data key of this backup",
            operation="read manifest",
            subject=layout.manifest(manifest.system, manifest.target, manifest.id),
        )
