"""Executables that other programs must call: archive_command and restore_command."""
