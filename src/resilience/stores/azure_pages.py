"""What Azure answers about objects: a page of a listing, and the headers of one.

See "List Blobs" and "Get Blob Properties" in the reference of Azure's storage services.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import get_args
from xml.etree import ElementTree as ET

from attrs import frozen

from resilience.model.errors import StorageFailed, Unsupported
from resilience.model.retention import Tier
from resilience.primitives import ObjectInfo

from .azure_rest import Answer, moment
from .keys import is_key

_TIERS: dict[str, Tier] = {tier: tier for tier in get_args(Tier)}


@frozen(kw_only=True)
class Page:
    """Some objects in the order of their keys, and where the next page begins: "" if there is none."""

    infos: Sequence[ObjectInfo]
    marker: str


def page(content: Sequence[bytes], prefix: str) -> Page:
    """Read a page of a listing; blobs that have no name of ours are left out. Raises StorageFailed and Unsupported."""
    try:
        root = ET.fromstring(b"".join(content))  # noqa: S314  # the account's own answer, over TLS
    except ET.ParseError as error:
        raise StorageFailed("the storage account's list cannot be read", operation="list", subject=prefix) from error
    infos = [_listed(blob) for blob in root.iterfind("Blobs/Blob") if is_key(blob.findtext("Name", ""))]
    if any(first.key >= second.key for first, second in pairwise(infos)):
        text = "the account does not list in the order of the keys: it has a hierarchical namespace"
        raise Unsupported(text, operation="list", subject=prefix, hint="use an account with a flat namespace")
    return Page(infos=infos, marker=root.findtext("NextMarker", ""))


def described(key: str, answer: Answer) -> ObjectInfo:
    """Read what the headers say of an object."""
    inferred = answer.headers.get("x-ms-access-tier-inferred") == "true"
    return ObjectInfo(
        key=key,
        size=int(answer.headers["Content-Length"]),
        modified=answer.modified,
        tier=None if inferred else tier(answer.headers.get("x-ms-access-tier")),
    )


def tier(name: str | None) -> Tier | None:
    """Return a tier by Azure's name of it; None if it is none of ours, as of premium accounts."""
    return _TIERS.get((name or "").lower())


def _listed(blob: ET.Element) -> ObjectInfo:
    properties = {each.tag: each.text or "" for each in blob.iterfind("Properties/*")}
    return ObjectInfo(
        key=blob.findtext("Name", ""),
        size=int(properties["Content-Length"]),
        modified=moment(properties["Last-Modified"]),
        tier=None if properties.get("AccessTierInferred") == "true" else tier(properties.get("AccessTier")),
    )
