"""Back up, restore and fail over a platform's data.

The names here are what most code needs. They are loaded when first used (PEP 562), so `import resilience` itself costs
almost nothing. Systems and stores are imported from their own rooms: `resilience.postgres`, `resilience.stores`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .archive import Archive
    from .model.errors import (
        AlreadyExists,
        ChecksumMismatch,
        Conflict,
        Corrupt,
        DestinationNotEmpty,
        DiskTooSmall,
        Interrupted,
        ManifestInvalid,
        NoBackup,
        ObjectMissing,
        Refused,
        ResilienceError,
        StorageFailed,
        TimedOut,
        Unavailable,
        Unreachable,
        Unsupported,
    )
    from .model.events import Event, Observer
    from .model.findings import Finding, Level, Verdict
    from .model.manifests import Manifest
    from .model.positions import Position, RecoveryPoint
    from .model.reports import BackupReport, Coverage, RestorableMoment, RestoreReport
    from .operations.backup import backup
    from .operations.coverage import coverage
    from .operations.restore import restore
    from .operations.verify import verify
    from .primitives import Archiver, BackupTarget, ObjectStore, RestoreDestination, Validator
    from .version import VERSION as __version__  # noqa: N811  # the name that everybody expects

__all__ = [
    "AlreadyExists",
    "Archive",
    "Archiver",
    "BackupReport",
    "BackupTarget",
    "ChecksumMismatch",
    "Conflict",
    "Corrupt",
    "Coverage",
    "DestinationNotEmpty",
    "DiskTooSmall",
    "Event",
    "Finding",
    "Interrupted",
    "Level",
    "Manifest",
    "ManifestInvalid",
    "NoBackup",
    "ObjectMissing",
    "ObjectStore",
    "Observer",
    "Position",
    "RecoveryPoint",
    "Refused",
    "ResilienceError",
    "RestorableMoment",
    "RestoreDestination",
    "RestoreReport",
    "StorageFailed",
    "TimedOut",
    "Unavailable",
    "Unreachable",
    "Unsupported",
    "Validator",
    "Verdict",
    "__version__",
    "backup",
    "coverage",
    "restore",
    "verify",
]

_ROOMS = {
    "archive": ["Archive"],
    "model.events": ["Event", "Observer"],
    "model.findings": ["Finding", "Level", "Verdict"],
    "model.manifests": ["Manifest"],
    "model.positions": ["Position", "RecoveryPoint"],
    "model.reports": ["BackupReport", "Coverage", "RestorableMoment", "RestoreReport"],
    "operations.backup": ["backup"],
    "operations.coverage": ["coverage"],
    "operations.restore": ["restore"],
    "operations.verify": ["verify"],
    "primitives": ["Archiver", "BackupTarget", "ObjectStore", "RestoreDestination", "Validator"],
}


def __getattr__(name: str) -> object:
    """Load a public name from its room; it is kept, so this happens once a name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        value: object = import_module(".version", __name__).VERSION
    else:
        room = next((room for room, names in _ROOMS.items() if name in names), "model.errors")
        value = getattr(import_module(f".{room}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what is loaded and what can be."""
    return sorted({*globals(), *__all__})
