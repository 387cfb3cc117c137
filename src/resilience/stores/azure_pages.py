"""What the SDK says of blobs, as ours: one object, and a page of a listing, with what cannot be removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import cast, get_args

from attrs import frozen
from azure.core.async_paging import AsyncPageIterator
from azure.core.exceptions import DecodeError
from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import ContainerClient

from resilience.model.errors import Unsupported
from resilience.model.moments import utc_now
from resilience.model.retention import Tier
from resilience.primitives import ObjectInfo

from .keys import is_key

HOLDS = ("immutabilitypolicy", "legalhold")
"""What a list is asked to say besides; see "List Blobs" of Azure's reference. Azurite takes it, and knows no holds."""
UNKNOWN = frozenset({"InvalidQueryParameterValue", "FeatureNotSupported", "FeatureVersionMismatch"})
"""How an account answers that does not know what it is asked to say."""
_TIERS: dict[str, Tier] = {tier: tier for tier in get_args(Tier)}


@frozen(kw_only=True)
class Page:
    """Some objects in the order of their keys, and where the next page begins: "" if there is none."""

    infos: Sequence[ObjectInfo]
    marker: str


async def asked(
    container: ContainerClient, prefix: str, marker: str, most: int, holds: Sequence[str]
) -> tuple[list[BlobProperties], str]:
    """Ask for one page of a listing, and where the next begins. Raises DecodeError if the SDK cannot read it."""
    pages = container.list_blobs(prefix, include=list(holds) or None, results_per_page=most).by_page(marker or None)
    try:
        blobs = [blob async for blob in await anext(pages)]
    except (AttributeError, TypeError, ValueError) as error:
        broken = type(error).__name__
    else:
        return blobs, cast("AsyncPageIterator[BlobProperties]", pages).continuation_token or ""
    raise DecodeError(f"the SDK cannot read it: {broken}")


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
        held=held(blob),
    )


def held(blob: BlobProperties) -> str:
    """Return why a blob cannot be removed now, as far as it says so itself: it says no holds of its container."""
    if blob.has_legal_hold:
        return "it is under legal hold"
    until = blob.immutability_policy.expiry_time
    return f"it is immutable until {until:%Y-%m-%d %H:%M}Z" if until and until > utc_now() else ""


def tier(name: str | None) -> Tier | None:
    """Return a tier by Azure's name of it; None if it is none of ours, as of premium accounts."""
    return _TIERS.get((name or "").lower())
