"""The Protocols: what every store, archive and system looks like from above.

The verbs in operations/ know nothing else. Each invariant is tested by a conformance suite in resilience.testing, which
every implementation has to pass.
"""

from __future__ import annotations

from .backups import (
    Archiver,
    BackupTarget,
    Capture,
    Diagnosable,
    Draft,
    Log,
    Pruning,
    Reached,
    RestoreDestination,
    StoredBackup,
    Validator,
)
from .common import Named, Opened
from .drills import Canary, Watching
from .failovers import Beating, Check, Fault, Fencer, Promoter, TrafficSwitch
from .storage import Chunks, KeyEncryptionKey, ObjectInfo, ObjectStore, Rehydrating

__all__ = [
    "Archiver",
    "BackupTarget",
    "Beating",
    "Canary",
    "Capture",
    "Check",
    "Chunks",
    "Diagnosable",
    "Draft",
    "Fault",
    "Fencer",
    "KeyEncryptionKey",
    "Log",
    "Named",
    "ObjectInfo",
    "ObjectStore",
    "Opened",
    "Promoter",
    "Pruning",
    "Reached",
    "Rehydrating",
    "RestoreDestination",
    "StoredBackup",
    "TrafficSwitch",
    "Validator",
    "Watching",
]
