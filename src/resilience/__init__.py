"""Back up, restore and fail over a platform's data.

The names here are what most code needs. They are loaded when first used (PEP 562), so `import resilience` itself costs
almost nothing. Systems and stores are imported from their own rooms: `resilience.postgres`, `resilience.stores`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazily import lazily
from .version import VERSION as __version__  # noqa: N811  # the name that everybody expects

if TYPE_CHECKING:
    from .archive import Archive
    from .model.diagnosis import Diagnosis
    from .model.errors import (
        AlreadyExists,
        ChecksumMismatch,
        Conflict,
        Corrupt,
        DestinationNotEmpty,
        DiskTooSmall,
        Interrupted,
        KeyMissing,
        LineageBroken,
        LogGap,
        ManifestInvalid,
        NoBackup,
        NotIncremental,
        NotRecoverable,
        NotRehydrated,
        ObjectMissing,
        Refused,
        ResilienceError,
        SealBroken,
        StorageFailed,
        Throttled,
        TimedOut,
        Unavailable,
        Unreachable,
        Unsupported,
        WouldLeaveGap,
    )
    from .model.events import Event, Observer
    from .model.findings import Finding, Level, Verdict
    from .model.manifests import Manifest
    from .model.objectives import Objective
    from .model.plans import RestorePlan
    from .model.positions import Position, RecoveryPoint
    from .model.pruning import PrunePlan, PruneReport
    from .model.reports import BackupReport, Coverage, RestorableMoment, RestoreReport
    from .model.retention import Keep, RetentionPolicy, RetentionRule
    from .model.targets import RecoveryTarget
    from .operations.backup import backup
    from .operations.coverage import coverage
    from .operations.doctor import doctor
    from .operations.plan import plan_restore
    from .operations.prune import plan_prune, prune
    from .operations.rehydrate import rehydrate
    from .operations.restore import restore
    from .operations.rotate import rotate
    from .operations.verify import verify
    from .planning.cost import estimate_cost
    from .primitives import Archiver, BackupTarget, KeyEncryptionKey, ObjectStore, RestoreDestination, Validator

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
    "Diagnosis",
    "DiskTooSmall",
    "Event",
    "Finding",
    "Interrupted",
    "Keep",
    "KeyEncryptionKey",
    "KeyMissing",
    "Level",
    "LineageBroken",
    "LogGap",
    "Manifest",
    "ManifestInvalid",
    "NoBackup",
    "NotIncremental",
    "NotRecoverable",
    "NotRehydrated",
    "ObjectMissing",
    "ObjectStore",
    "Objective",
    "Observer",
    "Position",
    "PrunePlan",
    "PruneReport",
    "RecoveryPoint",
    "RecoveryTarget",
    "Refused",
    "ResilienceError",
    "RestorableMoment",
    "RestoreDestination",
    "RestorePlan",
    "RestoreReport",
    "RetentionPolicy",
    "RetentionRule",
    "SealBroken",
    "StorageFailed",
    "Throttled",
    "TimedOut",
    "Unavailable",
    "Unreachable",
    "Unsupported",
    "Validator",
    "Verdict",
    "WouldLeaveGap",
    "__version__",
    "backup",
    "coverage",
    "doctor",
    "estimate_cost",
    "plan_prune",
    "plan_restore",
    "prune",
    "rehydrate",
    "restore",
    "rotate",
    "verify",
]

_ROOMS = {
    "archive": ["Archive"],
    "model.diagnosis": ["Diagnosis"],
    "model.errors": [
        "AlreadyExists",
        "ChecksumMismatch",
        "Conflict",
        "Corrupt",
        "DestinationNotEmpty",
        "DiskTooSmall",
        "Interrupted",
        "KeyMissing",
        "LineageBroken",
        "LogGap",
        "ManifestInvalid",
        "NoBackup",
        "NotIncremental",
        "NotRecoverable",
        "NotRehydrated",
        "ObjectMissing",
        "Refused",
        "ResilienceError",
        "SealBroken",
        "StorageFailed",
        "Throttled",
        "TimedOut",
        "Unavailable",
        "Unreachable",
        "Unsupported",
        "WouldLeaveGap",
    ],
    "model.events": ["Event", "Observer"],
    "model.findings": ["Finding", "Level", "Verdict"],
    "model.manifests": ["Manifest"],
    "model.objectives": ["Objective"],
    "model.plans": ["RestorePlan"],
    "model.positions": ["Position", "RecoveryPoint"],
    "model.pruning": ["PrunePlan", "PruneReport"],
    "model.reports": ["BackupReport", "Coverage", "RestorableMoment", "RestoreReport"],
    "model.retention": ["Keep", "RetentionPolicy", "RetentionRule"],
    "model.targets": ["RecoveryTarget"],
    "operations.backup": ["backup"],
    "operations.coverage": ["coverage"],
    "operations.doctor": ["doctor"],
    "operations.plan": ["plan_restore"],
    "operations.prune": ["plan_prune", "prune"],
    "operations.rehydrate": ["rehydrate"],
    "operations.restore": ["restore"],
    "operations.rotate": ["rotate"],
    "operations.verify": ["verify"],
    "planning.cost": ["estimate_cost"],
    "primitives": ["Archiver", "BackupTarget", "KeyEncryptionKey", "ObjectStore", "RestoreDestination", "Validator"],
}

__getattr__, __dir__ = lazily(__name__, {name: room for room, names in _ROOMS.items() for name in names})
