"""Shipped with the library: in-memory doubles, the conformance suites, and real servers for tests."""
