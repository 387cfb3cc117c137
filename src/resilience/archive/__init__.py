"""The Archiver over any store; docs/archive-format.md specifies what it writes."""

from .archive import Archive

__all__ = ["Archive"]
