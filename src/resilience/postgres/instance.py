"""What tells one run of one server from every other: whoever reads the same through a route has reached that server."""

from __future__ import annotations

INSTANCE = """((select system_identifier::text from pg_control_system())
    || '/' || (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint::text)"""
"""SQL for `MemberFacts.instance`: the cluster's system identifier, and when its postmaster started, in microseconds.

It stays through a promotion and changes with every restart; any role may ask for it.
"""
