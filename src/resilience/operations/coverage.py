"""coverage(): to which moments can a target be restored?"""

from __future__ import annotations

from resilience.model.reports import Coverage, RestorableMoment
from resilience.primitives import Archiver


async def coverage(archive: Archiver, target: str) -> Coverage:
    """Return every moment that the archive can bring `target` back to, oldest first; reads manifests only.

    Raises ManifestInvalid or Unsupported if a manifest cannot be read, Unavailable if the store does not answer.
    """
    return Coverage(
        target=target,
        moments=tuple(
            [
                RestorableMoment(
                    backup=manifest.id,
                    kind=manifest.kind,
                    lineage=manifest.lineage,
                    point=manifest.recovery_point,
                    taken_at=manifest.started_at,
                )
                async for manifest in archive.manifests(target)
            ]
        ),
    )
