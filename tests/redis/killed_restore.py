"""Restores into a running server, in a process that the test kills."""

from __future__ import annotations

import asyncio
import sys

from resilience import Archive, restore
from resilience.redis import RedisServer
from resilience.stores import LocalStore

folder, url, program, within = sys.argv[1:]
into = RedisServer(url=url, program=program, within=within)
asyncio.run(restore(Archive(LocalStore(folder)), "cache", into=into))
