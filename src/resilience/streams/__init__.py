"""Synchronous functions on bytes: cut, compress, expand, walk a tar. No I/O, no threads, no clock."""
