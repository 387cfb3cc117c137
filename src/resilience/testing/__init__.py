"""Shipped with the library: in-memory doubles, the conformance suites, and real servers for tests.

The suites need pytest and pytest-asyncio (in its auto mode); the rest does not.
"""
