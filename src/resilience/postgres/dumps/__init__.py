"""Logical backups: databases dumped, and loaded into a server that runs."""
