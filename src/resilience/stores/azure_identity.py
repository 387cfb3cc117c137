"""Who this process is for Azure, where nobody says it."""

from __future__ import annotations

from typing import TypeAlias

from azure.core.credentials_async import AsyncTokenCredential
from azure.identity.aio import DefaultAzureCredential

Identity: TypeAlias = AsyncTokenCredential


def found() -> Identity:
    """Return what finds out by itself: a managed identity, a workload's, or the environment's. To be closed."""
    return DefaultAzureCredential()
