"""Durable, numbered records over any store: what was about to be done, and what came of it."""

from __future__ import annotations

from .journal import Journal

__all__ = ["Journal"]
