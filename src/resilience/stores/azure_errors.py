"""What Azure's answers mean: its error codes, and ours.

See "Blob service error codes" and "Common REST API error codes" in the reference of Azure's storage services.
"""

from __future__ import annotations

from resilience.model.errors import (
    AlreadyExists,
    Conflict,
    NotRehydrated,
    ObjectMissing,
    Refused,
    ResilienceError,
    StorageFailed,
    Throttled,
    TimedOut,
    Unavailable,
)

MISSING = frozenset({"BlobNotFound", "ResourceNotFound"})
EXISTS = frozenset({"BlobAlreadyExists", "UnauthorizedBlobOverwrite", "TargetConditionNotMet"})
FROZEN = frozenset({"BlobArchived", "BlobBeingRehydrated"})
NO_BLOCKS = "InvalidBlockList"
NOT_PERMITTED = frozenset({"AuthorizationPermissionMismatch", "AuthorizationFailure"})
_BUSY = frozenset({"ServerBusy", "OperationTimedOut", "TooManyRequests"})

_NEEDS = {
    "put": ("Microsoft.Storage/…/blobs/write, or blobs/add/action to add only", "c (and w for objects in blocks)"),
    "get": ("Storage Blob Data Reader", "r"),
    "stat": ("Storage Blob Data Reader", "r"),
    "list": ("Storage Blob Data Reader", "l"),
    "delete": ("Microsoft.Storage/…/blobs/delete", "d"),
    "rehydrate": ("Microsoft.Storage/…/blobs/read and blobs/add/action", "r and c"),
}
_HELD = {
    "SnapshotsPresent": "it has snapshots, and Azure keeps a blob as long as them: delete them first",
    "LeaseIdMissing": "somebody holds a lease on it: it can be changed when that has ended",
}
_ANSWERS = {
    "ContainerNotFound": ("the container does not exist", "create it, or correct the container's URL"),
    "ContainerBeingDeleted": ("the container is being deleted", "wait, then create it again"),
    "ContainerDisabled": ("the container was disabled", "ask who administers the storage account"),
    "AccountIsDisabled": ("the storage account is disabled", "ask who administers it"),
    "InsufficientAccountPermissions": ("the account can only be read here", "a secondary takes no writes"),
    "KeyBasedAuthenticationNotPermitted": (
        "the account accepts no keys nor signatures made with them",
        "give a credential of azure-identity, or a user delegation SAS",
    ),
    "AuthenticationFailed": (
        "the credential is not accepted",
        "it may be expired or not valid yet: compare this machine's clock, and st= and se= of a signature",
    ),
    "InvalidAuthenticationInfo": (
        "the token is not accepted",
        "check its tenant and audience, and this machine's clock",
    ),
    "NoAuthenticationInformation": ("nothing says who asks", "give a credential="),
    "AccessTierNotSupportedForBlobType": ("the account has no such access tier", "leave it out of tiers="),
    "FeatureNotSupported": ("the account has no such feature", "see the account's kind and redundancy"),
}


def refusal(status: int, code: str, *, operation: str, subject: str) -> ResilienceError:
    """Return what to raise for an answer that asking again would not change."""
    if code in MISSING or (status == 404 and not code):
        return ObjectMissing("there is no such object", operation=operation, subject=subject)
    if code in FROZEN:
        hint = "AzureBlobStore.rehydrate() starts a readable copy: up to 15 hours, or about one if urgent"
        what = "it lies in the Archive tier, which cannot be read"
        return NotRehydrated(what, operation=operation, subject=subject, hint=hint)
    if code in EXISTS:
        return AlreadyExists("the object exists", operation=operation, subject=subject)
    if code.startswith(("BlobImmutable", "ContainerImmutable")) or "LegalHold" in code:
        what = "a legal hold or a retention policy of the container forbids that until it ends"
        return Refused(what, operation=operation, subject=subject, hint=f"Azure said {code}")
    if code in _HELD:
        return Refused(_HELD[code], operation=operation, subject=subject)
    if code in _ANSWERS:
        what, hint = _ANSWERS[code]
        return Refused(what, operation=operation, subject=subject, hint=hint)
    if status in (401, 403):
        return _forbidden(code, operation, subject)
    if status == 412:
        return Conflict("it was replaced meanwhile", operation=operation, subject=subject)
    return Refused(f"the storage account answered {status} {code}".rstrip(), operation=operation, subject=subject)


def passing(status: int, code: str, *, operation: str, subject: str) -> Unavailable | None:
    """Return what to raise if asking again does not help; None if it could not help."""
    said = f"the storage account answered {status} {code}".rstrip()
    if status in (429, 503) or code in _BUSY:
        return Throttled(f"{said}: it is too busy", operation=operation, subject=subject)
    if status == 408:
        return TimedOut(said, operation=operation, subject=subject)
    if status >= 500 and status not in (501, 505):
        return StorageFailed(said, operation=operation, subject=subject)
    return None


def _forbidden(code: str, operation: str, subject: str) -> Refused:
    role, letter = _NEEDS.get(operation, ("a role on the container", "its letter"))
    hint = f"it takes {role}, or {letter} in a signature's sp=; the account's firewall may also be the reason"
    what = f"not permitted ({code})" if code else "not permitted"
    return Refused(what, operation=operation, subject=subject, hint=hint)
