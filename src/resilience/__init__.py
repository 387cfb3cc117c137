"""Back up, restore and fail over a platform's data."""
from .archive import Archive
from .operations.backup import backup
