"""What others read, made from a policy, a report or a table: pure functions, values in and text out."""

from .lifecycle import Lifecycle, Place, lifecycle_rules, upload_tiers
from .postmortem import post_mortem
from .transitions import state_diagram

__all__ = ["Lifecycle", "Place", "lifecycle_rules", "post_mortem", "state_diagram", "upload_tiers"]
