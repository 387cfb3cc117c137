"""The version, and how this library signs what it writes."""

VERSION = "0.1.0"
WRITER = f"resilience {VERSION}"
