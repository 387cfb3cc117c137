"""What the SDK says of blobs, as ours: one object, and a page of a listing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import get_args

from attrs import frozen
from azure.storage.blob import BlobProperties

from resilience.model.errors import Unsupported
from resilience.model.retention import Tier
from resilience.primitives import ObjectInfo

from .keys import is_key

_TIERS: dict[str, Tier] = {tier: tier for tier in get_args(Tier)}


@frozen(kw_only=True)
class Page:
    """Some objects in the order of their keys, and where the next page begins: "" if there is none."""

    infos: Sequence[ObjectInfo]
    marker: str


def page(blobs: Iterable[BlobProperties], marker: str, prefix: str) -> Page:
    """Make a page of a listing; blobs that have no name of ours are left out. Raises Unsupported."""
    infos = [described(blob.name, blob) for blob in blobs if is_key(blob.name)]
    if any(first.key >= second.key for first, second in pairwise(infos)):
        text = "the account does not list in the order of the keys: it has a hierarchical namespace"
        raise Unsupported(text, operation="list", subject=prefix, hint="use an account with a flat namespace")
    return Page(infos=infos, marker=marker)


def described(key: str, blob: BlobProperties) -> ObjectInfo:
    """Return what is said of an object. Its tier is None where Azure infers it from the account's."""
    modified = blob.last_modified
    return ObjectInfo(
        key=key,
        size=blob.size,
        modified=modified.astimezone(UTC) if modified else datetime.fromtimestamp(0, UTC),
        tier=None if blob.blob_tier_inferred else tier(blob.blob_tier),
    )


def tier(name: str | None) -> Tier | None:
    """Return a tier by Azure's name of it; None if it is none of ours, as of premium accounts."""
    return _TIERS.get((name or "").lower())
