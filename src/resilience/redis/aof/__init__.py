"""The multi-part append-only file of Redis 7 and newer, and of Valkey: backed up, walked through, put in place."""
