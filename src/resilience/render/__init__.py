"""What other programs read, made from a policy: pure functions, values in and text out."""

from .lifecycle import Lifecycle, Place, lifecycle_rules, upload_tiers

__all__ = ["Lifecycle", "Place", "lifecycle_rules", "upload_tiers"]
