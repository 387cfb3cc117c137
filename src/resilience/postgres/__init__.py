"""PostgreSQL 15 to 18."""

from .target import PostgresTarget

__all__ = ["PostgresTarget"]
