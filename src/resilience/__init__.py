"""Back up, restore and fail over a platform's data.

The names here are what most code needs. They are loaded when first used (PEP 562), so `import resilience` itself costs
almost nothing. Systems and stores are imported from their own rooms: `resilience.postgres`, `resilience.stores`. Of the
errors these are the families, by what the caller should do; `resilience.errors` has them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazily import lazily
from .version import VERSION as __version__  # noqa: N811  # the name that everybody expects

if TYPE_CHECKING:
    from .archive import Archive
    from .model.diagnosis import Diagnosis
    from .model.errors import (
        Conflict,
        Corrupt,
        Interrupted,
        Refused,
        ResilienceError,
        Unavailable,
        Unsupported,
    )
    from .model.events import Event, Observer
    from .model.failover import FailoverPlan, FailoverPolicy, FailoverReport
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
    from .operations.drill import drill
    from .operations.failback import failback
    from .operations.failover import failover
    from .operations.group import FailoverGroup
    from .operations.plan import plan_restore
    from .operations.plan_failover import plan_failback, plan_failover, plan_switchover
    from .operations.prune import plan_prune, prune
    from .operations.recorder import StateRecorder
    from .operations.rehydrate import rehydrate
    from .operations.restore import restore
    from .operations.resume import resume
    from .operations.rotate import rotate
    from .operations.switchover import switchover
    from .operations.verify import verify
    from .planning.cost import estimate_cost
    from .primitives import (
        Archiver,
        BackupTarget,
        Fault,
        Fencer,
        KeyEncryptionKey,
        ObjectStore,
        Promoter,
        RestoreDestination,
        TrafficSwitch,
        Validator,
    )

__all__ = [
    "Archive",
    "Archiver",
    "BackupReport",
    "BackupTarget",
    "Conflict",
    "Corrupt",
    "Coverage",
    "Diagnosis",
    "Event",
    "FailoverGroup",
    "FailoverPlan",
    "FailoverPolicy",
    "FailoverReport",
    "Fault",
    "Fencer",
    "Finding",
    "Interrupted",
    "Keep",
    "KeyEncryptionKey",
    "Level",
    "Manifest",
    "ObjectStore",
    "Objective",
    "Observer",
    "Position",
    "Promoter",
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
    "StateRecorder",
    "TrafficSwitch",
    "Unavailable",
    "Unsupported",
    "Validator",
    "Verdict",
    "__version__",
    "backup",
    "coverage",
    "doctor",
    "drill",
    "estimate_cost",
    "failback",
    "failover",
    "plan_failback",
    "plan_failover",
    "plan_prune",
    "plan_restore",
    "plan_switchover",
    "prune",
    "rehydrate",
    "restore",
    "resume",
    "rotate",
    "switchover",
    "verify",
]

_ROOMS = {
    "archive": ["Archive"],
    "model.diagnosis": ["Diagnosis"],
    "model.errors": [
        "Conflict",
        "Corrupt",
        "Interrupted",
        "Refused",
        "ResilienceError",
        "Unavailable",
        "Unsupported",
    ],
    "model.events": ["Event", "Observer"],
    "model.failover": ["FailoverPlan", "FailoverPolicy", "FailoverReport"],
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
    "operations.drill": ["drill"],
    "operations.failback": ["failback"],
    "operations.failover": ["failover"],
    "operations.group": ["FailoverGroup"],
    "operations.plan_failover": ["plan_failback", "plan_failover", "plan_switchover"],
    "operations.recorder": ["StateRecorder"],
    "operations.resume": ["resume"],
    "operations.switchover": ["switchover"],
    "operations.doctor": ["doctor"],
    "operations.plan": ["plan_restore"],
    "operations.prune": ["plan_prune", "prune"],
    "operations.rehydrate": ["rehydrate"],
    "operations.restore": ["restore"],
    "operations.rotate": ["rotate"],
    "operations.verify": ["verify"],
    "planning.cost": ["estimate_cost"],
    "primitives": [
        "Archiver",
        "BackupTarget",
        "Fault",
        "Fencer",
        "KeyEncryptionKey",
        "ObjectStore",
        "Promoter",
        "RestoreDestination",
        "TrafficSwitch",
        "Validator",
    ],
}

__getattr__, __dir__ = lazily(__name__, {name: room for room, names in _ROOMS.items() for name in names})
